import contextlib
import io
import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.study.study import load_study
from jobs.launch import canary
from jobs.launch.canary import CANARY_ABOVE, choose, wanted
from jobs.launch.job import CANARY_STEPS, Order, StudySettings
from jobs.launch.launch import launch
from jobs.launch.prepare import estimated
from jobs.manifests.policy import Policy
from jobs.plan.estimate import Throughput, training_tokens_per_epoch
from jobs.plan.planned import PlannedRun
from jobs.spec import RunSpec, Submission
from jobs.study.folder import observe_study
from jobs.study.kept_code import Code
from seqlm.config import RunConfig
from seqlm.data.corpus import CorpusFacts, load_corpus
from seqlm.errors import CanaryError
from seqlm.files import write_json
from seqlm.records.studies import StudyFile
from seqlm.resources import Resources
from seqlm.rundir import RunDirectory
from tests.facts import fail
from tests.fakes import FakeBackend, make_fresh
from tests.seqlm.training.studies import make_config, write_text

FACTS = CorpusFacts(vocab_size=20, tokens={"train": 1000, "valid": 100, "test": 100}, sha256="")
GIB = 2**30


pytestmark = pytest.mark.usefixtures("no_waiting")


def measured(**changes: Any) -> dict[str, Any]:
    record = {
        "steps": CANARY_STEPS,
        "step_seconds": 0.21,
        "train_tokens_per_second": 100.0,
        "peak_memory_bytes": 13 * GIB // 10,
        "reserved_memory_bytes": None,
        "device": "processor",
        "device_memory_bytes": None,
    }
    return {**record, **changes}


def passes(submission: Submission, **changes: Any) -> int:
    """What a worker does: a canary measures, every other run is done."""
    is_canary = submission.run_dir.parent.name == "canary"
    name, content = (
        ("canary.json", measured(attempt=submission.attempt, **changes))
        if is_canary
        else ("result.json", {"best_val_ppl": 1.0})
    )
    write_json(submission.run_dir / name, content)
    return 0


def diverges(submission: Submission) -> int:
    fail(RunDirectory(submission.run_dir), {"kind": "diverged", "message": "the loss is nan"})
    return 1


def trial(study_dir: Path, config: RunConfig, *, name: str = "run", **resources: Any) -> PlannedRun:
    """A prepared run."""
    wishes = Resources(**{"cpus": 1, "gpus": 0, **resources})
    spec = RunSpec(name=name, config=config, resources=wishes)
    return estimated([replace(make_fresh(study_dir, spec), facts=FACTS)], Throughput())[0]


def check(trials: Sequence[PlannedRun], study_dir: Path, backend: FakeBackend) -> list[str]:
    """Run the canaries that are needed; return the printed lines."""
    code = Code(path=Path("/code"), commit=None, dirty=False, live=False)
    backend.env = {"MINE": "1"}
    with contextlib.redirect_stderr(io.StringIO()) as told:
        canary.check(trials, backend, code, StudySettings(path=study_dir, worker=("worker",)))
    return told.getvalue().splitlines()


# -- whether, and which --------------------------------------------------------------------------------------------


def test_more_than_ten_runs_that_start_get_canaries_unless_somebody_chooses(tmp_path: Path) -> None:
    starting = [trial(tmp_path, make_config(seed=seed)) for seed in range(CANARY_ABOVE + 1)]
    skipped = [replace(item, action="skip") for item in starting]
    assert wanted(None, starting)
    assert not wanted(None, starting[1:])
    assert not wanted(None, [*starting[1:], *skipped])
    assert wanted(True, starting[:1])
    assert not wanted(False, starting)


def test_the_canary_of_a_pair_is_its_run_that_needs_most_memory_and_of_equal_ones_the_lowest_rate(
    tmp_path: Path,
) -> None:
    configs = {
        "small": make_config("rnn", lr=0.1),
        "fast": make_config("rnn", hidden_size=64, lr=3e38),
        "slow": make_config("rnn", hidden_size=64, lr=0.1),
        "adam": make_config("rnn", optimizer="adam"),
        "gru": make_config("gru"),
    }
    found = choose(trial(tmp_path, config, name=name) for name, config in configs.items())
    assert [item.spec.name for item in found] == ["slow", "adam", "gru"]


def test_a_pair_whose_runs_all_resume_gets_no_canary(tmp_path: Path) -> None:
    resuming = replace(trial(tmp_path, make_config()), action="resume")
    backend = FakeBackend(passes)
    assert check([resuming], tmp_path, backend) == []
    assert backend.submissions == []


# -- passing and failing -------------------------------------------------------------------------------------------


def test_a_canary_is_the_worker_on_a_folder_of_its_own_with_the_resources_of_its_run(tmp_path: Path) -> None:
    backend = FakeBackend(passes)
    item = trial(tmp_path / "study", make_config("gru"))
    lines = check([item], tmp_path / "study", backend)
    (submission,) = backend.submissions
    assert submission.run_dir == tmp_path / "study" / "canary" / item.run.id
    assert submission.argv == (sys.executable, "worker", str(submission.run_dir))
    assert submission.env["SEQLM_CANARY"] == str(CANARY_STEPS)
    assert submission.env["MINE"] == "1"
    assert submission.resources == item.spec.resources
    assert lines[-1] == "canary gru-sgd passes: 0.21 s a step, 1.3 GiB"


def test_no_list_of_the_studys_runs_holds_a_canary(tmp_path: Path) -> None:
    item = trial(tmp_path, make_config())
    check([item], tmp_path, FakeBackend(passes))
    assert RunDirectory.canary(tmp_path, item.run.id).observe().state == "done"
    assert [run.run.id for run in observe_study(tmp_path)] == [item.run.id]
    assert [run.observation.state for run in observe_study(tmp_path)] == ["pending"]
    assert list(load_study(tmp_path).runs["id"]) == [item.run.id]


def test_canaries_run_side_by_side_as_the_backend_has_room(tmp_path: Path) -> None:
    backend = FakeBackend(passes, slots=2)
    check([trial(tmp_path, make_config(arch)) for arch in ("rnn", "gru", "transformer")], tmp_path, backend)
    assert backend.most_at_once == 2


def test_every_failed_canary_is_told_with_its_kind_message_and_log_and_the_others_still_run(tmp_path: Path) -> None:
    trials = [trial(tmp_path, make_config(arch), name=arch) for arch in ("rnn", "gru", "transformer")]

    def work(submission: Submission) -> int:
        return passes(submission) if submission.run_dir.name.startswith("gru") else diverges(submission)

    with pytest.raises(CanaryError) as caught:
        check(trials, tmp_path, FakeBackend(work, slots=1))
    first, second, last = str(caught.value).splitlines()
    log = RunDirectory.canary(tmp_path, trials[0].run.id).stderr_log(1)
    assert first == f"canary rnn-sgd (rnn): diverged: the loss is nan; see {log}"
    assert second.startswith("canary transformer-sgd (transformer): diverged")
    assert last == "no run of the grid was started; --no-canary starts it without canaries"
    assert caught.value.exit_code == 1


def test_starting_the_grid_all_the_same_is_not_offered_for_a_failure_that_every_run_would_have(tmp_path: Path) -> None:
    def work(submission: Submission) -> int:
        if not submission.run_dir.name.startswith("rnn"):
            return diverges(submission)
        fail(RunDirectory(submission.run_dir), {"kind": "code", "message": "self-check on X: ..."})
        return 1

    trials = [trial(tmp_path, make_config(arch), name=arch) for arch in ("rnn", "gru")]
    with pytest.raises(CanaryError, match=r"code: self-check on X: .*\nno run of the grid was started$"):
        check(trials[:1], tmp_path, FakeBackend(work))
    with pytest.raises(CanaryError, match=r"started; --no-canary starts it without canaries$"):
        check(trials, tmp_path, FakeBackend(work))


def test_a_canary_that_loses_its_node_is_tried_once_more(tmp_path: Path) -> None:
    backend = FakeBackend(lambda submission: passes(submission) if submission.attempt == 2 else -9)
    check([trial(tmp_path, make_config())], tmp_path, backend)
    assert len(backend.submissions) == 2
    hopeless = FakeBackend(lambda submission: -9)
    with pytest.raises(CanaryError, match="node: "):
        check([trial(tmp_path, make_config("gru"))], tmp_path, hopeless)
    assert len(hopeless.submissions) == 2


def test_a_canary_short_of_memory_is_told_of_and_not_made_to_fit(tmp_path: Path) -> None:
    def too_small(submission: Submission) -> int:
        fail(RunDirectory(submission.run_dir), {"kind": "oom", "message": "no memory"})
        return 1

    for launches in (1, 2):
        backend = FakeBackend(too_small)
        with pytest.raises(CanaryError, match=r"oom: no memory; not tried again, since policy\.oom is 0"):
            check([trial(tmp_path, make_config())], tmp_path, backend)
        (submission,) = backend.submissions
        assert (submission.attempt, submission.env["SEQLM_MICRO_BATCHES"]) == (launches, "1")


# -- in a launch ---------------------------------------------------------------------------------------------------


def submitted(
    tmp_path: Path,
    backend: FakeBackend,
    *,
    count: int = 6,
    canaries: bool | None = None,
    record: StudyFile | None = None,
) -> list[str]:
    """Launch ``count`` runs of two pairs; returns the folders submitted, canaries as ``canary/...``."""
    text = write_text(tmp_path / "text")
    specs = [
        RunSpec(name=f"{arch}{seed}", config=make_config(arch, seed=seed), order=2 * seed + number, data_path=text)
        for seed in range(count)
        for number, arch in enumerate(("rnn", "gru"))
    ]
    study_dir = tmp_path / "runs" / "study"
    study = StudySettings(path=study_dir, policy=Policy(max_stalled_retries=0))
    order = Order(specs=specs, live_code=True, canary=canaries, record=record)
    try:
        launch(study, order, backend, lambda planned: contextlib.nullcontext())
    finally:
        names = [str(submission.run_dir.relative_to(study_dir)) for submission in backend.submissions]
    return [name.rpartition("-")[0] for name in names]


@pytest.mark.process
def test_the_grid_waits_for_its_canaries_as_status_says_and_starts_once_they_have_passed(tmp_path: Path) -> None:
    seen: set[str] = set()

    def look(submission: Submission) -> int:
        if submission.run_dir.parent.name == "canary":
            queue = json.loads((tmp_path / "runs" / "study" / "queue.json").read_text())
            seen.update(queue["waiting"].values())
        return passes(submission)

    names = submitted(tmp_path, FakeBackend(look))
    assert names[:2] == ["canary/rnn0", "canary/gru0"]
    assert len(names) == 14
    assert seen == {"waits for the canaries"}


@pytest.mark.process
def test_canaries_tell_the_times_that_the_study_keeps_as_estimates(tmp_path: Path) -> None:
    study_dir = tmp_path / "runs" / "study"
    before: list[dict[str, Any]] = []

    def work(submission: Submission) -> int:
        before.append(json.loads((study_dir / "study.json").read_text())["estimates"])
        return passes(submission)

    submitted(tmp_path, FakeBackend(work), record=StudyFile(version=3))
    assert [found["seconds"] for found in before[0].values()] == [None] * 12
    after = json.loads((study_dir / "study.json").read_text())["estimates"]
    facts = load_corpus(make_config().data, tmp_path / "text").facts
    per_epoch = training_tokens_per_epoch(facts.tokens["train"], 8, 5)
    assert [found["seconds"] for found in after.values()] == [pytest.approx(2 * per_epoch / 100)] * 12


def interrupt(submission: Submission) -> int:
    signal.raise_signal(signal.SIGINT)
    return 143


@pytest.mark.process
@pytest.mark.parametrize(("work", "error"), [(diverges, CanaryError), (interrupt, KeyboardInterrupt)])
def test_nothing_of_the_grid_starts_when_a_canary_fails_or_somebody_interrupts(
    tmp_path: Path, work: Callable[[Submission], int], error: type[BaseException]
) -> None:
    backend = FakeBackend(work)
    with pytest.raises(error):
        submitted(tmp_path, backend)
    assert {submission.run_dir.parent.name for submission in backend.submissions} == {"canary"}
    assert {run.observation.state for run in observe_study(tmp_path / "runs" / "study")} == {"pending"}
    assert not backend.is_open


@pytest.mark.process
def test_the_speeds_of_the_canaries_order_the_queue(tmp_path: Path) -> None:
    def work(submission: Submission) -> int:
        slow = submission.run_dir.name.startswith("rnn")
        return passes(submission, train_tokens_per_second=1.0 if slow else 1000.0)

    assert [name[:3] for name in submitted(tmp_path, FakeBackend(work, slots=1))[2:]] == ["rnn"] * 6 + ["gru"] * 6
    by_operations = submitted(tmp_path / "b", FakeBackend(passes, slots=1), canaries=False)
    assert [name[:3] for name in by_operations] == ["gru"] * 6 + ["rnn"] * 6, "a GRU has more to compute"


@pytest.mark.process
def test_the_canary_has_the_cores_that_its_run_gets_in_the_whole_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = FakeBackend(passes, slots=6)
    resolve = backend.resolve

    def share(spec: RunSpec, at_most: int) -> Resources:
        return resolve(spec, at_most) if spec.resources.cpus else Resources(cpus=at_most)

    monkeypatch.setattr(backend, "resolve", share)
    assert len(submitted(tmp_path, backend, count=3, canaries=True)) == 8
    assert {submission.resources.cpus for submission in backend.submissions} == {6}

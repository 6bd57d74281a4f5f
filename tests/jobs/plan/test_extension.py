"""What a launch does with runs that have trained other epochs than it requests."""

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.cli.studies import summary
from jobs.launch.job import Order, StudySettings
from jobs.launch.prepare import plan_runs, preparing
from jobs.plan.planned import Action, plan
from jobs.plan.record import write_record
from jobs.spec import RunSpec
from jobs.study.folder import observe_study
from jobs.study.scheduler import Views
from seqlm.errors import FileError
from seqlm.files import read_json, write_json, write_json_lines
from seqlm.records.runs import Provenance
from seqlm.records.studies import StudyFile
from seqlm.rundir import Observation, RunDirectory
from seqlm.state import FailureKind, State
from tests.facts import make_folder, stop
from tests.fakes import FakeBackend, make_planned
from tests.seqlm.training.studies import make_config, write_text


def observed(state: State, gone: int, result: int = 0, kind: FailureKind | None = None) -> Observation:
    epoch = gone - 1 if gone else None
    reason = f"{kind}: why" if kind else None
    return Observation(state=state, epoch=epoch, best_val_ppl=None, reason=reason, kind=kind, result_epochs=result)


def planned(
    seen: Observation, *, before: int = 40, epochs: int = 40, has_checkpoint: bool = True, retry: bool = False
) -> tuple[str, str | None, int]:
    """Action, reason and last epoch if a launch requests ``epochs``, and the one before requested ``before``."""
    spec = RunSpec(name="a", config=make_config(epochs=epochs))
    item = plan(spec, RunDirectory(Path("a")), seen, has_checkpoint=has_checkpoint, retry=retry, before=before)
    return item.action, item.reason, item.spec.config.train.epochs


ENDS_THERE = ("resume", "after 45 epochs, and ends there, since 40 are requested", 45)
NOT_YET = ", for 40 epochs; run this again once it has ended, for"


@pytest.mark.parametrize(
    ("seen", "before", "epochs", "expected"),
    [
        (observed("done", 40, 40), 40, 60, ("extend", "40 -> 60", 60)),
        (observed("done", 40, 40), 40, 40, ("skip", "done", 40)),
        (observed("done", 40, 40), 40, 20, ("skip", "done; it has trained 40 epochs, and 20 are requested", 20)),
        (observed("done", 0, 40), 40, 60, ("extend", "40 -> 60", 60)),  # its metrics.jsonl is lost
        (observed("pending", 40, 40), 60, 60, ("resume", "after 40 epochs", 60)),
        (observed("pending", 10), 40, 60, ("resume", "after 10 epochs, for 60 epochs instead of 40", 60)),
        (observed("pending", 10), 40, 20, ("resume", "after 10 epochs, for 20 epochs instead of 40", 20)),
        (observed("pending", 0), 40, 20, ("resume", "in the first epoch, for 20 epochs instead of 40", 20)),
        (observed("pending", 45, 40), 60, 40, ENDS_THERE),
        (observed("failed", 45, 40, "diverged"), 60, 40, ENDS_THERE),
        (observed("failed", 45, 40, "diverged"), 60, 60, ("skip", "diverged: why; `retry` starts it again", 60)),
        (observed("failed", 10, 0, "diverged"), 40, 60, ("skip", "diverged: why; `retry` starts it again", 60)),
        (observed("running", 10), 40, 60, ("skip", f"running{NOT_YET} 60", 60)),
        (observed("queued", 10), 40, 20, ("skip", f"queued{NOT_YET} 20", 20)),
        (observed("running", 10), 40, 40, ("skip", "running", 40)),
    ],
)
def test_the_latest_launch_says_how_far_a_run_goes_and_nothing_is_repeated(
    seen: Observation, before: int, epochs: int, expected: tuple[str, str, int]
) -> None:
    assert planned(seen, before=before, epochs=epochs) == expected


@pytest.mark.parametrize(
    ("seen", "has_checkpoint", "retry", "action"),
    [
        (observed("pending", 0), False, False, "start"),
        (observed("done", 40, 40), True, True, "skip"),
        (observed("running", 10), True, True, "skip"),
        (observed("queued", 0), False, True, "skip"),
        (observed("failed", 0, 0, "oom"), False, False, "skip"),
        (observed("failed", 0, 0, "code"), False, True, "start"),
        (observed("failed", 10, 0, "node"), True, False, "resume"),
        (observed("failed", 10, 0, "preempted"), True, False, "resume"),
        (observed("failed", 0, 0, "timeout"), False, False, "start"),
        (observed("cancelled", 10, 0, "cancelled"), True, False, "skip"),
        (observed("cancelled", 10, 0, "cancelled"), True, True, "resume"),
    ],
)
def test_the_plan_follows_from_the_state(seen: Observation, has_checkpoint: bool, retry: bool, action: str) -> None:
    found, reason, _ = planned(seen, has_checkpoint=has_checkpoint, retry=retry)
    assert found == action
    assert reason or action == "start"


# -- on a folder ---------------------------------------------------------------------------------------------------


@pytest.fixture
def spec() -> RunSpec:
    return RunSpec(name="a", config=make_config(epochs=2))


@pytest.fixture
def run(tmp_path: Path, spec: RunSpec) -> RunDirectory:
    """A run that has trained two epochs."""
    run = make_folder(tmp_path / "s", spec)
    write_json_lines(run.metrics_file, [{"epoch": number, "val_ppl": 9.0 - number} for number in range(2)])
    write_json(run.result_file, {"epochs": 2, "best_val_ppl": 8.0})
    run.last_checkpoint.touch()
    return run


def longer(spec: RunSpec, epochs: int) -> RunSpec:
    return replace(spec, config=spec.config.with_epochs(epochs))


def test_a_done_run_is_not_done_once_more_is_requested(tmp_path: Path, run: RunDirectory, spec: RunSpec) -> None:
    assert run.is_done()
    assert run.has_ended()
    (item,) = plan_runs([longer(spec, 3)], tmp_path / "s")
    assert (item.run, item.action, item.reason, item.epochs_done) == (run, "extend", "2 -> 3", 2)
    assert run.is_done(), "a plan writes nothing"
    run.create(item.spec.config, Provenance(name="a"))
    assert not run.is_done()
    assert not run.has_ended()
    (seen,) = observe_study(tmp_path / "s")
    assert (seen.observation.state, seen.observation.epochs_done, seen.epochs_total) == ("pending", 2, 3)
    assert (seen.to_dict()["epochs_done"], seen.to_dict()["epochs_total"]) == (2, 3)
    assert summary(tmp_path / "s", Views())["states"] == {"pending": 1}
    (item,) = plan_runs([longer(spec, 3)], tmp_path / "s")
    assert (item.action, item.reason) == ("resume", "after 2 epochs")


@pytest.mark.process
def test_a_launch_writes_down_how_far_its_runs_go_and_never_back(
    tmp_path: Path, run: RunDirectory, spec: RunSpec
) -> None:
    spec = replace(spec, data_path=write_text(tmp_path / "text"))

    def launched(epochs: int) -> tuple[str, int]:
        study, order = StudySettings(path=tmp_path / "s"), Order(specs=[longer(spec, epochs)], live_code=True)
        with preparing(study, order, FakeBackend(lambda submission: 0)) as (planned, _):
            return planned[0].action, run.read_config().train.epochs

    assert launched(2) == ("skip", 2)
    assert launched(6) == ("extend", 6)
    write_json_lines(run.metrics_file, [{"epoch": number, "val_ppl": 9.0} for number in range(4)])
    assert launched(5) == ("resume", 5), "fewer than before"
    assert launched(3) == ("resume", 4), "it has trained four"
    assert launched(7) == ("resume", 7)


@pytest.mark.process
def test_a_stopped_run_that_is_retried_is_taken_up_by_the_next_launch_if_this_one_does_not_start_it(
    tmp_path: Path, run: RunDirectory, spec: RunSpec
) -> None:
    spec = replace(longer(spec, 9), data_path=write_text(tmp_path / "text"))
    study, order = StudySettings(path=tmp_path / "s"), Order(specs=[spec], live_code=True)
    run.result_file.unlink()
    stop(run, {"rung": 1, "epochs": 2, "reason": "stopped at epoch 1: 2nd of 2, keeps 1"})
    assert run.observe().state == "stopped"
    actions = []
    for retry in (False, True, False):  # each launch ends before it starts anything
        with preparing(study, replace(order, retry=retry), FakeBackend(lambda submission: 0)) as (planned, _):
            actions.append(planned[0].action)
    assert actions == ["skip", "resume", "resume"]


def test_a_run_with_damaged_files_has_ended_and_hides_no_other(run: RunDirectory) -> None:
    run.config_file.write_text("{")
    with pytest.raises(FileError):
        run.is_done()
    assert run.has_ended()


def test_a_run_that_is_freed_before_a_result_of_fewer_epochs_cannot_go_on(run: RunDirectory) -> None:
    run.last_checkpoint.unlink()
    assert run.cannot_go_on(3) is None, "its checkpoints were moved away as a whole"
    write_json(run.position_file, {"epoch": 2, "step": 0})
    assert "its last.pt was deleted" in (run.cannot_go_on(3) or "")


# -- estimates -----------------------------------------------------------------------------------------------------


def test_the_estimate_of_a_run_grows_by_the_epochs_that_are_requested_later(
    tmp_path: Path, run: RunDirectory, spec: RunSpec
) -> None:
    def estimated(epochs: int, gone: int, seconds: float) -> float:
        seen = observed("done", gone, gone)
        action: Action = "extend" if gone else "start"
        made = make_planned(longer(spec, epochs), seconds)
        item = replace(made, run=run, observation=seen, action=action)
        for _ in range(2):  # a launch with canaries writes twice
            write_record(tmp_path, StudyFile(), [item], lambda line: pytest.fail(line))
        record = (read_json(tmp_path / "study.json") or {})["estimates"][spec.fingerprint]
        assert record["epochs"] == epochs
        return float(record["seconds"])

    assert estimated(2, 0, 20.0) == 20.0
    assert estimated(5, 2, 60.0) == 50.0, "an epoch takes what was estimated before it began"
    assert estimated(4, 2, 1.0) == 40.0, "fewer than at the launch before"

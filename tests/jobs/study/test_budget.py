import json
import shutil
import time
from pathlib import Path

import pytest

from jobs.manifests.policy import Policy
from jobs.study.budget import READ_SECONDS, Budget, Hours, hours_of
from jobs.study.folder import ObservedRun, observe_study
from seqlm.errors import FileError
from seqlm.files import write_json
from seqlm.records.attempts import Exit, RankEnd
from seqlm.records.runs import Provenance
from seqlm.resources import Resources
from seqlm.rundir import BEHAVIOUR_FOLDER, RunDirectory, study_record_file
from seqlm.training import attempt
from seqlm.training.distributed import Rank
from slurm import scheduler
from tests.analysis.attempt_files import at, write_attempt
from tests.calls import counted
from tests.facts import fail, launch_again
from tests.seqlm.training.studies import make_config, make_run
from tests.slurm_jobs import write_jobs

HOUR = 3600.0


def spent(study: Path) -> Hours:
    return Budget(study, Policy()).spent()


def test_hours_of_all_attempts_count_gpus_and_cores_of_every_rank(tmp_path: Path) -> None:
    first, second = (make_run(tmp_path / name, make_config(seed=seed)) for seed, name in enumerate(("a-1", "b-2")))
    write_attempt(first, 1, start=0, end=HOUR, gpus=("GPU-1", "GPU-2"), hosts=("n1", "n2"))
    write_attempt(second, 1, start=0, end=HOUR)
    write_attempt(second, 2, start=2 * HOUR, end=3 * HOUR)
    assert spent(tmp_path) == {"gpu_hours": 2, "core_hours": 2 * 2 + 2 + 2}
    canary = RunDirectory.canary(tmp_path, first.id)
    write_attempt(canary, 1, start=0, end=HOUR, gpus=("GPU-1",))
    assert spent(tmp_path)["gpu_hours"] == 3, "canaries count"
    write_attempt(RunDirectory(tmp_path / BEHAVIOUR_FOLDER / first.id), 1, start=0, end=HOUR, gpus=("GPU-1",))
    assert spent(tmp_path)["gpu_hours"] == 3, "behaviour jobs do not"


def test_an_attempt_counts_from_the_start_of_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "process_seconds", lambda: 2 * HOUR)  # in which it has imported what it needs
    run = make_run(tmp_path / "a-1", make_config())
    made = attempt.Attempt(run=run, rank=Rank(), number=1)
    threads = made.record_start().threads
    run.write_end(1, RankEnd(outcome="done"))
    assert spent(tmp_path)["core_hours"] >= 2 * threads


def test_a_share_of_a_gpu_counts_as_that(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a-1", make_config())
    write_attempt(run, 1, start=0, end=HOUR, gpus=("GPU-1",))
    record = json.loads(run.worker_file(1).read_text())
    write_json(run.worker_file(1), {**record, "gpus": 0.25})
    assert spent(tmp_path) == {"gpu_hours": 0.25, "core_hours": 2}


def test_a_rank_that_lives_counts_by_one_clock(tmp_path: Path) -> None:
    """The first rank's node says when the attempt last lived, so the start of the other is taken from there, too."""
    run = make_run(tmp_path / "a-1", make_config())
    write_attempt(run, 1, start=0, alive=HOUR, hosts=("n1", "n2"), gpus=(None, None))
    record = json.loads(run.worker_file(1, 1).read_text())
    write_json(run.worker_file(1, 1), {**record, "started_at": at(-HOUR)})  # its clock is an hour behind
    assert spent(tmp_path)["core_hours"] == 2 * 2


def test_an_attempt_without_an_end_counts_until_its_last_sign_of_life(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a-1", make_config())
    write_attempt(run, 1, start=0)
    assert not any(spent(tmp_path).values()), "nothing is known of it yet"
    write_attempt(run, 1, start=0, alive=HOUR)
    assert spent(tmp_path)["core_hours"] == 2
    run.write_exit(1, Exit(kind="node", message="lost", ended_at=at(2 * HOUR)))
    assert spent(tmp_path)["core_hours"] == 4, "its launcher has seen it die"
    write_attempt(run, 2, start=5 * HOUR, alive=6 * HOUR)
    assert spent(tmp_path)["core_hours"] == 6


@pytest.mark.parametrize(
    ("record", "end"),
    [
        ({"started_at": at(0)}, at(-HOUR)),
        ({"started_at": "soon"}, at(0)),
        ({"started_at": at(0), "gpu": "x", "gpus": float("1e400"), "threads": "many"}, at(HOUR)),
        ({"started_at": at(0), "gpus": -3, "threads": True, "ranks": "two"}, at(HOUR)),
    ],
)
def test_a_strange_record_breaks_nothing_and_gives_nothing_back(
    tmp_path: Path, record: dict[str, object], end: str
) -> None:
    run = make_run(tmp_path / "a-1", make_config())
    run.attempt_dir(1).mkdir(parents=True)
    run.worker_file(1).write_text(json.dumps(record).replace("Infinity", "1e400"))
    run.worker_file(1, 1).write_text("{")
    write_json(run.end_file(1), {"ended_at": end})
    found = spent(tmp_path)
    assert found["gpu_hours"] in (0, 1)
    assert found["core_hours"] in (0, 1)


def test_an_attempt_that_has_ended_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "a-1", make_config())
    write_attempt(run, 1, start=0, end=HOUR)
    write_attempt(run, 2, start=HOUR, alive=2 * HOUR)
    budget = Budget(tmp_path, Policy())
    assert budget.spent()["core_hours"] == 4
    run.worker_file(1).unlink()
    write_attempt(run, 2, start=HOUR, alive=4 * HOUR)
    assert budget.spent()["core_hours"] == 4, "not read again within seconds"
    assert budget.spent(at_once=True)["core_hours"] == 2 + 6


def test_what_was_read_before_a_file_that_cannot_be_read_is_counted_at_the_next_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a-1", "b-1"):
        write_attempt(make_run(tmp_path / name, make_config()), 1, start=0, end=HOUR)
    budget, attempts = Budget(tmp_path, Policy()), RunDirectory.attempts

    def failing(run: RunDirectory) -> list[int]:
        if run.id == "b-1":
            raise FileError("cannot read b-1: Input/output error")
        return attempts(run)

    monkeypatch.setattr(RunDirectory, "attempts", failing)
    with pytest.raises(FileError):
        budget.spent()
    monkeypatch.setattr(RunDirectory, "attempts", attempts)
    assert budget.spent(at_once=True) == Budget(tmp_path, Policy()).spent()


def test_the_end_of_a_run_costs_the_same_however_many_have_ended(tmp_path: Path) -> None:
    costs = []
    for number in (4, 64):
        study = tmp_path / str(number)
        runs = [make_run(study / f"a-{seed}", make_config(seed=seed)) for seed in range(number)]
        for run in runs:
            write_attempt(run, 1, start=0, end=HOUR)
        budget = Budget(study, Policy(core_hours=1000))
        assert budget.spent()["core_hours"] == 2 * number
        write_attempt(runs[0], 2, start=HOUR, end=2 * HOUR)
        with counted() as calls:
            budget.count(runs[0])
            assert budget.spent()["core_hours"] == 2 * (number + 1)
        costs.append(calls.total())
    assert costs[0] == costs[1] > 0


def test_what_others_have_used_is_seen_at_the_next_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = (make_run(tmp_path / name, make_config(seed=seed)) for seed, name in enumerate(("a-1", "b-2")))
    budget = Budget(tmp_path, Policy(core_hours=5))
    assert budget.is_spent() is None
    for run in (mine, other):
        write_attempt(run, 1, start=0, end=HOUR)
    budget.count(mine)
    assert budget.spent()["core_hours"] == 2
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + READ_SECONDS + 1)
    assert budget.spent()["core_hours"] == 4


def test_reading_a_large_study_keeps_nobody_from_other_work_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt takes a minute to read, as on a slow file system."""
    runs = [make_run(tmp_path / f"a-{seed}", make_config(seed=seed)) for seed in range(6)]
    for run in runs:
        write_attempt(run, 1, start=0, end=HOUR)
    now = time.monotonic()
    read, listing = list[str](), RunDirectory.attempts

    def slow(run: RunDirectory) -> list[int]:
        nonlocal now
        now += 60
        read.append(run.id)
        return listing(run)

    monkeypatch.setattr(RunDirectory, "attempts", slow)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    budget = Budget(tmp_path, Policy(core_hours=1000))
    assert budget.spent()["core_hours"] == 12
    for run in runs:
        write_attempt(run, 2, start=HOUR, end=2 * HOUR)
    now += 24 * HOUR
    each = []
    for _ in runs:
        read.clear()
        budget.spent()
        each.append(len(read))
    assert each == [1] * len(runs)
    budget.count(runs[0])
    budget.spent()
    assert budget.spent()["core_hours"] == 24


def test_a_budget_is_spent_once_one_limit_is_reached(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a-1", make_config())
    write_attempt(run, 1, start=0, end=40 * HOUR, gpus=("GPU-1",))
    assert Budget(tmp_path, Policy(gpu_hours=50, core_hours=400)).is_spent() is None
    assert Budget(tmp_path, Policy(gpu_hours=40)).is_spent() == "budget of 40 GPU hours is spent"
    assert Budget(tmp_path, Policy(gpu_hours=50, core_hours=79)).is_spent() == "budget of 79 core hours is spent"
    assert Budget(tmp_path, Policy()).is_spent() is None


def test_hours_follow_from_resources() -> None:
    assert hours_of(Resources(ranks=2, cpus=4, gpus=1), 1800) == {"gpu_hours": 1, "core_hours": 4}
    assert hours_of(Resources(cpus=2, gpus=0.5), 3600) == {"gpu_hours": 0.5, "core_hours": 2}


# -- what status says ----------------------------------------------------------------------------------------------


def observed(study: Path) -> ObservedRun:
    (run,) = observe_study(study)
    return run


def test_a_run_that_the_budget_keeps_from_starting_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(epochs=4)
    study = tmp_path / "s"
    run = RunDirectory.locate(study, "a", config.fingerprint())
    run.create(config, Provenance(name="a"))
    other = RunDirectory(study / "b-2")
    write_attempt(other, 1, start=0, end=3 * HOUR)  # 6 core hours, of a run that is gone

    def record(hours: object) -> None:
        write_json(study_record_file(study), {"policy": {"core_hours": hours}})

    record(6)
    assert observed(study).to_dict()["reason"] == "waits: budget of 6 core hours is spent"
    assert observed(study).observation.state == "pending"
    record(7)
    assert observed(study).observation.reason is None, "an hour is left"
    record(6)
    folder = write_jobs(study, {run.id: "12_0"}).folder
    monkeypatch.setattr(scheduler, "ask", lambda *command: f"12_0|COMPLETED||{folder}")
    assert observed(study).observation.state == "pending", "its job of SLURM has seen that and has ended"
    record("unlimited")
    seen = observed(study).observation
    assert (seen.state, seen.reason) == ("pending", "its job ended without writing a result; see its logs")
    for policy in (3, {"core_hours": "x"}, {"core_hours": -1}):
        study_record_file(study).write_text(json.dumps({"policy": policy}))
        assert observed(study).observation.reason == seen.reason
    record(6)
    launch_again(run)
    fail(run, {"kind": "diverged", "message": "nan"})
    assert observed(study).observation.state == "failed", "the run itself has failed"


def test_a_stray_folder_among_the_attempts_is_no_attempt(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a-1", make_config())
    write_attempt(run, 1, start=0, alive=HOUR)
    shutil.copytree(run.attempt_dir(1), run.path / "attempts" / "0001-copy")
    assert spent(tmp_path)["core_hours"] == 2

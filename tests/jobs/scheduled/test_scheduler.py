"""A scheduler that is none of seqlm's: a study runs on it, and comes to its end whatever is killed."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.cli.studying import mark
from jobs.launch.job import Order, StudySettings
from jobs.launch.prepare import preparing
from jobs.scheduled.settings import ScheduledTable
from jobs.spec import RunSpec
from jobs.study.folder import ObservedRun, observe_study
from seqlm.records.attempts import Start
from seqlm.resources import Resources
from tests.jobs.scheduled import spool
from tests.jobs.scheduled.spool import SpoolBackend
from tests.seqlm.training.studies import make_config, write_text
from tests.waiting import wait_for

pytestmark = pytest.mark.process

BEGIN = """
import json, os, sys, time
run = sys.argv[1]
folder = os.path.join(run, "attempts", os.environ["SEQLM_ATTEMPT"].zfill(4))
open(os.path.join(folder, "worker.json"), "w").write("{}")
"""
TRAIN = """
open(os.path.join(run, "result.json"), "w").write("{}")
"""
KILL_ONCE = """
if os.environ["SEQLM_ATTEMPT"] == "1" and "run-0" in run:
    os.kill(os.getppid(), 9)
    sys.exit(1)
"""
STAY = """
if "run-0" in run:
    time.sleep(120)
"""


@pytest.fixture(autouse=True)
def at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The spool among the schedulers, with its cluster."""
    (tmp_path / "spool").mkdir()
    monkeypatch.setenv(spool.FOLDER, str(tmp_path / "spool"))
    for names, place in spool.PLACES:
        monkeypatch.setitem(names, spool.NAME, place)
    with spool.cluster():
        yield


def launch(study_dir: Path, program: str, number: int = 4) -> None:
    """Launch runs whose worker is a program."""
    text = write_text(study_dir.parent / "text", train_lines=30)
    specs = [
        RunSpec(
            name=f"run-{seed}", config=make_config(seed=seed), resources=Resources(cpus=2), data_path=text, order=seed
        )
        for seed in range(number)
    ]
    settings = ScheduledTable(python=f"{sys.executable} {spool.__file__}", timeout_min=5)
    backend = SpoolBackend(settings)
    study = StudySettings(path=study_dir, worker=("-S", "-c", program))
    with preparing(study, Order(specs=specs, live_code=True), backend) as (planned, work):
        assert work is not None
        backend.submit(planned, study, work.code, work.request)


def states(study_dir: Path) -> list[str]:
    return [one.observation.state for one in observe_study(study_dir)]


def until_done(study_dir: Path) -> None:
    wait_for(lambda: states(study_dir), "all runs to be done", until=lambda found: set(found) == {"done"})


def test_a_study_is_done_although_the_program_of_a_job_is_killed(tmp_path: Path) -> None:
    launch(tmp_path / "s", BEGIN + KILL_ONCE + TRAIN)
    until_done(tmp_path / "s")
    attempts = {one.name: one.run.attempts() for one in observe_study(tmp_path / "s")}
    assert attempts == {"run-0": [1, 2], "run-1": [1], "run-2": [1], "run-3": [1]}


def test_a_scheduler_that_takes_few_jobs_gets_few_that_share_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPOOL_MOST", "1")
    launch(tmp_path / "s", BEGIN + TRAIN)
    until_done(tmp_path / "s")
    assert [len(spool.jobs_of(array)) for array in (tmp_path / "spool").iterdir()] == [1]


def test_a_job_that_is_done_early_takes_all_runs_that_wait(tmp_path: Path) -> None:
    """The other one of two nodes has a run that stays."""
    launch(tmp_path / "s", BEGIN + STAY + TRAIN)
    wait_for(
        lambda: states(tmp_path / "s"), "the others", until=lambda found: found == ["running", "done", "done", "done"]
    )
    starts = [Start.read(one.run.attempt_dir(1)) or Start() for one in observe_study(tmp_path / "s")]
    assert len({start.job_id for start in starts[1:]}) == 1


def test_what_is_cancelled_ends_and_the_rest_goes_on(tmp_path: Path) -> None:
    launch(tmp_path / "s", BEGIN + STAY + TRAIN)

    def first() -> ObservedRun:
        return next(one for one in observe_study(tmp_path / "s") if one.name == "run-0")

    wait_for(lambda: first().observation.state, "the run to run", until=lambda state: state == "running")
    marked = mark([first()])
    assert SpoolBackend.cancel(tmp_path / "s", marked) == {}
    wait_for(
        lambda: states(tmp_path / "s"), "the others", until=lambda found: found == ["cancelled", "done", "done", "done"]
    )

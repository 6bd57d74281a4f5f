"""A launch within a budget, with a fake machine whose attempts use the hours that the tests say."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.launch import dispatch
from jobs.launch.dispatch import Dispatcher
from jobs.launch.job import LaunchOptions
from jobs.manifests.policy import Policy
from jobs.plan.planned import PlannedRun, plan
from jobs.spec import Resources, RunSpec, Submission
from jobs.study import budget
from jobs.study.budget import Budget
from jobs.study.kept_code import Code
from seqlm import ends
from seqlm.files import write_json
from seqlm.rundir import RunDirectory
from tests.analysis.attempt_files import write_attempt
from tests.facts import fail
from tests.fakes import FakeBackend, make_estimate
from tests.training.studies import make_config

HOUR = 3600.0
SPENT = "waits: budget of 10 core hours is spent"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(dispatch, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(dispatch, "STOP_SECONDS", 0.05)
    monkeypatch.setattr(ends, "FIRST_DELAY_SECONDS", 0.0)
    monkeypatch.setattr(budget, "READ_SECONDS", 0.0)


def runs(study: Path, *hours: float | None, epochs: int = 4) -> list[PlannedRun]:
    """Fresh runs on one core, each with this estimate in hours."""
    items = []
    for number, expected in enumerate(hours):
        config = make_config(seed=number, epochs=epochs)
        spec = RunSpec(name=f"run{number}", config=config, resources=Resources(cpus=1, gpus=0), order=number)
        run = RunDirectory.locate(study, spec.name, spec.fingerprint)
        run.create(config, {"name": spec.name})
        item = plan(spec, run, run.observe(), has_checkpoint=False, retry=False)
        items.append(replace(item, estimate=make_estimate(None if expected is None else expected * HOUR)))
    return items


def uses(hours: float) -> Callable[[Submission], int]:
    """A job that ends well after this number of core hours (the records have two threads)."""

    def work(submission: Submission) -> int:
        run = RunDirectory(submission.run_dir)
        write_attempt(run, submission.attempt, start=0, end=hours * HOUR / 2)
        write_json(run.result_file, {})
        return 0

    return work


def launch(study: Path, items: Sequence[PlannedRun], backend: FakeBackend, **limits: float) -> list[Any]:
    """Dispatch; return the state of each run, and why."""
    code = Code(path=Path("/code"), commit=None, dirty=False, live=False)
    policy = Policy(**limits)
    Dispatcher(backend, code, LaunchOptions(study_dir=study, worker=("worker",), policy=policy)).dispatch(items)
    found = [item.run.observe(spent=Budget(study, policy).is_spent) for item in items]
    return [(one.state, one.reason) for one in found]


def names(backend: FakeBackend) -> list[str]:
    return [submission.run_dir.name.rpartition("-")[0] for submission in backend.submissions]


def test_runs_start_while_anything_is_left(tmp_path: Path) -> None:
    backend = FakeBackend(uses(4), slots=1)
    ended = launch(tmp_path, runs(tmp_path, None, None, None, None), backend, core_hours=10)
    assert names(backend) == ["run0", "run1", "run2"]
    assert ended[3] == ("pending", SPENT)


def test_live_runs_stop_when_the_budget_is_spent_and_go_on_when_it_is_raised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    items = runs(tmp_path, None, None, None)
    backend = FakeBackend(uses(1), slots=2, ends=False)
    backend.obeys = False  # it needs longer to save than a cancelled run is given

    def lives(submission: Submission) -> None:
        write_attempt(RunDirectory(submission.run_dir), 1, start=0, alive=3 * HOUR)

    def saves_at_last(seconds: float) -> None:
        now = time.monotonic()
        if backend.stopped and now - first_asked.setdefault("at", now) > 0.1:
            backend.obeys = True
            for item in items[:2]:
                write_attempt(item.run, 1, start=0, end=3 * HOUR)

    first_asked: dict[str, float] = {}
    monkeypatch.setattr(backend, "wait", saves_at_last)
    backend.when_started = lives

    ended = launch(tmp_path, items, backend, core_hours=10)
    assert names(backend) == ["run0", "run1"]
    assert backend.stopped == [("1", False), ("2", False)], "asked, and not killed"
    assert ended == [("pending", SPENT)] * 3
    assert capsys.readouterr().err == "budget of 10 core hours is spent; 2 runs stop at a checkpoint\n"
    assert [item.run.failures() for item in items] == [[]] * 3, "no failure, no cancellation"

    backend = FakeBackend(uses(1), slots=2)
    ended = launch(tmp_path, items, backend, core_hours=20)
    assert [state for state, _ in ended] == ["done"] * 3
    assert [submission.attempt for submission in backend.submissions] == [2, 2, 1]


def test_a_failed_attempt_has_used_its_hours_and_is_not_tried_again_beyond_the_budget(tmp_path: Path) -> None:
    def fails(submission: Submission) -> int:
        run = RunDirectory(submission.run_dir)
        write_attempt(run, submission.attempt, start=0, end=3 * HOUR)
        fail(run, {"kind": "node", "message": "lost", "attempt": submission.attempt})
        return 1

    backend = FakeBackend(fails, slots=1)
    ended = launch(tmp_path, runs(tmp_path, None), backend, core_hours=10)
    assert [submission.attempt for submission in backend.submissions] == [1, 2]
    assert ended == [("failed", "node: lost")]


def test_a_study_whose_budget_is_spent_starts_nothing(tmp_path: Path) -> None:
    items = runs(tmp_path, 1, 1)
    write_attempt(items[0].run, 1, start=0, end=5 * HOUR)
    backend = FakeBackend(uses(1))
    assert launch(tmp_path, items, backend, core_hours=10) == [("pending", SPENT)] * 2
    assert backend.submissions == []

"""A launcher and the rungs of a search: what it makes of runs that are stopped."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.launch import dispatch
from jobs.launch.prepare import plan_runs
from jobs.plan.planned import PlannedRun, plan
from jobs.spec import Resources, RunSpec, Submission
from seqlm import ends
from seqlm.errors import EXIT_RUNG
from seqlm.files import write_json, write_json_lines
from seqlm.rundir import RunDirectory
from seqlm.search import Search, decide
from seqlm.state import State
from tests.fakes import FakeBackend
from tests.jobs.launch.test_dispatch import run_all
from tests.training.studies import make_config

EPOCHS = 6


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(dispatch, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(ends, "FIRST_DELAY_SECONDS", 0.0)


def make_items(study_dir: Path, count: int, archs: Sequence[str] = ("rnn",)) -> list[PlannedRun]:
    items = []
    for number in range(count):
        config = make_config(archs[number % len(archs)], seed=number, epochs=EPOCHS)
        spec = RunSpec(name=f"run{number}", config=config, resources=Resources(cpus=1, gpus=0), order=number)
        run = RunDirectory.locate(study_dir, spec.name, spec.fingerprint)
        run.create(spec.config, {"name": spec.name, "order": number})
        items.append(plan(spec, run, run.observe(), has_checkpoint=False, retry=False))
    return items


def value_of(run: RunDirectory, epoch: int) -> float:
    """A made-up curve: two runs may cross, and no two are equal."""
    seed = run.read_config().seed
    draw = random.Random(seed)
    return draw.uniform(50, 100) * draw.uniform(0.6, 1.0) ** epoch + seed / 1000


def climb(submission: Submission) -> int:
    """What a worker does, without training."""
    run, search = RunDirectory(submission.run_dir), Search.from_text(submission.env["SEQLM_SEARCH"])
    assert search is not None
    finished = len(run.read_metrics()[0])
    while finished < EPOCHS:
        if finished in search.rungs and decide(run, search, finished, submission.attempt) == "stopped":
            return EXIT_RUNG
        finished += 1
        write_json_lines(run.metrics_file, [{"epoch": e, "val_ppl": value_of(run, e)} for e in range(finished)])
    write_json(run.result_file, {"best_val_ppl": 1.0})
    return 0


def ends_of(items: Sequence[PlannedRun]) -> dict[str, tuple[State, int]]:
    """Name of each run -> its state, and the number of its epochs."""
    seen = {item.spec.name: item.run.observe() for item in items}
    return {name: (one.state, (one.epoch or -1) + 1) for name, one in seen.items()}


def test_a_search_gives_a_freed_place_to_the_next_run_at_once(tmp_path: Path) -> None:
    items = make_items(tmp_path, 8)
    search = Search(rungs=(2, 4), keep=0.34)
    backend = FakeBackend(climb, slots=1)
    run_all(backend, items, search=search)
    assert {state for state, _ in ends_of(items).values()} == {"done", "stopped"}
    assert [submission.attempt for submission in backend.submissions] == [1] * 8


def observe_again(study_dir: Path, items: Sequence[PlannedRun], **options: Any) -> list[PlannedRun]:
    return plan_runs([item.spec for item in items], study_dir, **options)


def test_a_stopped_run_is_left_alone_by_run_and_goes_on_with_retry(tmp_path: Path) -> None:
    items = make_items(tmp_path, 4)
    search = Search(rungs=(2,), keep=0.25, min_runs=1)
    run_all(FakeBackend(climb, slots=1), items, search=search)
    again = observe_again(tmp_path, items)
    assert {item.action for item in again} == {"skip"}
    stopped = [item for item in again if item.observation.state == "stopped"]
    assert stopped
    assert all(item.reason == f"{item.observation.reason}; `retry --kind stopped` lets it go on" for item in stopped)
    by_hand = [item for item in observe_again(tmp_path, items, retry=True) if item.action != "skip"]
    assert [item.run.id for item in by_hand] == [item.run.id for item in stopped]
    run_all(FakeBackend(climb), by_hand, search=search)
    assert set(ends_of(items).values()) == {("done", EPOCHS)}
    assert all(item.run.read_rungs()[2]["decision"] == "stopped" for item in stopped)


def test_a_stopped_run_goes_on_if_it_is_asked_for_more_epochs(tmp_path: Path) -> None:
    items = make_items(tmp_path, 4)
    search = Search(rungs=(2,), keep=0.25, min_runs=1)
    run_all(FakeBackend(climb, slots=1), items, search=search)
    stopped = [item for item in items if item.run.read_stopped()]
    for item in stopped:  # what a launch plans from
        item.run.last_checkpoint.write_bytes(b"")
    fewer = [replace(item.spec, config=item.spec.config.with_epochs(EPOCHS - 1)) for item in stopped]
    assert {item.action for item in plan_runs(fewer, tmp_path)} == {"skip"}
    more = [replace(item.spec, config=item.spec.config.with_epochs(EPOCHS + 2)) for item in stopped]
    planned = plan_runs(more, tmp_path)
    assert {(item.action, item.reason) for item in planned} == {
        ("resume", f"after 2 epochs, for {EPOCHS + 2} epochs instead of {EPOCHS}")
    }

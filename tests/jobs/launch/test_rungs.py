"""A launcher and the rungs of a search: what it makes of runs that are stopped, and of runs that wait for others."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.attempt import retry
from jobs.launch import dispatch
from jobs.launch.dispatch import Event
from jobs.launch.prepare import plan_runs
from jobs.plan.planned import PlannedRun, plan
from jobs.spec import Resources, RunSpec, Submission
from seqlm.errors import EXIT_RUNG
from seqlm.files import write_json, write_json_lines
from seqlm.rundir import RunDirectory, State
from seqlm.search import Search, decide, decision_at, wait_at
from tests.fakes import FakeBackend
from tests.jobs.launch.test_dispatch import run_all
from tests.training.studies import make_config

EPOCHS = 6


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(dispatch, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(retry, "FIRST_DELAY_SECONDS", 0.0)


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
        if finished in search.rungs:
            if search.mode == "async":
                decide(run, search, finished)
            if decision_at(run, finished) != "goes on":
                wait_at(run, finished)
                return EXIT_RUNG
        finished += 1
        write_json_lines(run.metrics_file, [{"epoch": e, "val_ppl": value_of(run, e)} for e in range(finished)])
    write_json(run.result_file, {"best_val_ppl": 1.0})
    return 0


def ends_of(items: Sequence[PlannedRun]) -> dict[str, tuple[State, int]]:
    """Name of each run -> its state, and the number of its epochs."""
    seen = {item.spec.name: item.run.observe() for item in items}
    return {name: (one.state, (one.epoch or -1) + 1) for name, one in seen.items()}


def halved(items: Sequence[PlannedRun], search: Search) -> dict[str, tuple[State, int]]:
    """The same by successive halving of each architecture, in another implementation."""
    ends: dict[str, tuple[State, int]] = {item.spec.name: ("done", EPOCHS) for item in items}
    for arch in {item.spec.config.model.arch for item in items}:
        left = [item for item in items if item.spec.config.model.arch == arch]
        for rung in search.rungs:
            if len(left) < search.min_runs:
                break
            left.sort(key=lambda item: value_of(item.run, rung - 1))
            kept = -int(-len(left) * search.keep // 1)
            ends |= {item.spec.name: ("stopped", rung) for item in left[kept:]}
            left = left[:kept]
    return ends


SYNC = Search(rungs=(2, 4), keep=0.5, min_runs=3, within=("model.arch",), mode="sync")


@pytest.mark.parametrize("slots", [1, 3, 20])
@pytest.mark.parametrize("seed", [0, 1])
def test_sync_has_the_same_survivors_whatever_the_order(tmp_path: Path, slots: int, seed: int) -> None:
    items = make_items(tmp_path, 13, ("rnn", "gru"))
    backend, events = FakeBackend(climb, slots=slots), list[Event]()
    run_all(backend, random.Random(seed).sample(items, len(items)), events.append, search=SYNC)
    expected = halved(items, SYNC)
    assert ends_of(items) == expected
    assert len(set(expected.values())) == 3, "some stop at each rung"
    ended = [(event.planned.spec.name, event.observation.state) for event in events if event.kind == "ended"]
    assert sorted(ended) == sorted((name, state) for name, (state, _) in expected.items()), "each ends once"
    starts = {item.spec.name: sum(s.run_dir == item.run.path for s in backend.submissions) for item in items}
    assert starts == {name: {2: 1, 4: 2, 6: 3}[epochs] for name, (_, epochs) in expected.items()}
    assert all(item.run.read_failure() is None for item in items)


def test_a_run_that_fails_for_good_or_is_cancelled_keeps_no_other_waiting(tmp_path: Path) -> None:
    items = make_items(tmp_path, 5)
    ill, sick, _, _, unwanted = items

    def work(submission: Submission) -> int:
        if submission.run_dir == ill.run.path:
            write_json(ill.run.failure_file, {"kind": "diverged", "message": "the loss is nan"})
            return 1
        if submission.run_dir == sick.run.path and submission.attempt == 1:
            return -9  # its node; the next attempt is as good as the first
        return climb(submission)

    def cancel(event: Event) -> None:
        if event.kind == "waits":
            assert event.observation.reason == "waits at epoch 2 for the runs that it is compared with"
        if event.planned is unwanted and event.kind == "waits":
            unwanted.run.write_failure_once({"kind": "cancelled", "message": "cancelled by the user"})

    search = Search(rungs=(2,), keep=0.7, min_runs=2, mode="sync")
    run_all(FakeBackend(work, slots=2), items, cancel, search=search)
    assert ill.run.observe().state == "failed"
    others = [item for item in items if item is not ill]
    expected = halved(others, search)
    assert sorted(expected.values()) == [("done", 6), ("done", 6), ("done", 6), ("stopped", 2)]
    cancelled = "cancelled" if expected[unwanted.spec.name][0] == "done" else "stopped"
    assert ends_of(others) == {**expected, unwanted.spec.name: (cancelled, 2)}
    assert sick.run.attempts()[:2] == [1, 2]


def test_a_launcher_that_was_killed_leaves_runs_that_the_next_one_compares(tmp_path: Path) -> None:
    items = make_items(tmp_path, 6)
    for item in items[:4]:
        write_json_lines(item.run.metrics_file, [{"epoch": e, "val_ppl": value_of(item.run, e)} for e in range(2)])
        wait_at(item.run, 2)
    search = Search(rungs=(2,), keep=0.5, mode="sync")
    backend = FakeBackend(climb, slots=1)
    run_all(backend, items, search=search)
    assert ends_of(items) == halved(items, search)
    assert [s.run_dir for s in backend.submissions[:2]] == [item.run.path for item in items[4:]], "the others wait"


def test_async_gives_a_freed_place_to_the_next_run_at_once(tmp_path: Path) -> None:
    items = make_items(tmp_path, 8)
    search = Search(rungs=(2, 4), keep=0.34)
    backend, events = FakeBackend(climb, slots=1), list[Event]()
    run_all(backend, items, events.append, search=search)
    assert {state for state, _ in ends_of(items).values()} == {"done", "stopped"}
    assert [event.kind for event in events if event.kind in ("started", "ended")] == ["started", "ended"] * 8


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
    assert all(item.by_hand for item in by_hand)
    run_all(FakeBackend(climb), by_hand, search=search)
    assert set(ends_of(items).values()) == {("done", EPOCHS)}
    assert all(item.run.read_rungs()["2"]["decision"] == "by hand" for item in stopped)


def test_a_stopped_run_goes_on_if_it_is_asked_for_more_epochs(tmp_path: Path) -> None:
    items = make_items(tmp_path, 4)
    search = Search(rungs=(2,), keep=0.25, min_runs=1)
    run_all(FakeBackend(climb, slots=1), items, search=search)
    stopped = [item for item in items if item.run.stopped_file.exists()]
    for item in stopped:  # what a launch plans from
        item.run.last_checkpoint.write_bytes(b"")
    fewer = [replace(item.spec, config=item.spec.config.with_epochs(EPOCHS - 1)) for item in stopped]
    assert {item.action for item in plan_runs(fewer, tmp_path)} == {"skip"}
    more = [replace(item.spec, config=item.spec.config.with_epochs(EPOCHS + 2)) for item in stopped]
    planned = plan_runs(more, tmp_path)
    assert {(item.action, item.reason, item.by_hand) for item in planned} == {
        ("resume", f"after 2 epochs, for {EPOCHS + 2} epochs instead of {EPOCHS}", True)
    }

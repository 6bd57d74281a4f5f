from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import dispatch, retry
from jobs.code_snapshot import Code
from jobs.dispatch import Dispatcher, Event, Planned, plan
from jobs.spec import Resources, RunSpec, Submission
from seqlm.errors import BackendError, FileError
from seqlm.rundir import FailureKind, Observation, RunDirectory, State, write_json
from tests.fakes import FakeBackend
from tests.training.studies import make_config


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(dispatch, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(dispatch, "STOP_SECONDS", 0.05)
    monkeypatch.setattr(retry, "FIRST_DELAY_SECONDS", 0.0)


def observed(state: State, kind: FailureKind | None = None) -> Observation:
    return Observation(state=state, epoch=None, best_val_ppl=None, reason=None, kind=kind)


@pytest.mark.parametrize(
    ("observation", "has_checkpoint", "retry", "action"),
    [
        (observed("pending"), False, False, "start"),
        (observed("pending"), True, False, "resume"),
        (observed("done"), True, False, "skip"),
        (observed("done"), True, True, "skip"),
        (observed("running"), True, True, "skip"),
        (observed("queued"), False, True, "skip"),
        (observed("failed", "diverged"), True, False, "skip"),
        (observed("failed", "code"), False, False, "skip"),
        (observed("failed", "oom"), False, False, "skip"),
        (observed("failed", "code"), False, True, "start"),
        (observed("failed", "node"), True, False, "resume"),
        (observed("failed", "preempted"), True, False, "resume"),
        (observed("failed", "timeout"), False, False, "start"),
        (observed("cancelled", "cancelled"), True, False, "skip"),
        (observed("cancelled", "cancelled"), True, True, "resume"),
    ],
)
def test_the_plan_follows_from_the_state(
    tmp_path: Path, observation: Observation, has_checkpoint: bool, retry: bool, action: str
) -> None:
    spec = RunSpec(name="a", config=make_config())
    planned = plan(spec, RunDirectory(tmp_path), observation, has_checkpoint=has_checkpoint, retry=retry)
    assert planned.action == action
    if action == "skip":
        assert planned.reason


def finish(submission: Submission) -> int:
    write_json(submission.run_dir / "result.json", {"best_val_ppl": 1.0})
    return 0


def todo(folder: Path, count: int, *, ranks: int = 1) -> list[Planned]:
    """``count`` fresh runs below ``folder``, all to be started."""
    items = []
    for number in range(count):
        spec = RunSpec(name=f"run{number}", config=make_config(seed=number), resources=Resources(ranks=ranks))
        run = RunDirectory.locate(folder, spec.name, spec.fingerprint)
        run.create(spec.config, {"name": spec.name})
        items.append(plan(spec, run, run.observe(), has_checkpoint=False, retry=False))
    return items


def dispatcher(
    backend: FakeBackend, on_event: Callable[[Event], None] = lambda event: None, **options: Any
) -> Dispatcher:
    code = Code(path=Path("/code"), commit=None, dirty=False, live=False)
    settings: dict[str, Any] = {"work": {}, "data_path": {}, **options}
    return Dispatcher(backend, code=code, argv=("worker",), on_event=on_event, **settings)


def test_every_run_is_submitted_once_in_order_and_no_more_than_the_slots_at_a_time(tmp_path: Path) -> None:
    backend = FakeBackend(finish, slots=2)
    items = todo(tmp_path, 5)
    events: list[Event] = []
    dispatcher(backend, events.append).dispatch(items)
    assert [s.run_dir.name for s in backend.submissions] == [item.run.id for item in items]
    assert backend.most_at_once == 2
    assert [event.kind for event in events].count("ended") == 5
    assert all(item.run.observe().state == "done" for item in items)


def test_the_command_line_is_the_worker_and_one_path(tmp_path: Path) -> None:
    backend = FakeBackend(finish)
    (item,) = todo(tmp_path, 1)
    dispatcher(backend).dispatch([item])
    (submission,) = backend.submissions
    assert submission.argv == ("worker", str(item.run.path))
    assert submission.env["SEQLM_ATTEMPT"] == "1"
    assert submission.cwd == Path("/code")
    job = item.run.read_job()
    assert job is not None
    assert (job["backend"], job["job_id"], job["attempt"]) == ("fake", "1", 1)


def test_a_run_that_can_never_fit_is_told_before_anything_starts(tmp_path: Path) -> None:
    backend = FakeBackend(finish, slots=2)
    with pytest.raises(BackendError, match="never fits"):
        dispatcher(backend).dispatch([*todo(tmp_path, 1), *todo(tmp_path / "b", 1, ranks=3)])
    assert backend.submissions == []


def test_a_worker_that_dies_without_a_word_gets_its_failure_written(tmp_path: Path) -> None:
    def crash(submission: Submission) -> int:
        (submission.run_dir / "attempts" / "0001" / "stderr.log").write_text("loading\nSegmentation fault\n")
        return 3

    (item,) = todo(tmp_path, 1)
    dispatcher(FakeBackend(crash)).dispatch([item])
    failure = item.run.read_failure()
    assert failure is not None
    assert failure["kind"] == "code"
    assert failure["message"] == "ended with 3: Segmentation fault"


def test_a_worker_killed_by_a_signal_is_a_node_failure_that_the_next_launch_resumes(tmp_path: Path) -> None:
    (item,) = todo(tmp_path, 1)
    dispatcher(FakeBackend(lambda submission: -9)).dispatch([item])
    observation = item.run.observe()
    assert (observation.state, observation.kind) == ("failed", "node")
    assert plan(item.spec, item.run, observation, has_checkpoint=False, retry=False).action == "start"


def test_the_workers_own_word_about_its_failure_stands(tmp_path: Path) -> None:
    def diverge(submission: Submission) -> int:
        write_json(submission.run_dir / "failure.json", {"kind": "diverged", "message": "the loss is nan"})
        return 1

    (item,) = todo(tmp_path, 1)
    dispatcher(FakeBackend(diverge)).dispatch([item])
    assert item.run.observe().reason == "diverged: the loss is nan"


def test_the_failure_of_the_attempt_before_stays_on_record(tmp_path: Path) -> None:
    (item,) = todo(tmp_path, 1)
    dispatcher(FakeBackend(lambda submission: 3)).dispatch([item])
    backend = FakeBackend(finish)
    dispatcher(backend).dispatch([item])
    assert item.run.observe().state == "done"
    assert backend.submissions[0].attempt == 2
    assert json.loads((item.run.attempt_dir(1) / "failure.json").read_text())["kind"] == "code"


def test_a_run_cancelled_while_it_waits_is_passed_over(tmp_path: Path) -> None:
    first, second, third = todo(tmp_path, 3)

    def cancel_the_second(submission: Submission) -> int:
        if submission.run_dir == first.run.path:
            second.run.write_failure_once({"kind": "cancelled", "message": "cancelled by the user"})
        return finish(submission)

    backend = FakeBackend(cancel_the_second, slots=1)
    dispatcher(backend).dispatch([first, second, third])
    assert [s.run_dir for s in backend.submissions] == [first.run.path, third.run.path]
    assert second.run.observe().state == "cancelled"


def test_a_worker_whose_job_file_cannot_be_written_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = FakeBackend(finish)
    (item,) = todo(tmp_path, 1)
    written: list[Path] = []

    def full(path: Path, data: object) -> None:
        written.append(path)
        if len(written) == 2:  # the first says that the run is queued, the second that it is submitted
            raise FileError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(dispatch, "write_json", full)
    with pytest.raises(FileError):
        dispatcher(backend).dispatch([item])
    assert backend.stopped == [("1", False)]


@pytest.mark.parametrize("obeys", [True, False])
def test_an_interrupt_asks_the_workers_to_stop_and_ends_those_that_do_not(tmp_path: Path, obeys: bool) -> None:
    def interrupt(event: Event) -> None:
        raise KeyboardInterrupt

    backend = FakeBackend(finish)
    backend.obeys = obeys
    (item,) = todo(tmp_path, 1)
    with pytest.raises(KeyboardInterrupt):
        dispatcher(backend, interrupt).dispatch([item])
    assert backend.stopped == ([("1", False)] if obeys else [("1", False), ("1", True)])
    observation = item.run.observe()
    assert observation.state == "pending"
    assert observation.reason == "interrupted before the first epoch ended; run again to resume"

from __future__ import annotations

import contextlib
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from jobs.attempt.attempt import Attempt
from jobs.attempt.supervisor import Ended
from jobs.launch import dispatch, job
from jobs.launch.dispatch import Dispatcher
from jobs.launch.job import LaunchOptions
from jobs.launch.prepare import plan_runs, resolve_resources
from jobs.manifests.policy import Policy
from jobs.plan.planned import PlannedRun, plan
from jobs.spec import Resources, RunSpec, Submission
from jobs.study.kept_code import Code
from seqlm import ends
from seqlm.errors import BackendError
from seqlm.files import write_json
from seqlm.locks import exclusive_lock
from seqlm.rundir import Observation, RunDirectory
from seqlm.state import FailureKind, State
from tests.cancelling import cancel
from tests.facts import fail, failure_of, launch_again
from tests.fakes import FakeBackend
from tests.training.studies import make_config


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(dispatch, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(job.Host, "stop_seconds", 0.05)
    monkeypatch.setattr(ends, "FIRST_DELAY_SECONDS", 0.0)


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


def todo(folder: Path, count: int, *, ranks: int = 1) -> list[PlannedRun]:
    """``count`` fresh runs below ``folder``, all to be started."""
    items = []
    for number in range(count):
        spec = RunSpec(
            name=f"run{number}", config=make_config(seed=number), resources=Resources(ranks=ranks, cpus=1, gpus=0)
        )
        run = RunDirectory.locate(folder, spec.name, spec.fingerprint)
        run.create(spec.config, {"name": spec.name})
        items.append(plan(spec, run, run.observe(), has_checkpoint=False, retry=False))
    return items


def run_all(
    backend: FakeBackend,
    items: Sequence[PlannedRun],
    *,
    writes_queue: bool = False,
    is_requested: bool = False,
    **options: Any,
) -> None:
    """Request ``items`` unless that is done, and dispatch them to their end."""
    code = Code(path=Path("/code"), commit=None, dirty=False, live=False)
    settings = LaunchOptions(study_dir=Path(), worker=("worker",), **options)
    for item in [] if is_requested else items:
        launch_again(item.run, settings.policy.to_dict())
    Dispatcher(backend, code, settings, writes_queue=writes_queue).dispatch(items)


def test_every_run_is_submitted_once_in_order_and_no_more_than_the_slots_at_a_time(tmp_path: Path) -> None:
    backend = FakeBackend(finish, slots=2)
    items = todo(tmp_path, 5)
    run_all(backend, items)
    assert [s.run_dir.name for s in backend.submissions] == [item.run.id for item in items]
    assert backend.most_at_once == 2
    assert all(item.run.observe().state == "done" for item in items)


def test_a_run_that_can_never_fit_is_told_before_anything_starts(tmp_path: Path) -> None:
    wide = todo(tmp_path / "b", 1, ranks=3)
    with pytest.raises(BackendError, match="never fits"):
        resolve_resources([*todo(tmp_path, 1), *wide], FakeBackend(finish, slots=2), None)
    skipped = [replace(item, action="skip") for item in wide]
    assert resolve_resources(skipped, FakeBackend(finish, slots=2), None) == skipped


def test_a_run_whose_lost_worker_still_has_its_lock_is_tried_again(tmp_path: Path) -> None:
    (item,) = todo(tmp_path, 1)
    dying = contextlib.ExitStack()

    def work(submission: Submission) -> int:
        if submission.attempt == 1:
            dying.enter_context(exclusive_lock(item.run.worker_lock_file, "busy"))
            return -9
        dying.close()
        return finish(submission)

    backend = FakeBackend(work)
    run_all(backend, [item])
    assert [submission.attempt for submission in backend.ended] == [1, 2]
    assert item.run.observe().state == "done"
    assert item.run.end(1).kind == "node"


def test_a_worker_that_dies_without_a_word_gets_its_failure_written(tmp_path: Path) -> None:
    def crash(submission: Submission) -> int:
        (submission.run_dir / "attempts" / "0001" / "stderr.log").write_text("loading\nSegmentation fault\n")
        return 3

    (item,) = todo(tmp_path, 1)
    run_all(FakeBackend(crash), [item])
    failure = failure_of(item.run)
    assert failure is not None
    assert failure["kind"] == "code"
    assert failure["message"] == "ended with 3: Segmentation fault"


def test_a_run_cancelled_while_it_waits_is_passed_over(tmp_path: Path) -> None:
    first, second, third = todo(tmp_path, 3)

    def cancel_the_second(submission: Submission) -> int:
        if submission.run_dir == first.run.path:
            cancel(second.run)
        return finish(submission)

    backend = FakeBackend(cancel_the_second, slots=1)
    run_all(backend, [first, second, third])
    assert [s.run_dir for s in backend.submissions] == [first.run.path, third.run.path]
    assert second.run.observe().state == "cancelled"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("obeys", [True, False])
def test_a_signal_asks_the_workers_to_stop_and_ends_those_that_do_not(
    tmp_path: Path, obeys: bool, number: signal.Signals
) -> None:
    backend = FakeBackend(finish)
    backend.obeys = obeys
    backend.when_started = lambda submission: signal.raise_signal(number)
    (item,) = todo(tmp_path, 1)
    with pytest.raises(KeyboardInterrupt):
        run_all(backend, [item])
    assert backend.stopped == ([("1", False)] if obeys else [("1", False), ("1", True)])
    observation = item.run.observe()
    assert observation.state == "pending"
    assert observation.reason == "interrupted before the first epoch ended; run again to resume"


def test_a_worker_that_has_just_started_when_ctrl_c_comes_is_stopped_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = FakeBackend(finish, slots=3)
    submit = backend.submit

    def interrupted(submission: Submission) -> str | None:
        job_id = submit(submission)
        if job_id == "2":
            signal.raise_signal(signal.SIGINT)
        return job_id

    monkeypatch.setattr(backend, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_all(backend, todo(tmp_path, 3))
    assert backend.stopped == [("1", False), ("2", False)], "the third did not start"


@pytest.mark.parametrize(("then", "is_killed"), [(signal.SIGINT, True), (signal.SIGTERM, True), (signal.SIGHUP, False)])
def test_a_second_ctrl_c_ends_the_workers_at_once_and_a_closed_terminal_does_not(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    then: signal.Signals,
    is_killed: bool,
) -> None:
    monkeypatch.setattr(job.Host, "stop_seconds", 3600.0)
    backend = FakeBackend(finish, ends=False)
    backend.obeys = False
    looks = 0

    def wait(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks < 4:
            signal.raise_signal(signal.SIGINT if looks == 1 else then)
        backend.obeys = looks > 9

    monkeypatch.setattr(backend, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        run_all(backend, todo(tmp_path, 2))
    assert backend.stopped == [("1", False), ("2", False), *([("1", True), ("2", True)] if is_killed else [])]
    assert capsys.readouterr().err == "stopping 2 runs between two steps; once more ends them at once\n"


def test_an_error_of_the_backend_while_workers_stop_leaves_none_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = FakeBackend(finish, ends=False)
    poll = backend.poll

    def polled(job_id: str) -> Ended | None:
        if job_id == "2" and len(backend.stopped) < 3:
            raise BackendError("the cluster is gone")
        return poll(job_id)

    monkeypatch.setattr(backend, "poll", polled)
    with pytest.raises(BackendError, match="the cluster is gone"):
        run_all(backend, todo(tmp_path, 2))
    assert backend.stopped == [("1", False), ("2", False), ("2", True)]


def test_a_worker_that_cannot_be_killed_is_one_line_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dispatch, "KILL_SECONDS", 0.05)
    backend = FakeBackend(finish, ends=False)
    backend.can_be_killed = False
    backend.when_started = lambda submission: signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_all(backend, todo(tmp_path, 1))
    (_, line) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: run0: its worker (job 1) has not ended 0.05 s after SIGKILL")


def test_other_runs_go_on_next_to_a_worker_that_hangs_and_cannot_be_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dispatch, "KILL_SECONDS", -1.0)
    first, second = todo(tmp_path, 2)

    def heartbeat(attempt: Attempt) -> Mock:
        return Mock(is_hung=lambda: (attempt.run, attempt.number) == (first.run, 1), message="it hangs")

    monkeypatch.setattr(Attempt, "heartbeat", property(heartbeat))

    def work(submission: Submission) -> int:
        backend.can_be_killed = True
        return finish(submission)

    backend = FakeBackend(work)
    backend.can_be_killed = False
    run_all(backend, [first, second])
    assert [submission.run_dir for submission in backend.ended[:2]] == [second.run.path, first.run.path]
    assert capsys.readouterr().err.count("has not ended") == 1


def test_retries_without_an_epoch_in_between_come_to_an_end(tmp_path: Path) -> None:
    (item,) = todo(tmp_path, 1)
    backend = FakeBackend(lambda submission: -9)
    run_all(backend, [item], policy=Policy(max_stalled_retries=2))
    assert [submission.attempt for submission in backend.submissions] == [1, 2, 3]
    assert item.run.observe().state == "failed"


@pytest.mark.parametrize("kind", ["diverged", "code"])
def test_a_failure_of_the_runs_own_is_not_tried_again(tmp_path: Path, kind: str) -> None:
    def end(submission: Submission) -> int:
        fail(RunDirectory(submission.run_dir), {"kind": kind, "message": "its own"})
        return 1

    backend = FakeBackend(end)
    (item,) = todo(tmp_path, 1)
    run_all(backend, [item])
    assert len(backend.submissions) == 1
    assert item.run.observe().reason == f"{kind}: its own"


def test_a_run_cancelled_while_it_runs_is_stopped_by_its_launcher(tmp_path: Path) -> None:
    (item,) = todo(tmp_path, 1)
    backend = FakeBackend(finish, ends=False)
    backend.when_started = lambda submission: cancel(item.run)
    run_all(backend, [item])
    assert backend.stopped == [("1", False)]
    assert item.run.observe().state == "cancelled"


def test_the_queue_is_told_with_the_reason_of_each_run_and_empty_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Mapping[str, str]] = []
    monkeypatch.setattr(dispatch, "write_queue", lambda study_dir, waiting, request: told.append(waiting))
    items = todo(tmp_path, 3)
    run_all(FakeBackend(finish, slots=1), items, writes_queue=True, max_parallel=2)
    assert told[0] == {item.run.id: "needs 1 core, 0 free" for item in items[1:]}
    assert told[-1] == {}


def test_no_more_than_max_parallel_go_at_once(tmp_path: Path) -> None:
    backend = FakeBackend(finish, slots=4)
    run_all(backend, todo(tmp_path, 5), max_parallel=2)
    assert backend.most_at_once == 2


def test_the_variables_of_the_manifest_reach_the_worker_and_hide_none_of_ours(tmp_path: Path) -> None:
    backend = FakeBackend(finish)
    env = {"NCCL_DEBUG": "INFO", "SEQLM_ATTEMPT": "7", "PYTHONPATH": "/of/the/user"}
    run_all(backend, todo(tmp_path, 1), env=env)
    assert backend.submissions[0].env["NCCL_DEBUG"] == "INFO"
    assert backend.submissions[0].env["SEQLM_ATTEMPT"] == "1"
    assert backend.submissions[0].env["PYTHONPATH"] == "/of/the/user", "a backend searches the code first"


@pytest.mark.parametrize("code", [143, -15, -2])
def test_a_worker_that_somebody_else_has_stopped_was_preempted_and_goes_on(tmp_path: Path, code: int) -> None:
    (item,) = todo(tmp_path, 1)
    backend = FakeBackend(lambda submission: code if submission.attempt == 1 else finish(submission))
    run_all(backend, [item])
    assert item.run.observe().state == "done"
    assert item.run.end(1).kind == "preempted"
    assert "another process stopped it" in item.run.end(1).message


@pytest.mark.parametrize("another_rank_speaks", [False, True])
def test_a_worker_that_the_system_has_killed_for_its_memory_is_short_of_memory(
    tmp_path: Path, another_rank_speaks: bool
) -> None:
    (item,) = todo(tmp_path, 1)

    def be_killed(submission: Submission) -> int:
        if submission.attempt > 1:
            return finish(submission)
        if another_rank_speaks:
            fail(item.run, {"kind": "node", "message": "lost rank 1", "attempt": 1})
        return -9

    backend = FakeBackend(be_killed)
    backend.out_of_memory = True
    run_all(backend, [item])
    assert item.run.end(1).kind == "oom"
    assert backend.submissions[1].env["SEQLM_MICRO_BATCHES"] == "2"


def test_a_worker_that_could_not_write_out_what_it_printed_is_tried_again(tmp_path: Path) -> None:
    """On a full disk Python ends with 120 in place of the worker's own word."""
    (item,) = todo(tmp_path, 1)
    backend = FakeBackend(lambda submission: 120 if submission.attempt == 1 else finish(submission))
    run_all(backend, [item])
    assert item.run.end(1).kind == "node"
    assert item.run.result_file.exists()


def test_each_launch_counts_its_own_failures(tmp_path: Path) -> None:
    (item,) = todo(tmp_path, 1)
    policy = Policy(timeout=1)

    def run_out_of_time(submission: Submission) -> int:
        fail(item.run, {"kind": "timeout", "message": "time"})
        return 1

    for _ in range(2):
        backend = FakeBackend(run_out_of_time)
        again = plan(item.spec, item.run, item.run.observe(), has_checkpoint=False, retry=False)
        run_all(backend, [again], policy=policy)
        assert item.run.observe().reason == "timeout: time, after 1 retry of this kind"
        assert len(backend.submissions) == 2


def test_a_run_that_failed_when_its_launcher_was_gone_is_taken_up_by_the_next_launch(tmp_path: Path) -> None:
    spec = RunSpec(name="a", config=make_config(batch_size=8))
    run = RunDirectory.locate(tmp_path, spec.name, spec.fingerprint)
    run.create(spec.config, {"name": "a"})
    launch_again(run, Policy(oom=1).to_dict())
    actions = []
    for attempt in (1, 2):
        run.attempt_dir(attempt).mkdir(parents=True)
        write_json(run.start_file(attempt), {"resources": {"ranks": 1}})
        fail(run, {"kind": "oom", "message": "no memory"})
        actions += [item.action for item in plan_runs([spec], tmp_path)]
    assert actions == ["start", "skip"]


def test_a_study_with_a_damaged_failure_is_launched_and_its_run_goes_on(tmp_path: Path) -> None:
    specs = [RunSpec(name=f"run{seed}", config=make_config(seed=seed)) for seed in (1, 2)]
    for spec in specs:
        RunDirectory.locate(tmp_path, spec.name, spec.fingerprint).create(spec.config, {"name": spec.name})
    damaged = RunDirectory.locate(tmp_path, specs[0].name, specs[0].fingerprint)
    damaged.attempt_dir(1).mkdir(parents=True)
    damaged.end_file(1).touch()
    backend = FakeBackend(finish)
    planned = resolve_resources(plan_runs(specs, tmp_path), backend, None)
    assert [item.action for item in planned] == ["start", "start"]
    run_all(backend, planned)
    assert [item.run.observe().state for item in planned] == ["done", "done"]


def test_a_run_that_another_worker_has_is_tried_later_and_nothing_is_written_for_it(tmp_path: Path) -> None:
    (item,) = todo(tmp_path, 1)
    backend = FakeBackend(lambda submission: 75)
    run_all(backend, [item], policy=Policy(max_stalled_retries=3))
    assert len(backend.submissions) == 4
    assert failure_of(item.run) is None

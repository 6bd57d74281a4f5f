"""A plan run to completion on a fake machine: starts, ends, retries, signals, a budget, rungs of a search, files."""

import errno
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import Mock

import pytest

from jobs.attempt.attempt import Attempt
from jobs.attempt.supervisor import Ended
from jobs.launch import dispatch, job
from jobs.launch.dispatch import Dispatcher
from jobs.launch.job import StudySettings
from jobs.launch.prepare import plan_runs, resolve_resources
from jobs.manifests.policy import Policy
from jobs.plan.planned import PlannedRun, plan
from jobs.spec import RunSpec, Submission
from jobs.study.budget import Budget
from jobs.study.kept_code import Code
from seqlm.errors import EXIT_RUNG, BackendError, FileError
from seqlm.files import make_directory, write_json, write_json_lines
from seqlm.lease import claim
from seqlm.records.attempts import Start, Worker
from seqlm.resources import Resources
from seqlm.rundir import RunDirectory
from seqlm.search import Search, decide
from seqlm.state import State
from tests.analysis.attempt_files import write_attempt
from tests.calls import counted
from tests.cancelling import cancel
from tests.facts import fail, failure_of, launch_again, make_folder
from tests.fakes import FakeBackend, make_fresh
from tests.seqlm.training.studies import make_config

pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.fixture(autouse=True)
def _short_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job.Host, "stop_seconds", 0.05)


def finish(submission: Submission) -> int:
    write_json(submission.run_dir / "result.json", {"best_val_ppl": 1.0})
    return 0


def todo(folder: Path, count: int, *, ranks: int = 1, epochs: int = 2) -> list[PlannedRun]:
    """``count`` fresh runs below ``folder``, all to be started."""
    items = []
    for number in range(count):
        config = make_config(seed=number, epochs=epochs)
        resources = Resources(ranks=ranks, cpus=1, gpus=0)
        spec = RunSpec(name=f"run{number}", config=config, resources=resources, order=number)
        items.append(make_fresh(folder, spec))
    return items


def run_all(
    backend: FakeBackend,
    items: Sequence[PlannedRun],
    *,
    writes_queue: bool = False,
    is_requested: bool = False,
    max_parallel: int | None = None,
    env: Mapping[str, str] = MappingProxyType({}),
    request: int | None = None,
    **settings: Any,
) -> None:
    """Request ``items`` unless that is done, and dispatch them to their end."""
    code = Code(path=Path("/code"), commit=None, dirty=False, live=False)
    study = StudySettings(path=items[0].run.path.parent, worker=("worker",), **settings)
    for item in [] if is_requested else items:
        launch_again(item.run, study.policy.to_dict())
    backend.max_parallel, backend.env = max_parallel, env
    Dispatcher(backend, code, study, request, writes_queue=writes_queue).dispatch(items)


@pytest.mark.parametrize(("slots", "most"), [(2, None), (4, 2)])
def test_every_run_is_submitted_once_in_order_and_no_more_at_a_time_than_fit_or_are_allowed(
    tmp_path: Path, slots: int, most: int | None
) -> None:
    backend = FakeBackend(finish, slots=slots)
    items = todo(tmp_path, 5)
    run_all(backend, items, max_parallel=most)
    assert [s.run_dir.name for s in backend.submissions] == [item.run.id for item in items]
    assert backend.most_at_once == 2
    assert all(item.run.observe().state == "done" for item in items)


def test_a_run_that_can_never_fit_is_told_before_anything_starts(tmp_path: Path) -> None:
    wide = todo(tmp_path / "b", 1, ranks=3)
    with pytest.raises(BackendError, match="never fits"):
        resolve_resources([*todo(tmp_path, 1), *wide], FakeBackend(finish, slots=2), None)
    skipped = [replace(item, action="skip") for item in wide]
    assert resolve_resources(skipped, FakeBackend(finish, slots=2), None) == skipped


def test_a_worker_that_dies_without_a_word_gets_its_failure_written(tmp_path: Path) -> None:
    def crash(submission: Submission) -> int:
        run = RunDirectory(submission.run_dir)
        Worker(rank=0).write_file(run.worker_file(1))
        run.stderr_log(1).write_text("loading\nSegmentation fault\n")
        return 3

    (item,) = todo(tmp_path, 1)
    run_all(FakeBackend(crash), [item])
    failure = failure_of(item.run)
    assert failure is not None
    assert failure["kind"] == "code"
    assert failure["message"] == "ended with 3: Segmentation fault"


def test_an_attempt_that_fails_beside_a_live_worker_of_an_older_one_does_not_end_the_run(tmp_path: Path) -> None:
    (item,) = todo(tmp_path, 1)
    item.run.attempt_dir(1).mkdir(parents=True)
    owner = claim(item.run.lease_dir, attempt=1, busy="busy")

    def work(submission: Submission) -> int:
        if submission.attempt > 2:
            owner.release()
            return finish(submission)
        return 1

    backend = FakeBackend(work)
    run_all(backend, [item])
    assert item.run.observe().state == "done"
    assert [one.attempt for one in backend.submissions] == [2, 3]


def test_of_an_attempt_that_another_process_starts_at_the_same_moment_no_failure_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (item,) = todo(tmp_path, 1)
    record_start = Attempt.record_start

    def lost_race(attempt: Attempt, start: Start) -> bool:
        make_directory(item.run.attempt_dir(1))
        Start(job_id="1_0").write(item.run.attempt_dir(1), once=True)
        record_start(attempt, start)
        raise FileError("cannot write start.json: Input/output error")

    monkeypatch.setattr(Attempt, "record_start", lost_race)
    run_all(FakeBackend(finish), [item], policy=Policy(node=0))
    assert not item.run.end(1).has_ended
    assert all((item.run.start_file(number)).exists() for number in item.run.attempts())


def test_a_run_that_is_cancelled_before_its_start_is_recorded_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cancel` has seen no attempt then, and has said that nobody trains the run."""
    item, other = items = todo(tmp_path, 2)
    record_start = Attempt.record_start

    def late(attempt: Attempt, start: Start) -> bool:
        if attempt.run.path == item.run.path:
            cancel(item.run)
        return record_start(attempt, start)

    monkeypatch.setattr(Attempt, "record_start", late)
    launch_again(item.run, {})
    launch_again(other.run, {})
    backend = FakeBackend(finish)
    newest = other.run.request()
    assert newest is not None
    run_all(backend, items[:1], is_requested=True, request=newest.number - 1)
    run_all(backend, items[1:], is_requested=True, request=newest.number)
    assert [one.run_dir for one in backend.submissions] == [other.run.path]
    assert [one.run.observe().state for one in items] == ["cancelled", "done"]


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


def test_the_queue_lists_a_submitted_run_that_its_backend_has_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Mapping[str, str]] = []
    monkeypatch.setattr(dispatch, "write_queue", lambda study_dir, waiting, request: told.append(waiting))
    monkeypatch.setattr(FakeBackend, "why_waits", lambda self, job_id: "no room yet", raising=False)
    items = todo(tmp_path, 1)
    run_all(FakeBackend(finish), items, writes_queue=True)
    assert told[0] == {items[0].run.id: "no room yet"}
    assert told[-1] == {}


def test_the_queue_is_told_with_the_reason_of_each_run_and_empty_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Mapping[str, str]] = []
    monkeypatch.setattr(dispatch, "write_queue", lambda study_dir, waiting, request: told.append(waiting))
    items = todo(tmp_path, 3)
    run_all(FakeBackend(finish, slots=1), items, writes_queue=True, max_parallel=2)
    assert told[0] == {item.run.id: "needs 1 core, 0 free" for item in items[1:]}
    assert told[-1] == {}


def test_the_variables_and_the_policy_of_the_manifest_reach_the_worker_and_hide_none_of_ours(tmp_path: Path) -> None:
    backend = FakeBackend(finish)
    env = {"NCCL_DEBUG": "INFO", "SEQLM_ATTEMPT": "7", "PYTHONPATH": "/of/the/user"}
    run_all(backend, todo(tmp_path, 1), env=env, policy=Policy(checkpoint_min=2.5, keep_last=False))
    told = backend.submissions[0].env
    assert (told["NCCL_DEBUG"], told["SEQLM_ATTEMPT"]) == ("INFO", "1")
    assert told["PYTHONPATH"] == "/of/the/user", "a backend searches the code first"
    assert (told["SEQLM_CHECKPOINT_MINUTES"], told["SEQLM_KEEP_LAST"]) == ("2.5", "0")


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
    run = make_folder(tmp_path, spec)
    launch_again(run, Policy(oom=1).to_dict())
    actions = []
    for attempt in (1, 2):
        run.attempt_dir(attempt).mkdir(parents=True)
        Start().write(run.attempt_dir(attempt))
        fail(run, {"kind": "oom", "message": "no memory"})
        actions += [item.action for item in plan_runs([spec], tmp_path)]
    assert actions == ["start", "skip"]


# -- a budget ----------------------------------------------------------------------------------------------------------

HOUR = 3600.0
SPENT = ("pending", "waits: budget of 10 core hours is spent")
TEN_HOURS = Policy(core_hours=10)


def uses(hours: float) -> Callable[[Submission], int]:
    """A job that ends well after this number of core hours (the records have two threads)."""

    def work(submission: Submission) -> int:
        write_attempt(RunDirectory(submission.run_dir), submission.attempt, start=0, end=hours * HOUR / 2)
        return finish(submission)

    return work


def run_within(budget: Policy, backend: FakeBackend, items: Sequence[PlannedRun]) -> list[tuple[State, str | None]]:
    """Dispatch within a budget; return the state of each run, and why."""
    run_all(backend, items, policy=budget)
    seen = [item.run.observe(spent=Budget(item.run.path.parent, budget).is_spent) for item in items]
    return [(one.state, one.reason) for one in seen]


def test_runs_start_while_anything_of_the_budget_is_left(tmp_path: Path) -> None:
    backend = FakeBackend(uses(4), slots=1)
    assert run_within(TEN_HOURS, backend, todo(tmp_path, 4))[3] == SPENT
    assert len(backend.submissions) == 3


def test_live_runs_stop_when_the_budget_is_spent_and_go_on_when_it_is_raised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    items = todo(tmp_path, 3)
    backend = FakeBackend(uses(1), slots=2, ends=False)
    backend.obeys = False  # it needs longer to save than a cancelled run is given
    monkeypatch.setattr(dispatch, "STOP_SECONDS", 0.05)

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
    assert run_within(TEN_HOURS, backend, items) == [SPENT] * 3
    assert backend.stopped == [("1", False), ("2", False)], "asked, and not killed"
    assert capsys.readouterr().err == "budget of 10 core hours is spent; 2 runs stop at a checkpoint\n"
    assert [item.run.failures() for item in items] == [[]] * 3, "no failure, no cancellation"

    backend = FakeBackend(uses(1), slots=2)
    assert [state for state, _ in run_within(Policy(core_hours=20), backend, items)] == ["done"] * 3
    assert [submission.attempt for submission in backend.submissions] == [2, 2, 1]


def test_a_run_within_a_budget_costs_the_same_in_a_large_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.study.budget.READ_SECONDS", 3600.0)
    each = []
    for number in (8, 48):
        items = todo(tmp_path / str(number), number)
        with counted() as calls:
            run_all(FakeBackend(uses(1), slots=1), items, policy=Policy(core_hours=1000))
        each.append(calls["listdir"] / number)
    assert each[1] < 1.5 * each[0]


def test_a_failed_attempt_has_used_its_hours_and_is_not_tried_again_beyond_the_budget(tmp_path: Path) -> None:
    def fails(submission: Submission) -> int:
        run = RunDirectory(submission.run_dir)
        write_attempt(run, submission.attempt, start=0, end=3 * HOUR)
        fail(run, {"kind": "node", "message": "lost", "attempt": submission.attempt})
        return 1

    backend = FakeBackend(fails, slots=1)
    (item,) = todo(tmp_path, 1)
    run_all(backend, [item], is_requested=True, policy=TEN_HOURS)
    assert [submission.attempt for submission in backend.submissions] == [1, 2]
    assert item.run.observe(spent=Budget(tmp_path, TEN_HOURS).is_spent).reason == "node: lost"


# -- rungs of a search -------------------------------------------------------------------------------------------------

EPOCHS = 6


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
        if finished in search.rungs and decide(run, search, finished, submission.attempt, vocab_size=1000) == "stopped":
            return EXIT_RUNG
        finished += 1
        write_json_lines(run.metrics_file, [{"epoch": e, "val_ppl": value_of(run, e)} for e in range(finished)])
    return finish(submission)


def test_a_search_gives_a_freed_place_to_the_next_run_at_once(tmp_path: Path) -> None:
    items, backend = todo(tmp_path, 8, epochs=EPOCHS), FakeBackend(climb, slots=1)
    run_all(backend, items, search=Search(rungs=(2, 4), keep=0.34))
    assert {item.run.observe().state for item in items} == {"done", "stopped"}
    assert [submission.attempt for submission in backend.submissions] == [1] * 8


def test_a_stopped_run_is_left_alone_however_many_epochs_are_requested_and_goes_on_with_retry(tmp_path: Path) -> None:
    items = todo(tmp_path, 4, epochs=EPOCHS)
    search = Search(rungs=(2,), keep=0.25, min_runs=1)
    run_all(FakeBackend(climb, slots=1), items, search=search)
    specs = [item.spec for item in items]
    again = plan_runs(specs, tmp_path)
    assert {item.action for item in again} == {"skip"}
    stopped = [item for item in again if item.observation.state == "stopped"]
    assert stopped
    assert all(item.reason == f"{item.observation.reason}; `retry --kind stopped` lets it go on" for item in stopped)
    for item in stopped:  # what a launch plans from
        item.run.last_checkpoint.write_bytes(b"")
    fewer = [replace(item.spec, config=item.spec.config.with_epochs(EPOCHS - 1)) for item in stopped]
    assert {item.action for item in plan_runs(fewer, tmp_path)} == {"skip"}
    more = [replace(item.spec, config=item.spec.config.with_epochs(EPOCHS + 2)) for item in stopped]
    assert {item.action for item in plan_runs(more, tmp_path)} == {"skip"}
    assert {(item.action, item.reason) for item in plan_runs(more, tmp_path, retry=True)} == {
        ("resume", f"after 2 epochs, for {EPOCHS + 2} epochs instead of {EPOCHS}")
    }
    by_hand = [item for item in plan_runs(specs, tmp_path, retry=True) if item.action != "skip"]
    assert [item.run for item in by_hand] == [item.run for item in stopped]
    run_all(FakeBackend(climb), by_hand, search=search)
    assert {(item.run.observe().state, item.run.observe().epochs_done) for item in items} == {("done", EPOCHS)}
    assert all(item.run.read_rungs()[2].decision == "stopped" for item in stopped)


# -- files that cannot be read or written; see test_disk_faults.py, too ------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_queue_that_cannot_be_written_ends_nothing_and_is_written_later(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[Mapping[str, str]] = []
    refused = []

    def write_queue(study_dir: Path, waiting: Mapping[str, str], request: int | None) -> None:
        if len(refused) < 2:
            refused.append(waiting)
            raise FileError.from_os_error("write", "queue.json", OSError(number, os.strerror(number)))
        told.append(waiting)

    items, backend = todo(tmp_path, 4), FakeBackend(finish, slots=1)
    monkeypatch.setattr(dispatch, "write_queue", write_queue)
    run_all(backend, items, writes_queue=True)
    assert not backend.stopped
    assert {item.run.observe().state for item in items} == {"done"}
    assert told[-1] == {}
    line = f"warning: cannot write queue.json: {os.strerror(number)}; status shows an older queue\n"
    assert capsys.readouterr().err == line


def test_a_run_whose_files_give_trouble_fails_alone_or_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing, cancelled, well = items = todo(tmp_path, 3)
    backend = FakeBackend(finish, slots=3)
    submit, tried = backend.submit, Counter[Path]()

    def full(submission: Submission) -> str:
        tried[submission.run_dir] += 1
        if submission.run_dir == well.run.path:
            return submit(submission)
        if submission.run_dir == cancelled.run.path:
            cancel(cancelled.run)
        raise FileError("cannot make folder attempts/0001: No space left on device")

    monkeypatch.setattr(backend, "submit", full)
    run_all(backend, items, policy=Policy(max_stalled_retries=2))
    assert [item.run.observe().state for item in items] == ["failed", "cancelled", "done"]
    line = "cannot make folder attempts/0001: No space left on device, after 2 retries in a row without progress"
    assert failing.run.observe().reason == f"node: {line}"
    assert [tried[item.run.path] for item in items] == [3, 1, 1]


def test_troubles_count_in_a_row_and_not_over_the_life_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (item,) = todo(tmp_path, 1)

    def work(submission: Submission) -> int:
        write_json_lines(item.run.metrics_file, [{"epoch": e, "val_ppl": 9.0} for e in range(submission.attempt)])
        return -9 if submission.attempt < 8 else finish(submission)

    backend = FakeBackend(work)
    submit, tried = backend.submit, list[int]()

    def fails_twice(submission: Submission) -> str:
        tried.append(submission.attempt)
        if len(tried) % 3:
            raise FileError("cannot make folder: Stale file handle")
        return submit(submission)

    monkeypatch.setattr(backend, "submit", fails_twice)
    run_all(backend, [item], policy=Policy(max_stalled_retries=2))
    assert item.run.observe().state == "done"
    assert tried == [*range(1, 10)]


@pytest.mark.parametrize("slots", [1, 3])
def test_a_final_seed_starts_after_its_first_seed_is_done_and_is_left_if_that_ends_otherwise(
    tmp_path: Path, slots: int
) -> None:
    done, stopped, broken, cancelled = todo(tmp_path, 4)

    def work(submission: Submission) -> int:
        run = RunDirectory(submission.run_dir)
        if run == stopped.run:
            write_json(run.rung_file(1), {"decision": "stopped", "rung": 1, "attempt": submission.attempt})
            return EXIT_RUNG
        if run == broken.run and submission.attempt == 1:
            cancel(cancelled.run)
            return -9  # tried again
        return 3 if run == broken.run else finish(submission)

    further = []
    for first in (done, stopped, broken, cancelled):
        for number in (1, 2):
            seed = first.spec.config.seed + 100 * number
            spec = replace(first.spec, config=replace(first.spec.config, seed=seed), name=f"{first.spec.name}-{seed}")
            further.append(replace(make_fresh(tmp_path, spec), after=first.run))
    backend = FakeBackend(work, slots=slots)
    run_all(backend, [*further, done, stopped, broken, cancelled])
    started = [RunDirectory(submission.run_dir) for submission in backend.submissions]
    assert {run for run in started if run in [item.run for item in further]} == {item.run for item in further[:2]}
    assert {item.run.observe().state for item in further[:2]} == {"done"}
    first_end = next(place for place, one in enumerate(backend.ended) if one.run_dir == done.run.path)
    assert all(place > first_end for place, run in enumerate(started) if run in (further[0].run, further[1].run))

"""Run a plan to completion: start what fits, watch it, and try failed runs again."""

import contextlib
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from jobs import terminal
from jobs.attempt.attempt import Attempt, end_left, record_unstarted
from jobs.attempt.supervisor import KILL_SECONDS, Ended
from jobs.backends.base import Executor
from jobs.launch.background import STOP_SECONDS
from jobs.launch.job import Host, StudySettings, next_submission, stop_seconds
from jobs.launch.notify import Messages
from jobs.plan.planned import PlannedRun
from jobs.plan.queue import Queue
from jobs.study.budget import Budget
from jobs.study.folder import newest_limit, this_launcher, write_queue
from jobs.study.kept_code import Code
from seqlm.ends import End, Verdict, verdict
from seqlm.errors import EXIT_BUSY, EXIT_RUNG, STOPPED_EXITS, FileError, file_errors
from seqlm.gpus import TakenError
from seqlm.hang import hung_seconds
from seqlm.records.attempts import Exit, Start
from seqlm.requests import Requests
from seqlm.rundir import RunDirectory
from seqlm.state import FailureKind

POLL_SECONDS = 0.1
"""Time between two polls of the backend."""
LOOK_SECONDS = 0.5
"""Time between two looks at the files of live runs."""
LOOKS = 3
"""Number of looks at the files of an ended run before an error in reading them becomes its failure."""
GRACE_SECONDS = 1.0
"""How much later than a worker this process may get a signal that was sent to both."""
QUEUE_SECONDS = 1.0
"""Least time between two writings of the queue for ``status``."""


@dataclass(kw_only=True, eq=False)
class _Live:
    """An attempt that the backend has taken, until its end has been recorded."""

    id: str
    """The backend's id."""
    item: PlannedRun
    """Its run, as it was when it started."""
    attempt: Attempt
    stop_asked: float | None = None
    """When it was asked to stop because the run was cancelled or the budget is spent, on the monotonic clock."""
    killed: float | None = None
    """When it was killed."""
    ended: Ended | None = None
    """``None``: it is queued or running."""
    looks: int = 0
    """How often reading or writing the run's files has failed since it ended."""
    look_at: float = -math.inf
    """When to look at the files of an attempt that has ended."""

    @property
    def unkillable(self) -> str:
        """A line about a worker that has not ended ``KILL_SECONDS`` after it was killed."""
        return (
            f"{self.item.spec.name}: its worker (job {self.id}) has not ended {KILL_SECONDS:g} s after SIGKILL; "
            "it may wait for a device or a file system that does not answer"
        )


@final
class Dispatcher:
    """Runs a plan on a backend and waits for every run to end.

    If the files of one run cannot be read or written, they are tried again; then that run alone fails, with the kind
    ``node``.
    """

    def __init__(
        self,
        executor: Executor,
        code: Code,
        study: StudySettings,
        request: int | None = None,
        *,
        writes_queue: bool = True,
        host: Host | None = None,
    ) -> None:
        """Start nothing yet. ``executor`` is open, and workers run ``code``.

        A run that a later request than ``request`` names is left to that. ``None``: there is no request. With
        ``writes_queue``, which runs wait and why is recorded for ``status`` whenever that changes. ``host``: the
        process; ``None``: a launcher.

        Raises:
            UsageError: ``SEQLM_HUNG_MINUTES`` is not a number above 0.
        """
        self._executor = executor
        self._code = code
        self._study, self._request = study, request
        hung_seconds({**os.environ, **executor.env})  # a wrong value is an error before anything starts
        self._queue = Queue(())
        self._live: list[_Live] = []
        self._looked_at = -math.inf
        self._unseen: defaultdict[str, list[End]] = defaultdict(list)
        """By run id, failures in a row of which the run's files say nothing: they cannot be read or written, or belong
        to another worker."""
        self._unwritten: list[str] = []
        """The names of runs whose failures could not be written."""
        self._warnings: set[str] = set()
        self._budget = Budget.kept(study.path, study.policy)  # it may have changed since the launch
        self._is_spent: str | None = None
        """Why no run goes on: the budget is spent. ``None``: it is not."""
        self._writes_queue = writes_queue
        self._queue_written: Mapping[str, str] | None = None
        self._queue_tried_at = -math.inf
        self._messages = Messages(study.path, study.notify, request)
        self._host = host or Host()
        self._interrupts = self._host.interrupts
        self._not_here: set[str] = set()
        """Ids of runs that have failed and that this process does not try again: another node may be well."""
        self.left: dict[str, str] = {}
        """Run id -> why a run is left to the next start of this process, where the run's files cannot say it: another
        worker has the run, or nothing can be written."""

    def dispatch(self, planned: Sequence[PlannedRun]) -> None:
        """Run everything that is to start or resume, until all of it has ended.

        Resources are resolved. A run with an estimate takes its place in the queue by that.

        Raises:
            FileError: everything has ended, and the failure of a run cannot be written.
            KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP; the workers have stopped and can be resumed.
        """
        todo = [item for item in planned if item.action != "skip"]
        self._queue = Queue(todo, max_parallel=self._executor.max_parallel)
        for item in todo:
            if item.after is not None:
                self._queue.hold_until_released(item.run.id, item.reason or "a final seed")
        self._look_at_budget(at_once=True)
        with self._interrupts.noted():
            try:
                while self._queue or self._live or self._has_found_one_more():
                    if self._interrupts.stop:
                        raise KeyboardInterrupt
                    self._start_what_fits()
                    self._executor.ask_for_room([] if self._is_spent else self._queue.waiting(len(self._alive)))
                    self._write_queue()
                    self._executor.wait(POLL_SECONDS)
                    self._collect()
            except BaseException:
                self._stop_all()
                self._settle_stopped()
                raise
            self._write_queue()
            self._messages.wait()
        if self._unwritten:
            names = ", ".join(self._unwritten)
            raise FileError(f"{names}: failed, but that cannot be written; the warnings above say why")

    # -- starting ------------------------------------------------------------------------------------------------

    def _start_what_fits(self) -> None:
        if (why := self._is_spent) is not None:
            self._queue.hold(f"waits: {why}")
            self._executor.waits(())
            if not self._live:
                self._queue.take_all()
            return
        self._look_at_final_seeds()
        while not self._interrupts.stop:
            item = None
            if self._queue:
                item = self._queue.take(self._executor.free(), len(self._alive), time.monotonic())
            if item is not None:
                self._start(item)
            elif self._queue or not self._has_found_one_more():
                break
        self._executor.waits(self._queue.lacking if self._queue else ())

    def _look_at_final_seeds(self) -> None:
        """Let final seeds start whose first seed is done. They are left if that has ended in another way."""
        held = self._queue.held()
        to_do = self._queue.ids() | {one.item.run.id for one in self._live} if held else set()
        for item in held:
            if item.after is None or item.after.id in to_do:
                continue
            state = None
            with self._warnings_for(item):
                state = item.after.observe().state
            if state == "done":
                self._queue.release(item.run.id)
            else:
                self._queue.drop(item.run.id)

    def _has_found_one_more(self) -> bool:
        """Queue one more run that the host has. Return whether there is one."""
        if self._is_spent is not None:
            return False
        item = self._host.next_run(self._executor.free(), is_idle=not self._live, but=self._not_here)
        if item is not None:
            self._queue.put_back(item)
        return item is not None

    def _start(self, item: PlannedRun) -> None:
        """Start an attempt of a run, unless it was cancelled or another process took it while it waited."""
        run, begun = item.run, 0
        attempt: Attempt | None = None
        try:
            with file_errors("read or write", item.run.path, within=True):
                if self._is_ours(item):
                    end_left(run, self._host.where)
                last = run.last_attempt()
                item = replace(item, observation=run.observe())
                if not self._is_ours(item) or not self._host.may_start(run, item.observation):
                    return
                run.create_as_launched()
                submission = next_submission(item, self._study, self._code, self._executor)
            attempt = Attempt(submission, self._host.where)
            is_first = attempt.number == last + 1 and attempt.record_start(self._start_record())
            if not is_first:  # another job has started it since: look again, since a listing may show that late
                self._queue.put_back(item, not_before=time.monotonic() + LOOK_SECONDS)
                return
            begun = attempt.number
            if self._is_taken_over(item, attempt):
                return
            job_id = self._executor.submit(submission)
        except FileError as error:
            self._have_trouble(item, error, begun)
            return
        except TakenError as taken:
            self._give_way(item, attempt, str(taken))
            return
        # Kept before anything else can fail, so that an error stops this worker too.
        self._live.append(_Live(id=job_id, item=item, attempt=attempt))

    def _start_record(self) -> Start:
        """Return the record of an attempt that this process starts."""
        return Start(
            request=self._request,
            backend=self._executor.name,
            job_id=self._executor.job,
            node=self._executor.node,
            memory_mb=self._executor.memory_mb,
            job_start=self._host.job_start,
            launcher=this_launcher(),
        )

    def _is_taken_over(self, item: PlannedRun, attempt: Attempt) -> bool:
        """Return whether a later request was filed before the start of an attempt was recorded, and end the attempt.

        `cancel` files its request, then looks for attempts that have started. This process records the start, then
        looks for requests. So at least one of the two sees the other.

        Raises:
            FileError: a request cannot be read, or the end cannot be written.
        """
        with file_errors("read or write", item.run.path, within=True):
            if self._is_ours(item):
                return False
            attempt.record(None, "not started: a later request names the run")
            return True

    def _give_way(self, item: PlannedRun, attempt: Attempt | None, why: str) -> None:
        """Queue a run again whose place somebody else has taken. Its attempt has not failed: no rank has started."""
        if attempt is not None:
            with self._warnings_for(item):
                attempt.record(None, f"not started: {why}")
        self._queue.put_back(item, not_before=time.monotonic() + LOOK_SECONDS, why=why)

    def _is_ours(self, item: PlannedRun) -> bool:
        """Return whether no later request names the run.

        Raises:
            FileError: a request cannot be read.
        """
        newest = None if self._request is None else Requests(self._study.path).newest(item.run.id)
        return newest is None or newest.number == self._request

    # -- watching ------------------------------------------------------------------------------------------------

    @property
    def _alive(self) -> list[_Live]:
        return [one for one in self._live if one.ended is None]

    def _collect(self) -> None:
        now = time.monotonic()
        if look := now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            self._look_at_budget()
            self._look_at_limit()
        for one in list(self._live):
            if one.ended is None:
                one.ended = self._executor.poll(one.id)
                if one.ended is not None and one.ended.exit_code in STOPPED_EXITS and one.stop_asked is None:
                    one.look_at = now + GRACE_SECONDS
                elif one.ended is None and look:
                    self._look_at(one)
            if one.ended is not None and one.look_at <= now:
                self._settle(one, one.ended)

    def _look_at_budget(self, ended: RunDirectory | None = None, *, at_once: bool = False) -> None:
        """Read what is spent, unless it was read recently. Of a run that has ``ended`` it is read in any case."""
        before = self._is_spent
        with contextlib.suppress(FileError):  # what was spent before still counts; the next look is soon
            if ended is not None:
                self._budget.count(ended)
            self._is_spent = self._budget.is_spent(at_once=at_once)
        if self._is_spent is not None and before is None and (number := len(self._alive)):
            runs = "1 run stops" if number == 1 else f"{number} runs stop"
            terminal.tell(f"{self._is_spent}; {runs} at a checkpoint")

    def _look_at_limit(self) -> None:
        """Take on a number of runs at once that was set since the launch."""
        if self._request is None or not self._writes_queue:
            return
        most = None
        with contextlib.suppress(FileError):  # the next look is soon
            most = newest_limit(self._study.path, self._request)
        if most is not None:
            self._queue.limit(most)

    def _look_at(self, one: _Live) -> None:
        """Note the progress of a live run, and stop it if it was cancelled, the budget is spent, or it hangs."""
        run, now, is_hung, is_cancelled = one.item.run, time.monotonic(), False, False
        with self._warnings_for(one.item):
            self._host.saw(run, one.attempt.number)
            is_cancelled = run.is_cancelled()
            if is_hung := one.attempt.heartbeat.is_hung():
                one.attempt.record("node", one.attempt.heartbeat.message)  # before the kill, which is not the cause
        # A run that stops for the budget has all the time that it needs to save.
        is_late = is_cancelled and one.stop_asked is not None and now - one.stop_asked > STOP_SECONDS
        if one.killed is None and (is_hung or is_late):
            one.killed = now
            self._executor.stop(one.id, force=True)
        elif one.stop_asked is None and (is_cancelled or self._is_spent is not None):
            one.stop_asked = now
            self._executor.stop(one.id, force=False)
        if one.killed is not None and now - one.killed > KILL_SECONDS:
            self._warn(one.unkillable)

    def _settle(self, one: _Live, ended: Ended) -> None:
        """Record how an attempt ended, and queue its run again if the policy retries its failure."""
        item, run = one.item, one.item.run
        try:
            with file_errors("read or write", item.run.path, within=True):
                self._host.saw(run, one.attempt.number)
                is_ours = self._is_ours(item)
                if is_ours:
                    one.attempt.record_exit(ended, was_asked=one.stop_asked is not None)
                seen = run.observe()
                failures = run.failures(run.first_attempt()) if is_ours and seen.state == "failed" else []
                found = run.verdict(self._study.policy.to_dict(), failures) if failures else Verdict()
        except FileError as error:
            one.looks += 1
            one.look_at = time.monotonic() + LOOK_SECONDS
            if one.looks >= LOOKS:
                self._live.remove(one)
                self._have_trouble(item, error, one.attempt.number)
            return
        self._live.remove(one)
        if ended.taken is not None:
            self._give_way(item, None, ended.taken)
            return
        if failures:
            self._messages.failure(run, failures, seen.reason, is_final=found.delay is None)
        self._look_at_budget(run)
        found_another = ended.exit_code == EXIT_BUSY and seen.state not in ("done", "stopped", "cancelled")
        has_failed = ended.exit_code not in (0, EXIT_RUNG) and one.stop_asked is None
        if is_ours and (found_another or (has_failed and seen.state == "running")):
            # Another worker has the run. That this attempt has ended says nothing of the run.
            found = self._count_unseen(item, one.attempt.number)
        else:
            self._unseen.pop(run.id, None)
        if found.delay is not None:
            self._retry(item, failures[-1] if failures else None, found)
        elif seen.state == "pending" and self._is_spent is not None:  # stopped for that: waits again
            self._queue.put_back(self._again(item))

    # -- trying again --------------------------------------------------------------------------------------------

    def _retry(self, item: PlannedRun, failure: End | None, found: Verdict) -> None:
        """Queue a failed run for its next attempt, or leave it to this process's next start."""
        if self._host.tries_again(failure, found, len(self._unseen[item.run.id])):
            self._queue.put_back(self._again(item), not_before=time.monotonic() + (found.delay or 0.0))
        elif failure is None:
            self.left[item.run.id] = "another worker has the run"
        else:
            self._not_here.add(item.run.id)

    def _again(self, item: PlannedRun) -> PlannedRun:
        """Return what a run needs after an attempt has ended."""
        action = item.action
        with self._warnings_for(item):
            action = "resume" if item.run.has_checkpoint() else "start"
        return replace(item, action=action, reason=None)

    def _count_unseen(self, item: PlannedRun, attempt: int) -> Verdict:
        """Count a failure of kind ``node`` that only this process knows. ``attempt`` 0: none was started."""
        failures = self._unseen[item.run.id]
        progress = (item.observation.epochs_done, 0)
        failures.append(End(attempt=attempt, kind="node", progress=progress, node=self._executor.node))
        return verdict(self._study.policy.to_dict(), failures, most_micro_batches=1)

    def _have_trouble(self, item: PlannedRun, error: FileError, attempt: int) -> None:
        """Count an error in the files of a run. What the worker has written stays in place until it can be read."""
        found = self._count_unseen(item, attempt)
        message, is_final = f"{error}{found.why}", found.delay is None
        if is_final or not self._host.tries_again(self._unseen[item.run.id][-1], found, 0):
            progress = self._unseen[item.run.id][-1].progress
            is_written = self._record(item, attempt, "node", message, stands=is_final, progress=progress)
            if not is_written and is_final:
                self._unwritten.append(item.spec.name)
            elif not is_written:
                self.left[item.run.id] = message
        if found.delay is not None:
            self._retry(item, self._unseen[item.run.id][-1], found)
        else:
            self._not_here.add(item.run.id)  # its files may not say that it is over

    def _record(self, item: PlannedRun, attempt: int, kind: FailureKind, message: str, **more: Any) -> bool:
        """Record how an attempt failed (0: it was not even started). Return whether that could be written.

        Of a run that a later request names, nothing is recorded, nor if another process has just started it.
        """
        record = Exit(kind=kind, message=message, where=self._host.where, **more)
        try:
            with file_errors("read or write", item.run.path, within=True):
                if self._is_ours(item) and attempt:
                    item.run.write_exit(attempt, record)
                elif self._is_ours(item):
                    # Two such failures in a row do not show that the node is sick: it may have started nothing.
                    record_unstarted(item.run, replace(self._start_record(), node=None), record)
        except FileError as error:
            self._warn(f"{item.spec.name}: {error}")
            return False
        return True

    # -- the end of the launch -----------------------------------------------------------------------------------

    def _stop_all(self) -> None:
        """Ask every worker to stop between two steps. One more Ctrl-C, or the time of the host, kills them."""
        if not self._alive:
            return
        self._interrupts.request()
        try:
            workers = f"{len(self._alive)} run{'s' if len(self._alive) > 1 else ''}"
            terminal.tell_progress(f"stopping {workers} between two steps; once more ends them at once")
            for one in self._alive:
                self._executor.stop(one.id, force=False)
            seconds = stop_seconds(self._host.stop_seconds, self._executor.ends_at)
            self._wait_for_ends(seconds, lambda: self._interrupts.kill)
        finally:
            for one in self._alive:
                self._executor.stop(one.id, force=True)
            self._wait_for_ends(KILL_SECONDS, lambda: False)
            for one in self._alive:
                terminal.tell(f"warning: {one.unkillable}")

    def _wait_for_ends(self, seconds: float, is_enough: Callable[[], bool]) -> None:
        """Wait until no worker lives, at most ``seconds``, and no longer than until ``is_enough``."""
        deadline = time.monotonic() + seconds
        while True:
            for one in self._alive:
                one.ended = self._executor.poll(one.id)
            if not self._alive or is_enough() or time.monotonic() >= deadline:
                return
            self._executor.wait(POLL_SECONDS)

    def _settle_stopped(self) -> None:
        """Record why runs were stopped together with this process, if its end is a failure of theirs."""
        if (stopped := self._host.stopped()) is None:
            return
        kind, message = stopped
        for one in self._live:
            with self._warnings_for(one.item):
                # A worker that was stopped before it owned the run seems to run for a while.
                over = ("done", "stopped", "cancelled") if one.ended and one.ended.exit_code != EXIT_BUSY else None
                if over and self._is_ours(one.item) and one.item.run.observe().state not in over:
                    one.attempt.record(kind, message)
        for item in self._queue.take_all() if kind == "cancelled" else ():
            self._record(item, 0, kind, message)

    # -- files ---------------------------------------------------------------------------------------------------

    def _write_queue(self) -> None:
        """Record which runs wait if that has changed, now and then, and once none does."""
        submitted = {one.item.run.id: self._executor.why_waits(one.id) for one in self._alive}
        reasons = {run_id: why for run_id, why in submitted.items() if why} | dict(self._queue.reasons)
        now = time.monotonic()
        is_due = not self._queue or now - self._queue_tried_at >= QUEUE_SECONDS
        if not self._writes_queue or not is_due or reasons == self._queue_written:
            return
        self._queue_tried_at = now
        try:
            write_queue(self._study.path, reasons, self._request)
            self._queue_written = reasons
        except FileError as error:
            self._warn(f"{error}; status shows an older queue")

    @contextlib.contextmanager
    def _warnings_for(self, item: PlannedRun) -> Iterator[None]:
        """Warn of an error in reading or writing the files of a run, and go on. The caller does the block again."""
        try:
            with file_errors("read or write", item.run.path, within=True):
                yield
        except FileError as error:
            self._warn(f"{item.spec.name}: {error}")

    def _warn(self, line: str) -> None:
        if line not in self._warnings:
            self._warnings.add(line)
            terminal.tell(f"warning: {line}")

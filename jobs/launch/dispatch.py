"""Run a plan to completion: start what fits, watch it, and try failed runs again."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeAlias, final

from jobs import terminal
from jobs.attempt.attempt import Attempt, hung_seconds
from jobs.attempt.supervisor import KILL_SECONDS
from jobs.backends.base import Executor
from jobs.launch.background import STOP_SECONDS, Interrupts
from jobs.launch.job import (
    POLL_SECONDS,
    Again,
    Host,
    Job,
    LaunchOptions,
    files_of,
    launch_of,
    next_submission,
    stop_all,
    unkillable,
)
from jobs.plan.planned import PlannedRun
from jobs.plan.queue import Queue
from jobs.spec import Submission
from jobs.study.budget import Budget
from jobs.study.folder import write_queue
from jobs.study.kept_code import Code
from seqlm.ends import End, Progress, Verdict, verdict
from seqlm.errors import EXIT_BUSY, STOPPED_EXITS, FileError
from seqlm.requests import Requests
from seqlm.rundir import Observation
from seqlm.state import FailureKind

LOOK_SECONDS = 0.5
"""Time between two looks at the files of live runs."""
LOOKS = 3
"""Number of looks at the files of an ended run before an error in reading them becomes its failure."""
GRACE_SECONDS = 1.0
"""How much later than a worker this process may get a signal that was sent to both."""
QUEUE_SECONDS = 1.0
"""Least time between two writings of the queue for ``status``."""

EventKind: TypeAlias = Literal["started", "epoch", "retried", "ended"]


class Event(NamedTuple):
    """Something that happened to a run, for progress displays."""

    kind: EventKind
    planned: PlannedRun
    observation: Observation


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
        options: LaunchOptions,
        *,
        writes_queue: bool = True,
        host: Host | None = None,
        interrupts: Interrupts | None = None,
    ) -> None:
        """Start nothing yet. ``executor`` is open, and workers run ``code``.

        Variables that seqlm sets override those in the ``env`` of ``options``. With ``writes_queue``, which runs wait
        and why is recorded for ``status`` whenever that changes. ``host``: the process; ``None``: a launcher.
        ``interrupts``: the signals that end it; ``None``: those of a launcher.

        Raises:
            UsageError: ``SEQLM_HUNG_MINUTES`` is not a number above 0.
        """
        self._executor = executor
        self._code = code
        self._options = options
        hung_seconds({**os.environ, **options.env})  # a wrong value is an error before anything starts
        self._events: list[Event] = []
        self._queue = Queue(())
        self._live: list[Job] = []
        self._ended: list[Job] = []
        """Ended jobs whose runs' files have not been read and written yet."""
        self._epochs: dict[str, int | None] = {}
        self._looked_at = -math.inf
        self._busy: defaultdict[str, list[End]] = defaultdict(list)
        """By run id, the attempts that found another worker at the run."""
        self._troubles: defaultdict[str, list[End]] = defaultdict(list)
        """By run id, the times in a row that its files could not be read or written."""
        self._unplaced: dict[str, Submission] = {}
        """By run id, an attempt for which there was no room after all."""
        self._unwritten: list[tuple[PlannedRun, str, End]] = []
        """Final failures that could not be written yet, with what to say of each."""
        self._warnings: set[str] = set()
        self._budget = Budget(options.study_dir, options.policy)
        self._is_spent: str | None = None
        """Why no run goes on: the budget is spent. ``None``: it is not."""
        self._writes_queue = writes_queue
        self._queue_written: dict[str, str] | None = None
        self._queue_tried_at = -math.inf
        self._interrupts = interrupts or Interrupts()
        self._host = host or Host()
        self._requests = Requests(options.study_dir)
        self.again: dict[str, Again] = {}
        """By run id, the runs that failed and are to be tried again by another start of this process."""

    def dispatch(self, planned: Sequence[PlannedRun]) -> Generator[Event, None, None]:
        """Run everything that is to start or resume, until all of it has ended. Close the iterator to stop the workers.

        Resources are resolved. A run with an estimate takes its place in the queue by that.

        Raises:
            FileError: everything has ended, and the failure of a run cannot be written.
            KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP; the workers have stopped and can be resumed.
        """
        todo = [item for item in planned if item.action != "skip"]
        self._queue = Queue(todo, max_parallel=self._options.max_parallel)
        for item in todo:
            self._epochs[item.run.id] = item.observation.epoch
        self._look_at_budget(at_once=True)
        with self._interrupts.noted():
            try:
                while self._queue or self._live or self._ended:
                    if self._interrupts.stop:
                        raise KeyboardInterrupt
                    self._start_what_fits()
                    yield from self._new_events()
                    self._write_queue()
                    self._executor.wait(POLL_SECONDS)
                    self._collect()
                    yield from self._new_events()
            except BaseException:
                ended = stop_all(self._live, self._executor, self._interrupts, self._host.stop_seconds)
                self._settle_stopped([*self._ended, *ended])
                raise
            self._write_queue(at_once=True)
            self._write_failures()
        if self._unwritten:
            names = ", ".join(item.spec.name for item, _, _ in self._unwritten)
            raise FileError(f"{names}: failed, but that cannot be written; the warnings above say why")

    def _new_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    # -- one round -----------------------------------------------------------------------------------------------

    def _start_what_fits(self) -> None:
        if (why := self._is_spent) is not None:
            self._queue.hold(f"waits: {why}")
            for left in [] if self._live or self._ended else self._queue.take_all():
                with self._warnings_for(left):
                    self._events.append(Event("ended", left, left.run.observe(spent=lambda: why)))
            return
        while True:
            if self._interrupts.stop:
                return
            live = [(job.expected_end, self._executor.held(job.id)) for job in self._live]
            item = self._queue.take(self._executor.free(), live, time.monotonic())
            if item is None:
                break
            attempt: Attempt | None = None
            try:
                with files_of(item.run):
                    is_ours = self._is_ours(item)
                    observation = item.run.observe()
                    if not is_ours or observation.state == "cancelled":  # from another terminal while it waited
                        self._events.append(Event("ended", item, observation))
                        continue
                    submission = self._unplaced.pop(item.run.id, None)
                    if submission is None:
                        item.run.create_as_launched()
                        submission = next_submission(item, self._options, self._code)
                attempt = Attempt(submission, self._host.where)
                attempt.record_start(launch_of(self._executor, self._options.request))
                job_id = self._executor.submit(submission)
            except FileError as error:
                self._have_trouble(item, error, attempt.number if attempt else None)
                continue
            if job_id is None:
                self._unplaced[item.run.id] = submission
                self._queue.put_back(item)
                break
            # Kept before anything else can fail, so that an error stops this worker too.
            self._live.append(Job(id=job_id, planned=item, attempt=attempt))
            self._events.append(Event("started", item, item.observation))

    def _collect(self) -> None:
        look = time.monotonic() - self._looked_at >= LOOK_SECONDS
        if look:
            self._look_at_budget()
        for job in list(self._live):
            job.ended = self._executor.poll(job.id)
            if job.ended is not None:
                self._live.remove(job)
                self._ended.append(job)
                if job.ended.exit_code in STOPPED_EXITS and job.stop_asked is None:
                    job.look_at = time.monotonic() + GRACE_SECONDS
            elif look:
                self._look_at(job)
        now = time.monotonic()
        if look:
            self._looked_at = now
        due = [job for job in self._ended if job.look_at <= now]
        self._ended = [job for job in self._ended if job.look_at > now]
        for job in due:
            self._has_ended(job)

    def _look_at_budget(self, *, at_once: bool = False) -> None:
        """Read what is spent, unless it was read recently."""
        before = self._is_spent
        with contextlib.suppress(FileError):  # what was spent before still counts; the next look is soon
            self._is_spent = self._budget.is_spent(at_once=at_once)
        if self._is_spent is not None and before is None and self._live:
            runs = "1 run stops" if len(self._live) == 1 else f"{len(self._live)} runs stop"
            terminal.tell(f"{self._is_spent}; {runs} at a checkpoint")

    def _look_at(self, job: Job) -> None:
        """Note the progress of a live run, and stop it if it was cancelled, the budget is spent, or it hangs."""
        item = job.planned
        with self._warnings_for(item):
            self._note_epoch(item, item.run.observe())
        now = time.monotonic()
        is_cancelled, is_asked = False, job.stop_asked is not None
        with self._warnings_for(item):
            is_cancelled = item.run.is_cancelled()
        # A run that stops for the budget has all the time that it needs to save.
        is_late = is_cancelled and job.stop_asked is not None and now - job.stop_asked > STOP_SECONDS
        if is_late or (not is_asked and (is_cancelled or self._is_spent is not None)):
            self._executor.stop(job.id, force=is_asked)
            job.stop_asked = now
            job.killed = job.killed or (now if is_asked else None)
        is_hung = False
        with self._warnings_for(item):
            is_hung = job.attempt.is_hung()
        if is_hung:
            with self._warnings_for(item):
                job.attempt.record_hang()
            self._executor.stop(job.id, force=True)
            job.killed = job.killed or now
        if job.killed is not None and now - job.killed > KILL_SECONDS:
            self._warn(unkillable(job))

    def _note_epoch(self, item: PlannedRun, observation: Observation) -> None:
        if observation.epoch != self._epochs[item.run.id]:
            self._epochs[item.run.id] = observation.epoch
            self._events.append(Event("epoch", item, observation))

    def _has_ended(self, job: Job) -> None:
        """Read how the run of an ended job is, and queue it again if the policy retries its failure."""
        assert job.ended is not None, "asked of ended jobs only"
        item, run = job.planned, job.planned.run
        try:
            with files_of(run):
                is_ours = self._is_ours(item)
                if is_ours:
                    job.attempt.record_exit(job.ended, was_asked=job.stop_asked is not None)
                observation = run.observe()
                found = self._verdict(job, observation) if is_ours else Verdict()
        except FileError as error:
            job.looks += 1
            if job.looks >= LOOKS:
                self._have_trouble(item, error, job.attempt.number)
                return
            job.look_at = time.monotonic() + LOOK_SECONDS
            self._ended.append(job)
            return
        self._troubles.pop(run.id, None)
        self._note_epoch(item, observation)
        self._look_at_budget(at_once=True)
        if found.delay is not None:
            self._retry(item, observation, found)
        elif observation.state == "pending" and self._is_spent is not None:  # stopped for that: waits again
            self._queue.put_back(self._again(item, observation))
        else:
            self._events.append(Event("ended", item, observation))

    def _verdict(self, job: Job, observation: Observation) -> Verdict:
        """Say whether the run of an ended job is tried again.

        An attempt that found another worker at the run writes nothing, since that worker may. Only this launcher
        counts it, as a failure of kind ``node``.

        Raises:
            FileError: the run's files cannot be read.
        """
        run, busy = job.planned.run, self._busy[job.planned.run.id]
        if observation.state in ("done", "stopped", "cancelled"):
            return Verdict()
        failures = run.failures(run.first_attempt())
        if job.ended is not None and job.ended.exit_code == EXIT_BUSY:
            busy.append(self._failed(job.attempt.number, run.progress()))
            failures = [*failures, *busy]
        elif observation.state == "failed" and failures:
            failures = [*failures[:-1], *busy, failures[-1]]
        else:
            return Verdict()
        return run.verdict(self._options.policy.limits, failures)

    def _failed(self, attempt: int, progress: Progress) -> End:
        """Return a failure of kind ``node`` that only this launcher knows. ``attempt`` 0: none was started."""
        return End(attempt=attempt, kind="node", progress=progress, node=self._executor.node)

    def _retry(self, item: PlannedRun, observation: Observation, found: Verdict) -> None:
        """Queue a failed run for its next attempt, or leave it to the next start of this process."""
        assert found.delay is not None, "it is tried again"
        item_again = self._again(item, observation)
        if self._host.tries_again(observation.kind, len(self._busy[item.run.id])):
            self._queue.put_back(item_again, not_before=time.monotonic() + found.delay)
            self._write_queue(at_once=True)
        else:
            message = (observation.reason or "").removeprefix(f"{observation.kind}: ")
            if troubles := self._troubles.get(item.run.id):  # else the next start of this process would not count it
                with self._warnings_for(item):
                    self._record(item, "node", message, troubles[-1].attempt)
            self.again[item.run.id] = Again(kind=observation.kind or "node", message=message, verdict=found)
        self._events.append(Event("retried", item, observation))

    def _record(self, item: PlannedRun, kind: FailureKind, message: str, attempt: int = 0, **more: Any) -> None:
        """Record how an attempt failed. 0: it could not even be started."""
        record = {"kind": kind, "message": message, "where": self._host.where, **more}
        item.run.write_exit(attempt or item.run.last_attempt() + 1, record)

    def _again(self, item: PlannedRun, observation: Observation) -> PlannedRun:
        """Return what a run needs after an attempt has ended."""
        action = item.action
        with self._warnings_for(item):
            action = "resume" if item.run.has_checkpoint() else "start"
        return replace(item, action=action, reason=None, observation=observation)

    def _is_ours(self, item: PlannedRun) -> bool:
        """Return whether no later request names the run.

        Raises:
            FileError: a request cannot be read.
        """
        if self._options.request is None:
            return True
        newest = self._requests.newest(item.run.id)
        return newest is None or newest.number == self._options.request

    def _settle_stopped(self, jobs: Sequence[Job]) -> None:
        """Decide about the runs that were stopped together with this process, if its end is a failure of theirs."""
        stopped = self._host.stopped()
        if stopped is None:
            return
        for job in jobs:
            run = job.planned.run
            with self._warnings_for(job.planned):
                if not self._is_ours(job.planned) or run.observe().state not in ("pending", "failed"):
                    continue
                job.attempt.record(*stopped)
                failures = run.failures(run.first_attempt())
                found = run.verdict(self._options.policy.limits, failures)
                if found.delay is not None:
                    last = failures[-1]
                    self.again[run.id] = Again(kind=last.kind or "node", message=last.message, verdict=found)
        kind, message = stopped
        for item in self._queue.take_all():
            if kind == "cancelled":
                with self._warnings_for(item):
                    self._record(item, kind, message)
            else:
                self.again[item.run.id] = Again(kind=kind, message=message, verdict=Verdict(delay=0.0))

    def _write_queue(self, *, at_once: bool = False) -> None:
        """Record which runs wait if that has changed. ``at_once``: even if the last record was a moment ago."""
        reasons, now = self._queue.reasons, time.monotonic()
        is_due = at_once or not self._queue or now - self._queue_tried_at >= QUEUE_SECONDS
        if not self._writes_queue or not is_due or reasons == self._queue_written:
            return
        self._queue_tried_at = now
        try:
            write_queue(self._options.study_dir, reasons, self._options.request)
            self._queue_written = reasons
        except FileError as error:
            self._warn(f"{error}; status shows an older queue")

    # -- files of one run that cannot be read or written -----------------------------------------------------------

    def _warn(self, line: str) -> None:
        if line not in self._warnings:
            self._warnings.add(line)
            terminal.tell(f"warning: {line}")

    @contextlib.contextmanager
    def _warnings_for(self, item: PlannedRun) -> Iterator[None]:
        """Warn of an error in reading or writing the files of a run, and go on. The caller does the block again."""
        try:
            with files_of(item.run):
                yield
        except FileError as error:
            self._warn(f"{item.spec.name}: {error}")

    def _have_trouble(self, item: PlannedRun, error: FileError, attempt: int | None = None) -> None:
        """Count an error in the files of a run as a failure of kind ``node``, which only this launcher knows.

        What the worker has written meanwhile stays in place until it can be read.
        """
        run, epoch = item.run, self._epochs[item.run.id]
        troubles = self._troubles[run.id]
        progress = (0 if epoch is None else epoch + 1, 0)
        troubles.append(self._failed(attempt or 0, progress))
        found = verdict(self._options.policy.limits, troubles, most_micro_batches=1)
        message = f"{error}{found.why}"
        observation = replace(item.observation, state="failed", reason=f"node: {message}", kind="node")
        if found.delay is not None:
            self._retry(item, observation, found)
            return
        self._unwritten.append((item, message, troubles[-1]))
        self._write_failures()
        self._events.append(Event("ended", item, observation))

    def _write_failures(self) -> None:
        """Write the final failures that could not be written before; keep those that still cannot."""
        for item, message, end in list(self._unwritten):
            with self._warnings_for(item):
                self._record(item, "node", message, end.attempt, stands=True, progress=end.progress)
                self._unwritten.remove((item, message, end))

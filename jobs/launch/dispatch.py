"""Run a plan to completion: start what fits, watch it, and try failed runs again."""

from __future__ import annotations

import functools
import math
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, Literal, TypeAlias, final

from jobs.attempt.heartbeat import Heartbeat, hung_seconds
from jobs.attempt.retry import (
    Decision,
    Failed,
    decide,
    history,
    let_stand,
    most_micro_batches,
    progress_of,
    put_failure_aside,
    timestamp,
)
from jobs.attempt.supervisor import worker_variables
from jobs.backends.base import Backend
from jobs.launch.job import Job, job_record, next_submission, put_aside_unless_cancelled
from jobs.launch.options import LaunchOptions
from jobs.launch.reports import QueueReports, Warnings, files_of
from jobs.plan.planned import PlannedRun
from jobs.plan.queue import Queue
from jobs.study.kept_code import Code
from seqlm.errors import EXIT_BUSY, FileError
from seqlm.rundir import Observation

POLL_SECONDS = 0.1
LOOK_SECONDS = 0.5
"""Time between two looks at the files of live runs."""
LOOKS = 3
"""Number of looks at the files of an ended run before an error in reading them becomes its failure."""
STOP_SECONDS = 60.0
"""Time that workers have to stop before they are killed. A step at the published sizes takes seconds on a CPU."""

EventKind: TypeAlias = Literal["started", "epoch", "retried", "ended"]


@dataclass(frozen=True, kw_only=True)
class Event:
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
        backend: Backend,
        code: Code,
        options: LaunchOptions,
        *,
        on_event: Callable[[Event], None],
        tell_queue: Callable[[Mapping[str, str]], None] = lambda waiting: None,
    ) -> None:
        """Start nothing yet.

        Args:
            backend: an open backend.
            code: what workers run.
            options: of the launch. Variables that seqlm sets override those in ``env``.
            on_event: called with each event.
            tell_queue: called with the runs that wait and why (run id -> reason), whenever that changes.

        Raises:
            UsageError: ``SEQLM_HUNG_MINUTES`` is not a number above 0.
        """
        self._backend = backend
        self._code = code
        self._argv = (sys.executable, *options.worker)
        self._on_event = on_event
        self._max_parallel = options.max_parallel
        self._policy = options.policy
        self._env = {**options.env, **worker_variables(options.policy)}
        self._hung_seconds = hung_seconds({**os.environ, **self._env})
        self._tell = options.tell
        self._queue = Queue(())
        self._live: list[Job] = []
        self._ended: list[Job] = []
        """Ended jobs whose runs' files have not been read and written yet."""
        self._epochs: dict[str, int | None] = {}
        self._looked_at = -math.inf
        self._busy: defaultdict[str, list[Failed]] = defaultdict(list)
        """By run id, the attempts that found another worker at the run."""
        self._troubles: defaultdict[str, list[Failed]] = defaultdict(list)
        """By run id, the times in a row that its files could not be read or written."""
        self._to_put_aside: dict[str, Callable[[], None]] = {}
        self._unwritten: list[tuple[PlannedRun, dict[str, Any]]] = []
        """Final failures that could not be written yet."""
        self._warnings = Warnings(options.tell)
        self._queue_reports = QueueReports(tell_queue, self._warnings)

    def dispatch(self, planned: Sequence[PlannedRun]) -> None:
        """Run everything that is to start or resume, and return when all of it has ended.

        Resources are resolved. A run with an estimate takes its place in the queue by that.

        Raises:
            FileError: everything has ended, and the ``failure.json`` of a run cannot be written.
            KeyboardInterrupt: Ctrl-C or SIGTERM; the workers have stopped and can be resumed.
        """
        todo = [item for item in planned if item.action != "skip"]
        self._queue = Queue(todo, max_parallel=self._max_parallel)
        for item in todo:
            aside = functools.partial(put_failure_aside, item.run, by_hand=item.by_hand, seen=item.observation)
            self._to_put_aside[item.run.id] = aside
            with self._warnings.instead_of_errors(item):
                self._put_aside(item)
        with _interruptible():
            try:
                while self._queue or self._live or self._ended:
                    self._start_what_fits()
                    self._queue_reports.update(self._queue)
                    self._backend.wait(POLL_SECONDS)
                    self._collect()
            except BaseException:
                self._stop_all()
                raise
        self._queue_reports.update(self._queue, at_once=True)
        self._write_failures()
        if self._unwritten:
            names = ", ".join(item.spec.name for item, _ in self._unwritten)
            raise FileError(f"{names}: failed, but failure.json cannot be written; the warnings above say why")

    # -- one round -----------------------------------------------------------------------------------------------

    def _start_what_fits(self) -> None:
        while (item := self._next()) is not None:
            try:
                with files_of(item.run):
                    self._put_aside(item)
                    observation = item.run.observe()
                    submission = next_submission(item, argv=self._argv, code=self._code, env=self._env)
                    heartbeat = Heartbeat(item.run, submission.attempt, self._hung_seconds)
                if observation.state == "cancelled":  # from another terminal while it waited
                    self._on_event(Event(kind="ended", planned=item, observation=observation))
                    continue
                job_id = self._backend.submit(submission)
            except FileError as error:
                self._have_trouble(item, error)
                continue
            # Kept before anything else can fail, so that an error stops this worker too.
            job = Job(
                id=job_id,
                planned=item,
                submission=submission,
                started=time.monotonic(),
                heartbeat=heartbeat,
                record=job_record(self._backend.name, job_id, submission),
            )
            self._live.append(job)
            self._epochs.setdefault(item.run.id, item.observation.epoch)
            self._write_record(job)
            self._on_event(Event(kind="started", planned=item, observation=item.observation))

    def _next(self) -> PlannedRun | None:
        """Take the next run that can start now out of the queue."""
        live = [(job.expected_end, self._backend.held(job.id)) for job in self._live]
        return self._queue.take(self._backend.free(), live, time.monotonic())

    def _collect(self) -> None:
        look = time.monotonic() - self._looked_at >= LOOK_SECONDS
        for job in list(self._live):
            job.ended = self._backend.poll(job.id)
            if job.ended is not None:
                self._live.remove(job)
                self._ended.append(job)
            elif look:
                self._look_at(job)
                self._stop_if_cancelled(job)
                self._end_if_hung(job)
        if look:
            self._looked_at = time.monotonic()
        now = time.monotonic()
        due = [job for job in self._ended if job.look_at <= now]
        self._ended = [job for job in self._ended if job.look_at > now]
        for job in due:
            self._has_ended(job)

    def _look_at(self, job: Job) -> None:
        observation: Observation | None = None
        with self._warnings.instead_of_errors(job.planned):
            observation = job.run.observe(queued=True)
        if observation is not None:
            self._tell_of_epochs(job.planned, observation)
        self._write_record(job)

    def _write_record(self, job: Job) -> None:
        with self._warnings.instead_of_errors(job.planned):
            job.write_record()

    def _tell_of_epochs(self, item: PlannedRun, observation: Observation) -> None:
        if observation.epoch != self._epochs[item.run.id]:
            self._epochs[item.run.id] = observation.epoch
            self._on_event(Event(kind="epoch", planned=item, observation=observation))

    def _stop_if_cancelled(self, job: Job) -> None:
        if not job.run.is_cancelled():
            return
        now = time.monotonic()
        if job.stop_asked is None or now - job.stop_asked > STOP_SECONDS:
            self._backend.stop(job.id, force=job.stop_asked is not None)
            job.stop_asked = now

    def _end_if_hung(self, job: Job) -> None:
        if job.heartbeat.is_hung():
            # Written before the worker is killed, so that the kill is not taken for the cause.
            with self._warnings.instead_of_errors(job.planned):
                job.run.write_failure_once(job.heartbeat.failure("the launcher, which watches its files"))
            self._backend.stop(job.id, force=True)

    def _has_ended(self, job: Job) -> None:
        """Read how the run of an ended job is, and queue it again if the policy retries its failure."""
        item, run = job.planned, job.run
        self._write_record(job)
        try:
            with files_of(run):
                observation = job.observe_end()
                is_over = observation.state in ("done", "cancelled")
                decision = Decision() if is_over else self._decide(job, observation)
        except FileError as error:
            job.looks += 1
            if job.looks >= LOOKS:
                self._have_trouble(item, error)
                return
            job.look_at = time.monotonic() + LOOK_SECONDS
            self._ended.append(job)
            return
        self._troubles.pop(run.id, None)
        self._tell_of_epochs(item, observation)
        if decision.delay is not None:
            aside = functools.partial(put_failure_aside, run, micro_batches=job.micro_batches)
            self._to_put_aside[run.id] = aside
            self._put_back(item, observation, decision.delay)
            return
        if decision.why:
            with self._warnings.instead_of_errors(item):
                let_stand(run, decision)
                observation = run.observe()
        self._on_event(Event(kind="ended", planned=item, observation=observation))

    def _put_back(self, item: PlannedRun, observation: Observation, delay: float) -> None:
        """Queue a failed run for its next attempt, in ``delay`` seconds."""
        action = item.action
        with self._warnings.instead_of_errors(item):
            self._put_aside(item)
            action = "resume" if item.run.has_checkpoint() else "start"
        again = replace(item, action=action, reason=None, observation=observation)
        self._queue.put_back(again, not_before=time.monotonic() + delay)
        self._queue_reports.update(self._queue, at_once=True)
        self._on_event(Event(kind="retried", planned=item, observation=observation))

    def _decide(self, job: Job, observation: Observation) -> Decision:
        """Decide whether the run of an ended job is tried again.

        An attempt that found another worker at the run writes nothing, since that worker may. Only this launcher
        counts it, as a failure of kind ``node``.
        """
        is_busy = job.ended is not None and job.ended.exit_code == EXIT_BUSY
        busy = self._busy[job.run.id]
        failed = Failed(
            kind="node" if is_busy else observation.kind,
            progress=progress_of(job.run),
            micro_batches=job.micro_batches,
        )
        most = most_micro_batches(job.planned.spec.config.train.batch_size, job.submission.resources.ranks)
        decision = decide(self._policy, [*history(job.run), *busy], failed, most_micro_batches=most)
        if is_busy:
            busy.append(failed)
        return decision

    # -- files of one run that cannot be read or written -----------------------------------------------------------

    def _put_aside(self, item: PlannedRun) -> None:
        """Put the failure of the previous attempt aside, unless that is done.

        Raises:
            FileError, OSError: it cannot be read or moved.
        """
        if item.run.id in self._to_put_aside:
            self._to_put_aside[item.run.id]()
            del self._to_put_aside[item.run.id]

    def _have_trouble(self, item: PlannedRun, error: FileError) -> None:
        """Count an error in the files of a run as a failure of kind ``node``, which only this launcher knows.

        What the worker has written meanwhile stays in place until it can be read.
        """
        run, epoch = item.run, self._epochs.get(item.run.id)
        failed = Failed(kind="node", progress=(0 if epoch is None else epoch + 1, 0))
        decision = decide(self._policy, self._troubles[run.id], failed, most_micro_batches=1)
        self._troubles[run.id].append(failed)
        message = f"{error}{decision.why}"
        observation = replace(item.observation, state="failed", reason=f"node: {message}", kind="node")
        if decision.delay is not None:
            self._to_put_aside.setdefault(run.id, functools.partial(put_aside_unless_cancelled, run))
            self._put_back(item, observation, decision.delay)
            return
        failure = {"kind": "node", "message": message, "where": "its launcher", "failed_at": timestamp()}
        self._unwritten.append((item, {**failure, "stands": True}))
        self._write_failures()
        self._on_event(Event(kind="ended", planned=item, observation=observation))

    def _write_failures(self) -> None:
        """Write the final failures that could not be written before; keep those that still cannot."""
        for item, failure in list(self._unwritten):
            with self._warnings.instead_of_errors(item):
                item.run.write_failure_once(failure)
                self._unwritten.remove((item, failure))

    # -- the end ----------------------------------------------------------------------------------------------------

    def _stop_all(self) -> None:
        """Ask every worker to stop between two steps. A second interrupt, or ``STOP_SECONDS``, kills them."""
        deadline = time.monotonic() + STOP_SECONDS
        try:
            if self._live:
                workers = f"{len(self._live)} run{'s' if len(self._live) > 1 else ''}"
                self._tell(f"stopping {workers} between two steps; once more ends them at once")
            for job in self._live:
                self._backend.stop(job.id, force=False)
            while self._live and time.monotonic() < deadline:
                self._forget_ended()
                self._backend.wait(POLL_SECONDS)
        finally:
            for job in self._live:
                self._backend.stop(job.id, force=True)
            self._forget_ended()

    def _forget_ended(self) -> None:
        self._live = [job for job in self._live if self._backend.poll(job.id) is None]


@contextmanager
def _interruptible() -> Iterator[None]:
    """Treat SIGTERM and SIGHUP as Ctrl-C while the block runs."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # A signal that the caller has set to be ignored (nohup) stays ignored.
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

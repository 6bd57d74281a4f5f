"""Run a plan to completion: start what fits, watch it, and try failed runs again."""

from __future__ import annotations

import functools
import math
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeAlias, final

from jobs.attempt.attempt import Attempt
from jobs.attempt.heartbeat import hung_seconds
from jobs.attempt.outcome import Ended, failure_record
from jobs.attempt.retry import Decision, Failed, decide, let_stand, progress_of, put_failure_aside
from jobs.attempt.supervisor import worker_variables
from jobs.backends.base import Backend
from jobs.launch.job import Job, job_record, put_aside_unless_cancelled
from jobs.launch.reports import QueueReports, Warnings, files_of
from jobs.manifests.policy import Policy
from jobs.plan.planned import Planned
from jobs.plan.queue import Live, Queue, Waiting, Work
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
    planned: Planned
    observation: Observation


@dataclass(kw_only=True, eq=False)
class _Over:
    """A job that has ended, and whose run's files are not read and written yet."""

    job: Job
    ended: Ended
    looks: int = 0
    look_at: float = -math.inf


@final
class Dispatcher:
    """Runs a plan on a backend and waits for every run to end.

    If the files of one run cannot be read or written, they are tried again; then that run alone fails, with the kind
    ``node``.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        code: Code,
        argv: Sequence[str],
        data_path: Mapping[str, Path | None],
        on_event: Callable[[Event], None],
        work: Mapping[str, Work],
        max_parallel: int | None = None,
        policy: Policy | None = None,
        env: Mapping[str, str] | None = None,
        tell_queue: Callable[[Mapping[str, str]], None] = lambda waiting: None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Start nothing yet.

        Args:
            backend: an open backend.
            code: what workers run.
            argv: the worker's command without the folder.
            data_path: corpus of each run, by run id.
            on_event: called with each event.
            work: the remaining work of each run, by run id; it orders the queue.
            max_parallel: most runs at once. ``None``: as many as the backend has room for.
            policy: how often failed runs are tried again, and how often runs are saved. ``None``: the defaults.
            env: variables for the workers; those that seqlm sets override them.
            tell: called with each line about the launch as a whole.
            tell_queue: called with the runs that wait and why (run id -> reason), whenever that changes.

        Raises:
            UsageError: ``SEQLM_HUNG_MINUTES`` is not a number above 0.
        """
        self._backend = backend
        self._code = code
        self._argv = tuple(argv)
        self._data_path = data_path
        self._on_event = on_event
        self._work = work
        self._max_parallel = max_parallel
        self._policy = policy or Policy()
        self._env = {**(env or {}), **worker_variables(self._policy)}
        hung_seconds({**os.environ, **self._env})  # a wrong value is an error before anything starts
        self._tell = tell
        self._planned: dict[str, Planned] = {}
        self._queue = Queue(())
        self._jobs: dict[str, Job] = {}
        self._epochs: dict[str, int | None] = {}
        self._looked_at = -math.inf
        self._busy: defaultdict[str, list[Failed]] = defaultdict(list)
        self._troubles: defaultdict[str, list[Failed]] = defaultdict(list)
        """By run id, the times in a row that its files could not be read or written."""
        self._over: list[_Over] = []
        self._to_put_aside: dict[str, Callable[[], None]] = {}
        self._unwritten: list[tuple[Planned, dict[str, Any]]] = []
        """Final failures that could not be written yet."""
        self._warnings = Warnings(tell)
        self._queue_reports = QueueReports(tell_queue, self._warnings)

    def dispatch(self, planned: Sequence[Planned]) -> None:
        """Run everything that is to start or resume, and return when all of it has ended.

        Raises:
            BackendError: a run can never fit; nothing has been started.
            FileError: everything has ended, and the ``failure.json`` of a run cannot be written.
            KeyboardInterrupt: Ctrl-C or SIGTERM; the workers have stopped and can be resumed.
        """
        todo = [item for item in planned if item.action != "skip"]
        at_most = min(len(todo), self._max_parallel or len(todo))
        waiting = []
        for item in todo:
            spec = replace(item.spec, resources=self._backend.resolve(item.spec, at_most))
            waiting.append(Waiting(id=item.run.id, spec=spec, work=self._work.get(item.run.id, Work())))
            self._planned[item.run.id] = item
        self._queue = Queue(waiting, max_parallel=self._max_parallel)
        for item in todo:
            aside = functools.partial(put_failure_aside, item.run, by_hand=item.by_hand, seen=item.observation)
            self._to_put_aside[item.run.id] = aside
            with self._warnings.instead_of_errors(item):
                self._put_aside(item)
        with _interruptible():
            try:
                while self._queue or self._jobs or self._over:
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
        live = {job_id: self._live(job_id, job) for job_id, job in self._jobs.items()}
        for waiting in self._queue.startable(self._backend.free, live, time.monotonic()):
            item = self._planned[waiting.id]
            try:
                with files_of(item.run):
                    self._put_aside(item)
                    observation = item.run.observe()
                    number, resources = item.run.last_attempt() + 1, waiting.spec.resources
                    attempt = Attempt(item.run, number, policy=self._policy, resources=resources)
                    submission = attempt.prepare(self._argv, env=self._variables(item), code=self._code.path)
                if observation.state == "cancelled":  # from another terminal while it waited
                    self._on_event(Event(kind="ended", planned=item, observation=observation))
                    continue
                job_id = self._backend.submit(submission)
            except FileError as error:
                self._have_trouble(waiting, item, error)
                continue
            # Kept before anything else can fail, so that an error stops this worker too.
            job = Job(
                waiting=waiting,
                planned=item,
                attempt=attempt,
                started=time.monotonic(),
                record=job_record(self._backend.name, job_id, submission, attempt.micro_batches),
            )
            self._jobs[job_id] = job
            live[job_id] = self._live(job_id, job)
            self._epochs.setdefault(item.run.id, item.observation.epoch)
            self._write_record(job)
            self._on_event(Event(kind="started", planned=item, observation=item.observation))

    def _variables(self, item: Planned) -> dict[str, str]:
        """Return the variables of a run's workers. Without ``SEQLM_DATA`` a worker finds the corpus itself."""
        data_path = self._data_path.get(item.run.id)
        data = {} if data_path is None else {"SEQLM_DATA": str(data_path.absolute())}
        return {**self._env, "PYTHONUNBUFFERED": "1", **data}

    def _live(self, job_id: str, job: Job) -> Live:
        seconds = job.waiting.work.seconds
        expected_end = None if seconds is None else job.started + seconds
        return Live(allocations=self._backend.held(job_id), expected_end=expected_end)

    def _collect(self) -> None:
        look = time.monotonic() - self._looked_at >= LOOK_SECONDS
        for job_id, job in list(self._jobs.items()):
            ended = self._backend.poll(job_id)
            if ended is not None:
                del self._jobs[job_id]
                self._over.append(_Over(job=job, ended=ended))
            elif look:
                self._look_at(job)
                self._stop_if_cancelled(job_id, job)
                self._end_if_hung(job_id, job)
        if look:
            self._looked_at = time.monotonic()
        over = [over for over in self._over if over.look_at <= time.monotonic()]
        self._over = [later for later in self._over if later not in over]
        for found in over:
            self._has_ended(found)

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

    def _tell_of_epochs(self, item: Planned, observation: Observation) -> None:
        if observation.epoch != self._epochs[item.run.id]:
            self._epochs[item.run.id] = observation.epoch
            self._on_event(Event(kind="epoch", planned=item, observation=observation))

    def _stop_if_cancelled(self, job_id: str, job: Job) -> None:
        if not job.run.is_cancelled():
            return
        now = time.monotonic()
        if job.stop_asked is None or now - job.stop_asked > STOP_SECONDS:
            self._backend.stop(job_id, force=job.stop_asked is not None)
            job.stop_asked = now

    def _end_if_hung(self, job_id: str, job: Job) -> None:
        if job.attempt.is_hung():
            with self._warnings.instead_of_errors(job.planned):
                job.attempt.record_hang("the launcher, which watches its files")
            self._backend.stop(job_id, force=True)

    def _has_ended(self, over: _Over) -> None:
        """Read how the run ended, and queue it again if the policy retries its failure."""
        job, item, run = over.job, over.job.planned, over.job.planned.run
        self._write_record(job)
        is_busy = over.ended.exit_code == EXIT_BUSY
        try:
            with files_of(run):
                observation = job.observe_end(over.ended)
                is_over = observation.state in ("done", "cancelled")
                decision = Decision() if is_over else self._decide(job, observation, is_busy=is_busy)
        except FileError as error:
            over.looks += 1
            if over.looks >= LOOKS:
                self._have_trouble(job.waiting, item, error)
                return
            over.look_at = time.monotonic() + LOOK_SECONDS
            self._over.append(over)
            return
        self._troubles.pop(run.id, None)
        self._tell_of_epochs(item, observation)
        if decision.delay is not None:
            aside = functools.partial(put_failure_aside, run, micro_batches=job.attempt.micro_batches)
            self._to_put_aside[run.id] = aside
            self._put_back(job.waiting, item, observation, decision.delay)
            return
        if decision.why:
            with self._warnings.instead_of_errors(item):
                let_stand(run, decision)
                observation = run.observe()
        self._on_event(Event(kind="ended", planned=item, observation=observation))

    def _put_back(self, waiting: Waiting, item: Planned, observation: Observation, delay: float) -> None:
        """Queue a failed run for its next attempt, in ``delay`` seconds."""
        action = item.action
        with self._warnings.instead_of_errors(item):
            self._put_aside(item)
            action = "resume" if item.run.has_checkpoint() else "start"
        self._planned[item.run.id] = replace(item, action=action, reason=None, observation=observation)
        self._queue.put_back(replace(waiting, not_before=time.monotonic() + delay))
        self._queue_reports.update(self._queue, at_once=True)
        self._on_event(Event(kind="retried", planned=item, observation=observation))

    def _decide(self, job: Job, observation: Observation, *, is_busy: bool) -> Decision:
        """Decide whether the run of an ended job is tried again.

        An attempt that found another worker at the run writes nothing, since that worker may. Only this launcher
        counts it, as a failure of kind ``node``.
        """
        busy = self._busy[job.run.id]
        decision = job.attempt.decide({"kind": "node" if is_busy else observation.kind}, busy)
        if is_busy:
            busy.append(Failed(kind="node", progress=progress_of(job.run)))
        return decision

    # -- files of one run that cannot be read or written -----------------------------------------------------------

    def _put_aside(self, item: Planned) -> None:
        """Put the failure of the previous attempt aside, unless that is done.

        Raises:
            FileError, OSError: it cannot be read or moved.
        """
        if item.run.id in self._to_put_aside:
            self._to_put_aside[item.run.id]()
            del self._to_put_aside[item.run.id]

    def _have_trouble(self, waiting: Waiting, item: Planned, error: FileError) -> None:
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
            self._put_back(waiting, item, observation, decision.delay)
            return
        failure = failure_record("node", message, where="its launcher", stands=True)
        self._unwritten.append((item, failure))
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
            if self._jobs:
                workers = f"{len(self._jobs)} run{'s' if len(self._jobs) > 1 else ''}"
                self._tell(f"stopping {workers} between two steps; once more ends them at once")
            for job_id in self._jobs:
                self._backend.stop(job_id, force=False)
            while self._jobs and time.monotonic() < deadline:
                self._forget_ended()
                self._backend.wait(POLL_SECONDS)
        finally:
            for job_id in self._jobs:
                self._backend.stop(job_id, force=True)
            self._forget_ended()

    def _forget_ended(self) -> None:
        for job_id in list(self._jobs):
            if self._backend.poll(job_id) is not None:
                del self._jobs[job_id]


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

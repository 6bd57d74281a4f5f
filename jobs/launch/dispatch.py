"""From runs that are wanted to runs that have spoken: the plan (pure), then the loop that carries it out."""

from __future__ import annotations

import functools
import math
import os
import signal
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeAlias, final

from jobs.attempt.heartbeat import PROGRESS_VARIABLE, Heartbeat, hung_seconds
from jobs.attempt.rank import Ended
from jobs.attempt.retry import (
    VARIABLE,
    Decision,
    Failed,
    decide,
    history,
    let_stand,
    micro_batches,
    most_micro_batches,
    progress_of,
    put_failure_aside,
    timestamp,
)
from jobs.backends.base import Backend
from jobs.manifests.policy import Policy
from jobs.plan.planned import Planned
from jobs.plan.queue import Live, Queue, Waiting, Work
from jobs.spec import Submission
from jobs.study.kept_code import Code
from seqlm.errors import FileError
from seqlm.rundir import FailureKind, Observation, RunDirectory, State, write_json

EXIT_STOPPED = 143
"""The worker's own word for "asked to stop"."""
EXIT_UNPRINTED = 120
"""Python's word for "what was printed cannot be written", in place of the worker's own (documentation of sys.exit)."""
STORAGE = (74, EXIT_UNPRINTED)
"""Exit codes of a worker whose files, or whose log, cannot be written."""
EXIT_BUSY = 75
"""The worker's own word for "another worker is at it"."""
STOPPED = (EXIT_STOPPED, -signal.SIGTERM, -signal.SIGINT)
"""How a worker ends that was asked to stop, also while it was still importing."""

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
"""Variables of glibc: logits are allocated and freed in every step, and giving their pages back to the system each time
cost a quarter of a small run's processor time (docs/decisions.md). Other C libraries ignore them."""

POLL_SECONDS = 0.1
LOOK_SECONDS = 0.5
"""How often the files of live runs are looked at."""
LOOKS = 3
"""How often the files of a run whose job has ended are looked at before an error in reading them is its failure."""
QUEUE_SECONDS = 1.0
"""How often, at most, it is written down which runs wait."""
STOP_SECONDS = 60.0
"""How long stopped workers may take before they are killed: a step at the published sizes takes seconds on a CPU."""


EventKind: TypeAlias = Literal["started", "epoch", "retried", "ended"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a run, for whoever shows progress."""

    kind: EventKind
    planned: Planned
    observation: Observation


@dataclass(kw_only=True)
class _Job:
    """A run that is under way."""

    waiting: Waiting
    planned: Planned
    submission: Submission
    started: float
    heartbeat: Heartbeat
    record: dict[str, Any] | None
    """``job.json``, as long as it could not be written."""
    stop_asked: float | None = None
    """When it was asked to stop because somebody has cancelled it."""


@dataclass(kw_only=True, eq=False)
class _Over:
    """A job that has ended, until the files of its run are read and written."""

    job: _Job
    ended: Ended
    looks: int = 0
    look_at: float = -math.inf


@final
class Dispatcher:
    """Carries a plan out on a backend and waits for every run to end.

    A run whose own files cannot be read or written is looked at again, then fails with the kind ``node``; the others
    go on.
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
        """Get ready.

        Args:
            backend: open.
            code: what workers run.
            argv: the worker's command without the folder.
            data_path: corpus of each run, by run id.
            on_event: told of what happens.
            work: what there is to do in each run, by run id; orders the queue.
            max_parallel: most runs at once, whatever the backend has room for.
            policy: how often runs that fail are tried again, and how often they are saved; none: the defaults.
            env: variables for the workers, before those that seqlm sets.
            tell: told, a line at a time, what happens to the launch as a whole.
            tell_queue: told which runs wait, and why, whenever that changes (run id -> reason).

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
        self._env = dict(env or {})
        self._hung_seconds = hung_seconds({**os.environ, **self._env})
        self._tell_queue = tell_queue
        self._tell = tell
        self._told: dict[str, str] | None = None
        self._told_at = -math.inf
        self._is_queue_refused = False
        self._planned: dict[str, Planned] = {}
        self._queue = Queue(())
        self._jobs: dict[str, _Job] = {}
        self._epochs: dict[str, int | None] = {}
        self._looked_at = -math.inf
        self._policy = policy or Policy()
        self._busy: defaultdict[str, list[Failed]] = defaultdict(list)
        self._troubles: defaultdict[str, list[Failed]] = defaultdict(list)
        """By run id, how often in a row its files could not be read or written."""
        self._over: list[_Over] = []
        self._to_put_aside: dict[str, Callable[[], None]] = {}
        self._unwritten: list[tuple[Planned, dict[str, Any]]] = []
        """Failures that stand and could not be written."""
        self._warned: set[str] = set()

    def dispatch(self, planned: Sequence[Planned]) -> None:
        """Run everything that is to start or resume. Returns when all has ended.

        Raises:
            BackendError: a run can never fit; nothing has been started then.
            FileError: all has ended, and the ``failure.json`` of a run cannot be written.
            KeyboardInterrupt: Ctrl-C or SIGTERM; the workers have stopped by then and can be resumed.
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
            with self._tolerating(item):
                self._put_aside(item)
        with _interruptible():
            try:
                while self._queue or self._jobs or self._over:
                    self._start_what_fits()
                    self._show_queue()
                    self._backend.wait(POLL_SECONDS)
                    self._collect()
            except BaseException:
                self._stop_all()
                raise
        self._show_queue(at_once=True)
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
                with _files_of(item.run):
                    self._put_aside(item)
                    observation = item.run.observe()
                    submission = self._submission(waiting, item)
                    heartbeat = Heartbeat(item.run, submission.attempt, self._hung_seconds)
                if observation.state == "cancelled":  # from another terminal while it waited here
                    self._on_event(Event(kind="ended", planned=item, observation=observation))
                    continue
                job_id = self._backend.submit(submission)
            except FileError as error:
                self._have_trouble(waiting, item, error)
                continue
            # Remembered before anything can go wrong, so that whatever does stops this worker too.
            job = _Job(
                waiting=waiting,
                planned=item,
                submission=submission,
                started=time.monotonic(),
                heartbeat=heartbeat,
                record=self._job_record(submission, job_id),
            )
            self._jobs[job_id] = job
            live[job_id] = self._live(job_id, job)
            self._epochs.setdefault(item.run.id, item.observation.epoch)
            self._write_record(job)
            self._on_event(Event(kind="started", planned=item, observation=item.observation))

    def _live(self, job_id: str, job: _Job) -> Live:
        seconds = job.waiting.work.seconds
        expected_end = None if seconds is None else job.started + seconds
        return Live(allocations=self._backend.held(job_id), expected_end=expected_end)

    def _submission(self, waiting: Waiting, item: Planned) -> Submission:
        attempt = item.run.last_attempt() + 1
        env = {
            **self._env,
            "PYTHONPATH": str(self._code.path.absolute()),
            "PYTHONUNBUFFERED": "1",
            "SEQLM_ATTEMPT": str(attempt),
            **worker_variables(self._policy),
            VARIABLE: str(micro_batches(item.run, _batch_size(item), waiting.spec.resources.ranks)),
        }
        data_path = self._data_path.get(item.run.id)
        if data_path is not None:
            env["SEQLM_DATA"] = str(data_path.absolute())
        return Submission(
            run_dir=item.run.path.absolute(),
            attempt=attempt,
            argv=(*self._argv, str(item.run.path.absolute())),
            env=env,
            cwd=self._code.path,
            resources=waiting.spec.resources,
        )

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

    def _look_at(self, job: _Job) -> None:
        observation: Observation | None = None
        with self._tolerating(job.planned):
            observation = job.planned.run.observe(queued=True)
        if observation is not None:
            self._tell_of_epochs(job.planned, observation)
        self._write_record(job)

    def _write_record(self, job: _Job) -> None:
        """Write ``job.json``; where the disk refuses it, the next look writes it."""
        if job.record is not None:
            with self._tolerating(job.planned):
                write_json(job.planned.run.job_file, job.record)
                job.record = None

    def _tell_of_epochs(self, item: Planned, observation: Observation) -> None:
        if observation.epoch != self._epochs[item.run.id]:
            self._epochs[item.run.id] = observation.epoch
            self._on_event(Event(kind="epoch", planned=item, observation=observation))

    def _stop_if_cancelled(self, job_id: str, job: _Job) -> None:
        if not job.planned.run.is_cancelled():
            return
        now = time.monotonic()
        if job.stop_asked is None or now - job.stop_asked > STOP_SECONDS:
            self._backend.stop(job_id, force=job.stop_asked is not None)
            job.stop_asked = now

    def _end_if_hung(self, job_id: str, job: _Job) -> None:
        if job.heartbeat.is_hung():
            # Before the worker is killed, so that the cause is not covered by what follows from it.
            with self._tolerating(job.planned):
                job.planned.run.write_failure_once(job.heartbeat.failure("the launcher, which watches its files"))
            self._backend.stop(job_id, force=True)

    def _has_ended(self, over: _Over) -> None:
        """See whether the run has spoken; put it back where its failure is not its own fault."""
        job, item, run = over.job, over.job.planned, over.job.planned.run
        self._write_record(job)
        is_busy = over.ended.exit_code == EXIT_BUSY
        try:
            with _files_of(run):
                _settle(run, job, over.ended)
                observation = _observe_ended(run)
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
            aside = functools.partial(put_failure_aside, run, micro_batches=_micro_batches(job.submission))
            self._to_put_aside[run.id] = aside
            self._put_back(job.waiting, item, observation, decision.delay)
            return
        if decision.why:
            with self._tolerating(item):
                let_stand(run, decision)
                observation = run.observe()
        self._on_event(Event(kind="ended", planned=item, observation=observation))

    def _put_back(self, waiting: Waiting, item: Planned, observation: Observation, delay: float) -> None:
        """Have a run that has failed wait for its next attempt."""
        action = item.action
        with self._tolerating(item):
            self._put_aside(item)
            action = "resume" if item.run.has_checkpoint() else "start"
        self._planned[item.run.id] = replace(item, action=action, reason=None, observation=observation)
        self._queue.put_back(replace(waiting, not_before=time.monotonic() + delay))
        self._show_queue(at_once=True)
        self._on_event(Event(kind="retried", planned=item, observation=observation))

    def _decide(self, job: _Job, observation: Observation, *, is_busy: bool) -> Decision:
        """Whether the run of a job that has ended is tried again.

        One that another worker has says nothing, since that one may: so this launcher alone remembers it.
        """
        run, parts = job.planned.run, _micro_batches(job.submission)
        kind: FailureKind | None = "node" if is_busy else observation.kind
        failed = Failed(kind=kind, progress=progress_of(run), micro_batches=parts)
        before = [*history(run), *self._busy[run.id]]
        if is_busy:
            self._busy[run.id].append(failed)
        most = most_micro_batches(_batch_size(job.planned), job.submission.resources.ranks)
        return decide(self._policy, before, failed, most_micro_batches=most)

    # -- trouble with the files of one run -------------------------------------------------------------------------

    @contextmanager
    def _tolerating(self, item: Planned) -> Iterator[None]:
        """Tell of an error in reading or writing the files of a run, and go on; the block is done again later."""
        try:
            with _files_of(item.run):
                yield
        except FileError as error:
            self._warn(f"{item.spec.name}: {error}")

    def _warn(self, line: str) -> None:
        """Tell of trouble that goes on once."""
        if line not in self._warned:
            self._warned.add(line)
            self._tell(f"warning: {line}")

    def _put_aside(self, item: Planned) -> None:
        """Put the failure of the attempt before aside, unless that is done.

        Raises:
            FileError, OSError: the disk refuses it.
        """
        if item.run.id in self._to_put_aside:
            self._to_put_aside[item.run.id]()
            del self._to_put_aside[item.run.id]

    def _have_trouble(self, waiting: Waiting, item: Planned, error: FileError) -> None:
        """The files of a run could not be read or written: a failure of kind ``node``, which only this launcher knows.

        What its worker has written meanwhile stays where it is until it can be read.
        """
        run, epoch = item.run, self._epochs.get(item.run.id)
        failed = Failed(kind="node", progress=(0 if epoch is None else epoch + 1, 0))
        decision = decide(self._policy, self._troubles[run.id], failed, most_micro_batches=1)
        self._troubles[run.id].append(failed)
        message = f"{error}{decision.why}"
        observation = replace(item.observation, state="failed", reason=f"node: {message}", kind="node")
        if decision.delay is not None:
            self._to_put_aside.setdefault(run.id, functools.partial(_put_aside_unless_cancelled, run))
            self._put_back(waiting, item, observation, decision.delay)
            return
        failure = {"kind": "node", "message": message, "where": "its launcher", "failed_at": timestamp()}
        self._unwritten.append((item, {**failure, "stands": True}))
        self._write_failures()
        self._on_event(Event(kind="ended", planned=item, observation=observation))

    def _write_failures(self) -> None:
        """Write those that could not be written; what the disk still refuses is left."""
        for item, failure in list(self._unwritten):
            with self._tolerating(item):
                item.run.write_failure_once(failure)
                self._unwritten.remove((item, failure))

    # -- the queue, and the end --------------------------------------------------------------------------------------

    def _show_queue(self, *, at_once: bool = False) -> None:
        now = time.monotonic()
        is_due = now - self._told_at >= QUEUE_SECONDS
        if self._queue.reasons != self._told and (at_once or is_due or not (self._queue or self._is_queue_refused)):
            reasons, self._told_at = dict(self._queue.reasons), now
            try:
                self._tell_queue(reasons)
            except FileError as error:
                self._is_queue_refused = True
                self._warn(f"{error}; status shows an older queue")
                return
            self._told, self._is_queue_refused = reasons, False

    def _stop_all(self) -> None:
        """Ask every worker to stop between two steps; a second interrupt, or a minute, ends them at once."""
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

    def _job_record(self, submission: Submission, job_id: str) -> dict[str, Any]:
        return {
            "backend": self._backend.name,
            "job_id": job_id,
            "launcher": {"pid": os.getpid(), "host": socket.gethostname()},
            "resources": submission.resources.to_dict(),
            "attempt": submission.attempt,
            "micro_batches": _micro_batches(submission),
            "argv": list(submission.argv),
            "code": str(submission.cwd),
            "submitted_at": timestamp(),
        }


def worker_variables(policy: Policy) -> dict[str, str]:
    """Variables that every worker of a study gets, on every backend."""
    return {
        **KEEP_MEMORY,
        "SEQLM_CHECKPOINT_MINUTES": f"{policy.checkpoint_min:g}",
        "SEQLM_KEEP_LAST": "1" if policy.keep_last else "0",
    }


def progress_variables(seconds: float | None) -> dict[str, str]:
    """The variable that tells workers how often to write where they are. ``None``: their own default."""
    return {} if seconds is None else {PROGRESS_VARIABLE: f"{seconds:g}"}


def _micro_batches(submission: Submission) -> int:
    return int(submission.env[VARIABLE])


def _batch_size(item: Planned) -> int:
    return item.spec.config.train.batch_size


def _observe_ended(run: RunDirectory) -> Observation:
    """The state of a run whose job has ended: its failure counts, though a worker that is being killed has its lock.

    Where a node is lost, its launcher hears of it before the last process there is gone.
    """
    observation = run.observe()
    failure = run.read_failure() if observation.state == "running" else None
    if failure is None:
        return observation
    kind = failure.get("kind", "code")
    state: State = "cancelled" if kind == "cancelled" else "failed"
    return replace(observation, state=state, reason=f"{kind}: {failure.get('message')}", kind=kind)


def _put_aside_unless_cancelled(run: RunDirectory) -> None:
    """Put the failure of an attempt aside that could not be read; somebody may have cancelled the run meanwhile.

    Raises:
        FileError: it cannot be read or moved.
    """
    if (run.read_failure() or {}).get("kind") != "cancelled":
        put_failure_aside(run)


def _settle(run: RunDirectory, job: _Job, ended: Ended) -> None:
    """See to it that an ended worker has spoken: one that died without a word gets its ``failure.json`` here."""
    submission = job.submission
    if ended.exit_code == 0 or run.result_file.exists():
        return
    earlier = run.read_failure()
    for_memory = ended.out_of_memory and (earlier is None or earlier.get("kind") == "node")
    if earlier is not None and not for_memory:  # other ranks may have told that they lost the one that was killed
        return
    was_asked = job.stop_asked is not None and ended.exit_code in (*STOPPED, EXIT_UNPRINTED)
    if was_asked or ended.exit_code == EXIT_BUSY:
        return
    last_line = _last_line(run.stderr_log(submission.attempt))
    kind: FailureKind
    if ended.exit_code in STOPPED:
        kind, message = "preempted", f"{ended.message}, which was not us: somebody else stopped it, or drains its node"
    elif for_memory:
        kind, message = "oom", f"{ended.message}, by the system, which was out of memory"
    elif ended.exit_code in STORAGE:
        kind, message = "node", last_line or "its files could not be written: is the disk full, or a quota used up?"
    elif ended.exit_code < 0:
        hint = " (by hand, or by the system for want of memory)" if ended.message.endswith("SIGKILL") else ""
        kind, message = "node", f"{ended.message}{hint}"
    else:
        kind, message = "code", f"{ended.message}: {last_line}" if last_line else ended.message
    failure = {
        "kind": kind,
        "message": message,
        "where": "outside the worker's own code",
        "attempt": submission.attempt,
        "micro_batches": _micro_batches(submission),
        "failed_at": timestamp(),
    }
    if for_memory:
        write_json(run.failure_file, failure)
    else:
        run.write_failure_once(failure)


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text("utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].strip() if lines else ""


@contextmanager
def _files_of(run: RunDirectory) -> Iterator[None]:
    """Errors of the system in reading or writing the files of a run, in one line.

    Raises:
        FileError: one has come.
    """
    try:
        yield
    except OSError as error:
        raise FileError.from_os_error("read or write", error.filename or run.path, error) from None


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP count as Ctrl-C while the block runs."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # A signal that the caller has this process ignore (nohup) stays ignored.
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""What runs inside a job, once for each rank: the same worker command line as on every backend, and its afterlife.

submitit pickles ``run_task`` by its name, and a path. Everything else stands in the file at that path, and in the run
directories; so a job that SLURM starts again finds what an earlier one of the same runs has left.

    SIGUSR2           the time limit is near, or a preemption is announced: the worker saves, the job is requeued
    SIGTERM           scancel, a requeue from outside, a preemption: the worker stops between two steps
    a lost rank       the job is requeued, within the study's policy (``jobs.manifests.policy``)
    no memory         the same; the next worker takes its steps in twice as many micro-batches
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from types import FrameType
from typing import Any, TypeVar, final

from jobs.attempt.heartbeat import Heartbeat, hung_seconds
from jobs.attempt.memory_kills import MemoryKills
from jobs.attempt.rank import (
    PEER_GRACE_SECONDS,
    describe_exit,
    interface_of,
    rank_variables,
    rendezvous_variables,
    start_rank,
)
from jobs.attempt.retry import (
    FIRST_DELAY_SECONDS,
    RETRIED,
    VARIABLE,
    decide,
    failed_of,
    history,
    let_stand,
    may_go_on,
    micro_batches,
    most_micro_batches,
    progress_of,
    put_failure_aside,
    sick_nodes,
    timestamp,
)
from jobs.manifests.policy import Policy
from jobs.spec import Resources, Submission
from jobs.study.folder import submission_of
from seqlm import machine
from seqlm.errors import (
    EXIT_BUSY,
    EXIT_STOPPED,
    STOPPED_EXITS,
    STORAGE_EXITS,
    BackendError,
    FileError,
    SeqlmError,
    is_storage_failure,
)
from seqlm.rundir import FailureKind, RunDirectory, append_to, make_directory, write_json
from slurm import control

POLL_SECONDS = 0.2
LOOK_SECONDS = 2.0
"""How often the runs' folders are looked at for a cancellation."""
BUSY_SECONDS = 5.0
"""How long to wait before asking again for a run that another worker still holds: one on a node that SLURM lost."""
LIMIT_SLACK_SECONDS = 75.0
"""How much earlier than asked SLURM may announce a time limit: it looks once a minute (``man sbatch``, --signal)."""
GRACE_SECONDS = 1.0
"""How much later than a worker its task may hear of the signal that both get."""
END_SECONDS = 30.0
"""How long a worker may take to save after an error of its job, as SLURM's KillWait."""
REQUEUE_TRIES = 5
AGAIN_SECONDS = 1.0
"""How long to wait after the first try; twice as long after each further one."""


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """What one job does, as its submission wrote it down."""

    submission: str
    """What the study's record of jobs says of each run while the run is this job's."""
    runs: tuple[Path, ...]
    """Run directories. Several share a GPU."""
    attempts: tuple[int, ...]
    """The attempt of each run in which the job starts first; each restart is one more."""
    env: tuple[Mapping[str, str], ...]
    """Variables of each run's workers."""
    argv: tuple[str, ...]
    """The worker's command line, without the interpreter and the folder."""
    code: Path
    resources: Resources
    """Of each run."""
    policy: Policy
    timeout_min: int
    signal_before_s: int
    exclude: str | None
    """Nodes that the job must not get, as SLURM writes lists. ``None``: any will do."""
    must_have_nodes: bool
    """Whether the settings name the nodes that the job gets, so that none can be excluded."""

    def write(self, path: Path) -> None:
        """Write the plan for :func:`read`."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        write_json(path, {**data, "resources": self.resources.to_dict(), "policy": self.policy.to_dict()}, sync=False)

    @classmethod
    def read(cls, path: Path) -> JobPlan:
        """Read what :meth:`write` wrote."""
        data = json.loads(path.read_text("utf-8"))
        return cls(
            submission=data["submission"],
            runs=tuple(Path(run) for run in data["runs"]),
            attempts=tuple(data["attempts"]),
            env=tuple(data["env"]),
            argv=tuple(data["argv"]),
            code=Path(data["code"]),
            resources=Resources.from_dict(data["resources"]),
            policy=Policy.from_dict(data["policy"]),
            timeout_min=data["timeout_min"],
            signal_before_s=data["signal_before_s"],
            exclude=data["exclude"],
            must_have_nodes=data["must_have_nodes"],
        )


@dataclass(frozen=True, kw_only=True)
class SlurmContext:
    """Which rank of which job this is, from the variables that SLURM sets."""

    job: str
    """As SLURM's commands take it: ``12`` or ``12_3``."""
    number: int
    """The job's own number, which differs between the tasks of an array."""
    rank: int
    local_rank: int
    restarts: int
    end_time: float | None
    """When the job's time is up, seconds since 1970."""
    devices: tuple[str, ...]
    """GPUs of this job on this node."""
    first_host: str
    host: str
    nodes: int
    """How many the job has."""
    partition: str

    @classmethod
    def from_environment(cls, env: Mapping[str, str], first_host: str) -> SlurmContext:
        """Read SLURM's variables."""
        array, task = env.get("SLURM_ARRAY_JOB_ID"), env.get("SLURM_ARRAY_TASK_ID")
        end = env.get("SLURM_JOB_END_TIME", "")
        return cls(
            job=f"{array}_{task}" if array else env["SLURM_JOB_ID"],
            number=int(env["SLURM_JOB_ID"]),
            rank=int(env.get("SLURM_PROCID", "0")),
            local_rank=int(env.get("SLURM_LOCALID", "0")),
            restarts=int(env.get("SLURM_RESTART_COUNT") or 0),
            end_time=float(end) if end.isdigit() else None,
            devices=tuple(device for device in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if device),
            first_host=first_host,
            host=env.get("SLURMD_NODENAME") or socket.gethostname(),
            nodes=int(env.get("SLURM_JOB_NUM_NODES") or 1),
            partition=env.get("SLURM_JOB_PARTITION", ""),
        )


@dataclass
class Signals:
    """The signals that have come, to be obeyed in the loop, never in the middle of something."""

    warned_at: float | None = field(default=None)
    """When SIGUSR2 came, seconds since 1970."""
    told: bool = field(default=False)
    """Whether SIGTERM came."""

    def install(self) -> None:
        signal.signal(signal.SIGUSR2, self._warn)
        signal.signal(signal.SIGTERM, self._tell)
        signal.signal(signal.SIGINT, self._tell)

    def _warn(self, number: int, frame: FrameType | None) -> None:
        self.warned_at = self.warned_at or time.time()

    def _tell(self, number: int, frame: FrameType | None) -> None:
        self.told = True

    @property
    def stop(self) -> bool:
        return self.told or self.warned_at is not None


def run_task(path: str) -> None:
    """Run this rank's part of the job whose plan lies at ``path``; ends with exit code 1 where a run has failed."""
    from submitit import JobEnvironment  # only inside a job

    started = time.time()
    signals = Signals()
    signals.install()
    plan = look_again(lambda: JobPlan.read(Path(path)))
    place = SlurmContext.from_environment(os.environ, JobEnvironment().hostnames[0])
    task = Task(plan, place, signals, started=started)
    try:
        well = task.run()
    except Exception as error:
        if not task.give_up(error):
            raise
        return
    if not well:
        sys.exit(1)


_T = TypeVar("_T")


def look_again(look: Callable[[], _T]) -> _T:
    """What ``look`` returns; while files cannot be read or written it is called again, for half a minute.

    On NFS a file that another host has just replaced answers ESTALE for a moment.

    Raises:
        FileError, OSError: its last one.
    """
    for number in range(REQUEUE_TRIES - 1):
        try:
            return look()
        except (FileError, OSError) as error:
            if not is_storage_failure(error):
                raise
            time.sleep(AGAIN_SECONDS * 2**number)
    return look()


@dataclass
class _Worker:
    """One run's process in this task."""

    run: RunDirectory
    attempt: int
    env: Mapping[str, str]
    micro_batches: int = 1
    process: Popen[bytes] | None = None
    heartbeat: Heartbeat | None = None
    code: int | None = None
    again_at: float = 0.0
    """When to start it again, after it found another worker at the run."""
    asked: bool = False
    failed_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Again:
    """That a job is to run again."""

    reason: str
    delay: float
    """Seconds to wait before."""
    sick: tuple[str, ...]
    """Nodes that failed twice in a row."""


@final
class Task:
    """One rank of a job: starts the workers of its runs, passes signals on, and settles what became of them."""

    def __init__(self, plan: JobPlan, place: SlurmContext, signals: Signals, *, started: float) -> None:
        self._plan = plan
        self._place = place
        self._signals = signals
        self._started = started
        self._looked_at = 0.0
        self._memory_kills = MemoryKills()
        self._workers = [
            _Worker(run=RunDirectory(run), attempt=attempt + place.restarts, env=env)
            for run, attempt, env in zip(plan.runs, plan.attempts, plan.env, strict=True)
        ]

    def run(self) -> bool:
        """Work until every run is over or the job is put back into the queue; whether all is well.

        Raises:
            SeqlmError, OSError: the job itself has failed; :meth:`give_up` is to be called.
        """
        todo = look_again(self._take_up)
        for worker in todo:
            self._start(worker)
        while any(worker.code is None for worker in todo):
            self._one_round(todo)
            time.sleep(POLL_SECONDS)
        if self._place.rank != 0:
            for worker in todo:
                self._wait_for_a_signal(worker)
                self._record_crash(worker)
            return True  # the first rank settles the run, and must not be ended for this one's sake before it has
        settled = [look_again(functools.partial(self._settle, worker)) for worker in todo]
        again = [found for found in settled if found is not None]
        if again and self._requeue(again, todo):
            return True
        return all(worker.run.result_file.exists() for worker in self._workers)

    def give_up(self, error: Exception) -> bool:
        """Stop after an error of the job itself: its runs fail with it, and run again where the policy says so.

        Returns whether nothing more is to be done: the job was requeued, or its first rank settles the runs.
        """
        for worker in self._workers:
            self._end(worker)
        kind: FailureKind = "node" if is_storage_failure(error) else "code"
        message = str(error) if isinstance(error, SeqlmError) else f"{type(error).__name__}: {error}"
        left = [worker for worker in self._workers if not self._has_spoken(worker)]
        for worker in left:
            self._write_failure(worker, kind, message, node=self._place.host)
        if self._place.rank != 0:
            return kind == "node"
        failures = [(worker, worker.run.read_failure()) for worker in left if self._is_ours(worker.run)]
        again = [found for worker, failure in failures if failure and (found := self._again(worker, failure))]
        return bool(again) and self._requeue(again, left)

    def _end(self, worker: _Worker) -> None:
        """Stop a worker that is still there; it may save."""
        if worker.process is None or worker.process.poll() is not None:
            return
        worker.process.terminate()
        try:
            worker.process.wait(END_SECONDS)
        except TimeoutExpired:
            worker.process.kill()
            worker.process.wait()

    def _is_ours(self, run: RunDirectory) -> bool:
        """Whether the run is still this job's: a job that was cancelled, or lost, must not touch it."""
        return submission_of(run) == self._plan.submission

    def _has_spoken(self, worker: _Worker) -> bool:
        """Whether nothing is left to do in a run: it is done, or has failed for good."""
        run = worker.run
        return run.result_file.exists() or (run.failure_file.exists() and not self._is_of_before(worker))

    def _is_of_before(self, worker: _Worker) -> bool:
        """Whether a run's failure is that of an earlier start of this job, which ended before it could settle it."""
        with contextlib.suppress(FileError):
            failure = worker.run.read_failure() or {}
            return may_go_on(worker.run) and int(failure.get("attempt") or worker.attempt) < worker.attempt
        return False

    def _take_up(self) -> list[_Worker]:
        """The workers to start, after failures of before were put aside.

        That does the first rank; the others, which may look earlier, take such a failure for none.
        """
        for worker in self._workers:
            if self._place.rank == 0 and self._is_ours(worker.run) and self._is_of_before(worker):
                put_failure_aside(worker.run)
        return [worker for worker in self._workers if self._is_ours(worker.run) and not self._has_spoken(worker)]

    # -- workers -------------------------------------------------------------------------------------------------

    def _start(self, worker: _Worker) -> None:
        plan, place = self._plan, self._place
        worker.micro_batches = micro_batches(worker.run, self._batch_size(worker.run), plan.resources.ranks)
        submission = Submission(
            run_dir=worker.run.path,
            attempt=worker.attempt,
            argv=(sys.executable, *plan.argv, str(worker.run.path)),
            env={**worker.env, "SEQLM_ATTEMPT": str(worker.attempt), VARIABLE: str(worker.micro_batches)},
            cwd=plan.code,
            resources=plan.resources,
        )
        device: str | None = None
        if plan.resources.gpus:
            if not place.devices:
                raise BackendError("SLURM gave this job no GPU: CUDA_VISIBLE_DEVICES is empty; see gres.conf (File=)")
            device = machine.addressed(place.devices[place.local_rank % len(place.devices)])
        variables = {**rank_variables(submission, place.rank, device), "SEQLM_NODE": place.host}
        if plan.resources.ranks > 1:
            variables |= rendezvous_variables(worker.run, worker.attempt, place.first_host)
            with contextlib.suppress(OSError):
                interface = interface_of(socket.gethostbyname(place.host))
                if interface:
                    variables.setdefault("GLOO_SOCKET_IFNAME", interface)
        limit = hung_seconds({**os.environ, **variables})
        make_directory(worker.run.attempt_dir(worker.attempt))
        with (
            append_to(worker.run.stdout_log(worker.attempt)) as stdout,
            append_to(worker.run.stderr_log(worker.attempt)) as stderr,
        ):
            worker.process = start_rank(submission.argv, variables, str(plan.code), stdout, stderr)
        worker.heartbeat = Heartbeat(worker.run, worker.attempt, limit)

    def _batch_size(self, run: RunDirectory) -> int:
        return run.read_config().train.batch_size

    def _one_round(self, todo: list[_Worker]) -> None:
        now = time.time()
        look = now - self._looked_at >= LOOK_SECONDS
        for worker in todo:
            if worker.code is not None:
                continue
            if worker.process is None:
                if self._signals.stop:
                    worker.code = EXIT_STOPPED
                elif now >= worker.again_at:
                    self._start(worker)
                continue
            code = worker.process.poll()
            if code == EXIT_BUSY:
                worker.process, worker.again_at = None, now + BUSY_SECONDS
            elif code is not None:
                worker.code = code
            elif self._signals.stop:
                self._ask(worker)
            elif look:
                with contextlib.suppress(FileError, OSError):  # the next look is soon
                    self._look_at(worker, now)
        if look:
            self._looked_at = now

    def _look_at(self, worker: _Worker, now: float) -> None:
        """End a worker whose run was cancelled, or that another rank or all progress has left.

        Raises:
            FileError, OSError: the run's files cannot be read.
        """
        if worker.run.is_cancelled():
            self._ask(worker)
            return
        self._end_if_left_behind(worker, now)
        self._end_if_hung(worker)

    def _ask(self, worker: _Worker) -> None:
        if not worker.asked and worker.process is not None:
            worker.asked = True
            worker.process.terminate()

    def _end_if_left_behind(self, worker: _Worker, now: float) -> None:
        """A rank that does not notice that another has failed is ended after a while."""
        if self._plan.resources.ranks == 1 or not worker.run.failure_file.exists():
            return
        worker.failed_at = worker.failed_at or now
        if now - worker.failed_at > PEER_GRACE_SECONDS and worker.process is not None:
            worker.process.kill()

    def _end_if_hung(self, worker: _Worker) -> None:
        """Every rank's task looks at the same files, so that all ranks of a run that hangs are killed."""
        if worker.process is None or worker.heartbeat is None or not worker.heartbeat.is_hung():
            return
        if self._is_ours(worker.run):
            with contextlib.suppress(FileError):
                worker.run.write_failure_once(worker.heartbeat.failure(f"job {self._place.job} on {self._place.host}"))
        worker.process.kill()

    def _wait_for_a_signal(self, worker: _Worker) -> None:
        """One that went to the whole job may have reached its worker first."""
        if worker.code in STOPPED_EXITS and not worker.asked and not self._signals.stop:
            time.sleep(GRACE_SECONDS)

    def _record_crash(self, worker: _Worker) -> None:
        """A worker that a signal killed could not say so itself."""
        code = worker.code or 0
        if self._signals.stop or not (code < 0 or (code in STOPPED_EXITS and not worker.asked)):
            return
        who = f"rank {self._place.rank}" if self._plan.resources.ranks > 1 else "the worker"
        what = f"{who} {describe_exit(code)} on {self._place.host}"
        if code in STOPPED_EXITS:
            self._write_failure(worker, "preempted", f"{what}, which was not us: somebody else stopped it")
        elif code == -signal.SIGKILL and self._memory_kills.explain_one():
            self._write_failure(worker, "oom", f"{what}, by the system, which was out of memory")
        else:
            self._write_failure(worker, "node", what, node=self._place.host)

    # -- what became of a run ------------------------------------------------------------------------------------

    def _settle(self, worker: _Worker) -> _Again | None:
        """Write the failure of a run whose worker ended without one; returns whether and how its job runs again."""
        run = worker.run
        if run.result_file.exists() or (run.failure_file.exists() and not may_go_on(run)):
            return None
        if not self._is_ours(run):
            return None
        self._wait_for_a_signal(worker)
        failure = run.read_failure()
        again: _Again | None = None
        if failure is not None:  # its own word goes before a signal that came meanwhile
            again = self._again(worker, failure)
            if again is None or not self._signals.stop:
                return again
        if self._signals.stop:
            stopped = self._why_stopped()
            if stopped is None:
                return None  # SLURM itself puts the job back, or ends it
            kind, message = stopped
            if kind == "cancelled":
                self._write_failure(worker, kind, message)
                return None
            return again or self._again(worker, self._failure(worker, kind, message))
        self._record_crash(worker)
        if worker.code and not run.failure_file.exists():
            own: FailureKind = "node" if worker.code in STORAGE_EXITS else "code"
            self._write_failure(worker, own, f"the worker {describe_exit(worker.code)}; see its stderr.log")
        failure = run.read_failure()
        return None if failure is None else self._again(worker, failure)

    def _why_stopped(self) -> tuple[FailureKind, str] | None:
        """What the signals meant; none where SLURM has taken the matter into its own hands."""
        warned_at = self._signals.warned_at
        if warned_at is not None:
            limit = self._place.end_time or self._started + 60 * self._plan.timeout_min
            if warned_at + control.clock_ahead_s() >= limit - self._plan.signal_before_s - LIMIT_SLACK_SECONDS:
                return "timeout", f"the job's time limit of {self._plan.timeout_min} min"
            return "preempted", "preempted by another job"
        if "CANCELLED" in control.job_words(self._place.number):
            return "cancelled", "cancelled by scancel"
        return None

    def _again(self, worker: _Worker, failure: dict[str, Any]) -> _Again | None:
        """Decide about a run that has failed; returns how its job is to run again. ``None``: the failure stands."""
        run = worker.run
        if failure.get("kind") not in RETRIED:
            return None
        node = failure.get("node") or (self._place.host if self._place.nodes == 1 else None)
        failed = replace(failed_of(failure, progress_of(run)), micro_batches=worker.micro_batches, node=node)
        most = most_micro_batches(self._batch_size(run), self._plan.resources.ranks)
        before = history(run)
        decision = decide(self._plan.policy, before, failed, most_micro_batches=most)
        run.write_failure_once(failure)
        if decision.delay is None:
            let_stand(run, decision)
            return None
        put_failure_aside(run, micro_batches=worker.micro_batches, node=node)
        reason = f"{failed.kind}: {failure.get('message')}"
        return _Again(reason=reason, delay=decision.delay, sick=tuple(sick_nodes([*before, failed])))

    def _requeue(self, again: Sequence[_Again], todo: list[_Worker]) -> bool:
        """Put the job back into the queue, for as long as the policy says; if that fails, its runs say so."""
        reason = again[0].reason
        delay = max(found.delay for found in again)
        exclude = self._excluded(list(dict.fromkeys(node for found in again for node in found.sick)))
        problem = ""
        for number in range(REQUEUE_TRIES):
            try:
                control.requeue(self._place.job)
            except BackendError as error:
                problem = str(error)
                time.sleep(AGAIN_SECONDS * 2**number)
                continue
            print(f"requeued: {reason}", flush=True)
            if delay > FIRST_DELAY_SECONDS or exclude:  # SLURM itself waits that long
                try:
                    control.hold_back(self._place.job, delay, exclude)
                except BackendError as error:
                    print(f"without the wait of {delay:g} s, and without excluding a node: {error}", flush=True)
            return True
        for worker in todo:
            if not worker.run.result_file.exists() and not worker.run.failure_file.exists():
                kind = reason.partition(":")[0]
                message = f"{reason}; the job could not be requeued ({problem}); run again to resume"
                worker.run.write_failure_once(self._failure(worker, kind, message))
        return False

    def _excluded(self, sick: list[str]) -> list[str]:
        """The nodes that the job must not get again: those of its settings and the sick ones, if others are left.

        Nothing changes if that is empty.
        """
        if not sick:
            return []
        told = f"{', '.join(sick)} has failed twice in a row"
        if self._plan.must_have_nodes:
            print(f"{told}; the settings name the nodes, so it is not excluded", flush=True)
            return []
        try:
            excluded = [*(control.host_names(self._plan.exclude) if self._plan.exclude else []), *sick]
            left = set(control.nodes_like(sick, self._place.partition)) - set(excluded)
        except BackendError as error:
            print(f"{told}; it is not excluded: {error}", flush=True)
            return []
        if len(left) < self._place.nodes:
            print(f"{told}; it is not excluded, since too few other nodes like it are usable", flush=True)
            return []
        print(f"{told}; the job does not get it again", flush=True)
        return excluded

    def _write_failure(self, worker: _Worker, kind: FailureKind, message: str, *, node: str | None = None) -> None:
        """Write the failure of a run of this job, unless there is one. ``node``: the one that failed."""
        if not self._is_ours(worker.run):
            return
        with contextlib.suppress(FileError):
            failure = self._failure(worker, kind, message)
            worker.run.write_failure_once(failure if node is None else {**failure, "node": node})

    def _failure(self, worker: _Worker, kind: str, message: str) -> dict[str, Any]:
        return {
            "kind": kind,
            "message": message,
            "where": f"job {self._place.job} on {self._place.host}",
            "attempt": worker.attempt,
            "micro_batches": worker.micro_batches,
            "failed_at": timestamp(),
        }

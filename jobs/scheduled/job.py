"""A job on its allocation: a dispatcher over the job's runs, as on any machine, and what follows from their ends.

``python -m jobs.scheduled.job SCHEDULER PLAN DIGEST ARRAY START FIRST_NODE`` runs once on each node. The first node's
process dispatches the runs of the job. Those of the other nodes start their ranks of each run that it begins.
``START`` is the folder of this start of the job (:mod:`jobs.scheduled.slot`). Unless the program says that the job is
over, the job's script puts it back into the queue (:mod:`jobs.scheduled.script`).

    SIGUSR2           the time limit is near, or a preemption is announced: the workers save, the job is put back
    SIGTERM           a cancel, a requeue from outside, a preemption: the workers stop between two steps
    a lost rank       the job is put back, within the study's policy (``jobs.manifests.policy``)
    a sick node       no worker begins there, or two fail in a row: the job is put back, and avoids the node
    out of memory     on one node the run goes on in this job, with twice as many micro-batches
"""

import contextlib
import functools
import itertools
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import final

from jobs.attempt.attempt import record_unstarted
from jobs.launch import notify
from jobs.launch.background import STOP_SECONDS, Interrupts
from jobs.launch.dispatch import Dispatcher
from jobs.launch.job import Host, next_submission
from jobs.plan.capacity import Capacity
from jobs.plan.limits import MORE_MEMORY
from jobs.plan.planned import PlannedRun
from jobs.registry import scheduler
from jobs.scheduled.again import look_again, wait_for_request
from jobs.scheduled.allocation import JobBackend, node_file
from jobs.scheduled.canary import have_passed, withdraw
from jobs.scheduled.share import Share, is_named_by
from jobs.scheduled.slot import Start
from jobs.scheduled.submission import JobPlan
from jobs.spec import RunSpec
from jobs.study.budget import Budget
from jobs.study.kept_code import Code, running_code
from jobs.study.scheduler import Allocation, Scheduler
from seqlm.ends import FIRST_DELAY_SECONDS, End, Verdict
from seqlm.environment import ATTEMPT, MICRO_BATCHES
from seqlm.errors import DamagedFileError, FileError, SeqlmError, UsageError
from seqlm.reading import confine, exists
from seqlm.records import attempts
from seqlm.records.attempts import Exit
from seqlm.records.batch import ArrayPlan, Batch, Joint, Withdrawn
from seqlm.rundir import Observation, RunDirectory
from seqlm.state import FailureKind

POLL_SECONDS = 0.5
"""Time between two looks at the folder of the run from a node that is not the first."""
LIMIT_SLACK_SECONDS = 75.0
"""How much earlier than asked a scheduler may announce a time limit: it may look once a minute."""
BUSY_TRIES = 3
"""How often a run that another worker holds is tried on this allocation, such as one on a node that was lost."""
WAIT_SECONDS = 120.0
"""How long such a run then waits in the queue."""
CANCEL_SECONDS = 10.0
"""How long a job that was cancelled looks whether the study is over: others may be cancelled with it."""
OVER_SECONDS = 720.0
"""How long a job that is to say so looks whether the study is over: workers that were killed seem to live for some
minutes. If jobs of another request run longer, that request has such a job, too."""


class Signals(Interrupts):
    """The signals that a scheduler sends to a job."""

    signals = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
    warned_at: float | None = None
    """When SIGUSR2 came, in seconds since 1970. ``None``: it has not come."""

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.stop = True
        if number == signal.SIGUSR2:
            self.warned_at = self.warned_at or time.time()


@final
@dataclass
class JobHost(Host):
    """A job as the process of a dispatcher."""

    plan: JobPlan
    share: Share
    context: Allocation
    scheduler: Scheduler
    interrupts: Signals
    start: Start
    started: float = field(default_factory=time.time)
    is_sick: bool = False
    """Whether this node has failed, so that the job starts nothing more on it."""
    goes_back: bool = False
    """Whether the job starts nothing more, since its only run is to be tried again later or elsewhere."""
    has_news: bool = False
    """Whether a worker of this start of the job has begun to train."""
    unread: set[str] = field(default_factory=set)
    """The ids of runs that this start of the job leaves alone, since they cannot be read."""

    def __post_init__(self) -> None:
        self.where = f"job {self.context.job} on {self.context.host}"
        self.job_start = self.start.name
        self.stop_seconds = most_stop_seconds(self.plan)

    def tries_again(self, failure: End | None, found: Verdict, number: int) -> bool:
        """Return whether the run is tried again here. What another node or more memory may help with waits.

        After a failure of its node, a run is tried again here until the node has failed twice in a row. A job that has
        one run at a time then goes back into the queue. It does so too if the run is to wait for long.
        """
        is_alone = self.share.array.at_once == 1
        tries = self._tries_again(failure, found, number, most_seconds=FIRST_DELAY_SECONDS if is_alone else math.inf)
        self.goes_back = self.goes_back or (is_alone and not tries)
        return tries

    def _tries_again(self, failure: End | None, found: Verdict, number: int, *, most_seconds: float) -> bool:
        if self.context.nodes > 1:
            return False
        if failure is None:
            return number <= BUSY_TRIES
        self.is_sick = self.is_sick or self.context.host in found.sick_nodes
        if self.is_sick:
            return False
        if failure.kind == "node":
            return (found.delay or 0.0) <= most_seconds
        return failure.kind == "oom" and self.more_memory_mb([failure]) is None

    def more_memory_mb(self, failures: Sequence[End]) -> int | None:
        """Return how much memory the job is to ask for in its next start. ``None``: none of the failures is of that."""
        short = max((one.memory_mb or 0 for one in failures), default=0)
        has, most = self.context.memory_mb or 0, self.share.array.most
        if most is None or most.mem_gb is None or short < has or short == 0:
            return None
        wanted = min(round(MORE_MEMORY * short), round(1024 * most.mem_gb))
        return wanted if wanted > has else None

    def raised(self, failures: Sequence[End]) -> list[str]:
        """Return the limits of the job to change for its next start (:mod:`jobs.scheduled.script`)."""
        memory, most = self.more_memory_mb(failures), self.share.array.most
        found = [] if memory is None else [f"memory_mb={memory}"]
        if most is not None and most.timeout_min > self.share.array.timeout_min:
            found += [f"minutes={most.timeout_min}" for one in failures if one.kind == "timeout"][:1]
        return found

    def may_start(self, run: RunDirectory, seen: Observation) -> bool:
        failed = self.share.failure(run, seen)
        if failed is not None and not self.start.has_asked_to_avoid(self.context.host):
            _, found = failed
            self.is_sick = self.is_sick or self.context.host in found.sick_nodes
        return not self._is_done_here and self.share.may_take(run, seen)

    @property
    def _is_done_here(self) -> bool:
        return self.is_sick or self.goes_back

    def saw(self, run: RunDirectory, attempt: int) -> None:
        self.share.saw(run)
        if not self.has_news and exists(run.worker_file(attempt)):
            self.start.note_news()
            self.has_news = True

    def next_run(self, free: Capacity, *, is_idle: bool, but: Collection[str]) -> PlannedRun | None:
        while not self._is_done_here:
            found = self.share.next_run(free, is_idle=is_idle, but={*but, *self.unread})
            if found is None:
                return None
            run, seen = found
            try:
                return look_again(_planned, self.plan, self.share.array, run, seen)
            except (FileError, OSError) as error:
                self.leave(run, error)
        return None

    def leave(self, run: RunDirectory, error: Exception) -> None:
        """Leave a run that cannot be read to a later start of the job."""
        print(f"{run.id} is left alone: {error}", flush=True)
        self.unread.add(run.id)

    def stopped(self) -> tuple[FailureKind, str] | None:
        if not self.interrupts.stop:
            return None
        warned_at = self.interrupts.warned_at
        if warned_at is None:  # the scheduler requeues the job or ends it, unless a user has cancelled it
            is_cancelled = self.scheduler.is_cancelled(self.context) and not self._has_heirs()
            return ("cancelled", self.scheduler.CANCELLED) if is_cancelled else None
        limit = self.context.end_time or self.started + 60 * self.share.array.timeout_min
        if warned_at + self.scheduler.clock_ahead_s() >= limit - self.plan.signal_before_s - LIMIT_SLACK_SECONDS:
            return "timeout", "the job's time limit"
        return "preempted", "preempted by another job"

    def _has_heirs(self) -> bool:
        """Return whether another job can take over the runs of this one, as the scheduler says now."""
        return self.context.jobs > 1 and self.scheduler.has_other_jobs(self.context)


def most_stop_seconds(plan: JobPlan) -> float:
    """Return how long workers may take to stop, if the time limit leaves as much: on every node of a job."""
    return max(STOP_SECONDS, plan.signal_before_s)


def run_job(plan: JobPlan, number: int, context: Allocation, signals: Signals, start: Start) -> None:
    """Run a job of array ``number`` on its first node, and say whether it is over, or what is to change."""
    share = Share(plan, number, context, start)
    place = scheduler(plan.scheduler)
    host = JobHost(plan, share, context, place, signals, start)
    untold: dict[str, str] = {}
    has_fault = False
    try:
        backend = JobBackend(place, context, plan, number, context.host, start)
        code = running_code(plan.code)
        dispatcher = Dispatcher(backend, code, plan.study, plan.request, writes_queue=False, host=host)
        untold = dispatcher.left
        try:
            items = [item for run in share.own if (item := _to_do(plan, run, host)) is not None]
            dispatcher.dispatch(items)
        except KeyboardInterrupt:
            print("stopped by a signal", flush=True)
        finally:
            backend.close()
    except Exception as error:  # this node may be sick, such as without its GPUs
        fault = _in_words(error)
        print(f"error: {fault}", flush=True)
        host.is_sick = has_fault = True
        untold |= dict.fromkeys((run.id for run in share.mine()), fault)
    mine = share.mine()
    left = {run: one for run in mine if (one := _again(run, host, untold.get(run.id))) is not None}
    if not left and signals.warned_at is not None and not start.is_last():  # jobs that were lost may have left others
        left = dict(itertools.islice(_left_by_others(host, mine), 1))
    # The scheduler requeues the job, or a user has cancelled it.
    is_stopped = signals.stop and signals.warned_at is None and not has_fault
    budget = _budget(plan)
    if left and not is_stopped and not _is_spent(budget):
        if not start.is_last():
            _ask_back(host, left)
            return
        for run, (end, _) in left.items():
            _give_up(run, end, host)
    seen = [_told(run, budget) for run in mine if share.has_begun(run) or run.id in host.unread]
    if plan.grid is not None and any(one.state in ("failed", "cancelled") and one.is_final for one in seen):
        look_again(withdraw, [plan.grid], place)
    if is_stopped:
        # If all jobs of a user are cancelled, the one that is to say that the study is over goes too.
        if host.stopped() is not None:
            notify.over(plan.study.path, plan.study.notify, seconds=CANCEL_SECONDS)
        return
    well = ("done",) if plan.grid is not None else ("done", "stopped", "pending", "queued", "running")
    is_search = plan.study.search is not None
    is_well = all(one.state in well or (is_search and one.kind == "diverged") for one in seen)
    look_again(start.finish, 0 if is_well else 1)


def _ask_back(host: JobHost, left: Mapping[RunDirectory, tuple[End, Verdict]]) -> None:
    """Say what is to change before the next start of the job, which has these runs to try again.

    The job waits for the first of them that can be tried again, and avoids the nodes that any of them found sick.
    """
    ends, verdicts = [end for end, _ in left.values()], [verdict for _, verdict in left.values()]
    print(f"goes on: {ends[0].kind}: {ends[0].message}", flush=True)
    delay = min(verdict.delay or 0.0 for verdict in verdicts)
    changes = host.raised(ends)
    if delay > FIRST_DELAY_SECONDS:  # a job that is put back waits that long in any case
        changes.append(f"wait_s={math.ceil(delay)}")
    sick = [node for verdict in verdicts for node in verdict.sick_nodes]
    if host.is_sick:
        sick.append(host.context.host)
    try:
        host.start.ask(avoid=list(dict.fromkeys(sick)), changes=changes)
    except FileError as error:
        print(f"without {'; '.join(changes) or 'changes'}: {error}", flush=True)


def _planned(plan: JobPlan, array: ArrayPlan, run: RunDirectory, seen: Observation) -> PlannedRun:
    data_path, resources = plan.data.get(run.id), array.runs[run.id]
    launched = plan.launched[run.id]
    spec = RunSpec(name=run.id, config=run.read_config(), resources=resources, data_path=data_path, launched=launched)
    return PlannedRun(spec=spec, run=run, observation=seen, action="resume", reason=None)


def _to_do(plan: JobPlan, run: RunDirectory, host: JobHost) -> PlannedRun | None:
    """Return a run that this job is to train. ``None``: another job has it, or it is over, waits or cannot be read."""
    try:
        seen = look_again(run.observe)
        if not look_again(host.share.may_take, run, seen) or not look_again(host.share.is_due, run, seen):
            return None
        return look_again(_planned, plan, host.share.array, run, seen)
    except (FileError, OSError) as error:  # of a damaged file, `status` says the same
        host.leave(run, error)
    return None


def _again(run: RunDirectory, host: JobHost, why: str | None) -> tuple[End, Verdict] | None:
    """Return why and when a run is to be tried again. ``None``: it is not, or a later request names it.

    A run that has not failed is tried again if the job was told that its time is up, if the dispatcher says ``why``, if
    its files cannot be read, or could not be when the job was to begin it, or if nobody has begun or ended it.
    """
    try:
        seen = look_again(run.observe)
        if not look_again(is_named_by, run, host.plan.request):
            return None
        if not look_again(host.share.may_take, run, seen):
            return None
        if (failed := look_again(host.share.failure, run, seen)) is not None:
            return failed
        # One that seems to run has a worker of an earlier start of this job, on a node that nobody reaches.
        if seen.state in ("pending", "running") and host.interrupts.warned_at is not None:
            return End(attempt=0, kind="preempted", message="the job's time is up"), Verdict(delay=0.0)
        # A worker that could not record its end seems to run for a while.
        if run.id in host.unread or (why is None and seen.state == "pending"):
            look_again(run.read_config)
            return End(attempt=0, kind="node", message=f"{run.id} could not be begun"), Verdict(delay=0.0)
    except DamagedFileError:
        return None
    except (FileError, OSError) as error:
        why = str(error)
    return None if why is None else (End(attempt=0, kind="node", message=why), Verdict(delay=WAIT_SECONDS))


def _left_by_others(host: JobHost, mine: Sequence[RunDirectory]) -> Iterator[tuple[RunDirectory, tuple[End, Verdict]]]:
    """Yield runs that wait of jobs which have started, and why and when they are to be tried again."""
    for run in host.share.runs:
        if run not in mine and look_again(host.share.has_own_job_started, run):
            again = _again(run, host, None)
            if again is not None:
                yield run, again


def _budget(plan: JobPlan) -> Budget:
    """Return the budget that the study has now: that of the launch, if it cannot be read."""
    with contextlib.suppress(SeqlmError, OSError):
        return look_again(Budget.kept, plan.study.path, plan.study.policy)
    return Budget(plan.study.path, plan.study.policy)


def _is_spent(budget: Budget) -> bool:
    """Return whether no run goes on: ``run`` with a higher budget does. A budget that cannot be read is not spent."""
    with contextlib.suppress(SeqlmError, OSError):
        return look_again(budget.is_spent, at_once=True) is not None
    return False


def _told(run: RunDirectory, budget: Budget) -> Observation:
    """Print and return the state of a run."""
    try:
        seen = run.observe(spent=budget.is_spent)
    except (SeqlmError, OSError) as error:
        return Observation.damaged(error)
    print(f"{run.id} {seen.state}: {seen.reason or 'well'}", flush=True)
    return seen


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, SeqlmError) else f"{type(error).__name__}: {error}"


def _give_up(run: RunDirectory, end: End, host: JobHost) -> None:
    """Record that this job has tried in vain to train a run, unless its failures say more."""
    message = f"{end.message}; given up after {host.start.idle()} starts of its job in which nothing was trained"
    _record(run, Exit(kind=end.kind, message=message, stands=True), host)


def _record(run: RunDirectory, record: Exit, host: JobHost) -> None:
    with contextlib.suppress(SeqlmError, OSError):
        if run.observe().state == "pending" and is_named_by(run, host.plan.request):
            record = replace(record, where=host.where, node=host.context.host)
            start = attempts.Start(
                request=host.plan.request,
                backend=host.plan.scheduler,
                job_id=host.context.job,
                job_start=host.job_start,
                node=host.context.host,
            )
            record_unstarted(run, start, record)


# -- on the other nodes ------------------------------------------------------------------------------------------------


def serve(plan: JobPlan, number: int, context: Allocation, signals: Interrupts, first_host: str, start: Start) -> None:
    """Start this node's ranks of each run that the first node starts, and record how they end, until that one ends.

    Whatever else happens is decided on the first node.
    """
    backend = JobBackend(scheduler(plan.scheduler), context, plan, number, first_host, start)
    code = running_code(plan.code)
    for place in itertools.count(1):
        while not _now_true(functools.partial(exists, start.joint_file(place))):
            if _now_true(start.has_ended):
                return
            time.sleep(POLL_SECONDS)
        joint = look_again(Joint.read_file, start.joint_file(place))
        if joint is not None:
            _serve_one(plan, number, joint, backend, code, signals, context.node_rank, start)


def _serve_one(
    plan: JobPlan,
    number: int,
    joint: Joint,
    backend: JobBackend,
    code: Code,
    signals: Interrupts,
    node_rank: int,
    start: Start,
) -> None:
    run, attempt = RunDirectory(plan.study.path / joint.run), joint.attempt
    item = look_again(_planned, plan, plan.arrays[number], run, Observation(state="pending"))
    submission = look_again(next_submission, item, plan.study, code, backend)
    env = {ATTEMPT.name: str(attempt), MICRO_BATCHES.name: str(joint.micro_batches)}
    submission = replace(submission, attempt=attempt, env={**submission.env, **env})
    job_id = backend.submit(submission)

    def is_stopped() -> bool:
        return signals.stop or _now_true(run.is_cancelled)

    def has_peer_failed() -> bool:
        return _now_true(lambda: run.end(attempt).kind is not None or start.has_ended())

    ended = backend.follow(
        job_id,
        POLL_SECONDS,
        is_stopped=is_stopped,
        most_seconds=most_stop_seconds(plan),
        has_peer_failed=has_peer_failed,
    )
    look_again(ended.write_file, node_file(submission, node_rank))


def _now_true(look: Callable[[], bool]) -> bool:
    with contextlib.suppress(FileError):  # the next look is soon
        return look()
    return False


def main() -> int:
    """Run the part of a job that is on this node; return the exit code, of which the script makes nothing."""
    signals = Signals()
    with signals.noted():
        _, name, path, digest, part, *words = sys.argv
        if part == "over":
            plan = _plan(path, digest)
            notify.over(plan.study.path, plan.study.notify, seconds=OVER_SECONDS)
            return 0
        start, first_host = Start(Path(words[0])), words[1]
        try:
            context = scheduler(name).allocation(os.environ)
            look_again(start.begin, context.host)
            try:
                plan = _plan(path, digest)
                _run_part(plan, int(part), context, signals, start, first_host)
            except UsageError as error:
                print(f"error: {error}", file=sys.stderr)
                look_again(start.finish, error.exit_code)
            finally:
                if context.node_rank == 0:
                    look_again(start.note_end)
        except (SeqlmError, OSError) as error:  # another node may be well
            print(f"error: {error}", file=sys.stderr)
            with contextlib.suppress(SeqlmError, OSError):
                start.ask(avoid=[context.host], changes=[])
            return 1
    return 0


def _plan(path: str, digest: str) -> JobPlan:
    """Read the plan of the job. No file above its study is looked at from then on."""
    plan = look_again(JobPlan.read, Path(path), digest)
    confine(plan.study.path)
    return plan


def _run_part(plan: JobPlan, number: int, context: Allocation, signals: Signals, start: Start, first_host: str) -> None:
    """Run the part of a job that is on this node.

    Raises:
        UsageError: the job is not to start: its launch is withdrawn, a canary of it has not passed, or the plan is not
            its own.
    """
    if look_again(exists, plan.folder / Withdrawn.FILE):
        raise UsageError("this job does not start: its launch is withdrawn")
    if context.array not in (one.job for one in plan.arrays[number : number + 1]):
        raise UsageError(f"this job does not start: {plan.folder / Batch.FILE} is that of another study's jobs")
    look_again(plan.note_submitted)
    if context.node_rank:
        serve(plan, number, context, signals, first_host, start)
        return
    with look_again(start.alive):
        wait_for_request(plan.folder)
        if plan.canaries is not None and not have_passed(plan.canaries, plan.scheduler):
            look_again(withdraw, [plan.folder], scheduler(plan.scheduler))
            raise UsageError("this job does not start: a canary has not passed; its launch is withdrawn")
        run_job(plan, number, context, signals, start)


if __name__ == "__main__":
    sys.exit(main())

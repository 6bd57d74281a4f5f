"""What happens to a story. The accidents of a seed are drawn as data, apart from the order of calls.

To add one, write a function here, with ``@accident``: its name is the kind.
"""

from __future__ import annotations

import math
import random
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, TypeVar, final

from tests.simulation.kernel import Host, Process

if TYPE_CHECKING:
    from tests.simulation.slurm import Job
    from tests.simulation.story import Story


@dataclass(frozen=True, kw_only=True)
class Accident:
    """Something that happens."""

    at: float
    """Seconds from the beginning."""
    kind: str
    target: float
    """Which of those that there are, as a share of them: from 0 to 1."""
    seconds: float
    """How long, if it takes time."""


Act: TypeAlias = "Callable[[Story, Accident], None]"
ACTS: dict[str, Act] = {}
"""Kind of accident -> what does it, if there is something of that kind."""
Choice = TypeVar("Choice")


def accident(act: Act) -> Act:
    """Have seeds draw accidents of this kind."""
    ACTS[act.__name__] = act
    return act


def draw_accidents(seed: int, kinds: Sequence[str] = ()) -> list[Accident]:
    """Return the accidents of a seed: some kinds of ``kinds`` (all, if there is none), close together or not."""
    dice = random.Random(f"accidents {seed}")
    among = sorted(kinds or ACTS)
    chosen = dice.sample(among, k=min(len(among), dice.randint(1, 5)))
    last = dice.choice((300.0, 900.0, 3600.0))
    number = dice.randint(1, 10)
    found = [
        Accident(
            at=dice.uniform(5.0, last),
            kind=dice.choice(chosen),
            target=dice.random(),
            seconds=dice.choice((5.0, 30.0, 90.0, 400.0, 1500.0, 4000.0)),
        )
        for _ in range(number)
    ]
    return sorted(found, key=lambda one: one.at)


@dataclass(frozen=True, kw_only=True)
class Crash:
    """An error that a worker raises at the beginning of an epoch."""

    until: float
    kind: str
    rank: int | None
    """The rank that raises it; the others lose that one. ``None``: all do."""


@final
@dataclass(kw_only=True)
class Harm:
    """What accidents have done: what checks may know."""

    happened: set[str] = field(default_factory=set)
    """The kinds of accidents that have found something to happen to."""
    causes: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Name of a run -> what was done to it that may end it for good."""
    cancelled: dict[str, float] = field(default_factory=dict)
    """Name of a run -> the newest request that named it when a user cancelled it last; infinite if other commands
    were at work then, whose requests may be older or newer."""
    scancelled: set[int] = field(default_factory=set)
    """Arrays of which somebody has ended a job with SLURM's own command, or SLURM for its memory."""
    hits: Counter[str] = field(default_factory=Counter)
    """Name of a run -> how often an attempt of it was disturbed."""
    excuses: Counter[str] = field(default_factory=Counter)
    """Name of a run -> how often its worker was disturbed, or its job came to an end."""
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Name of a run and kind -> how often its worker has raised an error."""
    failed: dict[tuple[str, int], str] = field(default_factory=dict)
    """Name of a run and number of an attempt whose worker has raised an error -> its kind."""
    still_seconds: float = 0.0
    """For how long launchers stood still, which then watch nothing."""
    crashes: dict[str, Crash] = field(default_factory=dict)
    """Name of a run -> the error that its worker raises."""
    hangs: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Name of a run -> the rank that hangs at its next epoch, and for how many seconds."""
    aborts_until: float = 0.0
    """Until when a rank that loses another one is ended by SIGABRT, as PyTorch does it with NCCL."""
    slow_start_until: float = 0.0
    """Until when a worker needs minutes to begin."""
    unreadable: dict[str, float] = field(default_factory=dict)
    """Run id -> until when its configuration cannot be read."""
    full_until: float = 0.0
    """Until when no file can be written."""
    hanging_until: float = 0.0
    """Until when no call of a file is answered."""
    slow_until: float = 0.0
    """Until when a process or its files stand still."""
    delayed_until: float = 0.0
    """Until when opening and renaming a file takes longer."""
    quota_until: float = 0.0
    """Until when what was written is refused when it is closed or flushed."""
    broken: dict[Host, float] = field(default_factory=dict)
    """Host -> until when no write of it arrives."""
    unread: dict[Host, float] = field(default_factory=dict)
    """Host -> until when some of its looks at files fail."""
    without_replies: dict[Host, float] = field(default_factory=dict)
    """Host -> until when answers to what it asks the file server are lost."""
    cancelled_by_slurm: dict[str, float] = field(default_factory=dict)
    """Name of a run whose first rank trained it when all jobs of the user were ended with SLURM's own command -> when.
    """
    lost: dict[tuple[str, int], str] = field(default_factory=dict)
    """Id of a job and number of its start -> the node of it that has lost power."""
    begun: Counter[str] = field(default_factory=Counter)
    """Name of a run -> how many epochs were begun."""

    def hit(self, process: Process) -> None:
        """Count a disturbance of a worker's run, as that of each of its ranks. Of others there is nothing to count."""
        if (run := run_of(process)) is not None:
            self.hits[name_of(run)] += 1
            self.excuses[name_of(run)] += 1

    def excuse(self, processes: Sequence[Process]) -> None:
        """Count for the runs of these processes that their job comes to an end."""
        self.excuses.update(name_of(run) for one in processes if (run := run_of(one)) is not None)

    def hit_all(self, processes: Sequence[Process]) -> None:
        for process in processes:
            self.hit(process)


def run_of(process: Process) -> str | None:
    """Return the id of the run that a process trains. ``None``: it trains none."""
    tag = str(process.tag)
    return tag.removeprefix("worker of ") if tag.startswith("worker of ") else None


def rank_of(worker: Process) -> int:
    """Return which rank of its run a worker is."""
    return int(worker.environ.get(b"RANK", b"0"))


def ranks_of(worker: Process) -> int:
    """Return how many ranks its run has."""
    return int(worker.environ.get(b"WORLD_SIZE", b"1"))


def name_of(run_id: str) -> str:
    """Return the name of a run from its id."""
    return run_id[:-9]


def pick(choices: Sequence[Choice], given: Accident) -> Choice | None:
    """Return the one that an accident hits. ``None``: there is none."""
    return choices[min(int(given.target * len(choices)), len(choices) - 1)] if choices else None


def some_rank(choices: Sequence[Choice], given: Accident) -> Choice:
    """Return a rank, whichever run it is of."""
    return choices[int(given.target * 1000) % len(choices)]


def some_names(story: Story, given: Accident) -> list[str]:
    """Return the names of one to three runs, which may not have begun."""
    first = int(given.target * len(story.study.names))
    return story.study.names[first : first + 1 + first % 3]


@accident
def kill_worker(story: Story, given: Accident) -> None:
    if (process := pick(story.workers(), given)) is not None:
        story.kernel.tell(f"{process} is killed")
        story.harm.hit(process)
        story.kernel.send(process, signal.SIGKILL)


@accident
def terminate_worker(story: Story, given: Accident) -> None:
    if (process := pick(story.workers(), given)) is not None:
        story.kernel.tell(f"{process} gets SIGTERM")
        story.harm.hit(process)
        story.kernel.send(process, signal.SIGTERM)


@accident
def stop_worker(story: Story, given: Accident) -> None:
    if (process := pick(story.workers(), given)) is not None:
        story.kernel.tell(f"{process} stands still for {given.seconds:g} s")
        story.harm.hit(process)
        story.kernel.send(process, signal.SIGSTOP)
        story.kernel.after(given.seconds, lambda: story.kernel.send(process, signal.SIGCONT))
        story.harm.slow_until = max(story.harm.slow_until, story.kernel.now + given.seconds)


@accident
def kill_program(story: Story, given: Accident) -> None:
    """Of a job of several nodes that on one of them."""
    programs = [(job, one) for job in story.cluster.running() for one in job.processes[1:] if one.lives]
    if (found := pick(programs, given)) is not None:
        job, program = found
        story.kernel.tell(f"the program of {program.tag} is killed")
        story.harm.hit_all(story.cluster.members(job))
        story.kernel.send(program, signal.SIGKILL)


@accident
def stop_program(story: Story, given: Accident) -> None:
    """Of a job of several nodes that on a node which is not the first: nobody there records how its ranks end."""
    jobs = [job for job in story.cluster.running() if len(job.nodes) > 1]
    programs = [(job, one) for job in jobs for one in job.processes[2:] if one.lives]
    if (found := pick(programs, given)) is not None:
        job, program = found
        story.kernel.tell(f"the program of {program.tag} stands still for {given.seconds:g} s")
        story.harm.hit_all(story.cluster.members(job))
        story.kernel.send(program, signal.SIGSTOP)
        story.kernel.after(given.seconds, lambda: story.kernel.send(program, signal.SIGCONT))


@accident
def lose_node(story: Story, given: Accident) -> None:
    nodes = [node for node in story.nodes if node.is_up]
    if len(nodes) > 1 and (node := pick(nodes, given)) is not None:
        story.kernel.tell(f"{node.host.name} loses power")
        story.harm.hit_all([process for process in story.workers() if process.host is node.host])
        for job in node.jobs:
            if any(one.parent in job.processes for one in story.workers()):
                story.harm.lost[job.id, len(job.places)] = node.host.name
        story.cluster.lose(node, back_after=given.seconds)


@accident
def cut_off_node(story: Story, given: Accident) -> None:
    nodes = [node for node in story.nodes if node.is_up]
    if len(nodes) > 1 and (node := pick(nodes, given)) is not None:
        story.kernel.tell(f"the controller cannot reach {node.host.name} for {given.seconds:g} s; its jobs go on")
        story.harm.hit_all([process for process in story.workers() if process.host is node.host])
        story.cluster.cut_off(node, given.seconds)


@accident
def node_without_device(story: Story, given: Accident) -> None:
    nodes = [node for node in story.nodes if node.has_device]
    if len(nodes) > 1 and (node := pick(nodes, given)) is not None:
        story.kernel.tell(f"{node.host.name} loses its GPUs for {given.seconds:g} s")
        node.has_device = False

        def back() -> None:
            node.has_device = True

        story.kernel.after(given.seconds, back)


@accident
def silence(story: Story, given: Accident) -> None:
    story.kernel.tell(f"the controller answers nothing for {given.seconds:g} s")
    story.cluster.silence(given.seconds)


@accident
def controller_gone(story: Story, given: Accident) -> None:
    """Unlike one that hangs, it does not even do later what it was asked."""
    story.kernel.tell(f"the controller is gone for {given.seconds:g} s")
    story.cluster.silence(given.seconds, is_gone=True)


@accident
def preempt(story: Story, given: Accident) -> None:
    if (job := pick(story.cluster.running(), given)) is not None:
        story.kernel.tell(f"job {job.id} is preempted")
        story.harm.hit_all(story.cluster.members(job))
        story.cluster.preempt(job)


@accident
def requeue(story: Story, given: Accident) -> None:
    if (job := pick(story.cluster.running(), given)) is not None:
        story.kernel.tell(f"an administrator requeues job {job.id}")
        job.cut_short.add(len(job.places))
        story.harm.hit_all(story.cluster.members(job))
        story.cluster.requeue(job)


def ended_for_good(story: Story, *jobs: Job) -> None:
    """Note that jobs are ended which nobody puts back. Without its canaries no run of a grid begins."""
    story.harm.scancelled.update(job.array for job in jobs)
    if any("/canary/" in job.folder for job in jobs):
        for name in story.study.names:
            story.harm.causes[name].add("canary")


@accident
def scancel(story: Story, given: Accident) -> None:
    jobs = [job for job in story.study_jobs if job.is_live]
    if (job := pick(jobs, given)) is not None:
        story.kernel.tell(f"a user types `scancel {job.id}`")
        ended_for_good(story, job)
        story.cluster.cancel(job)


@accident
def operator_cancels(story: Story, given: Accident) -> None:
    """An operator ends all jobs of the user, as one does before a maintenance."""
    if jobs := [job for job in story.study_jobs if job.is_live]:
        story.kernel.tell("an operator types `scancel -u user`")
        names = {name_of(run) for one in story.workers() if rank_of(one) == 0 and (run := run_of(one)) is not None}
        story.harm.cancelled_by_slurm.update(dict.fromkeys(names, story.kernel.now))
        ended_for_good(story, *jobs)
        story.cluster.cancel(*jobs)


@accident
def memory_of_job_used_up(story: Story, given: Accident) -> None:
    """SLURM ends a job that uses more memory than it has asked for. The next `run` resumes its runs."""
    if (job := pick(story.cluster.running(), given)) is not None:
        story.kernel.tell(f"job {job.id} uses more memory than it has")
        story.harm.hit_all(story.cluster.members(job))
        ended_for_good(story, job)
        story.cluster.end_for_memory(job)


@accident
def reuse_id(story: Story, given: Accident) -> None:
    """The controller begins anew with its numbers, and another job of the user's gets that of a job of the study."""
    over = {job.array for job in story.study_jobs} - {job.array for job in story.cluster.jobs}
    if (array := pick(sorted(over), given)) is not None:
        story.kernel.tell(f"another job of the user's gets the number {array}")
        story.others.append(story.cluster.add_other(array))


@accident
def cancel(story: Story, given: Accident) -> None:
    names, is_alone = some_names(story, given), not any(user.lives for user in story.users)
    for name in names:
        story.harm.cancelled[name] = max(story.arrays_of(name), default=0) if is_alone else math.inf
    story.user("cancel", "s", "--only", f"name={','.join(names)}", "--runs-dir", "/sim/runs")


@accident
def retry(story: Story, given: Accident) -> None:
    story.user("retry", "s", "--only", f"name={','.join(some_names(story, given))}", *story.study.options)


@accident
def cancel_and_retry(story: Story, given: Accident) -> None:
    """A user thinks better of it a moment later."""
    cancel(story, given)
    story.kernel.after(min(given.seconds, 90.0), lambda: retry(story, given))


@accident
def run(story: Story, given: Accident) -> None:
    story.user(*story.study.command)


def raise_errors(story: Story, given: Accident, kind: str) -> None:
    name = pick(story.study.names, given)
    assert name is not None
    ranks = [None, *range(story.study.ranks)] if story.study.ranks > 1 else [None]
    rank = some_rank(ranks, given)
    who = "the worker" if rank is None else f"rank {rank}"
    story.kernel.tell(f"{who} of {name} raises errors of the kind {kind} for {given.seconds:g} s")
    story.harm.crashes[name] = Crash(until=story.kernel.now + given.seconds, kind=kind, rank=rank)


@accident
def code_error(story: Story, given: Accident) -> None:
    raise_errors(story, given, "code")


@accident
def diverges(story: Story, given: Accident) -> None:
    raise_errors(story, given, "diverged")


@accident
def out_of_memory(story: Story, given: Accident) -> None:
    raise_errors(story, given, "oom")


@accident
def device_error(story: Story, given: Accident) -> None:
    raise_errors(story, given, "node")


@accident
def ranks_abort(story: Story, given: Accident) -> None:
    if story.study.ranks > 1:
        story.kernel.tell(f"a rank that loses another one aborts, for {given.seconds:g} s")
        story.harm.aborts_until = story.kernel.now + given.seconds


@accident
def hang_worker(story: Story, given: Accident) -> None:
    """A worker makes no progress and looks at no signal, while its lease is renewed."""
    name = pick(story.study.names, given)
    assert name is not None
    rank = some_rank(range(story.study.ranks), given)
    who = f"rank {rank} of {name}" if story.study.ranks > 1 else name
    story.kernel.tell(f"the next epoch of {who} hangs for {given.seconds:g} s")
    story.harm.hangs[name] = rank, given.seconds
    story.harm.slow_until = max(story.harm.slow_until, story.kernel.now + given.seconds)


@accident
def slow_start(story: Story, given: Accident) -> None:
    story.kernel.tell(f"workers need minutes to begin for {given.seconds:g} s")
    story.harm.slow_start_until = story.kernel.now + given.seconds


@accident
def config_unreadable(story: Story, given: Accident) -> None:
    if run := pick(story.run_ids(), given):
        story.kernel.tell(f"config.json of {run} cannot be read for {given.seconds:g} s")
        story.harm.unreadable[run] = story.kernel.now + given.seconds
        story.harm.hits[name_of(run)] += 1


@accident
def disk_full(story: Story, given: Accident) -> None:
    story.kernel.tell(f"the disk is full for {given.seconds:g} s")
    story.harm.full_until = story.kernel.now + given.seconds
    story.harm.hits.update(story.study.names)
    story.harm.slow_until = max(story.harm.slow_until, story.kernel.now + given.seconds)


@accident
def files_hang(story: Story, given: Accident) -> None:
    story.kernel.tell(f"the file server does not answer for {given.seconds:g} s")
    story.harm.hanging_until = story.kernel.now + given.seconds
    story.harm.hits.update(story.study.names)
    story.harm.slow_until = max(story.harm.slow_until, story.kernel.now + given.seconds)


@accident
def files_late(story: Story, given: Accident) -> None:
    """From now on."""
    seconds = pick((3.0, 30.0, 60.0), given) or 0.0
    if story.study.backend == "local":
        return  # its files are those of one host
    story.kernel.tell(f"from now on, hosts see up to {seconds:g} s late what others do to files")
    story.files.late_seconds = max(seconds, story.files.late_seconds)


@accident
def files_slow(story: Story, given: Accident) -> None:
    story.kernel.tell(f"files are slow for {given.seconds:g} s")
    story.harm.delayed_until = story.kernel.now + given.seconds


@accident
def quota_used_up(story: Story, given: Accident) -> None:
    story.kernel.tell(f"a quota is used up for {given.seconds:g} s, which shows when a file is closed")
    story.harm.quota_until = story.kernel.now + given.seconds
    story.harm.hits.update(story.study.names)


@accident
def writes_broken(story: Story, given: Accident) -> None:
    if (host := pick(story.hosts, given)) is not None:
        story.kernel.tell(f"what {host.name} writes does not arrive for {given.seconds:g} s")
        story.harm.broken[host] = story.kernel.now + given.seconds
        story.harm.hit_all([process for process in story.workers() if process.host is host])


@accident
def reads_broken(story: Story, given: Accident) -> None:
    if (host := pick(story.hosts, given)) is not None:
        seconds = min(given.seconds, 90.0)
        story.kernel.tell(f"one in fifty looks of {host.name} at files fails for {seconds:g} s")
        story.harm.unread[host] = story.kernel.now + seconds
        story.harm.hit_all([process for process in story.workers() if process.host is host])


@accident
def replies_lost(story: Story, given: Accident) -> None:
    if (host := pick(story.hosts, given)) is not None:
        story.kernel.tell(f"half of the file server's answers to {host.name} are lost for {given.seconds:g} s")
        story.harm.without_replies[host] = story.kernel.now + given.seconds
        story.harm.hit_all([process for process in story.workers() if process.host is host])


@accident
def clock_wrong(story: Story, given: Accident) -> None:
    """From now on."""
    if (host := pick(story.hosts, given)) is not None:
        host.clock += given.seconds if given.target * 1000 % 2 < 1 else -given.seconds
        story.kernel.tell(f"the clock of {host.name} is {host.clock:+g} s wrong from now on")


# -- launchers that live as long as their runs -------------------------------------------------------------------------


def launchers(story: Story) -> list[Process]:
    """Return the launchers of a study whose backend needs one."""
    return [user for user in story.users if user.lives and story.study.has_launcher]


@accident
def kill_launcher(story: Story, given: Accident) -> None:
    if (process := pick(launchers(story), given)) is not None:
        story.kernel.tell(f"{process} is killed")
        story.harm.hit_all(story.workers())
        story.kernel.send(process, signal.SIGKILL)


@accident
def interrupt_launcher(story: Story, given: Accident) -> None:
    """Ctrl-C, or its terminal is gone."""
    if (process := pick(launchers(story), given)) is not None:
        number = signal.SIGINT if given.seconds < 60 else signal.SIGHUP
        story.kernel.tell(f"{process} gets {number.name}")
        story.harm.hit_all(story.workers())
        story.kernel.send(process, number)


@accident
def stop_launcher(story: Story, given: Accident) -> None:
    if (process := pick(launchers(story), given)) is not None:
        story.kernel.tell(f"{process} stands still for {given.seconds:g} s")
        story.harm.still_seconds += given.seconds
        story.kernel.send(process, signal.SIGSTOP)
        story.kernel.after(given.seconds, lambda: story.kernel.send(process, signal.SIGCONT))


@accident
def power_cut(story: Story, given: Accident) -> None:
    """Of the machine on which everything is. What its disk had not flushed is lost."""
    if story.study.backend == "local":
        story.kernel.tell("the machine loses power")
        story.harm.hit_all(story.workers())
        story.finished.lose_power(story.kernel.now)
        story.files.lose(story.login)
        for process in list(story.kernel.processes):
            if process.lives:
                story.kernel.ends(process, -signal.SIGKILL)
        story.login.boot += 1


# -- Ray ---------------------------------------------------------------------------------------------------------------


@accident
def lose_ray_node(story: Story, given: Accident) -> None:
    nodes = [node for node in story.ray.nodes if node.is_alive]
    if len(nodes) > 1 and (node := pick(nodes, given)) is not None:
        story.kernel.tell(f"{node.host.name} loses power")
        story.harm.hit_all([process for process in story.workers() if process.host is node.host])
        story.ray.lose(node, back_after=given.seconds)


@accident
def drain_ray_node(story: Story, given: Accident) -> None:
    nodes = [node for node in story.ray.nodes if node.is_alive and not node.is_draining]
    if len(nodes) > 1 and (node := pick(nodes, given)) is not None:
        story.kernel.tell(f"{node.host.name} is to be shut down in {given.seconds:g} s")
        story.harm.hit_all([process for process in story.workers() if process.host is node.host])
        node.is_draining = True
        story.kernel.after(given.seconds, lambda: story.ray.lose(node, back_after=60.0) if node.is_alive else None)


@accident
def kill_actor(story: Story, given: Accident) -> None:
    alive = [actor for actor in story.ray.actors if actor.process is not None and actor.process.lives]
    if (actor := pick(alive, given)) is not None and actor.process is not None:
        story.kernel.tell(f"{actor.process} is killed")
        story.harm.hit_all([process for process in story.workers() if process.parent is actor.process])
        story.kernel.send(actor.process, signal.SIGKILL)


@accident
def ray_silence(story: Story, given: Accident) -> None:
    if story.ray.nodes:
        story.kernel.tell(f"the head of the Ray cluster answers nothing for {given.seconds:g} s")
        story.harm.hit_all(story.workers())
        story.ray.silent_until = story.kernel.now + given.seconds

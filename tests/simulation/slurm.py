"""A SLURM as the product sees it: a controller, nodes, jobs, and the commands that the product runs.

What it does is what the scenarios of :mod:`tests.simulation.scenarios` ask of it and of a real SLURM: nothing is here
that none of them, or a row of :data:`tests.simulation.scenarios.NOT_ASKED`, covers.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import shlex
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, final

from tests.simulation.kernel import Host, Process, Thread, ViolationError
from tests.simulation.seam import TIMED_OUT, World

LIMIT_SECONDS = 30.0
"""Time between two looks of the controller at the time limits."""
PURGE_SECONDS = 60.0
"""Time between two looks of the controller for jobs to forget."""
TOO_MANY_JOBS = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
MOST_JOB_STARTS = 50
"""How often a job may start: more are a loop, since accidents and time limits are fewer."""
LIVE = ("PENDING", "RUNNING", "COMPLETING", "SUSPENDED")
HANGS, GONE = "Socket timed out on send/recv operation", "Unable to contact slurm controller (connect failure)"


@final
@dataclass(frozen=True, kw_only=True)
class Rules:
    """How a cluster is set up."""

    cycle: tuple[float, float] = (0.5, 5.0)
    """Seconds between two looks of the scheduler at the queue, at least and at most."""
    answer: tuple[float, float] = (0.02, 0.3)
    """Seconds that a request or its answer takes, at least and at most."""
    message_timeout: float = 10.0
    """Seconds for which a program asks a controller that does not answer (MessageTimeout)."""
    kill_wait: float = 30.0
    """Seconds between SIGTERM and SIGKILL (KillWait)."""
    grace: float = 60.0
    """Seconds between the announcement of a preemption and its SIGTERM (GraceTime)."""
    requeue_wait: float = 121.0
    """Seconds that a requeued job waits at least: its credential must have expired (AuthInfo=cred_expire)."""
    lost_after: float = 300.0
    """Seconds for which the controller waits for a node that does not answer (SlurmdTimeout)."""
    min_job_age: float = 300.0
    """Seconds for which the controller knows of a job that has ended (MinJobAge)."""
    max_array_size: int = 1001
    most_jobs: int | None = None
    """How many jobs a user may have in the queue (MaxSubmitJobs). ``None``: any number."""
    kills_invalid_depend: bool = False
    """Whether a job ends whose dependency nothing can satisfy (DependencyParameters=kill_invalid_depend)."""
    first_number: int = 1
    """Number of the first job."""


class RefusedError(Exception):
    """A command fails with this line."""


@final
@dataclass(eq=False, kw_only=True)
class Node:
    """A node of the cluster."""

    host: Host
    cpus: int
    gpus: int
    memory_mb: int = 64_000
    is_up: bool = True
    """Whether the controller gives it jobs."""
    is_given_up: bool = False
    """Whether the controller waits for nothing of it any more."""
    has_device: bool = True
    """Whether its GPUs are there."""
    jobs: list[Job] = field(default_factory=list)
    before: list[Process] = field(default_factory=list)
    """What ran there when the controller reached it last."""
    unheard: list[Callable[[], None]] = field(default_factory=list)
    """What the controller hears once it reaches the node again."""


@final
@dataclass(eq=False, kw_only=True)
class Job:
    """A job, which may be one of an array."""

    number: int
    array: int
    index: int | None
    """``None``: it is of no array."""
    tasks: int
    at_once: int | None
    script: str
    options: dict[str, str]
    env: dict[str, str]
    state: str = "PENDING"
    flags: tuple[str, ...] = ()
    """Further words of its state while it completes: ``COMPLETING`` and why."""
    ended_by: str = "None"
    """Why it has ended, in SLURM's words."""
    is_held: bool = False
    dependency: str = ""
    begins_at: float = 0.0
    excluded: tuple[str, ...] = ()
    minutes: int = 60
    end: float = 0.0
    """When its time is up."""
    restarts: int = 0
    places: list[tuple[list[str], list[str]]] = field(default_factory=list)
    """Of each start: the names of its nodes, and those of all nodes that were up."""
    nodes: list[Node] = field(default_factory=list)
    devices: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Name of a node -> its GPUs there."""
    processes: list[Process] = field(default_factory=list)
    """Those of its present start: the script's first, then the programs' on each node."""
    timers: list[Any] = field(default_factory=list)
    ended_at: float = 0.0
    after: str = ""
    """The state to which it comes when its processes have ended."""
    is_to_be_requeued: bool = False
    cut_short: set[int] = field(default_factory=set)
    """Numbers of its starts that somebody else has ended, or was about to end."""
    is_preempted: bool = False
    """Whether a job of higher rank has asked for its nodes. SLURM then ends its next start, too."""
    is_shown: bool = True
    """Whether SLURM has a record of it: of one of an array that is cancelled while it waits it has none."""
    is_other: bool = False
    """Whether it is another job of the user's, of no study."""

    @property
    def id(self) -> str:
        return str(self.number) if self.index is None else f"{self.array}_{self.index}"

    @property
    def folder(self) -> str:
        return self.options.get("chdir", "/")

    @property
    def is_live(self) -> bool:
        return self.state in LIVE

    @property
    def rank(self) -> tuple[int, int, int]:
        """Its place in the queue: by nice, then as it was submitted, then by its place in its array."""
        return int(self.options.get("nice") or 0), self.array, self.index or 0

    @property
    def wants(self) -> tuple[int, int, int]:
        """Cores, GPUs and memory in MB, on each of its nodes."""
        gpus = int(self.options.get("gpus-per-node", self.options.get("gres", "0")).rpartition(":")[2] or 0)
        memory = int(self.options.get("mem", "0M").rstrip("M"))
        return int(self.options.get("cpus-per-task", 1)), gpus, memory


@final
class Cluster:
    """The controller and its nodes."""

    def __init__(self, world: World, nodes: Iterable[Node], rules: Rules | None = None) -> None:
        self.world, self.kernel, self.rules = world, world.kernel, rules or Rules()
        self.nodes = list(nodes)
        self.jobs: list[Job] = []
        """Those that the controller knows."""
        self.every: list[Job] = []
        """Those that it ever had."""
        self._numbers = itertools.count(self.rules.first_number)
        self.silent_until = 0.0
        """Until when the controller does nothing."""
        self._late: list[Callable[[], None]] = []
        """What it does when it works again."""
        self.is_gone = self._has_gone = False
        """Whether nobody hears it meanwhile. Else it hangs: what it was asked to do, it does later."""
        self.on_end: Callable[[Sequence[Process]], None] = lambda processes: None
        self.on_limit: Callable[[Job], None] = lambda job: None
        """Told of the processes of a job that is warned or ended."""
        self.program: Callable[[Sequence[str]], int | None] = lambda words: 0
        """Runs ``python -m jobs.scheduled.job`` with these words, in the process that calls."""
        self.new_script: Callable[[Cluster, Job], Script] = Script
        """What scripts of jobs do."""
        self.kernel.on_exit.append(self._look_at_exit)
        self._cycle()

    def silence(self, seconds: float, *, is_gone: bool = False) -> None:
        """Have the controller do nothing for a while."""
        self.silent_until, self.is_gone = self.kernel.now + seconds, is_gone
        until = self.silent_until
        self.kernel.at(until, lambda: self.speak() if self.silent_until == until else None)

    def speak(self) -> None:
        """Have the controller work again, if its time has come or it is brought back before."""
        self.silent_until = min(self.silent_until, self.kernel.now)
        acts, self._late = self._late, []
        for act in acts:
            act()

    def _once_it_works(self, act: Callable[[], None]) -> None:
        """Do something now, or when the controller works again."""
        if self.kernel.now < self.silent_until:
            self._late.append(act)
        else:
            act()

    def running(self) -> list[Job]:
        """Return the jobs that run."""
        return [job for job in self.jobs if job.state == "RUNNING" and not job.is_other]

    def add_other(self, number: int | None = None, *, is_held: bool = False) -> Job:
        """Add a job that takes no room and has nothing to do with a study. It runs, unless it is held."""
        number = next(self._numbers) if number is None else number
        job = Job(
            number=number,
            array=number,
            index=0,
            tasks=1,
            at_once=None,
            script="",
            options={"chdir": "/sim/home/notebook"},
            env={},
            state="PENDING" if is_held else "RUNNING",
            is_held=is_held,
            is_other=True,
        )
        self.jobs.append(job)
        return job

    # -- scheduling ---------------------------------------------------------------------------------------------------

    def _cycle(self) -> None:
        if self.kernel.now >= self.silent_until:
            for job in sorted(self.jobs, key=lambda job: job.rank):
                if job.state != "PENDING":
                    continue
                why = self.reason(job)
                if why is None and (nodes := self._room(job)) is not None:
                    self._start(job, nodes)
                elif why == "DependencyNeverSatisfied" and self.rules.kills_invalid_depend:
                    self.cancel(job)
        self.kernel.after(self.kernel.dice.uniform(*self.rules.cycle), self._cycle)

    def reason(self, job: Job) -> str | None:
        """Return why a waiting job cannot start, whatever room there is. ``None``: it can."""
        if job.is_held:
            return "JobHeldUser"
        if job.dependency:
            answer = self._depends(job)
            if answer is not None:
                return answer
            job.dependency = ""  # SLURM does not ask again about what is satisfied
        if job.begins_at > self.kernel.now:
            return "BeginTime"
        running = sum(one.array == job.array and one.state == "RUNNING" for one in self.jobs)
        if job.at_once is not None and running >= job.at_once:
            return "JobArrayTaskLimit"
        return None

    def _depends(self, job: Job) -> str | None:
        for part in job.dependency.split(","):
            kind, *arrays = part.split(":")
            for array in arrays:
                tasks = [one for one in self.jobs if str(one.array) == array]
                if any(one.is_live for one in tasks):
                    return "Dependency"
                if kind == "afterok" and any(one.state != "COMPLETED" for one in tasks):
                    return "DependencyNeverSatisfied"
        return None

    def _room(self, job: Job) -> list[Node] | None:
        found = [node for node in self.nodes if self._fits(job, node)][: int(job.options.get("nodes", 1))]
        return found if len(found) == int(job.options.get("nodes", 1)) else None

    def _fits(self, job: Job, node: Node) -> bool:
        if not node.is_up or node.host.name in job.excluded:
            return False
        cpus, gpus, memory = (sum(part) for part in zip(job.wants, *(one.wants for one in node.jobs), strict=True))
        return cpus <= node.cpus and gpus <= node.gpus and memory <= node.memory_mb

    def _start(self, job: Job, nodes: list[Node]) -> None:
        job.state, job.nodes, job.after, job.flags, job.ended_by = "RUNNING", nodes, "", (), "None"
        job.is_to_be_requeued, job.devices = False, {}
        up = [node.host.name for node in self.nodes if node.is_up]
        job.places.append(([node.host.name for node in nodes], up))
        if len(job.places) > MOST_JOB_STARTS:
            raise ViolationError(f"SPIN: job {job.id} starts for the {len(job.places)}th time")
        for node in nodes:
            taken = {device for one in node.jobs for device in one.devices.get(node.host.name, ())}
            free = [device for device in range(node.gpus) if device not in taken]
            job.devices[node.host.name] = tuple(free[: job.wants[1]])
            node.jobs.append(job)
        self._arm(job, self.kernel.now + 60 * job.minutes)
        file = job.options["output"].rpartition("/")[2].replace("%a", str(job.index))
        output = self.world.files.open_log(f"{job.folder}/{file}")
        if job.options.get("open-mode") != "append":
            output.clear()
        self.kernel.tell(f"job {job.id} starts on {', '.join(node.host.name for node in nodes)}")
        if job.is_preempted:
            job.is_preempted = False
            self._preempt_after(job, self.kernel.dice.uniform(1.0, 3.0))
        script = self.new_script(self, job)
        env = self.env_of(job, 0)
        tag = f"script of job {job.id}"
        job.processes = [self.kernel.spawn(nodes[0].host, ["bash"], script.run, env=env, output=output, tag=tag)]

    def env_of(self, job: Job, rank: int) -> dict[str, str]:
        """Return the environment of a job's programs on one of its nodes."""
        node, (_, gpus, memory) = job.nodes[rank], job.wants
        env = {
            **job.env,
            "SLURM_JOB_ID": str(job.number),
            "SLURM_JOB_END_TIME": str(round(job.end)),
            "SLURMD_NODENAME": node.host.name,
            "SLURM_JOB_NUM_NODES": str(len(job.nodes)),
            "SLURM_NODEID": str(rank),
            "SLURM_JOB_PARTITION": "main",
        }
        if job.index is not None:
            env["SLURM_ARRAY_JOB_ID"], env["SLURM_ARRAY_TASK_ID"] = str(job.array), str(job.index)
            env["SLURM_ARRAY_TASK_COUNT"] = str(job.tasks)
        if job.restarts:
            env["SLURM_RESTART_COUNT"] = str(job.restarts)
        if memory:
            env["SLURM_MEM_PER_NODE"] = str(memory)
        if gpus and node.has_device:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, job.devices[node.host.name]))
        return env

    # -- the end of a job ----------------------------------------------------------------------------------------------

    def _arm(self, job: Job, end: float) -> None:
        """Have a job warned, and ended at its time limit. The controller looks at both now and then."""
        job.end = end
        for timer in job.timers:
            self.kernel.forget(timer)
        if warning := re.search(r"@(\d+)", job.options.get("signal", "")):
            before = int(warning[1]) + self.kernel.dice.uniform(0, 2 * LIMIT_SECONDS)
            warn = self.kernel.at(end - before, lambda: self._once_it_works(lambda: self._warn_of_limit(job, end)))
            job.timers.append(warn)
        late = self.kernel.dice.uniform(0, LIMIT_SECONDS)
        stop = self.kernel.at(end + late, lambda: self._once_it_works(lambda: self._stop_at_limit(job, end)))
        job.timers.append(stop)

    def _warn_of_limit(self, job: Job, end: float) -> None:
        if job.end == end and self.kernel.now < end:  # later it just ends
            self.warn(job)

    def _stop_at_limit(self, job: Job, end: float) -> None:
        if job.end == end and job.state == "RUNNING":
            self.on_limit(job)
            self.stop(job, "TIMEOUT", ended_by="TimeLimit")

    def warn(self, job: Job) -> None:
        """Send SIGUSR2 to the programs of a job."""
        self.on_end(self.members(job))
        job.cut_short.add(len(job.places))
        for process in job.processes[1:]:
            self.kernel.send(process, signal.SIGUSR2)

    def members(self, job: Job) -> list[Process]:
        """Return all live processes of a job on nodes that the controller reaches, with those they have started."""
        found = list(job.processes)
        for process in self.kernel.processes:
            if process.parent in found and process not in found:
                found.append(process)
        up = [node.host for node in job.nodes if node.is_up]
        return [process for process in found if process.lives and process.host in up]

    def stop(self, job: Job, after: str, *, ended_by: str = "None", requeue: bool = False) -> None:
        """End a running job: SIGTERM, and SIGKILL later. Then it is in the state ``after``, or waits again."""
        if job.state != "RUNNING":
            return
        self.on_end(self.members(job))
        self._forget_timers(job)
        if after != "PENDING":
            job.cut_short.add(len(job.places))
        job.state, job.after, job.is_to_be_requeued = "COMPLETING", after, requeue
        job.ended_by = "None" if requeue else ended_by
        job.flags = ("COMPLETING", "PENDING" if requeue else after)
        self._end_processes(job)

    def end_for_memory(self, job: Job) -> None:
        """End a job that uses more memory than it has: SIGKILL for all of its processes."""
        self.on_end(self.members(job))
        self._forget_timers(job)
        job.state, job.after, job.flags = "COMPLETING", "OUT_OF_MEMORY", ("COMPLETING", "OUT_OF_MEMORY")
        self._kill(job)

    def _end_processes(self, job: Job) -> None:
        """Send SIGTERM to the processes of a job that the controller reaches, and SIGKILL later."""
        reached = self.members(job)
        for process in job.processes:
            if process in reached:
                self.kernel.send(process, signal.SIGTERM)
        job.timers.append(self.kernel.after(self.rules.kill_wait, lambda: self._kill(job)))
        self._look_after(job)

    def _kill(self, job: Job) -> None:
        for process in self.members(job):
            self.kernel.ends(process, -signal.SIGKILL)
        self._over(job)

    def _look_after(self, job: Job) -> None:
        """End a job whose processes are gone."""
        if job.state == "COMPLETING":
            if not self.members(job):
                self._over(job)
            else:
                job.timers.append(self.kernel.after(1.0, lambda: self._look_after(job)))

    def _look_at_exit(self, process: Process) -> None:
        """A script has ended: its node tells the controller, once it can."""
        job = next((one for one in self.jobs if one.processes[:1] == [process]), None)
        if job is None or job.state != "RUNNING":
            return
        node, start = job.nodes[0], job.processes
        self._clear(job)

        def tell() -> None:
            if job.state == "RUNNING" and job.processes is start:
                assert process.exit_code is not None
                self._script_ended(job, process.exit_code)

        if node.is_up:
            tell()
        else:
            node.unheard.append(tell)

    def _script_ended(self, job: Job, code: int) -> None:
        job.after = "COMPLETED" if code == 0 else "FAILED"
        if code < 0:
            job.ended_by = f"RaisedSignal:{-code}({signal.strsignal(-code)})"
        elif code:
            job.ended_by = "NonZeroExitCode"
        self._over(job)

    def _clear(self, job: Job) -> None:
        for process in self.members(job):
            self.kernel.ends(process, -signal.SIGKILL)

    def _over(self, job: Job) -> None:
        """End a job whose processes are gone, unless one of its nodes cannot say so."""
        self._forget_timers(job)
        if any(not node.is_up and not node.is_given_up for node in job.nodes):
            if job.state == "RUNNING":
                job.state, job.flags = "COMPLETING", ("COMPLETING", job.after)
            return
        for node in job.nodes:
            node.jobs.remove(job)
        job.nodes = []
        if job.is_to_be_requeued:
            self._wait_again(job)
        else:
            job.state, job.flags, job.ended_at = job.after, (), self.kernel.now
            self.kernel.tell(f"job {job.id} is {job.state}")

    def _wait_again(self, job: Job) -> None:
        job.state, job.flags, job.ended_by, job.restarts = "PENDING", (), "None", job.restarts + 1
        job.begins_at = max(job.begins_at, self.kernel.now + self.rules.requeue_wait)
        self.kernel.tell(f"job {job.id} waits again")

    def _forget_timers(self, job: Job) -> None:
        for timer in job.timers:
            self.kernel.forget(timer)
        job.timers.clear()

    # -- nodes --------------------------------------------------------------------------------------------------------

    def lose(self, node: Node, *, back_after: float | None) -> None:
        """A node loses power. The controller notices later, and requeues its jobs."""
        self.lose_power(node)
        self.kernel.after(self.rules.lost_after, lambda: self.take_for_lost(node))
        if back_after is not None:
            self.kernel.after(self.rules.lost_after + back_after, lambda: self.back(node))

    def lose_power(self, node: Node) -> None:
        """All that runs on a node ends. The controller hears nothing of it."""
        self.lose_contact(node)
        node.host.boot += 1
        self.world.files.lose(node.host)
        for process in list(self.kernel.processes):
            if process.host is node.host and process.lives:
                self.kernel.ends(process, -signal.SIGKILL)
        node.unheard.clear()

    def lose_contact(self, node: Node) -> None:
        """The controller reaches a node no more, nor the node the controller. Its processes go on."""
        if node.is_up:
            found = [process for job in node.jobs for process in self.members(job)]
            node.before = [process for process in found if process.host is node.host]
            node.is_up = False

    def cut_off(self, node: Node, seconds: float) -> None:
        """The controller does not reach a node for a while."""
        self.lose_contact(node)
        notices = self.kernel.after(self.rules.lost_after, lambda: self.take_for_lost(node))

        def back() -> None:
            self.kernel.forget(notices)
            self.back(node)

        self.kernel.after(seconds, back)

    def take_for_lost(self, node: Node) -> None:
        """Have the controller give up a node: its jobs end, or wait again. It ends their processes on other nodes."""
        self._once_it_works(lambda: self._give_up(node))

    def _give_up(self, node: Node) -> None:
        self.lose_contact(node)
        node.is_given_up = True
        for job in list(node.jobs):
            self.stop(job, "NODE_FAIL", ended_by="NodeDown", requeue="requeue" in job.options)
            self._look_after(job)

    def back(self, node: Node) -> None:
        """Have the controller reach a node again, once it works. What a job of before has left there ends."""
        self._once_it_works(lambda: self._hear_again(node))

    def _hear_again(self, node: Node) -> None:
        node.is_up, node.is_given_up = True, False
        for tell in node.unheard:
            tell()
        node.unheard.clear()
        mine = [process for job in node.jobs for process in self.members(job)]
        for process in node.before:
            if process not in mine:
                self.kernel.ends(process, -signal.SIGKILL)
        for job in [job for job in node.jobs if job.state == "COMPLETING"]:
            self._end_processes(job)
        self.kernel.tell(f"{node.host.name} is back")

    def preempt(self, job: Job) -> None:
        """Announce its end to a job, and requeue it later."""
        self.warn(job)
        job.is_preempted = True
        self._preempt_after(job, self.rules.grace)  # unless the job waits again before

    def _preempt_after(self, job: Job, seconds: float) -> None:
        def stop() -> None:
            self.stop(job, "PREEMPTED", requeue="requeue" in job.options)

        job.timers.append(self.kernel.after(seconds, lambda: self._once_it_works(stop)))

    # -- commands ------------------------------------------------------------------------------------------------------

    def command(
        self, process: Process, words: Sequence[str], env: Mapping[str, str], timeout: float | None
    ) -> tuple[int, str, str]:
        """Answer as one of SLURM's programs. The caller waits for it."""
        name, *rest = words
        if name == "sbatch":  # it reads the script at once
            rest[-1] = self.world.files.text(rest[-1])
        if rest[:2] != ["show", "hostnames"] and not self.is_heard(process, name, rest, env, timeout):
            return self._without_answer(name, rest, timeout)
        self.kernel.sleep(self.kernel.dice.uniform(*self.rules.answer))
        with self.kernel.inside():
            answer = self.answer(name, rest, env)
        self.kernel.sleep(self.kernel.dice.uniform(*self.rules.answer))
        return answer

    def is_heard(
        self, process: Process, name: str, words: list[str], env: Mapping[str, str], timeout: float | None
    ) -> bool:
        """Wait for the controller; return whether it answers in time. If it hangs, it does what it was asked later."""
        node = next((one for one in self.nodes if one.host is process.host), None)
        is_cut_off = node is not None and not node.is_up
        silence = self.silent_until - self.kernel.now
        if silence <= 0 and not is_cut_off:
            return True
        self._has_gone = self.is_gone or is_cut_off
        patience = self._patience(name, words)
        patience = min(patience, patience if timeout is None else timeout)
        if silence < patience and not is_cut_off:
            self.kernel.sleep(silence)
            return True
        if not self._has_gone and name != "srun":
            self._late.append(lambda: self._answer_late(name, words, env))
        self.kernel.sleep(patience)
        return False

    def _patience(self, name: str, words: Sequence[str]) -> float:
        """Return for how long a program asks the controller."""
        tries = 2 if name == "squeue" or "--json" in words else 1
        return tries * (self.rules.message_timeout - self._has_gone)  # a second less if nobody listens

    def _answer_late(self, name: str, words: list[str], env: Mapping[str, str]) -> None:
        self.kernel.tell(f"the controller does what `{name} {words[0]}` asked")
        self.answer(name, words, env)

    def _without_answer(self, name: str, words: list[str], timeout: float | None) -> tuple[int, str, str]:
        """Return what a program says that got no answer."""
        if timeout is not None and timeout <= self._patience(name, words):
            return TIMED_OUT, "", ""
        why = GONE if self._has_gone else HANGS
        if "--json" in words:
            return 0, '{"jobs": []}', ""
        match name, words[0]:
            case "sbatch", _:
                return 1, "", f"sbatch: error: Batch job submission failed: {why}\n"
            case "scancel", _:
                return 1, "", f"scancel: error: Kill job error on job id {words[-1]}: {why}\n"
            case "squeue", _:
                return 1, "", f"slurm_load_jobs error: {why}\n"
            case "sinfo", _:
                return 1, "", f"slurm_load_partitions: {why}\n"
            case _, "show":
                return 1, "", f"slurm_load_ctl_conf error: {why}\n"
            case _, "release":
                return 1, "", "slurm_suspend error: Unexpected message received\n"
            case _:
                return 1, "", f"Unexpected message received for job {words[1].removeprefix('JobId=')}\n"

    def answer(self, name: str, words: Sequence[str], env: Mapping[str, str]) -> tuple[int, str, str]:
        """Do what a program asks for; return its exit code, output and errors."""
        self._forget_old()
        try:
            return 0, getattr(self, f"_{name}")(list(words), env), ""
        except RefusedError as refused:
            return 1, "", f"{refused}\n"

    def _forget_old(self) -> None:
        looked_at = self.kernel.now // PURGE_SECONDS * PURGE_SECONDS
        since = looked_at - self.rules.min_job_age
        arrays = {job.array for job in self.jobs if job.is_live or job.ended_at > since}
        self.jobs = [job for job in self.jobs if job.array in arrays]

    def _named(self, words: str) -> list[Job]:
        """Return the jobs of ``7,8_2``; ``7`` stands for all tasks of an array, or for one job of that number."""
        found = []
        for word in words.split(","):
            known = [job for job in self.jobs if job.is_shown]
            if not (here := [job for job in known if word in (job.id, str(job.array), str(job.number))]):
                raise RefusedError("Invalid job id specified")
            found += here
        return found

    def _sbatch(self, words: list[str], env: Mapping[str, str]) -> str:
        given, script = [word for word in words[:-1] if word != "--parsable"], words[-1]
        lines = [shlex.split(line)[1] for line in script.splitlines() if line.startswith("#SBATCH")]
        pairs = [word.removeprefix("--").partition("=") for word in [*lines, *given]]
        options = {name: value for name, _, value in pairs}
        indices: list[int | None] = [None]
        at_once = None
        if "array" in options:
            found = re.fullmatch(r"0-(\d+)(?:%(\d+))?", options["array"])
            assert found is not None, options
            indices, at_once = list(range(int(found[1]) + 1)), int(found[2]) if found[2] else None
        self._require(options, len(indices))
        array = next(self._numbers)
        new = [
            Job(
                number=array if place == len(indices) - 1 else next(self._numbers),
                array=array,
                index=index,
                tasks=len(indices),
                at_once=at_once,
                script=script,
                options=options,
                env=dict(env),
                is_held="hold" in options,
                dependency=options.get("dependency", ""),
                minutes=int(options.get("time", "60")),
            )
            for place, index in enumerate(indices)
        ]
        self.jobs += new
        self.every += new
        what = f"array {array} of {len(new)}" if "array" in options else f"job {array}"
        self.kernel.tell(f"{what} is submitted")
        return f"{array}\n"

    def _require(self, options: Mapping[str, str], number: int) -> None:
        """Refuse a submission that the controller refuses."""
        failed = "sbatch: error: Batch job submission failed: "
        if number > self.rules.max_array_size:
            raise RefusedError(f"{failed}Invalid job array specification")
        has = sum(job.is_live and not job.is_other for job in self.jobs)
        if self.rules.most_jobs is not None and has + number > self.rules.most_jobs:
            raise RefusedError(f"{failed}{TOO_MANY_JOBS}")
        for part in options.get("dependency", "").split(","):
            kind, *arrays = part.split(":")
            known = {str(job.array) for job in self.jobs}
            if kind == "afterok" and not known.issuperset(arrays):
                raise RefusedError(f"{failed}Job dependency problem")

    def _squeue(self, words: list[str], env: Mapping[str, str]) -> str:
        asked = {word: words[place + 1] for place, word in enumerate(words[:-1]) if word in ("-u", "-j", "-t", "-o")}
        found = [job for job in self.jobs if job.is_shown]
        if "-j" in asked:
            ids = asked["-j"].split(",")
            found = []
            for word in ids:
                try:
                    found += self._named(word)
                except RefusedError as refused:
                    if len(ids) == 1:  # of several, those that it knows are shown
                        raise RefusedError(f"slurm_load_jobs error: {refused}") from None
        states = {"PD": ("PENDING",), "all": None}.get(asked.get("-t", ""), asked.get("-t", "").split(","))
        if "-t" not in asked:
            states = LIVE
        if states is not None:
            found = [job for job in found if job.state in states]
        if "-r" not in words:
            found = list({job.array: job for job in found if job.state == "PENDING"}.values()) + [
                job for job in found if job.state != "PENDING"
            ]
        return "".join(f"{self._row(asked['-o'], job)}\n" for job in found)

    def _row(self, form: str, job: Job) -> str:
        values = {
            "i": job.id,
            "F": job.array,
            "T": job.state,
            "r": (self.reason(job) or "Priority") if job.state == "PENDING" else job.ended_by,
            "Z": job.folder,
            "P": "main",
            "S": "N/A",
            "l": f"{job.minutes}:00",
            "o": "",
            "x": ",".join(job.excluded),
        }
        return re.sub(r"%(\w)", lambda letter: str(values[letter[1]]), form)

    def _scancel(self, words: list[str], env: Mapping[str, str]) -> str:
        named = []
        for word in words:
            if not word.startswith("-"):
                with contextlib.suppress(RefusedError):
                    named += self._named(word)
        self.cancel(*named)
        return ""

    def cancel(self, *jobs: Job) -> None:
        """End jobs for their user."""
        for job in jobs:
            if job.state == "PENDING":
                job.ended_by = self.reason(job) or "None"
                job.state, job.ended_at = "CANCELLED", self.kernel.now
                self.kernel.tell(f"job {job.id} is CANCELLED")
                if any(one.array == job.array and one.state == "PENDING" and one not in jobs for one in self.jobs):
                    job.is_shown = False
            elif job.state == "RUNNING":
                self.stop(job, "CANCELLED")
            elif job.is_to_be_requeued:
                job.is_to_be_requeued, job.after, job.flags = False, "CANCELLED", ("COMPLETING", "CANCELLED")

    def _scontrol(self, words: list[str], env: Mapping[str, str]) -> str:
        match words:
            case ["release", ids]:
                try:
                    found = self._named(ids)
                except RefusedError as refused:
                    raise RefusedError(f"slurm_suspend error: {refused}") from None
                for job in found:
                    job.is_held = False
            case ["requeue", name]:
                for job in self._named(name):
                    self.requeue(job)
            case ["update", name, *changes]:
                for job in self._named(name.partition("=")[2]):
                    self._change(job, changes)
            case ["--json", "show", "job", number]:
                found = [one for one in self.jobs if str(one.number) == number]
                words_of = [{"job_id": one.number, "job_state": list(one.flags or (one.state,))} for one in found]
                return json.dumps({"jobs": words_of})
            case ["show", "config"]:
                at = datetime.fromtimestamp(self.kernel.now).isoformat(timespec="seconds")
                return f"Configuration data as of {at}\nMaxArraySize            = {self.rules.max_array_size}\n"
            case ["show", "hostnames", names]:
                return "".join(f"{name}\n" for name in names.split(",") if name)
            case _:
                raise AssertionError(f"scontrol {words}")
        return ""

    def requeue(self, job: Job) -> None:
        """Put a job back into the queue: SIGTERM, and it waits again when its processes are gone."""
        if job.state == "PENDING" or (job.state == "COMPLETING" and job.is_to_be_requeued):
            raise RefusedError("Job is pending execution")
        if "requeue" not in job.options:
            raise RefusedError("Requested operation is presently disabled")
        if job.state == "RUNNING":
            self.stop(job, "PENDING", requeue=True)
        elif job.state == "COMPLETING":
            job.is_to_be_requeued, job.flags = True, ("COMPLETING", "PENDING")
        else:
            self._wait_again(job)

    def _change(self, job: Job, changes: Sequence[str]) -> None:
        for change in changes:
            key, _, value = change.partition("=")
            if key == "StartTime":
                job.begins_at = self.kernel.now + int(value.removeprefix("now+")) if "+" in value else 0.0
            elif key == "ExcNodeList":
                job.excluded = tuple(filter(None, value.split(",")))
            elif key == "TimeLimit":
                job.minutes = int(value)
            elif key == "EndTime":
                self._arm(job, self.kernel.now + int(value.removeprefix("now+")))
            elif key == "MinMemoryNode":
                job.options = {**job.options, "mem": f"{value}M"}

    def _sinfo(self, words: list[str], env: Mapping[str, str]) -> str:
        form = words[words.index("-o") + 1]
        lines = Counter[str]()
        for node in self.nodes:
            busy = "mix" if node.jobs else "idle"
            values = {
                "N": node.host.name,
                "P": "main*",
                "l": "infinite",
                "D": "%D",
                "t": busy if node.is_up else "down",
                "c": node.cpus,
                "m": node.memory_mb,
                "G": f"gpu:{node.gpus}" if node.gpus else "(null)",
                "f": "(null)",
                "s": "1-infinite",
            }
            lines[re.sub(r"%(\w)", lambda letter, has=values: str(has[letter[1]]), form)] += 1
        return "".join(line.replace("%D", str(number)) + "\n" for line, number in lines.items())


def as_in_bash(code: int) -> int:
    """Return the exit code of a process as bash has it."""
    return code if code >= 0 else 128 - code


class Script:
    """What bash does with the script of a job. What follows from the end of its program is the matter of subclasses."""

    def __init__(self, cluster: Cluster, job: Job) -> None:
        self.cluster, self.job, self.kernel = cluster, job, cluster.kernel
        found = [line for line in job.script.splitlines() if " jobs.scheduled.job " in line]
        self.commands = [shlex.split(line.removesuffix(" || code=$?")) for line in found]
        pauses = [line.split()[1] for line in job.script.splitlines() if line.startswith("sleep ")]
        self.pause = sum(map(float, pauses))

    def run(self) -> int:
        if "srun" in self.commands[0]:
            return self.attend()
        self._wait()
        return self._plain()

    def attend(self) -> int:
        """Start the program on each node, and see what comes of it; return the exit code of the script."""
        return self._srun()

    def _wait(self) -> None:
        self.kernel.sleep(self.kernel.dice.uniform(0.1, 2.0) + self.pause)

    @property
    def process(self) -> Process:
        """The process of the script."""
        me = self.kernel.current
        assert me is not None
        return me.process

    def _plain(self) -> int:
        """Run the programs of a script that has no srun, one after the other."""
        me = self.kernel.current
        assert me is not None
        code = 0
        for words in self.commands:
            me.process.argv[:] = words[words.index("jobs.scheduled.job") :]
            code = self.cluster.program(me.process.argv) or 0
        return code

    def _ask(self, *words: str) -> tuple[int, str]:
        me = self.kernel.current
        assert me is not None
        self.kernel.step(" ".join(words))
        code, out, _ = self.cluster.command(me.process, words, {}, None)
        return code, out.strip()

    def _srun(self, start: str = "") -> int:
        """Run the program on each node in a start of the job; return the highest exit code that srun hears of.

        Once the first has ended, the others have as long as ``--wait`` says. With ``--kill-on-bad-exit`` they get
        SIGTERM when it ends badly. ``srun`` gives up what it hears nothing of.
        """
        (words,), kernel, job = self.commands, self.kernel, self.job
        me = kernel.current
        assert me is not None
        place, first = words.index("jobs.scheduled.job"), job.nodes[0].host.name
        given_by_bash = {"$SLURMD_NODENAME": first, "$2": first, "$1": start}
        program = [given_by_bash.get(word, word) for word in words[place:]]
        given = [word for word in words[:place] if word.startswith("--")]
        options = dict(word.removeprefix("--").partition("=")[::2] for word in given)
        if not self.cluster.is_heard(me.process, "srun", [], {}, None):
            return int(dict(word.partition("=")[::2] for word in words[:place]).get("SLURM_EXIT_ERROR", 1))
        waiters: list[Thread] = []
        with kernel.inside():
            for rank, node in enumerate(job.nodes):
                started = kernel.spawn(
                    node.host,
                    list(program),
                    lambda: self.cluster.program(program),
                    env=self.cluster.env_of(job, rank),
                    output=me.process.output,
                    parent=me.process,
                    tag=f"job {job.id}" + f", node {rank}" * (len(job.nodes) > 1),
                )
                started.waiters = waiters
                job.processes.append(started)
        ranks = job.processes[1:]

        boots = {one: one.host.boot for one in ranks}

        def has_ended(one: Process) -> bool:
            """Whether srun has heard of the end of a task: of one on a node without power it hears nothing."""
            return not one.lives and one.host.boot == boots[one]

        def send(number: int) -> None:
            """Have the controller send a signal to the tasks that it reaches."""
            for one in ranks:
                if one.lives and any(node.host is one.host and node.is_up for node in job.nodes):
                    kernel.send(one, number)

        kernel.wait_for(lambda: any(map(has_ended, ranks)), waiters, None)
        limit, is_bad = kernel.now + (float(options.get("wait", 0)) or math.inf), "kill-on-bad-exit" in options

        def is_stopped() -> bool:
            return is_bad and any(has_ended(one) and one.exit_code != 0 for one in ranks)

        def is_over() -> bool:
            return all(map(has_ended, ranks))

        kernel.wait_for(lambda: is_over() or is_stopped(), waiters, limit - kernel.now)
        if not is_over() and is_stopped():
            send(signal.SIGTERM)
            kernel.wait_for(is_over, waiters, self.cluster.rules.kill_wait)
        if not is_over():
            send(signal.SIGKILL)
            kernel.wait_for(is_over, waiters, self.cluster.rules.kill_wait + 2)
        return max(as_in_bash(one.exit_code or 0) for one in ranks if has_ended(one))

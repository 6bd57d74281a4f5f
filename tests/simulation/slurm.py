"""A SLURM as the product sees it: a controller, nodes, jobs, and the commands that the product runs.

Modelled: arrays and their limits of jobs at once; hold; the dependencies afterok and afterany; priority by nice and by
number; requeue with a time to begin and nodes to avoid; the end of a job by scancel, at its time limit, by a
preemption and with its node; a controller that does not answer.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shlex
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, final

from tests.simulation.kernel import Host, Process, ViolationError
from tests.simulation.seam import TIMED_OUT, World

CYCLE_SECONDS = (0.5, 5.0)
"""Time between two looks of the scheduler at the queue, at least and at most."""
KILL_WAIT_SECONDS = 30.0
"""Between SIGTERM and SIGKILL."""
REQUEUE_SECONDS = 121.0
"""How long a requeued job waits at least: its credential must have expired (facts of SLURM 24.11)."""
LOST_SECONDS = 300.0
"""How long the controller waits for a node that does not answer (SlurmdTimeout)."""
CONNECT_SECONDS = 60.0
"""How long a program asks a controller that does not answer. Not measured yet."""
ANSWER_SECONDS = (0.02, 0.3)
FORGET_SECONDS = 300.0
"""How long the controller knows of a job that has ended (MinJobAge)."""
MOST_STARTS = 50
"""How often a job may start: more are a loop, since accidents and time limits are fewer."""
LIVE = ("PENDING", "RUNNING", "COMPLETING", "SUSPENDED")


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
    has_device: bool = True
    """Whether its GPUs are there."""
    jobs: list[Job] = field(default_factory=list)


@final
@dataclass(eq=False, kw_only=True)
class Job:
    """One task of an array."""

    number: int
    array: int
    index: int
    tasks: int
    at_once: int | None
    script: str
    options: dict[str, str]
    env: dict[str, str]
    submitted_at: float
    state: str = "PENDING"
    flags: tuple[str, ...] = ()
    """Further words of its state while it completes: ``COMPLETING`` and why."""
    is_held: bool = False
    dependency: str = ""
    begins_at: float = 0.0
    excluded: tuple[str, ...] = ()
    minutes: int = 60
    restarts: int = 0
    starts: int = 0
    node: Node | None = None
    processes: list[Process] = field(default_factory=list)
    """Those of its present start: the script's first, then the program's."""
    timers: list[Any] = field(default_factory=list)
    ended_at: float = 0.0
    after: str = ""
    """The state to which it comes when its processes have ended. Empty: what its script's exit code says."""
    is_to_be_requeued: bool = False
    is_other: bool = False
    """Whether it is another job of the user's, of no study."""

    @property
    def id(self) -> str:
        return f"{self.array}_{self.index}"

    @property
    def folder(self) -> str:
        return self.options.get("chdir", "/")

    @property
    def shown(self) -> str:
        return self.state

    @property
    def is_live(self) -> bool:
        return self.state in LIVE


@final
class Cluster:
    """The controller and its nodes."""

    def __init__(self, world: World, nodes: Iterable[Node]) -> None:
        self.world, self.kernel = world, world.kernel
        self.nodes = list(nodes)
        self.jobs: list[Job] = []
        """Those that the controller knows."""
        self.every: list[Job] = []
        """Those that it ever had."""
        self._numbers = itertools.count(1)
        self.silent_until = 0.0
        """Until when the controller answers nothing."""
        self.on_end: Callable[[Sequence[Process]], None] = lambda processes: None
        """Told of the processes of a job that is warned or ended."""
        self.program: Callable[[Sequence[str]], int | None] = lambda words: 0
        """Runs ``python -m slurm.job`` with these words, in the process that calls."""
        self._cycle()

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
            submitted_at=self.kernel.now,
            state="PENDING" if is_held else "RUNNING",
            is_held=is_held,
            is_other=True,
        )
        self.jobs.append(job)
        return job

    # -- scheduling ---------------------------------------------------------------------------------------------------

    def _cycle(self) -> None:
        if self.kernel.now >= self.silent_until:
            for job in sorted(self.jobs, key=lambda job: (int(job.options.get("nice", 0)), job.number)):
                if job.state == "PENDING" and self.reason(job) is None and (node := self._room(job)) is not None:
                    self._start(job, node)
        self.kernel.after(self.kernel.dice.uniform(*CYCLE_SECONDS), self._cycle)

    def reason(self, job: Job) -> str | None:
        """Return why a waiting job cannot start, whatever room there is. ``None``: it can."""
        if job.is_held:
            return "JobHeldUser"
        if job.dependency:
            answer = self._depends(job)
            if answer is not None:
                return answer
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

    def _room(self, job: Job) -> Node | None:
        cpus, gpus, memory = self._wants(job)
        for node in self.nodes:
            has = [sum(part) for part in zip((0, 0, 0), *map(self._wants, node.jobs), strict=True)]
            fits = cpus + has[0] <= node.cpus and gpus + has[1] <= node.gpus and memory + has[2] <= node.memory_mb
            if fits and node.is_up and node.host.name not in job.excluded:
                return node
        return None

    @staticmethod
    def _wants(job: Job) -> tuple[int, int, int]:
        gpus = int(job.options.get("gpus-per-node", job.options.get("gres", "0")).rpartition(":")[2] or 0)
        memory = int(job.options.get("mem", "0M").rstrip("M"))
        return int(job.options.get("cpus-per-task", 1)), gpus, memory

    def _start(self, job: Job, node: Node) -> None:
        job.state, job.node, job.after, job.flags = "RUNNING", node, "", ()
        job.is_to_be_requeued = False
        job.starts += 1
        if job.starts > MOST_STARTS:
            raise ViolationError(f"SPIN: job {job.id} starts for the {job.starts}th time")
        node.jobs.append(job)
        end = self.kernel.now + 60 * job.minutes
        gpus = self._wants(job)[1]
        env = {
            **job.env,
            "SLURM_JOB_ID": str(job.number),
            "SLURM_ARRAY_JOB_ID": str(job.array),
            "SLURM_ARRAY_TASK_ID": str(job.index),
            "SLURM_ARRAY_TASK_COUNT": str(job.tasks),
            "SLURM_JOB_END_TIME": str(round(end)),
            "SLURMD_NODENAME": node.host.name,
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_NODEID": "0",
            "SLURM_JOB_PARTITION": "main",
            **({"SLURM_RESTART_COUNT": str(job.restarts)} if job.restarts else {}),
            **({"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus)))} if gpus and node.has_device else {}),
        }
        path = f"{job.folder}/{job.options['output'].rpartition('/')[2].replace('%a', str(job.index))}"
        output = self.world.files.open_log(path)
        self.kernel.tell(f"job {job.id} starts on {node.host.name}")
        script = Script(self, job)
        process = self.kernel.spawn(
            node.host, ["bash"], script.run, env=env, output=output, tag=f"script of job {job.id}"
        )
        job.processes = [process]
        warning = re.search(r"@(\d+)", job.options.get("signal", ""))
        if warning:
            before = int(warning[1]) + self.kernel.dice.uniform(0, 60)
            job.timers.append(self.kernel.at(end - before, lambda: self.warn(job)))
        job.timers.append(self.kernel.at(end, lambda: self.stop(job, "TIMEOUT")))

    def warn(self, job: Job) -> None:
        """Send SIGUSR2 to the program of a job."""
        self.on_end(self.members(job))
        for process in job.processes[1:]:
            self.kernel.send(process, signal.SIGUSR2)

    def members(self, job: Job) -> list[Process]:
        """Return all live processes of a job, with those that its processes have started."""
        found = list(job.processes)
        for process in self.kernel.processes:
            if process.parent in found and process not in found:
                found.append(process)
        return [process for process in found if process.lives]

    def stop(self, job: Job, after: str, *, requeue: bool = False, kill_wait: float = KILL_WAIT_SECONDS) -> None:
        """End a running job: SIGTERM, and SIGKILL later. Then it is in the state ``after``, or waits again."""
        if job.state != "RUNNING":
            return
        self.on_end(self.members(job))
        self._forget_timers(job)
        job.state, job.after, job.is_to_be_requeued = "COMPLETING", after, requeue
        job.flags = ("COMPLETING", after if not requeue else "PENDING")
        for process in list(job.processes):
            self.kernel.send(process, signal.SIGTERM)
        job.timers.append(self.kernel.after(kill_wait, lambda: self._kill(job)))
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

    def script_ended(self, job: Job, code: int) -> None:
        """The script of a job has ended by itself."""
        if job.state == "COMPLETING":
            return
        self._forget_timers(job)
        self._clear_node(job)
        job.after = "COMPLETED" if code == 0 else "FAILED"
        self._over(job)

    def _clear_node(self, job: Job) -> None:
        for process in self.members(job):
            self.kernel.ends(process, -signal.SIGKILL)

    def _over(self, job: Job) -> None:
        if job.state not in ("RUNNING", "COMPLETING"):
            return
        self._forget_timers(job)
        if job.node is not None:
            job.node.jobs.remove(job)
            job.node = None
        if job.is_to_be_requeued:
            job.state, job.flags, job.restarts = "PENDING", (), job.restarts + 1
            job.begins_at = max(job.begins_at, self.kernel.now + REQUEUE_SECONDS)
            self.kernel.tell(f"job {job.id} waits again")
        else:
            job.state, job.flags, job.ended_at = job.after, (), self.kernel.now
            self.kernel.tell(f"job {job.id} is {job.state}")

    def _forget_timers(self, job: Job) -> None:
        for timer in job.timers:
            self.kernel.forget(timer)
        job.timers.clear()

    # -- nodes --------------------------------------------------------------------------------------------------------

    def lose(self, node: Node, *, back_after: float | None) -> None:
        """A node loses power. The controller notices later, and requeues its jobs."""
        self.world.files.lose(node.host)
        for process in list(self.kernel.processes):
            if process.host is node.host and process.lives:
                self.kernel.ends(process, -signal.SIGKILL)
        node.host.boot += 1
        node.is_up = False
        self.kernel.after(LOST_SECONDS, lambda: self._notice(node))
        if back_after is not None:
            self.kernel.after(LOST_SECONDS + back_after, lambda: self._back(node))

    def cut_off(self, node: Node, seconds: float) -> None:
        """A node cannot be reached for a while. Its processes go on; those of jobs that it has lost end then."""
        mine = [process for job in node.jobs for process in self.members(job)]
        node.is_up = False
        notices = self.kernel.after(LOST_SECONDS, lambda: self._notice(node))

        def back() -> None:
            self.kernel.forget(notices)
            has = [process for job in node.jobs for process in self.members(job)]
            for process in mine:
                if process not in has:
                    self.kernel.ends(process, -signal.SIGKILL)
            self._back(node)

        self.kernel.after(seconds, back)

    def _notice(self, node: Node) -> None:
        for job in list(node.jobs):
            self._forget_timers(job)
            job.after, job.is_to_be_requeued, job.state = "NODE_FAIL", "requeue" in job.options, "COMPLETING"
            self._over(job)

    def _back(self, node: Node) -> None:
        node.is_up = True
        self.kernel.tell(f"{node.host.name} is back")

    def preempt(self, job: Job, grace: float) -> None:
        """Warn a job, and requeue it later."""
        self.warn(job)
        job.timers.append(self.kernel.after(grace, lambda: self.stop(job, "PREEMPTED", requeue=True)))

    # -- commands ------------------------------------------------------------------------------------------------------

    def command(
        self, process: Process, words: Sequence[str], env: Mapping[str, str], timeout: float | None
    ) -> tuple[int, str, str]:
        """Answer as one of SLURM's programs. The caller waits for it."""
        name, *rest = words
        silence = self.silent_until - self.kernel.now
        if silence > 0 and timeout is not None and min(silence, CONNECT_SECONDS) > timeout:
            self.kernel.sleep(timeout)
            return TIMED_OUT, "", ""
        if silence > CONNECT_SECONDS:
            self.kernel.sleep(CONNECT_SECONDS)
            return 1, "", f"{name}: error: Unable to contact slurm controller (connect failure)\n"
        if silence > 0:
            self.kernel.sleep(silence)
        self.kernel.sleep(self.kernel.dice.uniform(*ANSWER_SECONDS))
        with self.kernel.inside():
            answer = self.answer(name, rest, env)
        self.kernel.sleep(self.kernel.dice.uniform(*ANSWER_SECONDS))
        return answer

    def answer(self, name: str, words: Sequence[str], env: Mapping[str, str]) -> tuple[int, str, str]:
        self._forget_old()
        try:
            return 0, getattr(self, f"_{name}")(list(words), env), ""
        except RefusedError as refused:
            return 1, "", f"{name}: error: {refused}\n"

    def _forget_old(self) -> None:
        now = self.kernel.now
        arrays = {job.array for job in self.jobs if job.is_live or now - job.ended_at < FORGET_SECONDS}
        self.jobs = [job for job in self.jobs if job.array in arrays]

    def _named(self, words: str) -> list[Job]:
        """Return the jobs of ``7,8_2``; ``7`` stands for all tasks of an array, or for one job of that number."""
        found = []
        for word in words.split(","):
            if not (here := [job for job in self.jobs if word in (job.id, str(job.array), str(job.number))]):
                raise RefusedError("Invalid job id specified")
            found += here
        return found

    def _sbatch(self, words: list[str], env: Mapping[str, str]) -> str:
        given, (path,) = [word for word in words[:-1] if word != "--parsable"], words[-1:]
        script = self.world.files.text(path)
        lines = [shlex.split(line)[1] for line in script.splitlines() if line.startswith("#SBATCH")]
        pairs = [word.removeprefix("--").partition("=") for word in [*lines, *given]]
        options = {name: value for name, _, value in pairs}
        found = re.fullmatch(r"0-(\d+)(?:%(\d+))?", options.get("array", "0-0"))
        assert found is not None, options
        tasks = int(found[1]) + 1
        array = next(self._numbers)
        new = []
        for index in range(tasks):
            new.append(
                Job(
                    number=array if index == tasks - 1 else next(self._numbers),
                    array=array,
                    index=index,
                    tasks=tasks,
                    at_once=int(found[2]) if found[2] else None,
                    script=script,
                    options=options,
                    env=dict(env),
                    submitted_at=self.kernel.now,
                    is_held="hold" in options,
                    dependency=options.get("dependency", ""),
                    minutes=int(options.get("time", "60")),
                )
            )
        self.jobs += new
        self.every += new
        self.kernel.tell(f"array {array} of {tasks} is submitted")
        return f"{array}\n"

    def _squeue(self, words: list[str], env: Mapping[str, str]) -> str:
        asked = {word: words[place + 1] for place, word in enumerate(words[:-1]) if word in ("-u", "-j", "-t", "-o")}
        found = self._named(asked["-j"]) if "-j" in asked else list(self.jobs)
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
            "r": (self.reason(job) or "Priority") if job.state == "PENDING" else "None",
            "Z": job.folder,
            "P": "main",
            "S": "N/A",
            "l": f"{job.minutes}:00",
            "o": "",
        }
        return re.sub(r"%(\w)", lambda letter: str(values[letter[1]]), form)

    def _scancel(self, words: list[str], env: Mapping[str, str]) -> str:
        for word in words:
            if word.startswith("-"):
                continue
            with contextlib.suppress(RefusedError):
                for job in self._named(word):
                    self.cancel(job)
        return ""

    def cancel(self, job: Job) -> None:
        """End a job for its user."""
        if job.state == "PENDING":
            job.state, job.ended_at = "CANCELLED", self.kernel.now
            self.kernel.tell(f"job {job.id} is CANCELLED")
        elif job.state == "RUNNING":
            self.stop(job, "CANCELLED")
        job.is_to_be_requeued = False

    def _scontrol(self, words: list[str], env: Mapping[str, str]) -> str:
        match words:
            case ["release", ids]:
                for job in self._named(ids):
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
                return f"Configuration data as of {at}\nMaxArraySize            = 1001\n"
            case ["show", "hostnames", names]:
                return "".join(f"{name}\n" for name in names.split(","))
            case _:
                raise AssertionError(f"scontrol {words}")
        return ""

    def requeue(self, job: Job) -> None:
        """Put a job back into the queue: SIGTERM, and it waits again when its processes are gone."""
        if job.state == "RUNNING":
            self.stop(job, "PENDING", requeue=True)
        elif job.state == "COMPLETING":
            raise RefusedError("Job is pending execution or completing")
        elif job.state == "PENDING":
            raise RefusedError("Requested operation is presently disabled for the job")

    def _change(self, job: Job, changes: Sequence[str]) -> None:
        for change in changes:
            key, _, value = change.partition("=")
            if key == "StartTime":
                job.begins_at = self.kernel.now + int(value.removeprefix("now+")) if "+" in value else 0.0
            elif key == "ExcNodeList":
                job.excluded = tuple(filter(None, value.split(",")))
            elif key == "TimeLimit":
                job.minutes = int(value)
            elif key == "MinMemoryNode":
                job.options = {**job.options, "mem": f"{value}M"}

    def _sinfo(self, words: list[str], env: Mapping[str, str]) -> str:
        form = words[words.index("-o") + 1]
        lines = []
        for node in self.nodes:
            busy = "mix" if node.jobs else "idle"
            values = {
                "N": node.host.name,
                "P": "main*",
                "l": "infinite",
                "D": 1,
                "t": busy if node.is_up else "down",
                "c": node.cpus,
                "m": node.memory_mb,
                "G": f"gpu:{node.gpus}" if node.gpus else "(null)",
                "f": "(null)",
                "s": "1-infinite",
            }
            lines.append(re.sub(r"%(\w)", lambda letter, has=values: str(has[letter[1]]), form))
        return "".join(f"{line}\n" for line in lines)


@final
class Script:
    """What bash does with the script of a job, whose text ``slurm.submission.last_lines`` makes."""

    def __init__(self, cluster: Cluster, job: Job) -> None:
        self.cluster, self.job, self.kernel = cluster, job, cluster.kernel
        (line,) = [line for line in job.script.splitlines() if line.startswith("srun ")]
        words = shlex.split(line.removesuffix(" || code=$?"))
        place = words.index("slurm.job")
        node = "$SLURMD_NODENAME"
        self.words = ["slurm.job", *(word for word in words[place + 1 :] if word != node)]

    def run(self) -> int:
        code = self._script()
        with self.kernel.inside():
            self.cluster.script_ended(self.job, code)
        return code

    def _ask(self, *words: str) -> tuple[int, str]:
        me = self.kernel.current
        assert me is not None
        self.kernel.step(" ".join(words))
        code, out, _ = self.cluster.command(me.process, words, {}, None)
        return code, out.strip()

    def _script(self) -> int:
        job, kernel = self.job, self.kernel
        me = kernel.current
        assert me is not None
        assert job.node is not None
        kernel.sleep(kernel.dice.uniform(0.1, 2.0))
        words = [*self.words, job.node.host.name]
        env = {name.decode(): value.decode() for name, value in me.process.environ.items()}
        with kernel.inside():
            program = kernel.spawn(
                job.node.host,
                words,
                lambda: self.cluster.program(words),
                env=env,
                output=me.process.output,
                parent=me.process,
                tag=f"job {job.id}",
            )
            job.processes.append(program)
        kernel.wait_for(lambda: not program.lives, program.waiters, None)
        assert program.exit_code is not None
        code = program.exit_code if program.exit_code >= 0 else 128 - program.exit_code
        # From here on, as in slurm.submission.last_lines.
        from slurm.submission import AGAIN, CHANGE, CHANGES, MOST_STARTS

        again = code
        if code == 128 + signal.SIGTERM and job.restarts < MOST_STARTS - 1:
            state = ""
            for seconds in (1, 2, 4, 8):
                failed, state = self._ask("squeue", "-h", "-j", str(job.number), "-o", "%T")
                if not failed:
                    break
                kernel.sleep(seconds)
            if state == "RUNNING":
                again = AGAIN
        if again == AGAIN:
            for number in (signal.SIGTERM, signal.SIGINT):
                me.process.handlers[number] = signal.SIG_IGN
            code = 137
            for seconds in (1, 2, 4, 8):
                failed, _ = self._ask("scontrol", "requeue", job.id)
                if not failed:
                    code = 0
                    break
                kernel.sleep(seconds)
            path = f"{job.folder}/{CHANGES.format(job.number)}"
            text = self.cluster.world.files.text(path)
            for line in text.splitlines() if not code else ():
                if re.fullmatch(CHANGE, line):
                    self._ask("scontrol", "update", f"JobId={job.id}", *line.split())
            self.cluster.world.files.drop(path)
        return code

"""A story: a study on a simulated cluster, with accidents that a seed draws, and checks of what comes of it.

The product's own programs take part: the command line, the job on its node and its dispatcher, and a worker that
trains nothing (:mod:`tests.tools.stub_worker`). The checks know the accidents, and never the product's reasons.
"""

from __future__ import annotations

import errno
import json
import math
import random
import re
import signal
import stat
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import launch
from jobs import terminal
from jobs.launch import dispatch
from seqlm import reading
from seqlm.errors import SeqlmError
from seqlm.rundir import RunDirectory
from slurm import job as slurm_job
from tests.simulation import seam
from tests.simulation.files import Files, Inode, fault
from tests.simulation.kernel import START, Kernel, Process, ViolationError
from tests.simulation.seam import World
from tests.simulation.slurm import Cluster, Job, Node
from tests.tools import stub_worker

STUDY = "/sim/runs/s"
HOURS_AFTER = 12.0
"""How long after the last accident everything must be over."""
MOST_COMMANDS, COMMANDS_SECONDS = 12, 60.0
"""SLURM commands of one process within so many seconds."""
MOST_HITS = 10
"""How often an attempt of a run may be disturbed before the policy gives the run up."""
EPOCHS = 4
EPOCH_SECONDS = (20.0, 60.0, 300.0, 600.0)
"""How long an epoch may take."""
LIMIT_MINUTES = (20, 240)
"""Time limit of a job."""
MANIFEST = """
[study]
name = "s"
data = "text"

[defaults]
data.corpus = "files"
model.arch = "rnn"
model.hidden_size = 4
model.num_layers = 1
train.epochs = {epochs}
train.batch_size = 8
train.seq_len = 5
optim.optimizer = "sgd"

[backend.slurm]
pool = {{ jobs = {jobs}, cpus = 2, gpus = 2 }}
timeout_min = {minutes}

[[grid]]
name = "run"
optim.lr = [{rates}]
resources.cpus = 1
resources.gpus = 1
"""

dispatch.POLL_SECONDS = 1.0
stub_worker.LOOK_SECONDS, stub_worker.PROGRESS_SECONDS = 3.0, 20.0
OWN_STATE: Sequence[tuple[Any, str, Callable[[], Any]]] = (
    (reading, "_studies", set),
    (terminal, "_json", bool),
    (terminal, "_verbose", bool),
)


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


@final
class Output:
    """What a process prints, at the end of a file."""

    encoding, errors = "utf-8", "strict"

    def __init__(self, inode: Inode) -> None:
        self._inode = inode

    def write(self, text: str) -> int:
        self._inode.content += text.encode("utf-8", "replace")
        return len(text)

    def text(self) -> str:
        """Return what the file has."""
        return self._inode.content.decode()

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        raise OSError("no handle")


KINDS = (
    "kill_worker",
    "kill_program",
    "terminate_worker",
    "lose_node",
    "cut_off_node",
    "node_without_device",
    "silence",
    "preempt",
    "requeue",
    "scancel",
    "cancel",
    "cancel_and_retry",
    "retry",
    "run",
    "code_error",
    "config_unreadable",
    "disk_full",
    "files_hang",
    "stop_worker",
)


def draw_accidents(seed: int, kinds: Sequence[str] = KINDS) -> list[Accident]:
    """Return the accidents of a seed: some kinds of them, at times that are close together or not."""
    dice = random.Random(f"accidents {seed}")
    chosen = dice.sample(list(kinds), k=min(len(kinds), dice.randint(1, 5)))
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


@final
class Story:
    """One seed, played."""

    def __init__(
        self, seed: int, accidents: Sequence[Accident] | None = None, *, runs: int | None = None, nodes: int = 3
    ) -> None:
        dice = random.Random(f"study {seed}")
        self.seed = seed
        self.accidents = draw_accidents(seed) if accidents is None else list(accidents)
        self.number = runs or dice.randint(2, 6)
        self.jobs = dice.randint(1, 3)
        self.epoch_seconds = dice.choice(EPOCH_SECONDS)
        self.minutes = dice.choice(LIMIT_MINUTES)
        self.kernel = Kernel(seed, own_state=OWN_STATE)
        self.kernel.own_errors = (SeqlmError,)
        self.files = Files(self.kernel)
        self.world = World(self.kernel, self.files)
        self.world.open_log, self.world.text_of, self.world.remove = self.open_log, self.text_of, self.remove
        self.nodes = [Node(host=self.world.host(f"n{number}"), cpus=4, gpus=2) for number in range(1, nodes + 1)]
        self.login = self.world.host("login")
        self.cluster = Cluster(self.world, self.nodes)
        self.cluster.program = self.job_program
        self.world.programs, self.world.workers = self.run_program, self.start_worker
        self.users: list[Process] = []
        self.commands: defaultdict[int, deque[float]] = defaultdict(lambda: deque(maxlen=MOST_COMMANDS))
        self.rates = [f"{0.1 + number / 100:g}" for number in range(self.number)]
        self.names = [f"run-lr{rate}" for rate in self.rates]
        self.given: defaultdict[str, set[str]] = defaultdict(set)
        """Name of a run -> what was done to it that may end it for good."""
        self.cancelled: dict[str, float] = {}
        """Name of a run -> the newest request that named it when a user cancelled it last; infinite if other commands
        were at work then, whose requests may be older or newer."""
        self.scancelled: set[int] = set()
        """Arrays of which a user has ended a job with SLURM's own command."""
        self.hits: Counter[str] = Counter()
        """Name of a run -> how often an attempt of it was disturbed."""
        self.crashes: dict[str, float] = {}
        """Name of a run -> until when its model raises an error."""
        self.unreadable: dict[str, float] = {}
        """Run id -> until when its configuration cannot be read."""
        self.full_until = self.hanging_until = 0.0
        """Until when no file can be written, and until when no call of a file is answered."""
        self.happened: set[str] = set()
        """The kinds of accidents that have found something to happen to."""
        self.files.meddler = self.meddle
        self.files.on_write.append(self.look_at_write)
        self.kernel.on_exit.append(self.look_at_exit)

    # -- the parts that the world asks for -----------------------------------------------------------------------------

    def make_file(self, path: str, content: bytes) -> Inode:
        at = self.files.root
        *folders, name = path.split("/")[2:]
        for folder in folders:
            at = at.names.setdefault(folder, self.files._new(stat.S_IFDIR, 0o755))
        inode = at.names.setdefault(name, self.files._new(stat.S_IFREG, 0o644))
        inode.content[:] = content
        return inode

    def open_log(self, path: str) -> Output:
        inode = self.inode(path)
        return Output(inode if inode is not None else self.make_file(path, b""))

    def inode(self, path: str) -> Inode | None:
        try:
            return self.files.find(path, None)
        except OSError:
            return None

    def text_of(self, path: str, missing: str | None = None) -> str:
        inode = self.inode(path)
        if inode is None and missing is not None:
            return missing
        assert inode is not None, path
        return inode.content.decode()

    def remove(self, path: str) -> None:
        folder = self.inode(path.rpartition("/")[0])
        if folder is not None:
            folder.names.pop(path.rpartition("/")[2], None)

    def run_program(
        self, process: Process, words: Sequence[str], env: Mapping[str, str], timeout: float | None
    ) -> tuple[int, str, str]:
        if words[0] not in seam.PROGRAMS:
            return 1, "", f"{words[0]}: there is no such program in a simulation"
        recent = self.commands[process.pid]
        if len(recent) == MOST_COMMANDS and self.kernel.now - recent[0] < COMMANDS_SECONDS:
            self.kernel.violate(f"COMMANDS: {process} asked SLURM {MOST_COMMANDS + 1} times within a minute")
        recent.append(self.kernel.now)
        return self.cluster.command(process, words, env, timeout)

    def start_worker(
        self, parent: Process, words: Sequence[str], env: Mapping[str, str], output: Any, dies_with_parent: bool
    ) -> Process:
        handle = output.fileno()
        run = RunDirectory(Path(words[-1]))
        process = self.kernel.spawn(
            parent.host,
            ["worker.py", words[-1]],
            self.train,
            env=env,
            output=Output(self.files.open_files[handle].inode),
            parent=parent,
            tag=f"worker of {run.id}",
            delay=self.kernel.dice.uniform(0.5, 8.0),
        )
        process.dies_with_parent = dies_with_parent
        return process

    def train(self) -> int:
        return stub_worker.main()

    def job_program(self, words: Sequence[str]) -> int:
        return slurm_job.main()

    def user(self, *words: str) -> Process:
        """A user types a command on the login node."""
        self.kernel.tell(f"a user types `seqlm {' '.join(words)}`")
        env = {"HOME": "/sim/home", "XDG_CONFIG_HOME": "/sim/home/config", "PATH": "/usr/bin", "USER": "user"}
        env |= {"SEQLM_CACHE": "/sim/home/cache", "SEQLM_TEST_STUB_SECONDS": f"{self.epoch_seconds:g}"}
        process = self.kernel.spawn(
            self.login,
            ["seqlm", *words],
            launch.main,
            env=env,
            output=self.open_log(f"/sim/home/user-{len(self.users)}.log"),
            cwd="/sim/home",
            tag=f"seqlm {words[0]}",
        )
        self.users.append(process)
        return process

    # -- playing -------------------------------------------------------------------------------------------------------

    def play(self) -> None:
        """Play the story.

        Raises:
            ViolationError: a check has failed.
        """
        seam.world = self.world
        stub_worker.happen = self.happen
        try:
            text = MANIFEST.format(epochs=EPOCHS, rates=", ".join(self.rates), jobs=self.jobs, minutes=self.minutes)
            self.make_file("/sim/home/m.toml", text.encode())
            words = "one two three four five six seven eight"
            for split in ("train", "valid", "test"):
                self.make_file(f"/sim/home/text/{split}.txt", "\n".join([words] * 40).encode())
            where = ["--backend", "slurm", "--runs-dir", "/sim/runs", "--no-wait", "--live-code", "--no-canary"]
            self.launch = ["run", "m.toml", *where]
            self.user(*self.launch)
            last = 0.0
            for accident in self.accidents:
                self.kernel.at(START + accident.at, lambda accident=accident: self.happens(accident))
                last = max(last, accident.at + accident.seconds)
            self.kernel.play(START + last)
            end = START + last + 3600 * HOURS_AFTER
            while self.kernel.now < end and not self.is_quiet():
                self.kernel.play(min(end, self.kernel.now + 300))
            self.kernel.play(self.kernel.now + 60)
            self.check_end()
        finally:
            self.kernel.end_all()
            seam.world = None

    def is_quiet(self) -> bool:
        return not any(job.is_live for job in self.cluster.jobs) and not any(one.lives for one in self.users)

    # -- accidents -----------------------------------------------------------------------------------------------------

    def pick(self, choices: Sequence[Any], accident: Accident) -> Any:
        return choices[min(int(accident.target * len(choices)), len(choices) - 1)] if choices else None

    def workers(self) -> list[Process]:
        return [one for one in self.kernel.processes if one.lives and str(one.tag).startswith("worker of ")]

    def run_ids(self) -> list[str]:
        folder = self.inode(STUDY)
        names = folder.names if folder is not None else {}
        return sorted(name for name in names if re.fullmatch(r"run-.*-[0-9a-f]{8}", name))

    def happens(self, accident: Accident) -> None:
        """Do what an accident says, if there is something of that kind."""
        told = len(self.kernel.story)
        act = getattr(self, f"_{accident.kind}")
        act(accident)
        if len(self.kernel.story) > told:
            self.happened.add(accident.kind)

    def hit(self, process: Process) -> None:
        if str(process.tag).startswith("worker of "):
            self.hits[name_of(run_of(process))] += 1

    def hit_all(self, processes: Sequence[Process]) -> None:
        for process in processes:
            self.hit(process)

    def _kill_worker(self, accident: Accident) -> None:
        if (process := self.pick(self.workers(), accident)) is not None:
            self.kernel.tell(f"{process} is killed")
            self.hit(process)
            self.kernel.send(process, signal.SIGKILL)

    def _terminate_worker(self, accident: Accident) -> None:
        if (process := self.pick(self.workers(), accident)) is not None:
            self.kernel.tell(f"{process} gets SIGTERM")
            self.hit(process)
            self.kernel.send(process, signal.SIGTERM)

    def _stop_worker(self, accident: Accident) -> None:
        if (process := self.pick(self.workers(), accident)) is not None:
            self.kernel.tell(f"{process} stands still for {accident.seconds:g} s")
            self.hit(process)
            self.kernel.send(process, signal.SIGSTOP)
            self.kernel.after(accident.seconds, lambda: self.kernel.send(process, signal.SIGCONT))

    def running(self) -> list[Job]:
        return [job for job in self.cluster.jobs if job.state == "RUNNING"]

    def _kill_program(self, accident: Accident) -> None:
        jobs = [job for job in self.running() if len(job.processes) > 1 and job.processes[1].lives]
        if (job := self.pick(jobs, accident)) is not None:
            self.kernel.tell(f"the program of job {job.id} is killed")
            self.hit_all(self.cluster.members(job))
            self.kernel.send(job.processes[1], signal.SIGKILL)

    def _lose_node(self, accident: Accident) -> None:
        nodes = [node for node in self.nodes if node.is_up]
        if len(nodes) > 1 and (node := self.pick(nodes, accident)) is not None:
            self.kernel.tell(f"{node.host.name} loses power")
            self.hit_all([process for process in self.workers() if process.host is node.host])
            self.cluster.lose(node, back_after=accident.seconds)

    def _cut_off_node(self, accident: Accident) -> None:
        nodes = [node for node in self.nodes if node.is_up]
        if len(nodes) > 1 and (node := self.pick(nodes, accident)) is not None:
            self.kernel.tell(f"the controller cannot reach {node.host.name} for {accident.seconds:g} s; its jobs go on")
            self.hit_all([process for process in self.workers() if process.host is node.host])
            self.cluster.cut_off(node, accident.seconds)

    def _node_without_device(self, accident: Accident) -> None:
        nodes = [node for node in self.nodes if node.has_device]
        if len(nodes) > 1 and (node := self.pick(nodes, accident)) is not None:
            self.kernel.tell(f"{node.host.name} loses its GPUs for {accident.seconds:g} s")
            node.has_device = False

            def back() -> None:
                node.has_device = True

            self.kernel.after(accident.seconds, back)

    def _silence(self, accident: Accident) -> None:
        self.kernel.tell(f"the controller answers nothing for {accident.seconds:g} s")
        self.cluster.silent_until = self.kernel.now + accident.seconds

    def _preempt(self, accident: Accident) -> None:
        if (job := self.pick(self.running(), accident)) is not None:
            self.kernel.tell(f"job {job.id} is preempted")
            self.hit_all(self.cluster.members(job))
            self.cluster.preempt(job, 60.0)

    def _requeue(self, accident: Accident) -> None:
        if (job := self.pick(self.running(), accident)) is not None:
            self.kernel.tell(f"an administrator requeues job {job.id}")
            self.hit_all(self.cluster.members(job))
            self.cluster.requeue(job)

    def _scancel(self, accident: Accident) -> None:
        jobs = [job for job in self.cluster.jobs if job.is_live]
        if (job := self.pick(jobs, accident)) is not None:
            self.kernel.tell(f"a user types `scancel {job.id}`")
            self.scancelled.add(job.array)
            self.cluster.cancel(job)

    def some_names(self, accident: Accident) -> list[str]:
        """Return the names of one to three runs, which may not have begun."""
        first = int(accident.target * len(self.names))
        return self.names[first : first + 1 + first % 3]

    def _cancel(self, accident: Accident) -> None:
        names, is_alone = self.some_names(accident), not any(user.lives for user in self.users)
        for name in names:
            self.cancelled[name] = max(self.arrays_of(name), default=0) if is_alone else math.inf
        self.user("cancel", "s", "--only", f"name={','.join(names)}", "--runs-dir", "/sim/runs")

    def _retry(self, accident: Accident) -> None:
        self.user(
            "retry",
            "s",
            "--only",
            f"name={','.join(self.some_names(accident))}",
            "--no-wait",
            "--live-code",
            "--runs-dir",
            "/sim/runs",
        )

    def _cancel_and_retry(self, accident: Accident) -> None:
        """A user thinks better of it a moment later."""
        self._cancel(accident)
        self.kernel.after(min(accident.seconds, 90.0), lambda: self._retry(accident))

    def _run(self, accident: Accident) -> None:
        self.user(*self.launch)

    def _code_error(self, accident: Accident) -> None:
        name = self.pick(self.names, accident)
        self.kernel.tell(f"the model of {name} raises errors for {accident.seconds:g} s")
        self.crashes[name] = self.kernel.now + accident.seconds

    def _config_unreadable(self, accident: Accident) -> None:
        if run := self.pick(self.run_ids(), accident):
            self.kernel.tell(f"config.json of {run} cannot be read for {accident.seconds:g} s")
            self.unreadable[run] = self.kernel.now + accident.seconds
            self.hits[name_of(run)] += 1

    def _disk_full(self, accident: Accident) -> None:
        self.kernel.tell(f"the disk is full for {accident.seconds:g} s")
        self.full_until = self.kernel.now + accident.seconds
        self.hits.update(self.names)

    def _files_hang(self, accident: Accident) -> None:
        self.kernel.tell(f"the file server does not answer for {accident.seconds:g} s")
        self.hanging_until = self.kernel.now + accident.seconds
        self.hits.update(self.names)

    def happen(self, epochs: int, attempt: int) -> None:
        """What the worker asks before each epoch."""
        me = self.kernel.current
        assert me is not None
        name = name_of(run_of(me.process))
        if self.crashes.get(name, 0.0) > self.kernel.now:
            self.given[name].add("code")
            raise ValueError("an error of the model")

    def meddle(self, process: Process, call: str, path: str) -> None:
        """Do to a call of a file what accidents do to it."""
        if self.hanging_until > self.kernel.now:
            self.kernel.sleep(self.hanging_until - self.kernel.now)
        if call in ("write", "mkdir", "link") and self.full_until > self.kernel.now:
            raise fault(errno.ENOSPC, path)
        if self.unreadable and call in ("open", "stat") and path.rpartition("/")[2] == "config.json":
            for run, until in self.unreadable.items():
                if until > self.kernel.now and (run in path or self._is_in(process, path, run)):
                    raise fault(errno.EIO, path)

    def _is_in(self, process: Process, path: str, run: str) -> bool:
        """Whether a name without folders is of a run: whoever opens it has opened the run's folder just before."""
        folder = self.inode(f"{STUDY}/{run}")
        opened = [one.inode for one in self.files.open_files.values() if one.process is process]
        return "/" not in path and bool(opened) and opened[-1] is folder

    # -- checks --------------------------------------------------------------------------------------------------------

    def look_at_exit(self, process: Process) -> None:
        """Tell how a command of a user has ended."""
        if process in self.users:
            lines = process.output.text().splitlines()
            said = f": {lines[-1]}" if process.exit_code and lines else ""
            self.kernel.tell(f"`seqlm {process.argv[1]}` ends with {process.exit_code}{said}")

    def look_at_write(self, process: Process, path: str) -> None:
        """Check at once that only the owner of a run writes what it has come to."""
        name = path.rpartition("/")[2]
        tag = str(process.tag)
        if name not in ("last.pt", "metrics.jsonl", "result.json") or not tag.startswith("worker of "):
            return
        run = run_of(process)
        folder = self.inode(f"{STUDY}/{run}/lease")
        names = sorted(one for one in (folder.names if folder else ()) if re.fullmatch(r"\d{6}\.json", one))
        if not names:
            return
        assert folder is not None
        owner = json.loads(folder.names[names[-1]].content or b"{}")
        if (owner.get("host"), owner.get("pid")) != (process.host.name, process.pid):
            self.kernel.violate(f"OWNER: {process} has written {name} of a run that {owner.get('pid')} owns")

    def check_end(self) -> None:
        """Check what has come of the study once nobody acts any more."""
        for process in self.kernel.processes:
            if process.error is not None and not process.ended_by_error:
                raise ViolationError(f"TRACEBACK: {process}:\n{process.error}")
        self.check_files(self.files.root, "/sim")
        if left := [job for job in self.cluster.jobs if job.is_live]:
            states = ", ".join(f"{job.id} {job.state} ({self.cluster.reason(job)})" for job in left)
            raise ViolationError(f"LEFT: jobs wait or run {HOURS_AFTER:g} h after the last accident: {states}")
        if alive := [process for process in self.kernel.processes if process.lives]:
            raise ViolationError(f"LEFT: {alive}")
        ends = self.ends()
        for name in self.names:
            state, kind, reason = ends.get(name, ("missing", None, "it has never begun"))
            if (why := self.why_wrong(name, state, kind)) is not None:
                raise ViolationError(f"END: {name} is {state} ({kind}: {reason}); {why}")

    def why_wrong(self, name: str, state: str, kind: str | None) -> str | None:
        """Return why a run should have come to another end. ``None``: it is what was done to it."""
        given, arrays = self.given[name], self.arrays_of(name)
        newest = max(arrays, default=0)
        if state == "done":
            return None
        if state == "failed" and kind == "code" and "code" in given:
            return None
        if state == "failed" and kind in ("node", "preempted", "timeout") and self.hits[name] > MOST_HITS:
            return None
        if newest <= self.cancelled.get(name, -1.0) or arrays.get(newest) in self.scancelled:
            return None
        return "nothing that was done to it ends it for good"

    def arrays_of(self, name: str) -> dict[int, int]:
        """Return by the number of a request the array that it has submitted for a run."""
        found: dict[int, int] = {}
        launches = self.inode(f"{STUDY}/launches")
        for number, folder in (launches.names if launches is not None else {}).items():
            if number.isdigit() and (plan := folder.names.get("plan.json")) is not None:
                for array in json.loads(plan.content)["arrays"]:
                    if array["job"] is not None and any(name_of(run) == name for run in array["runs"]):
                        found[int(number)] = int(array["job"])
        return found

    def ends(self) -> dict[str, tuple[str, str | None, str]]:
        """Return state, kind and reason of each run that has begun, by its name, as its files say."""
        found: dict[str, tuple[str, str | None, str]] = {}

        def look() -> None:
            reading.confine(Path(STUDY))
            for run in self.run_ids():
                try:
                    seen = RunDirectory(Path(STUDY) / run).observe()
                    found[name_of(run)] = (seen.state, seen.kind, str(seen.reason))
                except (SeqlmError, OSError) as error:
                    found[name_of(run)] = ("damaged", None, str(error))

        output = self.open_log("/sim/home/look")
        self.kernel.spawn(self.login, ["look"], look, env={}, output=output, tag="a look")
        self.kernel.play(self.kernel.now + 60)
        assert len(found) == len(self.run_ids())
        return found

    def check_files(self, folder: Inode, path: str) -> None:
        for name, inode in folder.names.items():
            if inode.kind == stat.S_IFDIR:
                self.check_files(inode, f"{path}/{name}")
            elif name.endswith(".json"):
                try:
                    json.loads(inode.content)
                except ValueError as error:
                    raise ViolationError(f"FILES: {path}/{name} is damaged: {error}") from None


def run_of(worker: Process) -> str:
    """Return the id of the run that a worker trains."""
    return str(worker.tag).removeprefix("worker of ")


def name_of(run_id: str) -> str:
    """Return the name of a run from its id."""
    return run_id[:-9]


@dataclass
class Played:
    """What came of a seed."""

    seed: int
    problem: str | None
    """What a check has found. ``None``: all is well."""
    accidents: frozenset[str]
    """The kinds of accidents that happened."""
    steps: int
    seconds: float
    digest: str
    lines: list[str] = field(default_factory=list)


def play(seed: int, accidents: Sequence[Accident] | None = None) -> Played:
    """Play a seed."""
    story = Story(seed, accidents)
    problem = None
    try:
        story.play()
    except ViolationError as violation:
        problem = str(violation)
    kernel = story.kernel
    lines = [f"{clock(when)}  {line}" for when, line in kernel.story]
    accidents = frozenset(story.happened)
    return Played(seed, problem, accidents, kernel.steps, kernel.now - START, kernel.digest.hexdigest(), lines)


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds - START), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"

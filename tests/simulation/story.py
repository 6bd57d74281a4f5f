"""A story: a study on a simulated cluster, with accidents that a seed draws, and checks of what comes of it.

The product's own programs take part: the command line, the job on its node and its dispatcher, and a worker that
trains nothing (:mod:`tests.tools.stub_worker`).
"""

from __future__ import annotations

import errno
import json
import re
import signal
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import launch
from jobs import terminal
from jobs.cli import view
from jobs.launch import dispatch
from jobs.scheduled import job as slurm_job
from seqlm import lease, reading
from seqlm.environment import ATTEMPT, COLLECTIVE_MINUTES
from seqlm.errors import EXIT_STOPPED, SeqlmError
from seqlm.requests import Requests
from seqlm.rundir import RunDirectory
from seqlm.training import attempt
from tests.simulation import checks, ray_cluster, seam
from tests.simulation.accidents import ACTS, Accident, Harm, draw_accidents, name_of, rank_of, ranks_of, run_of
from tests.simulation.checks import HOURS_AFTER, STUDY
from tests.simulation.files import Files, Output, fault
from tests.simulation.kernel import START, Host, Kernel, Process, ViolationError
from tests.simulation.script import JobScript
from tests.simulation.seam import World
from tests.simulation.slurm import Cluster, Job, Node, Rules
from tests.simulation.study import Study, draw_study
from tests.tools import stub_worker
from tests.tools.stub_worker import ERRORS

MOST_COMMANDS, COMMANDS_SECONDS = 12, 60.0
"""SLURM commands of one process within so many seconds."""
POLL_SECONDS, POLL_SECONDS_OF_SEVERAL_NODES = 5.0, 1.0
"""Time between two polls of a dispatcher. The dispatcher of several nodes has ten seconds to end after the others."""
SLOW_SECONDS = 0.2
"""How much longer opening and renaming take while files are slow."""
LOOKS = ("open", "stat", "listdir", "read")
BROKEN_CALLS = ("write", "flush", "fsync", "link", "rename", "mkdir")
"""Calls that fail on a host whose writes do not arrive."""


def process_seconds() -> float:
    """Return the age of the process that calls."""
    assert seam.world is not None
    me = seam.world.kernel.current
    assert me is not None
    return seam.world.kernel.now - me.process.began_at


attempt.process_seconds = process_seconds
ray_cluster.install()
lease.POLL_SECONDS, slurm_job.POLL_SECONDS = 6.0, 1.0
view.LOOK_SECONDS = 300.0  # a terminal, which nobody watches
stub_worker.LOOK_SECONDS, stub_worker.PROGRESS_SECONDS, stub_worker.FOLLOWS = 3.0, 20.0, True
OWN_STATE: Sequence[tuple[Any, str, Callable[[], Any]]] = (
    (reading, "_studies", set),
    (Requests, "_known", dict),
    (terminal, "_json", bool),
    (terminal, "_verbose", bool),
)


@dataclass(frozen=True)
class Asked:
    """What a user has wanted of a run."""

    number: int
    """Of the request."""
    is_cancel: bool
    filed_at: float


@final
class Story:
    """One seed, played."""

    def __init__(self, seed: int, accidents: Sequence[Accident] | None = None, study: Study | None = None) -> None:
        self.seed = seed
        self.study = draw_study(seed) if study is None else study
        self.accidents = draw_accidents(seed) if accidents is None else list(accidents)
        self.harm = Harm()
        self.kernel = Kernel(seed, own_state=OWN_STATE)
        self.kernel.own_errors = (SeqlmError,)
        self.files = Files(self.kernel, seed)
        self.files.loses_unflushed = self.study.backend == "local"
        self.world = World(self.kernel, self.files)
        hosts = [self.world.host(f"n{number}") for number in range(1, self.study.nodes + 1)]
        self.nodes = [Node(host=host, cpus=4, gpus=2) for host in hosts] if self.study.backend == "slurm" else []
        self.login = self.world.host("login")
        self.hosts = [self.login] if self.study.backend == "local" else [*hosts, self.login]
        self.ray = self.world.ray = ray_cluster.Ray(self.world, hosts if self.study.backend == "ray" else [], cpus=4.0)
        dispatch.POLL_SECONDS = POLL_SECONDS if self.study.ranks_per_node is None else POLL_SECONDS_OF_SEVERAL_NODES
        self.cluster = Cluster(self.world, self.nodes, Rules(most_jobs=self.study.most_jobs))
        self.cluster.program = lambda words: slurm_job.main()
        self.cluster.new_script = JobScript
        self.cluster.on_end = self.harm.excuse
        self.cluster.on_limit = lambda job: checks.nothing_is_trained_at_the_limit(self, job)
        self.world.programs, self.world.workers = self.run_program, self.start_worker
        self.others = [self.cluster.add_other(), self.cluster.add_other(is_held=True)]
        """Jobs that have nothing to do with the study."""
        self.users: list[Process] = []
        self.met: set[Process] = set()
        """Workers that wait for the other ranks of their attempt, or have met them."""
        self.epochs: Counter[Process] = Counter()
        """Worker -> epochs that are over for it."""
        self.commands: defaultdict[int, deque[float]] = defaultdict(lambda: deque(maxlen=MOST_COMMANDS))
        self.files.meddler = self.meddle
        for check in checks.AT_WRITES:
            self.files.on_write.append(lambda process, path, check=check: check(self, process, path))
        self.files.loses_reply = self.loses_reply
        self.kernel.on_exit += [self.look_at_exit, self.files.exited]
        self.finished = checks.Finished()
        self.leases: defaultdict[str, dict[str, Process]] = defaultdict(dict)
        """Run id -> the leases that workers have taken, and who they are."""
        self.used: list[tuple[str, int]] = []
        """Id of a job and number of its start, for each worker that it has started."""
        self.decided: dict[str, bytes] = {}
        """Run id -> content of the file that says that its comparison is decided."""

    # -- the parts that the world asks for -----------------------------------------------------------------------------

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
            tag=f"{'canary' if run.is_canary else 'worker'} of {run.id}",
            delay=self.kernel.dice.uniform(0.5, 8.0 if self.harm.slow_start_until < self.kernel.now else 400.0),
        )
        process.dies_with_parent = dies_with_parent
        self.used += [(job.id, len(job.places)) for job in self._jobs_of(parent)]
        broken = [host for host, until in self.harm.broken.items() if until > self.kernel.now]
        if broken and any(host in broken for host in self._hosts_beside(parent)):
            self.harm.hit(process)
        return process

    def _hosts_beside(self, parent: Process) -> list[Host]:
        """Return the hosts of the job that starts a worker. A node whose writes do not arrive says nothing there."""
        return [parent.host, *(node.host for job in self._jobs_of(parent) for node in job.nodes)]

    def _jobs_of(self, program: Process) -> list[Job]:
        """Return the job that a program belongs to. Empty: it is of none."""
        return [job for job in self.study_jobs if job.is_live and program in self.cluster.members(job)]

    def train(self) -> int:
        return stub_worker.main()

    def user(self, *words: str) -> Process:
        """A user types a command on the login node."""
        self.kernel.tell(f"a user types `seqlm {' '.join(words)}`")
        env = {"HOME": "/sim/home", "XDG_CONFIG_HOME": "/sim/home/config", "PATH": "/usr/bin", "USER": "user"}
        env |= {"SEQLM_CACHE": "/sim/home/cache", "SEQLM_TEST_STUB_SECONDS": f"{self.study.epoch_seconds:g}"}
        process = self.kernel.spawn(
            self.login,
            ["seqlm", *words],
            launch.main,
            env=env,
            output=self.files.open_log(f"/sim/home/user-{len(self.users)}.log"),
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
        stub_worker.COMPARES = self.study.is_decided
        stub_worker.happen, stub_worker.is_left, stub_worker.meet = self.happen, self.is_left, self.meet
        try:
            for name, text in self.study.files.items():
                self.files.put(f"/sim/home/{name}", text.encode())
            self.user(*self.study.command)
            last = 0.0
            for accident in self.accidents:
                self.kernel.at(START + accident.at, lambda accident=accident: self.happens(accident))
                last = max(last, accident.at + accident.seconds)
            self.kernel.play(START + last)
            self._settle()
            if self.study.has_launcher:  # accidents may have ended all of them
                self.user(*self.study.command)
                self._settle()
            for check in checks.AT_END:
                check(self)
        finally:
            self.kernel.end_all()
            seam.world = None

    def _settle(self) -> None:
        """Play until nobody acts any more, for as many hours as that may take."""
        end = self.kernel.now + 3600 * HOURS_AFTER
        while self.kernel.now < end and not self.is_quiet():
            self.kernel.play(min(end, self.kernel.now + 300))
        self.kernel.play(self.kernel.now + max(60.0, 2 * self.files.late_seconds))

    def is_quiet(self) -> bool:
        return not any(job.is_live for job in self.study_jobs) and not any(one.lives for one in self.users)

    @property
    def study_jobs(self) -> list[Job]:
        """The jobs of the study that SLURM has ever had."""
        return [job for job in self.cluster.every if not job.is_other]

    def workers(self) -> list[Process]:
        """Return the workers that live, and canaries."""
        return [one for one in self.kernel.processes if one.lives and str(one.tag).startswith(("worker", "canary"))]

    def run_ids(self) -> list[str]:
        folder = self.files.look(STUDY)
        names = folder.names if folder is not None else {}
        return sorted(name for name in names if re.fullmatch(r"run-.*-[0-9a-f]{8}", name))

    def arrays_of(self, name: str) -> dict[int, int]:
        """Return by the number of a request the array that it has submitted for a run."""
        found: dict[int, int] = {}
        launches = self.files.look(f"{STUDY}/launches")
        for number, folder in (launches.names if launches is not None else {}).items():
            if number.isdigit() and (plan := folder.names.get("batch.json")) is not None:
                for array in json.loads(plan.content)["arrays"]:
                    if array["job"] is not None and any(name_of(run) == name for run in array["runs"]):
                        found[int(number)] = int(array["job"])
        return found

    def requests_of(self, name: str) -> list[Asked]:
        """Return what was wanted of a run, the newest last."""
        found = []
        launches = self.files.look(f"{STUDY}/launches")
        for number, folder in sorted((launches.names if launches is not None else {}).items()):
            request = folder.names.get("request.json") if number.isdigit() else None
            if request is not None:
                record = json.loads(request.content)
                if any(name_of(run) == name for run in record["runs"]):
                    found.append(Asked(int(number), record["kind"] == "cancel", request.changed_at))
        return found

    # -- accidents -----------------------------------------------------------------------------------------------------

    def happens(self, accident: Accident) -> None:
        """Do what an accident says, if there is something of that kind."""
        told = len(self.kernel.story)
        ACTS[accident.kind](self, accident)
        if len(self.kernel.story) > told:
            self.harm.happened.add(accident.kind)

    def happen(self, epochs: int, number: int) -> None:
        """What the worker asks before each epoch."""
        me = self.kernel.current
        assert me is not None
        run = run_of(me.process)
        if run is None:
            self._happen_to_canary()
            return
        name = name_of(run)
        self.epochs[me.process] = epochs
        if rank_of(me.process) == 0:
            self.harm.begun[name] += 1
            checks.work_is_not_repeated(self, name)
        rank, seconds = self.harm.hangs.get(name, (None, 0.0))
        if rank == rank_of(me.process):
            del self.harm.hangs[name]
            self.harm.slow_until = max(self.harm.slow_until, self.kernel.now + seconds)
            self.harm.excuses[name] += 1
            self.kernel.sleep(seconds)
            checks.what_hangs_is_killed(self, me.process, seconds)
        crash = self.harm.crashes.get(name)
        if crash is not None and crash.until > self.kernel.now and crash.rank in (None, rank_of(me.process)):
            kind = crash.kind
            self.harm.causes[name].add(kind)
            if (name, number) not in self.harm.failed:  # the ranks of an attempt raise one error
                self.harm.failed[name, number] = kind
                self.harm.errors[name, kind] += 1
            else:
                self._abort()
            checks.errors_are_tried_again_as_the_policy_says(self, name, kind)
            raise ERRORS[kind]

    def is_left(self, is_first: bool) -> bool | None:
        """What a worker learns of the other ranks of its attempt: whether they leave. ``None``: the first has gone on.

        Raises:
            ConnectionError: one of them is gone.
        """
        ranks = self._ranks_of_attempt()
        ended = [one.exit_code for one in ranks]
        if any(code not in (None, 0, EXIT_STOPPED) for code in ended):
            self._abort()
            raise ConnectionError("the connection to another rank is lost")
        assert self.kernel.current is not None
        mine = self.epochs[self.kernel.current.process]
        has_gone_on = 0 in ended or any(self.epochs[one] > mine for one in ranks if rank_of(one) == 0)
        return None if not is_first and has_gone_on else EXIT_STOPPED in ended

    def _abort(self) -> None:
        """End the rank that calls, which has lost another one, if such a rank aborts now."""
        me = self.kernel.current
        if me is not None and self.harm.aborts_until > self.kernel.now:
            self.kernel.send(me.process, signal.SIGABRT)
            self.kernel.sleep(0.0)  # it makes no further call

    def meet(self) -> None:
        """Have a worker wait for the other ranks of its attempt. It looks at no signal meanwhile.

        Raises:
            ConnectionError: they have not come in good time.
        """
        me = self.kernel.current
        assert me is not None
        self.met.add(me.process)
        deadline = self.kernel.now + 60 * COLLECTIVE_MINUTES.default
        while len(self.met.intersection(self._ranks_of_attempt())) < ranks_of(me.process):
            if self.kernel.now > deadline:
                raise ConnectionError("another rank has not come")
            self.kernel.sleep(stub_worker.LOOK_SECONDS)

    def _ranks_of_attempt(self) -> list[Process]:
        """Return the workers of the attempt of the one that calls, itself among them."""
        me = self.kernel.current
        assert me is not None
        mine, name = me.process, ATTEMPT.name.encode()
        mates = [one for one in self.kernel.processes if one.tag == mine.tag]
        return [one for one in mates if one.environ.get(name) == mine.environ.get(name)]

    def _happen_to_canary(self) -> None:
        """The model of a canary raises errors as long as that of any run does. Then no run of its grid begins."""
        kinds = [crash.kind for crash in self.harm.crashes.values() if crash.until > self.kernel.now]
        if kinds:
            for name in self.study.names:
                self.harm.causes[name].add("canary")
            raise ERRORS[kinds[0]]

    def meddle(self, process: Process, call: str, path: str) -> None:
        """Do to a call of a file what accidents do to it."""
        harm, now = self.harm, self.kernel.now
        if harm.hanging_until > now:
            self.kernel.sleep(harm.hanging_until - now)
        if harm.delayed_until > now and call in ("open", "rename"):
            self.kernel.sleep(SLOW_SECONDS)
        if call in ("write", "mkdir", "link") and harm.full_until > self.kernel.now:
            raise fault(errno.ENOSPC, path)
        if call == "flush" and harm.quota_until > self.kernel.now:
            raise fault(errno.EDQUOT, path)
        if call in LOOKS and harm.unread.get(process.host, 0.0) > self.kernel.now and self.files.dice.random() < 0.02:
            raise fault(errno.EIO, path)
        if call in BROKEN_CALLS and harm.broken.get(process.host, 0.0) > self.kernel.now:
            raise fault(errno.EIO, path)
        if harm.unreadable and call in ("open", "stat") and path.rpartition("/")[2] == "config.json":
            for run, until in harm.unreadable.items():
                if until > self.kernel.now and (run in path or self._is_in(process, path, run)):
                    raise fault(errno.EIO, path)

    def loses_reply(self, process: Process, call: str, path: str) -> bool:
        """Return whether the answer to a call that has changed names is lost."""
        return self.harm.without_replies.get(process.host, 0.0) > self.kernel.now and self.files.dice.random() < 0.5

    def _is_in(self, process: Process, path: str, run: str) -> bool:
        """Whether a name without folders is of a run: whoever opens it has opened the run's folder just before."""
        folder = self.files.look(f"{STUDY}/{run}")
        opened = [one.inode for one in self.files.open_files.values() if one.process is process]
        return "/" not in path and bool(opened) and opened[-1] is folder

    def _forget_error(self, worker: Process, run: str) -> None:
        """Do not count the error of a worker that was killed before it could record it. Nobody else has seen it."""
        name, number = name_of(run), int(worker.environ[ATTEMPT.name.encode()])
        attempt = self.files.look(f"{STUDY}/{run}/attempts/{number:04d}")
        has_told = attempt is not None and any(re.fullmatch(r"end(-\d+)?\.json", file) for file in attempt.names)
        if (name, number) in self.harm.failed and not has_told:
            self.harm.errors[name, self.harm.failed.pop((name, number))] -= 1

    def look_at_exit(self, process: Process) -> None:
        """Tell how a command of a user has ended."""
        if process.exit_code == -signal.SIGKILL and (run := run_of(process)) is not None:
            self._forget_error(process, run)
        checks.nobody_waits_for_a_node_that_does_not_answer(self, process)
        if process in self.users:
            lines = process.output.text().splitlines()
            said = f": {lines[-1]}" if process.exit_code and lines else ""
            self.kernel.tell(f"`seqlm {process.argv[1]}` ends with {process.exit_code}{said}")
            if process.argv[1] == "cancel":
                checks.cancelled_means_that_no_worker_lives(self, process)


@dataclass(frozen=True, kw_only=True)
class Played:
    """What came of a seed."""

    seed: int
    study: Study
    accidents: Sequence[Accident]
    happened: frozenset[str]
    """The kinds of accidents that have found something to happen to."""
    problem: str | None
    """What a check has found. ``None``: all is well."""
    steps: int
    seconds: float
    digest: str
    lines: Sequence[str]

    @property
    def check(self) -> str | None:
        """The check that has failed. ``None``: all is well."""
        return None if self.problem is None else self.problem.partition(":")[0]


def play(seed: int, accidents: Sequence[Accident] | None = None, study: Study | None = None) -> Played:
    """Play a seed, or other accidents and another study in the order of its calls."""
    story = Story(seed, accidents, study)
    problem = None
    try:
        story.play()
    except ViolationError as violation:
        problem = str(violation)
    kernel = story.kernel
    return Played(
        seed=seed,
        study=story.study,
        accidents=story.accidents,
        happened=frozenset(story.harm.happened),
        problem=problem,
        steps=kernel.steps,
        seconds=kernel.now - START,
        digest=kernel.digest,
        lines=[f"{clock(when)}  {line}" for when, line in kernel.story],
    )


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds - START), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"

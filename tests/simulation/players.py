"""Play the scenarios of :mod:`tests.simulation.scenarios`, on the model and on a real SLURM, and note what is seen."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from jobs.scheduled.script import NOT_STARTED
from slurm.testcluster import ClusterOptions, LoopbackCluster
from tests.simulation.files import Files
from tests.simulation.kernel import Kernel, Process
from tests.simulation.scenarios import SCENARIOS, Scenario
from tests.simulation.seam import World
from tests.simulation.slurm import Cluster, Node, Rules, Script

FIRST_ID = 100_001
"""Number of the first job, so that no other number looks like one."""
MOST_SECONDS = 120.0
"""How long a step may wait."""
POLL_SECONDS = 0.3
BETWEEN_SECONDS = 0.2
"""Between the first steps of two scenarios on a test cluster: many jobs at once are too much for it."""
CREDENTIAL_SECONDS = 10
"""Within which a step must start, and for which a job waits that is requeued. Less fails on a busy machine."""
CPUS, GPUS, MEMORY_MB = 8, 2, 2000
"""Of each node."""
PROGRAM = r"""#!/bin/bash
# Carries out its words, but for the last: statements of a scenario.
say() { echo "> $*"; }
for statement in "${@:1:$#-1}"; do
    set -- $statement
    if [ "$1" = start ]; then [ "${2%:}" = "${SLURM_RESTART_COUNT:-0}" ] || continue; shift 2; fi
    if [ "$1" = node ]; then [ "${2%:}" = "${SLURM_NODEID:-0}" ] || continue; shift 2; fi
    NOW=$(date +%s)
    case $1 in
        print) shift; eval "echo \"> $*\"" ;;
        sleep) until=$((SECONDS + $2)); while [ $SECONDS -lt $until ]; do sleep $((until - SECONDS)) & wait $!; done ;;
        leave) (sleep "$2"; echo "> later") & ;;
        until) eval "name=$2"; while [ ! -e "$name" ]; do sleep 0.5; done ;;
        exit) eval "exit $2" ;;
        raise) kill -"$2" $$; sleep 5 ;;
        change) shift; echo "$*" >> "requeue-$SLURM_JOB_ID" ;;
        ignore) trap '' "$2" ;;
        on) trap "echo '> $2'; exit $4" "$2" ;;
    esac
done 2> /dev/null
"""

AGAIN = 76
"""Exit code of a program whose job is to be put back."""
CHANGE = "(MinMemoryNode|TimeLimit|StartTime)=[^ ]+( ExcNodeList=[^ ]+)?"
SCRIPT = rf"""
job=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID changes=requeue-$SLURM_JOB_ID again=$code state=
if [[ $code =~ ^({128 + signal.SIGTERM}|{NOT_STARTED})$ && -z $SLURM_RESTART_COUNT ]]; then
    for seconds in 1 2 4 8; do state=$(squeue -h -j $job -o %T) && break; sleep $seconds; done
    [ "$state" != RUNNING ] || again={AGAIN}
fi
if [ $again -eq {AGAIN} ]; then
    trap '' TERM INT
    code=137
    for seconds in 1 2 4 8; do scontrol requeue $job && code=0 && break; sleep $seconds; done
    [ $code -gt 0 ] || [ ! -f "$changes" ] || grep -xE '{CHANGE}' "$changes" |
        while read -r change; do scontrol update JobId=$job $change || :; done
    rm -f "$changes"
fi
[ $code -le 128 ] || kill -$((code - 128)) $$
exit $code"""
"""What a script does when its program has ended with ``$code``. A program that SIGTERM ends has another start once."""
AT_SIGNAL = """
at_signal() {
    job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    echo "> at the signal $(squeue -h -j $job -o '%T|%r|%x')"
    scontrol requeue $job && echo "> put back"
}
trap at_signal TERM"""
"""Lines of a script that puts its job back at SIGTERM."""

TEST = Rules(
    cycle=(0.2, 0.5),
    answer=(0.001, 0.01),
    kill_wait=2,
    grace=3,
    requeue_wait=CREDENTIAL_SECONDS + 1,
    max_array_size=100,
    first_number=FIRST_ID,
)
"""Those of test clusters, which are quick."""
RULES = {
    "usual": TEST,
    "strict": replace(TEST, most_jobs=6, min_job_age=2, kills_invalid_depend=True),
    "hanging": replace(TEST, message_timeout=5),
    "gone": replace(TEST, message_timeout=5),
}


def settled(row: str) -> str:
    """Return a row of squeue with one word for all reasons for which a job waits for room.

    A real scheduler writes a reason at its next look: until then a waiting job has none.
    """
    return re.sub(r"(?<=PENDING\|)None$|(?<=\|)(Priority|Resources|Nodes required for job are .*)$", "ROOM", row)


def statements(text: str) -> list[str]:
    return [statement for one in text.split(";") if (statement := one.strip())]


def options_of(words: Sequence[str], *, is_array: bool) -> tuple[dict[str, str], list[str], list[str], str]:
    """Return the options that a script has, those that sbatch gets, further words of srun, and a first line."""
    options = {"time": "5", "nodes": "1", "ntasks-per-node": "1", "cpus-per-task": "1"}
    if is_array:
        options |= {"requeue": "", "array": "0-0", "signal": "USR2@60"}
    command, srun, first = [], [], ""
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if name == "hold":
            command.append(word)
        elif name == "srun":
            srun.append(value)
        elif name == "pause":
            first = f"sleep {value}\n"
        elif name == "no-requeue":
            del options["requeue"]
            options[name] = ""
        else:
            options[name] = value
    return options, command, srun, first


@dataclass(frozen=True)
class Row:
    """A job as squeue shows it."""

    state: str
    reason: str
    number: str
    restarts: int


@dataclass
class Submitted:
    """A job or an array of a scenario."""

    id: str
    options: Mapping[str, str]

    @property
    def indices(self) -> list[int | None]:
        if "array" not in self.options:
            return [None]
        return list(range(int(self.options["array"].partition("%")[0].partition("-")[2]) + 1))


class Player(ABC):
    """Plays a scenario, and notes what is seen."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.jobs: dict[str, Submitted] = {}
        self.seen: list[str] = []

    # -- what the two clusters do in their own ways --------------------------------------------------------------------

    @abstractmethod
    def command(self, *words: str) -> tuple[int, str, str]:
        """Run a command; return exit code, output and errors."""

    @abstractmethod
    def commands(self, commands: Sequence[Sequence[str]]) -> list[tuple[int, str, str, float]]:
        """Run commands at the same time; return what each comes to, and its seconds."""

    @abstractmethod
    def write_script(self, name: str, text: str) -> str:
        """Write a file; return its path."""

    @property
    @abstractmethod
    def folder(self) -> str: ...

    @property
    @abstractmethod
    def nodes(self) -> list[str]:
        """The names of the nodes of the scenario."""

    @property
    @abstractmethod
    def placement(self) -> Mapping[str, str]:
        """Options that have a job run on the nodes of the scenario."""

    @abstractmethod
    def output(self, file: str) -> str:
        """Return what a file of the folder has. Empty: it is not there."""

    @abstractmethod
    def rows(self) -> Mapping[str, Row]:
        """Return the rows of all jobs of the cluster, by their ids, as of a moment ago."""

    @abstractmethod
    def until(self, is_so: Callable[[], bool]) -> bool:
        """Return whether something comes to be so in good time."""

    @abstractmethod
    def sleep(self, seconds: float) -> None: ...

    @abstractmethod
    def happens(self, what: str, target: str) -> None:
        """Do to the cluster what a step says."""

    # -- steps ---------------------------------------------------------------------------------------------------------

    def play(self) -> list[str]:
        """Play the scenario; return what was seen."""
        for line in self.scenario.steps.strip().splitlines():
            self._step(line.strip())
        return self.seen

    def _step(self, line: str) -> None:
        verb, _, rest = line.partition(" ")
        if rest.startswith("= "):
            self._submit(verb, rest.removeprefix("= "))
        elif verb == "wait":
            self._wait(*rest.split(" ", 1))
        elif verb == "rows":
            job = self.jobs[rest.partition("_")[0]]
            _, out, _ = self.command("squeue", "-h", "-a", "-r", "-t", "all", "-j", job.id, "-o", "%i|%T|%r")
            found = sorted(settled(self.named(row)) for row in out.splitlines())
            self.note(f"rows: {'; '.join(row for row in found if row.startswith(rest))}")
        elif verb == "says":
            for file in self.outputs(rest):
                said = [row for row in self.output(file).splitlines() if row.startswith("> ")]
                if self.jobs[rest].options["nodes"] != "1":
                    said.sort()
                self.note(f"{file}: {self.named('; '.join(row.removeprefix('> ') for row in said))}")
        elif verb == "json":
            number = self.ids()[f"#{rest}"]
            _, out, _ = self.command("scontrol", "--json", "show", "job", number)
            states = [sorted(job["job_state"]) for job in json.loads(out)["jobs"] if str(job["job_id"]) == number]
            self.note(f"json {rest}: {states}")
        elif verb == "run":
            words = shlex.split(rest.format_map(self.ids()))
            self.note(f"{rest}: {self.came(words, *self.command(*words))}")
        elif verb == "all":
            commands = [shlex.split(part.format_map(self.ids())) for part in rest.split(" | ")]
            for words, (code, out, err, seconds) in zip(commands, self.commands(commands), strict=True):
                name = self.named(" ".join(words))
                self.note(f"{name}: after {5 * round(seconds / 5)} s: {self.came(words, code, out, err)}")
        elif verb == "sleep":
            self.sleep(float(rest))
        elif verb == "let":
            self.write_script(rest, "")
        else:
            self.happens(verb, rest)

    def note(self, line: str) -> None:
        self.seen.append(line)

    def came(self, words: Sequence[str], code: int, out: str, err: str) -> str:
        """Return what a command came to, as far as the product reads it."""
        if "--json" in words:
            out = f"{len(json.loads(out)['jobs'])} jobs" if out else ""
        elif words[:3] == ["scontrol", "show", "config"]:
            out = "; ".join(re.findall(r"^MaxArraySize .*|^Configuration data as of (?=\d{4}-\d\d-\d\dT)", out, re.M))
        out = out.replace(":fake:", ":")  # the type of the GPUs of a test cluster
        said = err.strip().splitlines()[-1:] if code else []
        lines = sorted(settled(self.named(row)) for row in out.strip().splitlines())
        complaint = [re.sub(r"^(\w+: )?(error: )?", "", self.named(row)) for row in said]
        return " ".join(["fails" if code else "works", "; ".join(lines), *complaint]).strip()

    def ids(self) -> dict[str, str]:
        """Return the ids of jobs and the names of nodes, by what a scenario calls them."""
        found = {f"n{number}": node for number, node in enumerate(self.nodes, start=1)}
        rows = self.rows()
        for name, job in self.jobs.items():
            found[name] = job.id
            for index in job.indices:
                own = job.id if index is None else f"{job.id}_{index}"
                found[name if index is None else f"{name}_{index}"] = own
                if own in rows:
                    found[f"#{name}_{index or 0}"] = rows[own].number
        return found

    def named(self, text: str) -> str:
        """Return a text with the names of a scenario in the place of ids."""
        for name, own in sorted(self.ids().items(), key=lambda one: (one[0].startswith("#"), -len(one[1]))):
            text = re.sub(rf"(?<![\w.]){re.escape(own)}(?![0-9.])", name, text)
        return text

    def outputs(self, name: str) -> list[str]:
        return [f"{name}.out" if index is None else f"{name}_{index}.out" for index in self.jobs[name].indices]

    def _submit(self, name: str, text: str) -> None:
        given, _, program = text.format_map(self.ids()).partition(" | ")
        kind, *words = given.split()
        puts_back = "--back" in words
        words = [word for word in words if word != "--back"]
        options, command, srun, first = options_of(words, is_array=kind == "sbatch")
        own = " ".join(shlex.quote(one) for one in statements(program))
        if kind == "plain":
            body = f"exec jobs.scheduled.job {own} ."
        else:
            words = [
                "env",
                f"SLURM_EXIT_ERROR={NOT_STARTED}",
                "srun",
                f"--cpus-per-task={options['cpus-per-task']}",
                "--wait=10",
                *srun,
            ]
            command_line = f"{' '.join(words)} jobs.scheduled.job {own} $SLURMD_NODENAME"
            lines = [f"{first}code=0", f"{command_line} || code=$?"]
            if options["nodes"] != "1":
                lines.append('echo "> srun returns $code"')
            lines.append(SCRIPT)
            if puts_back:
                lines = [AT_SIGNAL, f"{command_line} &", "wait $!; wait $!; sleep 1"]
            body = "\n".join(lines)
        options["output"] = f"{self.folder}/{name}{'_%a' if kind == 'sbatch' else ''}.out"
        options |= {"chdir": self.folder, **self.placement}
        lines = "".join(f"#SBATCH --{key}{'=' * bool(value)}{value}\n" for key, value in options.items())
        path = self.write_script(f"{name}.sh", f"#!/bin/bash\n{lines}{body}\n")
        submitted = ["sbatch", "--parsable", *command, path]
        ((code, out, err, _),) = self.commands([submitted])
        if not code:
            self.jobs[name] = Submitted(out.strip(), options)
        self.note(f"{name} is {'refused' if code else 'taken'}: {self.came(submitted, code, '', err)}")
        if code and "timed out" in err:  # it may count all the same, with the next number
            self.jobs[name] = Submitted(
                str(max(FIRST_ID - 1, *(int(row.number) for row in self.rows().values())) + 1), options
            )

    def _wait(self, name: str, what: str) -> None:
        is_said = what.startswith("says ")
        parent, _, index = name.partition("_")
        job = self.jobs[parent]
        wanted = [int(index)] if index else job.indices
        ids = [job.id if one is None else f"{job.id}_{one}" for one in wanted]

        def is_so() -> bool:
            if is_said:
                return all(f"> {what.removeprefix('says ')}" in self.output(file) for file in self.outputs(parent))
            rows = self.rows()
            if what == "FORGOTTEN":
                return not any(one in rows for one in ids)
            if what == "AGAIN":
                mine = [rows[one] for one in ids if one in rows and rows[one].restarts]
                return len(mine) == len(ids) and all(row.state == "PENDING" and row.reason != "None" for row in mine)
            return all(one in rows and rows[one].state == what for one in ids)

        if not self.until(is_so):
            found = {one: self.rows().get(one) for one in ids}
            self.note(f"waited in vain for {name} {what}: {found}")
            raise TimeoutError(self.seen[-1])


@final
class ScenarioScript(Script):
    """What bash does with the script of a scenario."""

    def attend(self) -> int:
        if "at_signal" in self.job.script:
            self.process.handlers[signal.SIGTERM] = self._at_signal
        self._wait()
        code = self._srun()
        for line in self.job.script.splitlines():
            if line.startswith("echo "):
                self._say(shlex.split(line)[1].replace("$code", str(code)))
        if "at_signal" not in self.job.script:
            code = self._end(code)
        if code > 128:
            self.kernel.send(self.process, code - 128)
            self.kernel.step()
        return code

    def _say(self, line: str) -> None:
        self.process.output.write(f"{line}\n")

    def _at_signal(self, *_: object) -> None:
        self._say(f"> at the signal {self._ask('squeue', '-h', '-j', self.job.id, '-o', '%T|%r|%x')[1]}")
        failed, _ = self._ask("scontrol", "requeue", self.job.id)
        if not failed:
            self._say("> put back")

    def _end(self, code: int) -> int:
        """Do what ``SCRIPT`` does, line by line."""
        job, kernel, again = self.job, self.kernel, code
        if code in (128 + signal.SIGTERM, NOT_STARTED) and not job.restarts:
            state = ""
            for seconds in (1, 2, 4, 8):
                failed, state = self._ask("squeue", "-h", "-j", job.id, "-o", "%T")
                if not failed:
                    break
                kernel.sleep(seconds)
            if state == "RUNNING":
                again = AGAIN
        if again == AGAIN:
            for number in (signal.SIGTERM, signal.SIGINT):
                self.process.handlers[number] = signal.SIG_IGN
            code = 137
            for seconds in (1, 2, 4, 8):
                failed, _ = self._ask("scontrol", "requeue", job.id)
                if not failed:
                    code = 0
                    break
                kernel.sleep(seconds)
            path = f"{job.folder}/requeue-{job.number}"
            text = self.cluster.world.files.text(path)
            for line in text.splitlines() if not code else ():
                if re.fullmatch(CHANGE, line):
                    self._ask("scontrol", "update", f"JobId={job.id}", *line.split())
            self.cluster.world.files.drop(path)
        return code


# -- the model -------------------------------------------------------------------------------------------------------


@final
class ModelPlayer(Player):
    """Plays a scenario on the model."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario)
        self.kernel = Kernel(0)
        self.files = Files(self.kernel)
        world = World(self.kernel, self.files)
        self.rules = RULES[scenario.rules]
        self.machines = [Node(host=world.host(name), cpus=CPUS, gpus=GPUS, memory_mb=MEMORY_MB) for name in self.nodes]
        self.cluster = Cluster(world, self.machines, self.rules)
        self.cluster.program = self._program
        self.cluster.new_script = ScenarioScript
        self.login = world.host("login")

    @property
    def folder(self) -> str:
        return "/sim/jobs"

    @property
    def nodes(self) -> list[str]:
        return [f"n{number}" for number in range(1, self.scenario.nodes + 1)]

    @property
    def placement(self) -> Mapping[str, str]:
        return {}

    def play(self) -> list[str]:
        try:
            return super().play()
        finally:
            self.kernel.end_all()

    def command(self, *words: str) -> tuple[int, str, str]:
        ((code, out, err, _),) = self.commands([words])
        return code, out, err

    def commands(self, commands: Sequence[Sequence[str]]) -> list[tuple[int, str, str, float]]:
        found: dict[int, tuple[int, str, str, float]] = {}

        def start(number: int, words: Sequence[str]) -> None:
            def run() -> None:
                began, me = self.kernel.now, self.kernel.current
                assert me is not None
                answer = self.cluster.command(me.process, words, {}, None)
                found[number] = (*answer, self.kernel.now - began)

            self.kernel.spawn(self.login, words, run, env={}, output=self.files.open_log("/sim/login.log"))

        for number, words in enumerate(commands):
            start(number, words)
        while len(found) < len(commands):
            self.kernel.play(self.kernel.now + 0.01)
        return [found[number] for number in range(len(commands))]

    def write_script(self, name: str, text: str) -> str:
        self.files.put(f"{self.folder}/{name}", text.encode())
        return f"{self.folder}/{name}"

    def output(self, file: str) -> str:
        return self.files.text(f"{self.folder}/{file}")

    def rows(self) -> Mapping[str, Row]:
        self.cluster.answer("squeue", ["-o", "%i"], {})  # which forgets old jobs
        return {
            job.id: Row(job.state, self.cluster.reason(job) or "", str(job.number), job.restarts)
            for job in self.cluster.jobs
        }

    def until(self, is_so: Callable[[], bool]) -> bool:
        deadline = self.kernel.now + 10 * MOST_SECONDS
        while not is_so():
            if self.kernel.now > deadline:
                return False
            self.kernel.play(self.kernel.now + POLL_SECONDS)
        return True

    def sleep(self, seconds: float) -> None:
        self.kernel.play(self.kernel.now + seconds)

    def happens(self, what: str, target: str) -> None:
        cluster = self.cluster
        if what == "preempt":
            (job,) = (job for job in cluster.jobs if job.id == self.ids()[target])
            cluster.preempt(job)
        elif what in ("hang", "kill"):
            cluster.silence(float(target or 3600), is_gone=what == "kill")
        elif what in ("go", "start"):
            cluster.speak()
        else:
            node = self.machines[int(target.removeprefix("n")) - 1]
            if what in ("lose", "die"):
                cluster.lose_power(node)
            elif what in ("cut", "down"):
                cluster.lose_contact(node)
            else:
                cluster.back(node)
            if what in ("lose", "down"):
                cluster.take_for_lost(node)

    # -- programs ------------------------------------------------------------------------------------------------------

    def _program(self, words: Sequence[str]) -> int:
        me = self.kernel.current
        assert me is not None
        env = {name.decode(): value.decode() for name, value in me.process.environ.items()}
        for statement in words[1:-1]:
            code = self._do(me.process, statement, env)
            if code is not None:
                return code
        return 0

    def _do(self, me: Process, statement: str, env: Mapping[str, str]) -> int | None:
        """Carry out a statement; return the exit code with which the program ends. ``None``: it goes on."""
        verb, *rest = statement.split()
        for name, value in (("start", env.get("SLURM_RESTART_COUNT", "0")), ("node", env["SLURM_NODEID"])):
            if verb == name:
                if rest[0] != f"{value}:":
                    return None
                verb, *rest = rest[1:]
        text = _expanded(" ".join(rest), {**env, "NOW": str(round(self.kernel.now))})
        if verb == "print":
            me.output.write(f"> {text}\n")
        elif verb == "sleep":
            self.kernel.sleep(float(text))
        elif verb == "until":
            while self.files.look(f"{self.folder}/{text}") is None:
                self.kernel.sleep(0.5)
        elif verb == "leave":
            self._leave(me, float(text))
        elif verb == "exit":
            return int(text)
        elif verb == "raise":
            self.kernel.send(me, getattr(signal, f"SIG{text}"))
            self.kernel.step()
        elif verb == "change":
            file = f"{self.folder}/requeue-{env['SLURM_JOB_ID']}"
            self.files.put(file, f"{self.files.text(file)}{text}\n".encode())
        elif verb == "ignore":
            me.handlers[getattr(signal, f"SIG{text}")] = signal.SIG_IGN
        elif verb == "on":
            name, _, code = rest

            def ends(number: int, frame: object) -> None:
                me.output.write(f"> {name}\n")
                raise SystemExit(int(code))

            me.handlers[getattr(signal, f"SIG{name}")] = ends
        return None

    def _leave(self, me: Process, seconds: float) -> None:
        """Start a process that prints something later."""

        def later() -> None:
            self.kernel.sleep(seconds)
            me.output.write("> later\n")

        with self.kernel.inside():
            self.kernel.spawn(me.host, ["later"], later, env={}, output=me.output, parent=me, tag="later")


def _expanded(text: str, env: Mapping[str, str]) -> str:
    """Return a text as bash expands it: variables, and sums in ``$((...))``."""

    def value(sum_of: re.Match[str]) -> str:
        text = re.sub(r"\$?([A-Z_]+)", lambda name: env[name[1]], sum_of[1]).replace("/", "//")
        return str(int(eval(text)))  # noqa: S307 -- a sum of a scenario

    text = re.sub(r"\$\(\((.*)\)\)", value, text)
    return re.sub(r"\$(\w+)", lambda name: env.get(name[1], ""), text)


def on_model() -> dict[str, list[str]]:
    """Play all scenarios on the model; return by name what was seen."""
    found = {}
    for name, scenario in SCENARIOS.items():
        player = ModelPlayer(scenario)
        try:
            found[name] = player.play()
        except TimeoutError:
            found[name] = player.seen
    return found


# -- a real SLURM -----------------------------------------------------------------------------------------------------


@final
class RealCluster:
    """A test cluster on which scenarios play at the same time, each on nodes that have a feature of their own."""

    def __init__(self, rules: Rules, scenarios: Mapping[str, Scenario], folder: Path) -> None:
        self.rules, self.folder, self.scenarios = rules, folder, scenarios
        self.lock = threading.Lock()
        """Of the daemons: one thread at a time may start and stop them."""
        self.places: dict[str, range] = {}
        """Name of a scenario -> the numbers of its nodes."""
        number = 0
        for name, scenario in scenarios.items():
            self.places[name] = range(number, number + scenario.nodes)
            number += scenario.nodes
        # With the default, priority/multifactor, nice changes nothing unless the site gives weights to something.
        lines = [f"FirstJobId={FIRST_ID}", "PriorityType=priority/basic"]
        lines.append(f"MessageTimeout={round(rules.message_timeout)}")
        if rules.most_jobs is not None:
            lines.append("AccountingStorageEnforce=limits")
        if rules.kills_invalid_depend:
            lines.append("DependencyParameters=kill_invalid_depend")
        options = ClusterOptions(
            nodes=number,
            gpus=GPUS,
            cpus=CPUS,
            memory_mb=MEMORY_MB,
            accounting=rules.most_jobs is not None,
            preemption=any("preempt" in scenario.steps for scenario in scenarios.values()),
            grace_seconds=int(rules.grace),
            credential_seconds=CREDENTIAL_SECONDS,
            min_job_age_seconds=int(rules.min_job_age),
            max_array_size=rules.max_array_size,
            extra_lines=lines,
        )
        self.cluster = LoopbackCluster(options)
        self.rows: dict[str, Row] = {}
        self.came: dict[str, list[str] | BaseException] = {}

    def play(self) -> dict[str, list[str]]:
        """Play all scenarios; return by name what was seen."""
        with self.cluster as cluster:
            (self.folder / "jobs.scheduled.job").write_text(PROGRAM, "utf-8")
            (self.folder / "jobs.scheduled.job").chmod(0o755)
            for places in self.places.values() if len(self.places) > 1 else ():
                nodes = ",".join(cluster.node_names[place] for place in places)
                feature = f"f{places[0]}"
                cluster.run("scontrol", "update", f"NodeName={nodes}", f"AvailableFeatures={feature}")
            if self.rules.most_jobs is not None:
                cluster.run("sacctmgr", "-i", "add", "account", "lab")
                cluster.run("sacctmgr", "-i", "add", "user", "root", "account=lab")
                limit = f"MaxSubmitJobs={self.rules.most_jobs}"
                cluster.run("sacctmgr", "-i", "modify", "user", "root", "set", limit)
            is_over = threading.Event()
            poller = threading.Thread(target=self._poll, args=[is_over], daemon=True)
            poller.start()
            for name in [name for name, scenario in self.scenarios.items() if scenario.is_first]:
                self._play(name)
            together = [name for name, scenario in self.scenarios.items() if not scenario.is_first]
            threads = [threading.Thread(target=self._play, args=[name], daemon=True) for name in together]
            for thread in threads:
                thread.start()
                is_over.wait(BETWEEN_SECONDS)
            for thread in threads:
                thread.join()
            is_over.set()
            poller.join()
        for found in self.came.values():
            if isinstance(found, BaseException):
                raise found
        return {name: found for name, found in self.came.items() if not isinstance(found, BaseException)}

    def _play(self, name: str) -> None:
        player = RealPlayer(self.scenarios[name], self, name)
        try:
            self.came[name] = player.play()
        except TimeoutError:
            self.came[name] = player.seen
        except BaseException as error:
            error.add_note(f"in the scenario: {name}; seen: {player.seen}")
            self.came[name] = error

    def _poll(self, is_over: threading.Event) -> None:
        while not is_over.wait(POLL_SECONDS):
            columns = "JobArrayID:|,State:|,Reason:|,JobID:|,RestartCnt:"
            done = self.run("squeue", "-h", "-a", "-r", "-t", "all", "-O", columns)
            if not done.returncode:
                rows = (line.split("|") for line in done.stdout.splitlines())
                self.rows = {row[0]: Row(*row[1:4], int(row[4])) for row in rows}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command with the program of the scenarios on PATH, which jobs inherit."""
        path = f"PATH={self.folder}:{self.cluster.env['PATH']}"
        return self.cluster.run("env", path, *words, seconds=300, check=False)


@final
class RealPlayer(Player):
    """Plays a scenario on a test cluster."""

    def __init__(self, scenario: Scenario, cluster: RealCluster, name: str) -> None:
        super().__init__(scenario)
        self.cluster, self.places = cluster, cluster.places[name]
        self.place = cluster.folder / f"s{self.places[0]}"
        self.place.mkdir()

    @property
    def folder(self) -> str:
        return str(self.place)

    @property
    def nodes(self) -> list[str]:
        return [self.cluster.cluster.node_names[place] for place in self.places]

    @property
    def placement(self) -> Mapping[str, str]:
        if len(self.cluster.places) == 1:  # a controller that begins again forgets the features
            return {}
        return {"constraint": f"f{self.places[0]}"}

    def command(self, *words: str) -> tuple[int, str, str]:
        done = self.cluster.run(*words)
        return done.returncode, done.stdout, done.stderr

    def commands(self, commands: Sequence[Sequence[str]]) -> list[tuple[int, str, str, float]]:
        found: dict[int, tuple[int, str, str, float]] = {}

        def run(number: int, words: Sequence[str]) -> None:
            began = time.monotonic()
            found[number] = (*self.command(*words), time.monotonic() - began)

        threads = [threading.Thread(target=run, args=one) for one in enumerate(commands)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [found[number] for number in range(len(commands))]

    def write_script(self, name: str, text: str) -> str:
        (self.place / name).write_text(text, "utf-8")
        return str(self.place / name)

    def output(self, file: str) -> str:
        path = self.place / file
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def rows(self) -> Mapping[str, Row]:
        return self.cluster.rows

    def until(self, is_so: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + MOST_SECONDS
        while not is_so():
            if time.monotonic() > deadline:
                return False
            self.sleep(POLL_SECONDS)
        return True

    def sleep(self, seconds: float) -> None:
        threading.Event().wait(seconds)

    def happens(self, what: str, target: str) -> None:
        cluster, place = self.cluster.cluster, self.places[0]
        if what == "preempt":
            where = [f"--{option}={value}" for option, value in self.placement.items()]
            words = ["sbatch", "-p", "urgent", *where, "-N1", "--exclusive", "-t1", "-o/dev/null"]
            assert not self.command(*words, "--wrap", "sleep 2")[0]
        elif what in ("hang", "go"):
            pid = int((cluster.folder / "slurmctld.pid").read_text())
            os.kill(pid, signal.SIGSTOP if what == "hang" else signal.SIGCONT)
            while what == "hang" and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
                self.sleep(0.1)
            if target:
                threading.Timer(float(target), os.kill, (pid, signal.SIGCONT)).start()
        elif what == "kill":
            cluster.stop_controller()
        elif what == "start":
            cluster.start_controller()
        else:
            self._to_node(what, place + int(target.removeprefix("n")) - 1)

    def _to_node(self, what: str, number: int) -> None:
        cluster = self.cluster.cluster
        with self.cluster.lock:
            if what in ("down", "lose", "cut", "die"):
                cluster.kill_node(number, with_jobs=what in ("lose", "die"))
            else:
                cluster.start_node(number)
        if what in ("down", "lose"):
            name = cluster.node_names[number]
            for _ in range(2):  # an answer of a moment ago may bring it back
                assert not self.command("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=test")[0]
                self.sleep(2)
        if what == "up":  # a node on which processes were slow to end is drained
            self.sleep(2)
            self.command("scontrol", "update", f"NodeName={cluster.node_names[number]}", "State=RESUME")


def on_slurm(rules: str, names: Collection[str], folder: Path) -> dict[str, list[str]]:
    """Play scenarios of a cluster with these rules on a real SLURM; return by name what was seen."""
    folder.mkdir(parents=True)
    return RealCluster(RULES[rules], {name: SCENARIOS[name] for name in names}, folder).play()

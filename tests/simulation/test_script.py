"""What the simulation does for a job's script is what bash does with its lines."""

import os
import random
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.scheduled.script import MOST_STARTS, NOT_STARTED, job_lines
from jobs.scheduled.slot import AGAIN, BEGUN, MOST_IDLE, NEWS, OVER, SICK
from slurm.shell import SHELL
from tests import commands
from tests.simulation import script
from tests.simulation.kernel import Host
from tests.simulation.script import JobScript
from tests.simulation.slurm import Job, Node

pytestmark = pytest.mark.process

FAKES = r"""
sleep() { echo "sleep $1" >&3; }
squeue() {
    echo "squeue $*" >&3
    if [[ $* == *%x* ]]; then cat excluded; return; fi
    local line; read -r line < answers; command sed -i 1d answers
    [ "$line" != fails ] || return 1
    echo "$line"
}
scontrol() {
    echo "scontrol $*" >&3
    case "$1 $2" in
        'show hostnames') tr , '\n' <<< "$3" ;;
        requeue*) local line; read -r line < requeues; command sed -i 1d requeues; [ "$line" != fails ] ;;
    esac
}
sinfo() { echo "sinfo $*" >&3; cat nodes; }
mkdir() { [ ! -e full ] && command mkdir "$@"; }
"""
NODES = (
    "n1|mix|4|8|gpu:2|a",
    "n2|idle~|4|8|gpu:2|a",
    "n3|down*|4|8|gpu:2|a",
    "n4|idle|8|8|gpu:2|a",
    "n5|idle*|4|8|gpu:2|a",
)
RUNNING, AT_LIMIT, ENDING = "RUNNING|None", "COMPLETING|TimeLimit", "COMPLETING|None"


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a script meets."""

    files: Mapping[str, str] = field(default_factory=dict)
    """Files in the folder of the job before it starts."""
    starts: int = 0
    """How many starts it has had."""
    makes: Mapping[str, str] = field(default_factory=dict)
    """Files that its program makes in the folder of the job; ``START`` is that of the start."""
    code: int = 0
    """Exit code of its program."""
    is_full: bool = False
    """Whether no folder can be made."""
    restarts: int | None = None
    is_at_limit: bool = False
    """Whether SIGTERM comes while the program runs."""
    answers: Sequence[str] = (RUNNING,)
    """Those of squeue about the state of the job. "fails": there is none."""
    excluded: str = ""
    """The nodes that the job avoids already."""
    requeues: Sequence[str] = ("works",)
    """Likewise of ``scontrol requeue``."""
    nodes: Sequence[str] = NODES
    own: str = "n1"
    """The nodes of the job."""
    may_avoid: bool = True


def cases() -> list[Case]:
    """Return cases, of which each kind of answer is part of some."""
    dice, found = random.Random(0), []
    for _ in range(160):
        starts = dice.choice((0, 0, 1, 2, 3, 7, MOST_IDLE - 1, MOST_IDLE, 14))
        own = dice.choice(("n1", "n1", "n1", "n1,n2"))
        begun = [node for node in own.split(",") if dice.random() < 0.7]
        makes = {f"START/{BEGUN}{node}": "" for node in begun}
        makes |= {f"START/{NEWS}": ""} if dice.random() < 0.4 else {}
        makes |= (
            {f"START/{SICK}": dice.choice(("n1\n", "n1\nn2\n", "", "$(date)\nn 1\n"))} if dice.random() < 0.5 else {}
        )
        changes = ("memory_mb=200\n", "minutes=7\nrm -rf x\nminutes=7 Nice=3\n", "wait_s=9\n", "")
        makes |= {f"START/{AGAIN}": dice.choice(changes)} if dice.random() < 0.5 else {}
        makes |= {OVER: dice.choice(("0\n", "1\n"))} if dice.random() < 0.15 else {}
        before = {f"{number}/{NEWS}": "" for number in range(1, starts + 1) if dice.random() < 0.2}
        before |= {OVER: "1\n"} if dice.random() < 0.05 else {}
        is_at_limit = dice.random() < 0.15
        standing = (
            RUNNING,
            RUNNING,
            AT_LIMIT,
            ENDING,
            "PENDING|BeginTime",
            "SIGNALING|None",
            "",
            "fails",
        )
        answers = [dice.choice((AT_LIMIT, RUNNING, ENDING))] if is_at_limit else []
        answers += [dice.choice(standing) for _ in range(dice.choice((1, 1, 2, 5)))]
        found.append(
            Case(
                files=before,
                starts=starts,
                makes=makes,
                code=dice.choice((0, 0, 1, 3, NOT_STARTED, 128 + signal.SIGTERM, 137)),
                is_full=dice.random() < 0.15,
                restarts=dice.choice((None, 1, MOST_STARTS - 1, MOST_STARTS)),
                is_at_limit=is_at_limit,
                answers=[*answers, RUNNING, ENDING, ENDING, ENDING, ENDING],
                requeues=[dice.choice(("works", "works", "fails")) for _ in range(6)],
                excluded=dice.choice(("", "", "n2", "n3,n4")),
                nodes=dice.choice((NODES, NODES[:1], [])),
                own=own,
                may_avoid=dice.random() < 0.8,
            )
        )
    return found


def prepare(folder: Path, case: Case) -> None:
    """Write what a script finds."""
    slot = folder / "job-0-3"
    for number in range(1, case.starts + 1):
        (slot / str(number)).mkdir(parents=True)
    for name, text in case.files.items():
        slot.mkdir(parents=True, exist_ok=True)
        (slot / name).write_text(text, "utf-8")


def in_bash(folder: Path, case: Case) -> list[str]:
    """Return what bash does: the commands in their order, and how it ends."""
    prepare(folder, case)
    for name, lines in (
        ("answers", case.answers),
        ("requeues", case.requeues),
        ("excluded", [case.excluded]),
        ("nodes", case.nodes),
    ):
        (folder / name).write_text("".join(f"{line}\n" for line in lines), "utf-8")
    if case.is_full:
        (folder / "full").touch()
    launch = ["echo launch >&3"]
    for number, (name, text) in enumerate(case.makes.items()):
        (folder / f"text-{number}").write_text(text, "utf-8")
        path = f'"$1/{name.removeprefix("START/")}"' if name.startswith("START/") else f'"$slot/{name}"'
        launch.append(f"cat text-{number} > {path}")
    if case.is_at_limit:
        launch.append("kill -TERM $$; command sleep 0.3")
    launch.append(f"exit {case.code}")
    lines = job_lines(SHELL, folder / "job-0", launch, may_avoid=case.may_avoid)
    (folder / "script.sh").write_text(f"{FAKES}\n{lines}\n", "utf-8")
    env = {**os.environ, "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "15"}
    env |= {"SLURMD_NODENAME": "n1", "SLURM_JOB_NODELIST": case.own, "SLURM_JOB_PARTITION": "main"}
    env |= {"SLURM_JOB_NUM_NODES": str(len(case.own.split(",")))}
    env |= {} if case.restarts is None else {"SLURM_RESTART_COUNT": str(case.restarts)}
    done = commands.run(["bash", "-c", "bash script.sh 3> said > /dev/null 2> errors; echo $?"], cwd=folder, env=env)
    return [*(folder / "said").read_text("utf-8").splitlines(), f"ends with {done.stdout.strip()}"]


class Asking(JobScript):
    """The script of a job that finds real files, and answers of a case."""

    def __init__(self, folder: Path, case: Case) -> None:
        self.said: list[str] = []
        self.case, self.answers, self.requeues = case, iter(case.answers), iter(case.requeues)
        kernel: Any = SimpleNamespace(sleep=lambda seconds: self.said.append(f"sleep {seconds}"))
        job = Job(
            number=15,
            array=12,
            index=3,
            tasks=4,
            at_once=None,
            script=job_lines(SHELL, folder / "job-0", ["srun jobs.scheduled.job PLAN"], may_avoid=case.may_avoid),
            options={},
            env={},
            restarts=case.restarts or 0,
        )
        job.nodes = [Node(host=Host(name), cpus=4, gpus=2) for name in case.own.split(",")]
        super().__init__(SimpleNamespace(kernel=kernel), job)  # type: ignore[arg-type]

    def _ask(self, *words: str) -> tuple[int, str]:
        self.said.append(" ".join(words))
        match words:
            case ("squeue", *_, "%x"):
                return 0, self.case.excluded
            case ("squeue", *_):
                answer = next(self.answers)
                return (1, "") if answer == "fails" else (0, answer)
            case ("scontrol", "show", "hostnames", names):
                return 0, names.replace(",", "\n")
            case ("scontrol", "requeue", _):
                return int(next(self.requeues) == "fails"), ""
            case ("sinfo", *_):
                return 0, "\n".join(self.case.nodes)
        return 0, ""

    def launch(self, start: Path) -> int:
        self.said.append("launch")
        for name, text in self.case.makes.items():
            path = start / name.removeprefix("START/") if name.startswith("START/") else start.parent / name
            path.write_text(text, "utf-8")
        if self.case.is_at_limit:
            self._at_signal()
        return self.case.code


def simulated(folder: Path, case: Case) -> list[str]:
    """Return what the simulation does in a case."""
    prepare(folder, case)
    played = Asking(folder, case)
    with pytest.MonkeyPatch.context() as patch:
        if case.is_full:
            patch.setattr(script, "made", lambda folder: False)
        code = played.play(played.launch)
    return [*played.said, f"ends with {code}"]


def test_the_simulation_does_for_a_script_what_bash_does(tmp_path: Path) -> None:
    back = 0
    for number, case in enumerate(cases()):
        real, ours = tmp_path / f"{number}-bash", tmp_path / f"{number}-ours"
        real.mkdir()
        ours.mkdir()
        found = in_bash(real, case)
        assert found == simulated(ours, case), (case, (real / "errors").read_text("utf-8"))
        back += "scontrol requeue 12_3" in found
    assert 20 < back < 140

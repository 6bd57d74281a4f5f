"""What the simulation does at the end of a job's script is what bash does with its last lines."""

import itertools
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slurm.submission import AGAIN, MOST_STARTS, NOT_STARTED, last_lines
from tests import commands
from tests.simulation.files import Files
from tests.simulation.kernel import Host, Kernel, Process
from tests.simulation.slurm import Job, Script

pytestmark = pytest.mark.process

TERM = 128 + signal.SIGTERM
STOPPING = [128 + number for number in (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)]
"""Exit codes that no end by a signal has: these signals end nothing, and the script would stand still."""
CHANGES = (
    *("MinMemoryNode=200", "TimeLimit=7", "rm -rf x", "TimeLimit=7 Nice=3"),
    *("StartTime=now+9 ExcNodeList=n1,n2", ""),
)
DRIVER = r"""
ulimit -c 0
while IFS='|' read -r code restarts squeue_fails answer requeue_fails changes; do
    rm -f requeue-15
    [ -z "$changes" ] || printf '%b' "$changes" > requeue-15
    echo 0 > asked; echo 0 > wanted
    export code restarts squeue_fails answer requeue_fails
    [ "$restarts" = none ] && unset SLURM_RESTART_COUNT || export SLURM_RESTART_COUNT=$restarts
    bash script.sh 3>&1 > printed
    echo "ends with $?"
    [ ! -e requeue-15 ] || echo "has the changes still"
done 2> /dev/null
"""
FAKES = r"""
sleep() { echo "sleep $1" >&3; }
squeue() {
    echo "squeue $*" >&3; read n < asked; echo $((n + 1)) > asked
    [ $n -ge $squeue_fails ] || return 1
    echo "$answer"
}
scontrol() {
    echo "scontrol $*" >&3
    [ $1 = requeue ] || return 1
    read n < wanted; echo $((n + 1)) > wanted
    [ $n -ge $requeue_fails ]
}
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a script meets."""

    code: int
    restarts: int | None = None
    squeue_fails: int = 0
    state: str = "RUNNING"
    requeue_fails: int = 0
    changes: Sequence[str] = ()


def cases() -> Iterator[Case]:
    yield from (Case(code=code) for code in range(256) if code not in STOPPING)
    for code, restarts, fails, state in itertools.product(
        (TERM, NOT_STARTED), (None, 1, MOST_STARTS - 2, MOST_STARTS - 1, MOST_STARTS), (0, 1, 4), ("", "COMPLETING")
    ):
        yield Case(code=code, restarts=restarts, squeue_fails=fails, state=state)
        yield Case(code=code, restarts=restarts, squeue_fails=fails)
    for code, restarts, fails in itertools.product((AGAIN, TERM, NOT_STARTED), (None, MOST_STARTS + 1), (0, 1, 3, 4)):
        yield Case(code=code, restarts=restarts, requeue_fails=fails, changes=CHANGES)
        yield Case(code=code, restarts=restarts, requeue_fails=fails, changes=CHANGES[2:3])


def in_bash(folder: Path, asked: Sequence[Case]) -> list[list[str]]:
    """Return what bash does in each case: the commands in their order, and how it ends."""
    changes = str(folder / "requeue-$SLURM_JOB_ID")
    (folder / "script.sh").write_text(f"{FAKES}\n{last_lines(changes)}\n", "utf-8")
    (folder / "driver.sh").write_text(DRIVER, "utf-8")
    rows = [
        f"{one.code}|{'none' if one.restarts is None else one.restarts}|{one.squeue_fails}|{one.state}|"
        f"{one.requeue_fails}|{''.join(line + chr(92) + 'n' for line in one.changes)}\n"
        for one in asked
    ]
    env = {**os.environ, "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "15"}
    (folder / "cases").write_text("".join(rows), "utf-8")
    done = commands.run(["bash", "-c", "bash driver.sh < cases"], cwd=folder, env=env)
    found: list[list[str]] = [[]]
    for line in done.stdout.splitlines():
        if line == "has the changes still":
            found[-2].append(line)
            continue
        found[-1].append(line)
        if line.startswith("ends with "):
            found.append([])
    return found[:-1]


def simulated(case: Case) -> list[str]:
    """Return what the simulation does in a case."""
    kernel, said = Kernel(0), list[str]()
    files = Files(kernel)
    answers = {"squeue": case.squeue_fails, "requeue": case.requeue_fails}

    def command(process: Process, words: Sequence[str], env: Mapping[str, str], timeout: float | None) -> Any:
        said.append(" ".join(words))
        kind = words[0] if words[0] == "squeue" else words[1]
        if kind == "update":
            return 1, "", ""
        answers[kind] -= 1
        return (1, "", "") if answers[kind] >= 0 else (0, f"{case.state}\n" if kind == "squeue" else "", "")

    cluster: Any = SimpleNamespace(kernel=kernel, world=SimpleNamespace(files=files), command=command)
    job = Job(
        number=15,
        array=12,
        index=3,
        tasks=4,
        at_once=None,
        script="srun slurm.job PLAN || code=$?",
        options={"chdir": "/sim/jobs"},
        env={},
        restarts=case.restarts or 0,
    )
    if case.changes:
        files.put("/sim/jobs/requeue-15", "".join(f"{line}\n" for line in case.changes).encode())
    kernel.sleep = lambda seconds: said.append(f"sleep {seconds}")  # type: ignore[method-assign]
    script = Script(cluster, job)
    output = files.open_log("/sim/jobs/out")
    process = kernel.spawn(Host("n1"), ["bash"], lambda: script.end(case.code), env={}, output=output)
    kernel.play(kernel.now + 60)
    kernel.end_all()
    assert process.exit_code is not None
    said.append(f"ends with {process.exit_code if process.exit_code >= 0 else 128 - process.exit_code}")
    if files.look("/sim/jobs/requeue-15") is not None:
        said.append("has the changes still")
    return said


def test_the_simulation_ends_a_script_as_bash_does_for_each_exit_code_and_answer_of_slurm(tmp_path: Path) -> None:
    asked = list(cases())
    found = in_bash(tmp_path, asked)
    assert len(found) == len(asked)
    told = [simulated(case) for case in asked]
    differences = [(case, real, ours) for case, real, ours in zip(asked, found, told, strict=True) if real != ours]
    assert not differences, differences[:3]
    requeued = [case.code for case, real in zip(asked, found, strict=True) if any("requeue" in line for line in real)]
    assert set(requeued) == {AGAIN, TERM, NOT_STARTED}

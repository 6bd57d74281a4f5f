"""The script of a job in a simulation: what bash does with :mod:`jobs.scheduled.script` and :mod:`slurm.shell`.

:mod:`tests.simulation.test_script` compares the two.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs.scheduled.script import CHANGE, MOST_STARTS, NODE, NOT_STARTED, REFUSALS
from jobs.scheduled.slot import AGAIN, BEGUN, MOST_IDLE, NEWS, OVER, SICK
from slurm.shell import USABLE
from tests.simulation.slurm import Script

WORDS = {"memory_mb": "MinMemoryNode=", "minutes": "TimeLimit=", "wait_s": "StartTime=now+"}
"""Name of a change -> how scontrol has it."""


class JobScript(Script):
    """The script of a job."""

    is_back = False
    """Whether SIGTERM at the time limit has put the job back."""

    def attend(self) -> int:
        self.process.handlers[signal.SIGTERM] = self._at_signal
        self._wait()
        return self.play(lambda start: self._srun(str(start)))

    def _at_signal(self, *_: object) -> None:
        """Put the job back if it is at its time limit. The script waits for a child, so no file holds it up."""
        if not self.is_back and self._standing() == "limit":
            failed, _ = self._ask("scontrol", "requeue", self.job.id)
            self.is_back = not failed

    def play(self, launch: Callable[[Path], int]) -> int:
        """Do what the script does, statement by statement; return its exit code."""
        job, kernel = self.job, self.kernel
        nodes = [node.host.name for node in job.nodes]  # as the environment has them, although SLURM may have forgotten
        if (over := self._text(self.slot / OVER)) is not None:
            return int(over)
        number = self._begin()
        start, code = self.slot / str(number), 1
        if number:
            code = launch(start)
        if (over := self._text(self.slot / OVER)) is not None:
            return int(over)
        if number and is_there(self.slot / str(number + 1)):
            return code
        idle = 5
        if number:
            idle = 0
            while idle < number and not is_there(self.slot / str(number - idle) / NEWS):
                idle += 1
        if idle >= MOST_IDLE or (not number and job.restarts >= MOST_STARTS):
            return code or 1
        sick = nodes[:1]
        if number:
            names = self._hostnames(",".join(nodes))
            sick = [name for name in names if not is_there(start / f"{BEGUN}{name}")]
            if len(sick) == len(names) and code in (NOT_STARTED, 128 + signal.SIGTERM):
                sick = []
            sick += [line for line in (self._text(start / SICK) or "").splitlines() if re.fullmatch(NODE, line)]
        refused, pause = 0, 1
        while True:
            standing = self._standing()
            if standing == "over":
                if refused:
                    break
                return code
            if standing in ("running", "limit"):
                failed, _ = self._ask("scontrol", "requeue", job.id)
                if not failed or standing == "limit":
                    break
                refused += 1
                if refused == REFUSALS:
                    return 137
            kernel.sleep(pause)
            pause = min(2 * pause, 4)
        self._change(start, idle, sick, nodes)
        return 0

    @property
    def slot(self) -> Path:
        """The folder of the job."""
        found = re.search(r"^slot=(.*)-[$]index$", self.job.script, re.M)
        assert found is not None
        return Path(f"{shlex.split(found[1])[0]}-{self.job.index}")

    def _begin(self) -> int:
        """Make the folder of this start; return its number. 0: it cannot be made."""
        slot = self.slot
        for seconds in (0, 1, 2, 4, 8):
            self.kernel.sleep(seconds)
            if not is_there(slot) and not made(slot):
                continue
            number = 1
            while not made(slot / str(number)):
                if not is_there(slot / str(number)):
                    break
                number += 1
            else:
                return number
        return 0

    def _standing(self) -> str | None:
        """Return what ``standing`` prints. ``None``: it fails."""
        failed, answer = self._ask("squeue", "-h", "-j", self.job.id, "-o", "%T|%r")
        state, _, reason = answer.partition("|")
        if failed:
            return None
        if state == "RUNNING":
            return "running"
        if (state, reason) == ("COMPLETING", "TimeLimit"):
            return "limit"
        return "soon" if state in ("SIGNALING", "SUSPENDED", "STOPPED", "RESIZING") else "over"

    def _hostnames(self, names: str) -> list[str]:
        return self._ask("scontrol", "show", "hostnames", names)[1].split()

    def _text(self, path: Path) -> str | None:
        """Return what a file has. ``None``: nothing, or it cannot be read."""
        with contextlib.suppress(OSError):
            return path.read_text("utf-8") or None
        return None

    def _change(self, start: Path, idle: int, sick: Sequence[str], own: Sequence[str]) -> None:
        """Change the job, which is back in the queue."""
        job = self.job
        lines = (self._text(start / AGAIN) or "").splitlines()
        changes = [line for line in lines if re.fullmatch(CHANGE, line)]
        if idle >= 3:
            changes.append(f"wait_s={15 << (idle - 1) if idle < 8 else 1800}")
        for line in changes:
            name, _, amount = line.partition("=")
            self._ask("scontrol", "update", f"JobId={job.id}", f"{WORDS[name]}{amount}")
        if sick and "&& true; then" in job.script:
            excluded = self._ask("squeue", "-h", "-j", job.id, "-o", "%x")[1]
            avoided = [*self._hostnames(excluded), *sick]
            rows = self._ask("sinfo", "-N", "-h", "-p", "main", "-o", "%N|%t|%c|%m|%G|%f")[1].splitlines()
            nodes = [(*row.split("|", 2),) for row in rows]
            wanted = next((kind for name, _, kind in nodes if name == own[0]), None)
            like = [name for name, state, kind in nodes if kind == wanted and re.fullmatch(USABLE, state)]
            if len([name for name in like if name not in avoided]) >= len(own):
                self._ask("scontrol", "update", f"JobId={job.id}", f"ExcNodeList={','.join(avoided)}")


def is_there(path: Path) -> bool:
    """Return whether bash finds a file or folder: one that it cannot look at is none."""
    with contextlib.suppress(OSError):
        return path.exists()
    return False


def made(folder: Path) -> bool:
    """Return whether a folder could be made."""
    try:
        folder.mkdir()
    except OSError:
        return False
    return True

"""How a test puts the fake programs on PATH, and says what becomes of jobs."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import final

import pytest

from tests.fake_slurm.room import NODES, Job, opened

_NAMES = ("sbatch", "squeue", "sacct", "scancel", "scontrol", "sinfo")


@final
class FakeSlurm:
    """A folder with the programs (``bin``) and the state of their jobs. Jobs run nothing: the test plays them.

    Jobs are named as SLURM does: ``"7"``, ``"7_2"``. ``"7"`` of an array means all its tasks.
    """

    def __init__(self, folder: Path, *, accounting: bool = False, max_array_size: int = 1001) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        program = Path(__file__).with_name("programs.py")
        for name in _NAMES:
            command = shlex.join([sys.executable, "-S", "-E", str(program), name, str(folder)])
            self._write(name, f'exec {command} "$@"')
        self._write("srun", "exit 1")  # by which submitit knows a cluster
        with opened(folder) as room:
            room.accounting, room.max_array_size = accounting, max_array_size

    def on_path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have this process and its children find these programs before any others."""
        monkeypatch.setenv("PATH", f"{self.bin}{os.pathsep}{os.environ['PATH']}")

    # -- what the test says --------------------------------------------------------------------------------------------

    def start(self, job: str, node: str = NODES[0]) -> None:
        """A waiting job begins to run."""
        with opened(self.folder) as room:
            for one in room.found(job):
                room.start(one, node)

    def finish(self, job: str, state: str = "COMPLETED", *, exit_code: int = 0) -> None:
        """A job ends: COMPLETED, FAILED, TIMEOUT, NODE_FAIL, OUT_OF_MEMORY, ..."""
        with opened(self.folder) as room:
            for one in room.found(job):
                room.end(one, state, exit_code)

    def preempt(self, job: str) -> None:
        """A running job goes back to the queue, as after preemption or a lost node."""
        with opened(self.folder) as room:
            for one in room.found(job):
                room.requeue(one)

    def hold_up(self, job: str, reason: str) -> None:
        """A waiting job has a reason, such as Resources or Dependency."""
        with opened(self.folder) as room:
            for one in room.found(job):
                one.reason = reason

    def purge(self, job: str) -> None:
        """The controller forgets a job; accounting, if there is any, does not."""
        with opened(self.folder) as room:
            for one in room.found(job):
                one.known = False

    def controller(self, *, up: bool) -> None:
        """While it is down every program that needs it fails, at once."""
        with opened(self.folder) as room:
            room.controller = up

    def limit_jobs(self, most: int) -> None:
        """sbatch refuses what would make more waiting and running jobs than these."""
        with opened(self.folder) as room:
            room.max_submitted = most

    # -- what the programs were asked ----------------------------------------------------------------------------------

    def calls(self, *names: str) -> list[list[str]]:
        """The command lines so far, of these programs or all."""
        path = self.folder / "calls.jsonl"
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        found: list[list[str]] = [json.loads(line) for line in lines]
        return [call for call in found if not names or call[0] in names]

    def forget_calls(self) -> None:
        (self.folder / "calls.jsonl").unlink(missing_ok=True)

    def jobs(self) -> dict[str, Job]:
        """Every job ever submitted, by its id."""
        with opened(self.folder) as room:
            return {job.id: job for job in room.jobs}

    def environment(self, number: int) -> dict[str, str]:
        """What the jobs of a submission get of the environment in which sbatch was called."""
        with opened(self.folder) as room:
            return dict(room.environments[str(number)])

    def states(self) -> dict[str, str]:
        return {job: record.state for job, record in self.jobs().items()}

    def _write(self, name: str, body: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{body}\n", "utf-8")
        (self.bin / name).chmod(0o755)

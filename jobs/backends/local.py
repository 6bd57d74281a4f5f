"""Backend ``local``: this machine's cores or GPUs as slots, each rank a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, final

from jobs.attempt.memory_kills import MemoryKills
from jobs.attempt.rank import PEER_GRACE_SECONDS, Ended, ended, rank_variables, rendezvous_variables
from jobs.backends.base import Backend
from jobs.plan.capacity import Allocation, Capacity, Node
from jobs.spec import Resources, RunSpec, Submission
from jobs.study.kept_code import Code
from seqlm import machine
from seqlm.errors import BackendError, FileError
from seqlm.rundir import RunDirectory, append_to, make_directory


@dataclass
class _Job:
    ranks: list[subprocess.Popen[bytes]]
    allocations: list[Allocation]
    first_failure_at: float | None = field(default=None)


@final
class LocalBackend(Backend):
    """Slots are GPUs, or shares of them, where the machine has some, and cores always."""

    name = "local"

    def __init__(self) -> None:
        self._capacity = this_machine()
        self._free = self._capacity.copy()
        self._jobs: dict[str, _Job] = {}
        self._memory_kills = MemoryKills()

    def describe(self) -> str:
        gpus = f"{self._capacity.gpus:g} GPUs, " if self._capacity.gpus else ""
        return f"this machine ({gpus}{self._capacity.cpus:g} cores)"

    def capacity(self) -> Capacity:
        return self._capacity.copy()

    def resolve(self, spec: RunSpec, at_most: int) -> Resources:
        resources = self._capacity.resolve(spec.resources, at_most)
        require_precision(spec, resources)
        return resources

    def open(self, code: Code) -> None:
        """Nothing to do: a process needs no preparation."""

    def close(self) -> None:
        for job in self._jobs.values():
            self._end_processes(job, signal.SIGKILL)

    def free(self) -> Capacity:
        return self._free.copy()

    def held(self, job_id: str) -> Sequence[Allocation]:
        return self._jobs[job_id].allocations

    def submit(self, submission: Submission) -> str:
        resources = submission.resources
        assert resources.cpus is not None, "resources are resolved before they are submitted"
        allocations = self._free.place(resources)
        assert allocations is not None, "asked whether there is room before"
        run = RunDirectory(submission.run_dir)
        make_directory(run.attempt_dir(submission.attempt))
        job = _Job(ranks=[], allocations=allocations)
        try:
            with (
                append_to(run.stdout_log(submission.attempt)) as stdout,
                append_to(run.stderr_log(submission.attempt)) as stderr,
            ):
                for rank, allocation in enumerate(allocations):
                    env = self._rank_env(submission, rank, allocation.device)
                    job.ranks.append(self._start(submission, env, stdout, stderr, job.ranks))
        except OSError as error:
            self._end_processes(job, signal.SIGKILL)
            raise FileError.from_os_error("start a worker in", submission.run_dir, error) from None
        job_id = str(job.ranks[0].pid)
        self._jobs[job_id] = job
        self._free.take(allocations)
        return job_id

    def poll(self, job_id: str) -> Ended | None:
        job = self._jobs[job_id]
        polled = [process.poll() for process in job.ranks]
        codes = [code for code in polled if code is not None]
        if any(codes) and None in polled:
            job.first_failure_at = job.first_failure_at or time.monotonic()
            if time.monotonic() - job.first_failure_at > PEER_GRACE_SECONDS:
                self._end_processes(job, signal.SIGKILL)
            return None
        if None in polled:
            return None
        del self._jobs[job_id]
        self._free.give_back(job.allocations)
        killed = [rank for rank, code in enumerate(codes) if code == -signal.SIGKILL]
        return ended(codes, out_of_memory=killed[:1] if killed and self._memory_kills.explain_one() else ())

    def stop(self, job_id: str, *, force: bool) -> None:
        if job_id in self._jobs:
            self._end_processes(self._jobs[job_id], signal.SIGKILL if force else signal.SIGTERM)

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def _rank_env(self, submission: Submission, rank: int, device: str | None) -> dict[str, str]:
        env = {**os.environ, **rank_variables(submission, rank, device)}
        if device is not None:
            env[machine.ORDER] = machine.PCI_ORDER  # a GPU without a UUID has nvidia-smi's number
        if "PYTHONPATH" in os.environ and "PYTHONPATH" in submission.env:
            env["PYTHONPATH"] = os.pathsep.join((submission.env["PYTHONPATH"], os.environ["PYTHONPATH"]))
        if submission.resources.ranks > 1:
            env |= rendezvous_variables(RunDirectory(submission.run_dir), submission.attempt, "127.0.0.1")
            env.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
        return env

    @staticmethod
    def _start(
        submission: Submission,
        env: dict[str, str],
        stdout: IO[bytes],
        stderr: IO[bytes],
        started: list[subprocess.Popen[bytes]],
    ) -> subprocess.Popen[bytes]:
        # One process group for each run: Ctrl-C in the launcher's terminal does not reach the workers, which the
        # launcher stops itself, and `cancel` from another terminal reaches all ranks at once.
        group = started[0].pid if started else 0
        return subprocess.Popen(
            submission.argv,
            cwd=submission.cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            process_group=group,
        )

    @staticmethod
    def _end_processes(job: _Job, number: signal.Signals) -> None:
        for process in job.ranks:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
        if number is signal.SIGKILL:
            for process in job.ranks:
                process.wait()


def this_machine() -> Capacity:
    """The cores and GPUs of this machine that this process may use.

    Raises:
        UsageError: CUDA_VISIBLE_DEVICES names a GPU that does not exist, or names one twice.
    """
    gpus = {device: 1.0 for device, _ in machine.gpus()}
    return Capacity([Node(name="this machine", cpus=machine.cpu_count(), gpus=gpus)], where="this machine")


def require_precision(spec: RunSpec, resources: Resources) -> None:
    """Refuse now what the worker would refuse later (it also checks GPUs, which need torch to be asked).

    Raises:
        BackendError: the run would be on this machine's processor, which lacks its precision.
    """
    precision = spec.config.train.precision
    if not resources.gpus and (precision == "tf32" or (precision == "bf16" and not machine.has_bf16())):
        needs = "an NVIDIA GPU" if precision == "tf32" else f"{' or '.join(machine.BF16_FLAGS)}, or an NVIDIA GPU"
        raise BackendError(
            f'{spec.name}: train.precision = "{precision}" needs {needs}; this run would be on the processor '
            f'({machine.cpu_model()}); use "fp32"'
        )

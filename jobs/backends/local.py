"""Backend ``local``: this machine's cores and GPUs as slots, and one process for each rank."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from jobs.attempt.memory_kills import MemoryKills
from jobs.attempt.outcome import Ended
from jobs.attempt.supervisor import INTERFACE_VARIABLE, Supervisor, rank_variables
from jobs.backends.base import Backend
from jobs.plan.capacity import Allocation, Capacity, Node
from jobs.spec import Resources, RunSpec, Submission
from jobs.study.kept_code import Code
from seqlm import machine
from seqlm.errors import BackendError, FileError


@dataclass(frozen=True, kw_only=True)
class _Job:
    ranks: Supervisor
    allocations: list[Allocation]


@final
class LocalBackend(Backend):
    """Runs ranks on this machine. A slot is a GPU or a share of one, if the machine has any, and cores."""

    name = "local"

    def __init__(self) -> None:
        self._capacity = this_machine()
        self._free = self._capacity.copy()
        self._jobs: dict[str, _Job] = {}
        self._memory_kills = MemoryKills()

    def describe(self) -> str:
        return f"this machine ({self._capacity.describe()})"

    def capacity(self) -> Capacity:
        return self._capacity.copy()

    def resolve(self, spec: RunSpec, at_most: int) -> Resources:
        resources = self._capacity.resolve(spec.resources, at_most)
        require_precision(spec, resources)
        return resources

    def open(self, code: Code) -> None:
        """Do nothing: a process needs no preparation."""

    def close(self) -> None:
        for job in self._jobs.values():
            job.ranks.end()

    def free(self) -> Capacity:
        return self._free.copy()

    def held(self, job_id: str) -> Sequence[Allocation]:
        return self._jobs[job_id].allocations

    def submit(self, submission: Submission) -> str:
        resources = submission.resources
        assert resources.cpus is not None, "resources are resolved before they are submitted"
        allocations = self._free.place(resources)
        assert allocations is not None, "asked whether there is room before"
        ranks = Supervisor(submission, memory_kills=self._memory_kills, outlives_parent=True)
        try:
            for rank, allocation in enumerate(allocations):
                ranks.start(rank, self._variables(submission, rank, allocation.device))
        except OSError as error:
            ranks.end()
            raise FileError.from_os_error("start a worker in", submission.run_dir, error) from None
        job_id = str(ranks.pid)
        self._jobs[job_id] = _Job(ranks=ranks, allocations=allocations)
        self._free.take(allocations)
        return job_id

    def poll(self, job_id: str) -> Ended | None:
        job = self._jobs[job_id]
        ended = job.ranks.poll()
        if ended is not None:
            del self._jobs[job_id]
            self._free.give_back(job.allocations)
        return ended

    def stop(self, job_id: str, *, force: bool) -> None:
        if job_id not in self._jobs:
            return
        ranks = self._jobs[job_id].ranks
        if force:
            ranks.end()
        else:
            ranks.signal(signal.SIGTERM)

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    @staticmethod
    def _variables(submission: Submission, rank: int, device: str | None) -> dict[str, str]:
        loopback = "lo0" if sys.platform == "darwin" else "lo"
        interface = os.environ.get(INTERFACE_VARIABLE, loopback)
        variables = rank_variables(submission, rank, device, interface=interface)
        if device is not None:
            variables[machine.ORDER] = machine.PCI_ORDER  # a GPU without a UUID has nvidia-smi's number
        return variables


def this_machine() -> Capacity:
    """Return the cores and GPUs of this machine that this process may use.

    Raises:
        UsageError: CUDA_VISIBLE_DEVICES names a GPU that does not exist, or names one twice.
    """
    gpus = {device: 1.0 for device, _ in machine.gpus()}
    return Capacity([Node(name="this machine", cpus=machine.cpu_count(), gpus=gpus)], where="this machine")


def require_precision(spec: RunSpec, resources: Resources) -> None:
    """Refuse a precision that this machine's processor lacks. The worker checks GPUs, for which torch is needed.

    Raises:
        BackendError: the run would use the processor, which lacks its precision.
    """
    precision = spec.config.train.precision
    if not resources.gpus and (precision == "tf32" or (precision == "bf16" and not machine.has_bf16())):
        needs = "an NVIDIA GPU" if precision == "tf32" else f"{' or '.join(machine.BF16_FLAGS)}, or an NVIDIA GPU"
        raise BackendError(
            f'{spec.name}: train.precision = "{precision}" needs {needs}; this run would be on the processor '
            f'({machine.cpu_model()}); use "fp32"'
        )

"""Backend ``local``: this machine's cores and GPUs as slots, and one process for each rank."""

import functools
import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from jobs.attempt.supervisor import INTERFACE_VARIABLE, Ended, MemoryKills, Supervisor, rank_variables
from jobs.backends.base import Backend, BackendTable, Executor
from jobs.plan.capacity import Allocation, Capacity, Card, Node, with_noun
from jobs.spec import Resources, RunSpec, Submission
from jobs.study.kept_code import Code
from seqlm import machine
from seqlm.errors import BackendError, FileError


class LocalBackend(Backend, Executor):
    """Runs ranks on this machine. A slot is a GPU or a share of one, if the machine has any, and cores."""

    name = "local"
    is_here = True

    host: str | None = None
    """Name of this node, for messages. ``None``: it needs none."""

    def __init__(self, settings: BackendTable | None = None, *, capacity: Capacity | None = None) -> None:
        """``capacity``: what runs may use. ``None``: all of this machine."""
        super().__init__(settings)
        self._capacity = capacity or this_machine()
        self._jobs: dict[str, tuple[Supervisor, list[Allocation]]] = {}
        """Job id -> its ranks and what they hold."""
        self._memory_kills = MemoryKills()

    def describe(self) -> str:
        return f"this machine ({self._capacity.describe()})"

    def capacity(self) -> Capacity:
        return self._capacity.copy()

    def resolve(self, spec: RunSpec, at_most: int) -> Resources:
        resources = self._capacity.resolve(spec.resources, at_most)
        require_device(spec, resources)
        return resources

    def executor(self, study_dir: Path) -> Executor:
        return self

    def open(self, code: Code) -> None:
        """Do nothing: there is nothing to prepare."""

    def close(self) -> None:
        for ranks, _ in self._jobs.values():
            ranks.signal(signal.SIGKILL)

    def free(self) -> Capacity:
        free = self.capacity()
        for _, allocations in self._jobs.values():
            free.take(allocations)
        return free

    def submit(self, submission: Submission) -> str:
        assert submission.resources.cpus is not None, "resources are resolved before they are submitted"
        allocations = self.free().place(submission.resources)
        assert allocations is not None, "asked whether there is room before"
        submission = submission.holding(allocations[0].gpus)
        ranks = Supervisor(submission, memory_kills=self._memory_kills, host=self.host)
        try:
            for rank, allocation in self.here(allocations):
                ranks.start(rank, self.variables(submission, rank, allocation.device))
        except OSError as error:
            ranks.signal(signal.SIGKILL)
            raise FileError.from_os_error("start a worker in", submission.run_dir, error) from None
        job_id = str(ranks.pid)
        self._jobs[job_id] = (ranks, allocations)
        return job_id

    def here(self, allocations: Sequence[Allocation]) -> Iterable[tuple[int, Allocation]]:
        """Return the ranks of a run that start on this node, and what they hold."""
        return enumerate(allocations)

    def variables(self, submission: Submission, rank: int, device: str | None) -> dict[str, str]:
        """Return the variables of a rank."""
        interface = os.environ.get(INTERFACE_VARIABLE, "lo0" if sys.platform == "darwin" else "lo")
        variables = rank_variables(submission, rank, device, interface=interface)
        if device is not None:
            variables[machine.ORDER] = machine.PCI_ORDER  # a GPU without a UUID has nvidia-smi's number
        return variables

    def ranks(self, job_id: str) -> Supervisor:
        """Return the ranks of a run that have not been seen to end."""
        return self._jobs[job_id][0]

    def poll(self, job_id: str) -> Ended | None:
        ended = self.ranks(job_id).poll()
        if ended is not None:
            del self._jobs[job_id]
        return ended

    def stop(self, job_id: str, *, force: bool) -> None:
        if job_id in self._jobs:
            ranks, _ = self._jobs[job_id]
            ranks.signal(signal.SIGKILL if force else signal.SIGTERM)

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)


def this_machine() -> Capacity:
    """Return the cores and GPUs of this machine that this process may use.

    Raises:
        UsageError: CUDA_VISIBLE_DEVICES names a GPU that does not exist, or names one twice.
    """
    cards = {gpu.id: Card(type=gpu.name, memory=functools.partial(_memory_of, gpu.id)) for gpu in machine.gpus()}
    gpus = dict.fromkeys(cards, 1.0)
    node = Node(name="this machine", cpus=machine.cpu_count(), gpus=gpus, cards=cards)
    return Capacity([node], where="this machine")


def _memory_of(gpu: str) -> float | None:
    return machine.gpu_memory_gb().get(gpu)


def require_device(spec: RunSpec, resources: Resources) -> None:
    """Refuse what this machine's devices can never do, as far as that is known without torch. The worker checks more.

    Raises:
        BackendError: the run would use the processor, which lacks its precision; it has several ranks, and too few of
            the GPUs are whole cards; or it has a share of a GPU, and one of them takes one process at a time.
    """
    gpus = resources.gpus or 0
    whole = [gpu for gpu in machine.gpus() if not gpu.id.startswith("MIG-")] if gpus else []
    if gpus and resources.ranks > 1 and len(whole) < resources.ranks:
        raise BackendError(
            f"{spec.name}: needs a whole GPU for each of {resources.ranks} ranks, since NCCL refuses ranks on MIG "
            f"instances of one card; this machine has {with_noun(len(whole), 'whole GPU')}"
        )
    if 0 < gpus < 1 and machine.mps_directory(os.environ) is None and (exclusive := machine.exclusive_gpus()):
        device, name = exclusive[0]
        raise BackendError(
            f"{spec.name}: resources.gpus = {gpus:g} needs GPUs for several processes, and the compute mode of "
            f"{machine.short_name(device)} ({name}) is Exclusive_Process; start an MPS daemon, or hide this GPU"
        )
    precision = spec.config.train.precision
    if not resources.gpus and (precision == "tf32" or (precision == "bf16" and not machine.has_bf16())):
        needs = "an NVIDIA GPU" if precision == "tf32" else f"{' or '.join(machine.BF16_FLAGS)}, or an NVIDIA GPU"
        raise BackendError(
            f'{spec.name}: train.precision = "{precision}" needs {needs}; this run would be on the processor '
            f'({machine.cpu_model()}); use "fp32"'
        )

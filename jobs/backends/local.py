"""Backend ``local``: this machine's cores and GPUs as slots, and one process for each rank."""

import functools
import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from jobs.attempt.supervisor import INTERFACE_VARIABLE, Ended, MemoryKills, Supervisor, rank_variables
from jobs.backends.base import Backend, Executor, Room, SharedTable
from jobs.backends.cards import Cards, withhold_left
from jobs.plan.capacity import TINY, Allocation, Capacity, Card, Node, with_noun
from jobs.spec import RunSpec, Submission
from jobs.study.kept_code import Code
from seqlm import machine
from seqlm.errors import BackendError, FileError
from seqlm.gpus import Claim, TakenError
from seqlm.resources import Resources


class LocalBackend(Backend, Executor):
    """Runs ranks on this machine. A slot is a GPU or a share of one, if the machine has any, and cores."""

    name = "local"
    TABLE = SharedTable
    is_here = True

    host: str | None = None
    """Name of this node, for messages. ``None``: it needs none."""

    def __init__(self, settings: SharedTable | None = None, *, capacity: Capacity | None = None) -> None:
        """``capacity``: what runs may use. ``None``: all of this machine."""
        super().__init__(settings)
        self._capacity = capacity or this_machine()
        self._cards: Cards | None = None
        """What other launches and programs leave of the GPUs. ``None``: runs have none, or a scheduler books them."""
        self._jobs: dict[str, tuple[Supervisor, list[Allocation], list[Claim | None]]] = {}
        """Job id -> its ranks, what they hold, and the bookings of their GPUs."""
        self._memory_kills = MemoryKills()

    def describe(self) -> str:
        return f"this machine ({self._capacity.describe()})"

    def capacity(self) -> Capacity:
        return self._capacity.copy()

    def resolve(self, spec: RunSpec, at_most: int) -> Resources:
        resources = self._capacity.resolve(spec.resources, at_most)
        require_left(resources, self._capacity, self.settings.leave_gpus)
        require_device(spec, resources)
        return resources

    def room(self, resources: Resources) -> Room | None:
        return room_of(self._capacity, resources)

    def executor(self, study_dir: Path) -> Executor:
        self._cards = cards_of(self._capacity, study_dir, self.settings.leave_gpus)
        return self

    def open(self, code: Code) -> None:
        """Announce this launch to others that take GPUs of this machine, if there are any GPUs.

        Raises:
            BackendError: the ledger of the GPUs cannot be used.
        """
        if self._cards is not None:
            self._cards.announce()

    def close(self) -> None:
        for ranks, _, _ in self._jobs.values():
            ranks.signal(signal.SIGKILL)
        if self._cards is not None:
            self._cards.close()

    def _own(self) -> Capacity:
        """Return what the runs of this launch leave."""
        own = self._capacity.copy()
        for _, allocations, _ in self._jobs.values():
            own.take(allocations)
        return own

    def free(self) -> Capacity:
        own = self._own()
        return own if self._cards is None else left_by_others(own, self._cards)

    def waits(self, wanted: Sequence[Resources]) -> None:
        if self._cards is not None:
            self._cards.waits(*least_gpus(self._own(), wanted, self.settings.leave_gpus))

    def submit(self, submission: Submission) -> str:
        assert submission.resources.cpus is not None, "resources are resolved before they are submitted"
        free = self.free()
        allocations = free.place(submission.resources)
        if allocations is None:
            raise TakenError(free.why_not(submission.resources))
        run_id = submission.run_dir.name
        claims: list[Claim | None] = [None] * len(allocations)
        if self._cards is not None:
            claims = self._cards.book(allocations, run_id)
        submission = submission.holding(allocations[0].gpus)
        ranks = Supervisor(submission, memory_kills=self._memory_kills, host=self.host)
        try:
            for rank, allocation in self.here(allocations):
                ranks.start(rank, self.variables(submission, rank, allocation.device), claim=claims[rank])
        except (OSError, FileError) as error:
            ranks.signal(signal.SIGKILL)
            for claim in claims:
                if claim is not None:
                    claim.release()
            if isinstance(error, FileError):
                raise
            raise FileError.from_os_error("start a worker in", submission.run_dir, error) from None
        job_id = str(ranks.pid)
        self._jobs[job_id] = (ranks, allocations, claims)
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

    def poll(self, job_id: str) -> Ended | None:
        ranks, _, claims = self._jobs[job_id]
        ended = ranks.poll()
        if ended is not None:
            del self._jobs[job_id]
            if self._cards is not None:
                self._cards.forget(claims)
        return ended

    def stop(self, job_id: str, *, force: bool) -> None:
        if job_id in self._jobs:
            ranks, _, _ = self._jobs[job_id]
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


def room_of(capacity: Capacity, resources: Resources) -> Room | None:
    """Return the memory that each rank of a run can have on this machine. ``None``: that of its GPUs is not known."""
    if not resources.gpus:
        return Room(machine.memory_bytes() / resources.ranks, capacity.where)
    memory_gb = capacity.gpu_memory_gb(resources)
    return None if memory_gb is None else Room(memory_gb * 1e9, f"its share of a GPU of {capacity.where}")


def _memory_of(gpu: str) -> float | None:
    return machine.gpu_memory_gb().get(gpu)


def require_left(resources: Resources, capacity: Capacity, leave: int) -> None:
    """Refuse a run that can never start because of the GPUs that its launch leaves to others.

    Raises:
        BackendError: it needs more than the others.
    """
    total = sum(len(node.gpus) for node in capacity.nodes.values())
    if resources.gpus and resources.ranks > total - leave:
        raise BackendError(
            f"never fits: needs {with_noun(resources.ranks, 'GPU')}, and leave_gpus = {leave} leaves this launch "
            f"{max(0, total - leave)} of the {total} of {capacity.where}"
        )


def cards_of(capacity: Capacity, study_dir: Path, leave: int) -> Cards | None:
    """Return the GPUs of this machine as a launch may take them. ``None``: there are none."""
    gpus = [gpu for node in capacity.nodes.values() for gpu in node.gpus]
    return Cards(gpus, study_dir, leave=leave) if gpus else None


def left_by_others(own: Capacity, cards: Cards) -> Capacity:
    """Return what other launches and programs leave of this machine. ``own`` is what runs of the launch leave of it."""
    (node,) = own.nodes.values()
    node.gpus, own.why_taken = cards.free(node.gpus)
    return own


def least_gpus(own: Capacity, wanted: Sequence[Resources], leave: int) -> tuple[float | None, set[str]]:
    """Return the least number of GPUs with which a waiting run could start if nobody else used this machine.

    Also return which GPUs such runs can use. ``None``: there is no such run. ``own`` is what runs of the launch leave.
    """
    (node,) = own.nodes.values()
    withhold_left(node.gpus, {gpu for gpu, share in node.gpus.items() if share < 1 - TINY}, leave)
    needs, fitting = list[float](), set[str]()
    for one in wanted:
        if one.gpus and (allocations := own.place(one)) is not None:
            needs.append(sum(allocation.gpus for allocation in allocations))
            fitting.update(node.shares(one))
    return min(needs, default=None), fitting


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

"""Free cores and GPUs of nodes: decide whether a run fits, where, and if not, why."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self, final

from seqlm.errors import BackendError
from seqlm.resources import Resources

SMALLEST_SHARE = 1e-4
"""Of a GPU, as Ray counts."""
TINY = 1e-6
"""Tolerance for rounding: GPU shares are added in floating point."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is known of a GPU, or of a part of one that MIG made."""

    type: str = ""
    """Its name, such as ``NVIDIA H100 NVL``. Empty: not known."""
    memory: Callable[[], float | None] = lambda: None
    """Returns its memory in 10^9 bytes, ``None`` if that is not known. It is called if a run asks for memory alone:
    nvidia-smi may take seconds to answer."""

    def is_a(self, accelerator_type: str) -> bool:
        """Whether its name has all words of that of a kind."""
        return _words(accelerator_type) <= _words(self.type)

    def share(self, resources: Resources) -> float | None:
        """Return how much of it a rank with resolved resources holds. ``None``: it is no GPU for that rank."""
        least, needed = resources.gpus or 0.0, resources.gpu_memory_gb
        if resources.accelerator_type is not None and not self.is_a(resources.accelerator_type):
            return None
        if needed is None:
            return least
        has = self.memory()
        if has is None or needed > has:
            return None
        return max(least, math.ceil(needed / has / SMALLEST_SHARE - TINY) * SMALLEST_SHARE)


UNKNOWN = Card()


def _words(name: str) -> set[str]:
    """Return what makes up the name of a kind of GPUs, in small letters."""
    return set(re.findall(r"[a-z0-9.]+", name.lower()))


@dataclass(kw_only=True)
class Node:
    """A machine, or a cluster's node."""

    name: str
    cpus: float
    """Free cores."""
    gpus: dict[str, float]
    """Device (as in CUDA_VISIBLE_DEVICES) -> its free share, 0 to 1."""
    cards: Mapping[str, Card] = field(default_factory=dict)
    """Device -> what is known of it."""

    @property
    def free_gpus(self) -> float:
        """Sum of the free shares of all GPUs."""
        return sum(self.gpus.values())

    def shares(self, resources: Resources) -> dict[str, float]:
        """Return how much of each GPU a rank with resolved resources would hold, for the GPUs that it can have."""
        found = {device: self.cards.get(device, UNKNOWN).share(resources) for device in self.gpus}
        return {device: share for device, share in found.items() if share}

    def holds(self, cpus: float, resources: Resources) -> int:
        """Return how many ranks fit here now, each with ``cpus`` cores and the GPU of ``resources``."""
        by_cores = int((self.cpus + TINY) / cpus)
        if not resources.gpus:
            return by_cores
        shares = self.shares(resources)
        return min(by_cores, sum(int((self.gpus[device] + TINY) / share) for device, share in shares.items()))


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The resources of a node that one rank holds."""

    node: str
    cpus: float
    device: str | None
    """The GPU. ``None`` means no GPU."""
    gpus: float


@final
class Capacity:
    """Free resources of some nodes; all are free at first. ``where`` names them in messages, such as "this machine"."""

    def __init__(self, nodes: Sequence[Node], *, where: str) -> None:
        self.nodes = {node.name: node for node in nodes}
        self.where = where
        self.total_cpus = self.cpus
        """Cores of all nodes, free or taken; of a cluster that grows, once it has grown."""
        self.why_taken = ""
        """Who has the GPUs that are not free, in a few words. Empty: runs of the same launch, or nobody."""

    @property
    def cpus(self) -> float:
        """Free cores of all nodes."""
        return sum(node.cpus for node in self.nodes.values())

    @property
    def gpus(self) -> float:
        """Sum of the free shares of all GPUs of all nodes."""
        return sum(node.free_gpus for node in self.nodes.values())

    def describe(self) -> str:
        """Return what is free in a few words, such as ``2 nodes, 8 GPUs, 64 cores``."""
        nodes = f"{len(self.nodes)} nodes, " if len(self.nodes) > 1 else ""
        gpus = f"{self.gpus:g} GPUs, " if self.gpus else ""
        return f"{nodes}{gpus}{self.cpus:g} cores"

    def copy(self) -> Self:
        """Return an independent copy, for trying allocations."""
        nodes = [replace(node, gpus=dict(node.gpus)) for node in self.nodes.values()]
        made = Capacity(nodes, where=self.where)
        made.total_cpus, made.why_taken = self.total_cpus, self.why_taken
        return made

    # -- resolving resources -------------------------------------------------------------------------------------

    def resolve(self, resources: Resources, at_most: int) -> Resources:
        """Return a run's resources with no field left ``None``, assuming that everything is free.

        By default each rank gets one GPU if there are any, or as much of one as has the memory that it needs. With a
        GPU or a share of one, it gets as many cores as there are for each: other launches may use the other GPUs.
        Without, it gets an equal share of the cores among the runs that fit at once, of which there are at most
        ``at_most``.

        Raises:
            BackendError: the run can never fit here.
        """
        gpus = resources.gpus if resources.gpus is not None else self._default_gpus(resources)
        resolved = replace(resources, cpus=resources.cpus or 1, gpus=gpus)
        demanded = resources.ranks * resources.cpus if resources.cpus else 0
        if demanded > self.total_cpus + TINY or self.place(resolved) is None:
            raise BackendError(f"never fits: {self.why_not(resolved, f'{self.where} has {{}}')}")
        if resources.cpus:
            return resolved
        if resolved.gpus:
            ranks = {name: node.holds(TINY, resolved) for name, node in self.nodes.items()}
            cores = min(self.nodes[name].cpus / number for name, number in ranks.items() if number)
            return replace(resolved, cpus=max(1, int(cores + TINY)))
        at_once = self.how_many(resolved, at_most)
        cpus = max(1, int(self.total_cpus // (at_once * resources.ranks)))
        while cpus > 1 and self.how_many(replace(resolved, cpus=cpus), at_once) < at_once:
            cpus -= 1
        return replace(resolved, cpus=cpus)

    def gpu_memory_gb(self, resources: Resources) -> float | None:
        """Return the most memory that a rank can hold of one GPU, in 10^9 bytes. ``None``: it is not known."""
        found = [
            (node.cards.get(device, UNKNOWN).memory(), share)
            for node in self.nodes.values()
            for device, share in node.shares(resources).items()
        ]
        return max((memory * share for memory, share in found if memory is not None), default=None)

    def _default_gpus(self, resources: Resources) -> float:
        """Return the least that a rank holds of any GPU, if its resources do not say it."""
        if resources.gpu_memory_gb is None and resources.accelerator_type is None:
            return float(self.gpus > 0)
        if resources.gpu_memory_gb is None or resources.ranks > 1:  # ranks of a run cannot share a GPU
            return 1.0
        return min((share for node in self.nodes.values() for share in node.shares(resources).values()), default=1.0)

    def how_many(self, resources: Resources, at_most: int) -> int:
        """Return how many runs with these resources fit at once, at least 1 and at most ``at_most``."""
        trial, placed = self.copy(), 0
        while placed < at_most and (allocations := trial.place(resources)) is not None:
            trial.take(allocations)
            placed += 1
        return max(1, placed)

    def cores_held(self, resources: Resources) -> float:
        """Return the cores booked for a rank: those it computes with, or fewer if there are more ranks than cores."""
        assert resources.cpus is not None, "resources are resolved before they are placed"
        if not self.total_cpus:  # the head of a Ray cluster whose nodes are still to come
            return resources.cpus
        return min(resources.cpus, self.total_cpus / resources.ranks)

    # -- booking -------------------------------------------------------------------------------------------------

    def place(self, resources: Resources) -> list[Allocation] | None:
        """Return where the ranks of a run (with resolved resources) would go now, or ``None`` if they do not fit.

        Uses as few nodes as possible, prefers the node with the fewest free GPUs and cores that holds the ranks, and
        shares the fullest GPU that has room.
        """
        cpus, left = self.cores_held(resources), resources.ranks
        room = {name: min(node.holds(cpus, resources), left) for name, node in self.nodes.items()}
        allocations: list[Allocation] = []
        while left:
            enough = [name for name, ranks in room.items() if ranks >= left]
            if enough:
                best = min(enough, key=lambda name: (self.nodes[name].free_gpus, self.nodes[name].cpus))
            else:
                best = max(room, key=lambda name: room[name], default="")
            if not best or not room[best]:
                return None
            free = dict(self.nodes[best].gpus)
            shares = self.nodes[best].shares(resources) if resources.gpus else {}
            for _ in range(min(room.pop(best), left)):
                device, gpus = None, 0.0
                if shares:
                    device = min((one for one in shares if free[one] + TINY >= shares[one]), key=lambda one: free[one])
                    gpus = shares[device]
                    free[device] -= gpus
                allocations.append(Allocation(node=best, cpus=cpus, device=device, gpus=gpus))
                left -= 1
        return allocations

    def take(self, allocations: Sequence[Allocation]) -> None:
        """Book allocations. Those on unknown nodes are ignored.

        Raises:
            KeyError: an allocation names a GPU that its node does not have.
        """
        for allocation in allocations:
            if (node := self.nodes.get(allocation.node)) is not None:
                node.cpus -= allocation.cpus
                if allocation.device is not None:
                    node.gpus[allocation.device] -= allocation.gpus

    def withhold(self, node: str, cpus: float, gpus: float) -> None:
        """Subtract cores and GPUs that other jobs use on a node, down to 0. Ignore an unknown node."""
        there = self.nodes.get(node)
        if there is None:
            return
        there.cpus -= max(0.0, min(there.cpus, cpus))
        for device, free in there.gpus.items():
            taken = max(0.0, min(free, gpus))
            there.gpus[device] -= taken
            gpus -= taken

    # -- reasons -------------------------------------------------------------------------------------------------

    def why_not(self, resources: Resources, has: str = "{} free") -> str:
        """Return why a run does not fit, in one line such as ``needs 2 GPUs, 1 free``. ``has`` says what is there."""
        ranks, gpus, cpus = resources.ranks, resources.gpus or 0, resources.cpus or 1
        free = sum(node.gpus[device] for node in self.nodes.values() for device in node.shares(resources))
        if ranks * gpus > free + TINY:
            why = f"; {self.why_taken}" if self.why_taken else ""
            return f"needs {_gpus_of(resources, ranks)}, {has.format(f'{round(free, 4):g}')}{why}"
        if min(ranks * cpus, self.total_cpus) > self.cpus + TINY or ranks * cpus > self.total_cpus + TINY:
            of = f" ({ranks} ranks of {cpus})" if ranks > 1 else ""
            return f"needs {with_noun(ranks * cpus, 'core')}{of}, {has.format(f'{round(self.cpus, 4):g}')}"
        shares = [
            (node.gpus[one], share) for node in self.nodes.values() for one, share in node.shares(resources).items()
        ]
        if gpus and all(share > free + TINY for free, share in shares):
            most = round(max(free for free, _ in shares), 4)
            return f"needs {_gpus_of(resources, 1)} on one card, no card has more than {most:g} free"
        wanted = f"{_gpus_of(resources, 1)} and {with_noun(cpus, 'core')}" if gpus else with_noun(cpus, "core")
        if ranks == 1:
            return f"needs {wanted} on one node, no node has that"
        held = sum(node.holds(self.cores_held(resources), resources) for node in self.nodes.values())
        return f"needs {wanted} for each of {ranks} ranks, there is room for {held}"


def _gpus_of(resources: Resources, ranks: int) -> str:
    """Return in words the GPUs of so many ranks, such as ``2 GPUs (A100, 20 GB)``."""
    number = with_noun(round(ranks * (resources.gpus or 0), 4), "GPU")
    kind = [] if resources.accelerator_type is None else [resources.accelerator_type]
    kind += [] if resources.gpu_memory_gb is None else [f"{resources.gpu_memory_gb:g} GB"]
    return f"{number} ({', '.join(kind)})" if kind else number


def with_noun(number: float, noun: str) -> str:
    """Return a number with its noun in singular or plural: ``1 GPU``, ``2 GPUs``."""
    return f"{number:g} {noun}{'' if number == 1 else 's'}"

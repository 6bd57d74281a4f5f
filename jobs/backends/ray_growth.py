"""A Ray cluster that an autoscaler makes larger: how large it can become, and what it is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, final

from jobs.plan.capacity import Allocation, Capacity, Card, Node
from seqlm.resources import Resources
from seqlm.schema import Count, Line, NotNegative, Table, Valid


@final
@dataclass(frozen=True, kw_only=True)
class Largest(Table):
    """``[backend.ray] largest``."""

    nodes: Count
    """Most nodes of this kind at once, present ones included."""
    cpus: Annotated[float, Valid("a number of cores above 0", above=0)]
    """Cores of each node, as Ray counts them."""
    gpus: NotNegative = 0
    """GPUs of each node."""
    accelerator_type: Line | None = None
    """Kind of its GPUs, such as `"H100"`; without it, no run that asks for a kind fits."""
    gpu_memory_gb: Annotated[float, Valid("a number of GB above 0", above=0)] | None = None
    """Memory of each GPU in 10^9 bytes; without it, no run that asks for an amount fits."""

    def grown(self, now: Capacity) -> Capacity:
        """Return what a cluster that has ``now``, all of it free, has once its autoscaler has added all nodes."""
        alike = [node for node in now.nodes.values() if (node.cpus, len(node.gpus)) == (self.cpus, self.gpus)]
        devices = [str(index) for index in range(self.gpus)]
        card = Card(type=self.accelerator_type or "", memory=lambda: self.gpu_memory_gb)
        new = [
            Node(
                name=f"new node {number}",
                cpus=self.cpus,
                gpus=dict.fromkeys(devices, 1.0),
                cards=dict.fromkeys(devices, card),
            )
            for number in range(len(alike), self.nodes)
        ]
        return Capacity([*now.copy().nodes.values(), *new], where=f"{now.where} at its largest")


Bundle = dict[str, float]
"""Resource -> how much of it must be on one node."""


def bundles(
    waiting: Sequence[Resources], room: Capacity, held: Sequence[Allocation], others: Mapping[str, tuple[float, float]]
) -> list[Bundle]:
    """Return what the cluster must have room for, so that runs that wait can start. Empty: none waits.

    An autoscaler compares a request with all that its cluster has, free or not. So the request has also what runs of
    this launch ``held``, and cores and GPUs that ``others`` hold of each node. ``room`` is what is left of the cluster
    at its largest: runs beyond are not asked for yet.
    """
    if not waiting:
        return []
    room = room.copy()
    wanted = [_bundle(one.cpus, one.gpus) for one in held]
    wanted += [_bundle(cpus, gpus) for cpus, gpus in others.values()]
    for resources in waiting:
        if (allocations := room.place(resources)) is not None:
            room.take(allocations)
            wanted += [_bundle(one.cpus, one.gpus) for one in allocations]
    return [bundle for bundle in wanted if bundle]


def _bundle(cpus: float, gpus: float) -> Bundle:
    return {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount > 0}

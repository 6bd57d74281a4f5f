"""Placement groups of the Ray backend: one actor for each rank, kept for the next run of the same resources.

A new group takes about a second to place, which short runs would notice. So the group of a run that has ended waits a
few seconds for another run. Groups of one rank also join for a run of several ranks.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from jobs.backends.ray_actor import RankHost
from jobs.plan.capacity import Allocation
from jobs.spec import Resources

IDLE_SECONDS = 5.0
"""How long an idle group waits for a run. A run of several ranks collects its groups one after the other."""


@dataclass(kw_only=True, eq=False)
class Group:
    """A placement group with the actor of each rank."""

    group: PlacementGroup
    hosts: list[Any]
    resources: Resources
    allocations: list[Allocation]
    """What it holds: where it was expected at first, where Ray has placed it later.

    GPUs are named as in the capacity.
    """
    idle_since: float = 0.0

    @property
    def is_placed(self) -> bool:
        """Whether Ray has found room for it."""
        return bool(placement_group_table(self.group)["state"] != "PENDING")


def new_group(resources: Resources, allocations: list[Allocation]) -> Group:
    """Ask Ray for a group on the nodes of ``allocations``, one for each rank."""
    bundle = {"CPU": allocations[0].cpus}
    if resources.gpus:
        bundle["GPU"] = resources.gpus
    # Pinned to the nodes that were chosen for it: Ray would spread shares of GPUs over many cards.
    nodes = [{"ray.io/node-id": allocation.node} for allocation in allocations]
    group = placement_group([dict(bundle) for _ in allocations], strategy="PACK", bundle_label_selector=nodes)
    actor = ray.remote(RankHost)
    hosts = [
        actor.options(
            num_cpus=bundle["CPU"],
            num_gpus=bundle.get("GPU", 0),
            max_concurrency=3,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
        ).remote()
        for rank in range(resources.ranks)
    ]
    return Group(group=group, hosts=hosts, resources=resources, allocations=allocations)


def release(group: Group) -> None:
    """Kill the actors of a group and give its resources back to Ray."""
    for host in group.hosts:
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            ray.kill(host)
    with contextlib.suppress(ray.exceptions.RayError, ValueError):
        remove_placement_group(group.group)


def choose_idle(idle: Sequence[Group], resources: Resources, *, most_nodes: int) -> list[Group]:
    """Return idle groups for a run: one with all its ranks, or one for each rank. Empty: there are not enough.

    ``most_nodes``: on how many nodes the run would be in a new group. Idle groups do not scatter its ranks over more.
    """
    fitting = [g for g in idle if (g.resources.cpus, g.resources.gpus) == (resources.cpus, resources.gpus)]
    for group in fitting:
        if group.resources.ranks == resources.ranks:
            return [group]
    by_node: defaultdict[str, list[Group]] = defaultdict(list)
    for group in fitting:
        if group.resources.ranks == 1:
            by_node[group.allocations[0].node].append(group)
    fullest = sorted(by_node.values(), key=len, reverse=True)[:most_nodes]
    chosen = [group for groups in fullest for group in groups][: resources.ranks]
    return chosen if len(chosen) == resources.ranks else []

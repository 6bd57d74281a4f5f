"""Which idle groups a run gets; without a Ray that runs."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.backends.ray_groups import Group, choose_idle
from jobs.plan.capacity import Allocation
from jobs.spec import Resources


def group(*nodes: str, gpus: float = 1) -> Group:
    resources = Resources(ranks=len(nodes), cpus=1, gpus=gpus)
    allocations = [Allocation(node=node, cpus=1, device="0", gpus=gpus) for node in nodes]
    nothing: Any = None
    return Group(group=nothing, hosts=[], resources=resources, allocations=allocations)


def test_a_group_with_the_same_ranks_is_taken_whole() -> None:
    wide, narrow = group("a", "b"), group("a")
    assert choose_idle([narrow, wide], Resources(ranks=2, cpus=1, gpus=1), most_nodes=2) == [wide]
    assert choose_idle([wide, narrow], Resources(cpus=1, gpus=1), most_nodes=1) == [narrow]


def test_groups_of_one_rank_join_for_a_run_of_several() -> None:
    idle = [group("a"), group("b"), group("b")]
    assert choose_idle(idle, Resources(ranks=2, cpus=1, gpus=1), most_nodes=2) == idle[1:], "on one node where possible"
    chosen = choose_idle(idle, Resources(ranks=3, cpus=1, gpus=1), most_nodes=2)
    assert {id(found) for found in chosen} == {id(one) for one in idle}


@pytest.mark.parametrize(
    ("idle", "ranks", "most_nodes"),
    [
        ([], 1, 1),
        ([group("a")], 2, 1),
        ([group("a", "a")], 1, 1),
        ([group("a", gpus=0.5), group("a", gpus=0.5)], 2, 1),
        ([group("a"), group("b")], 2, 1),
    ],
    ids=["none", "too few", "a group is not cut", "other resources", "ranks are not scattered"],
)
def test_else_a_new_group_is_made(idle: list[Group], ranks: int, most_nodes: int) -> None:
    assert choose_idle(idle, Resources(ranks=ranks, cpus=1, gpus=1), most_nodes=most_nodes) == []

from typing import Any

import pytest

from jobs.plan.capacity import Allocation, Capacity, Card, Node
from seqlm.errors import BackendError
from seqlm.resources import Resources


def cluster(*nodes: tuple[float, int]) -> Capacity:
    """Nodes n0, n1, ... with these cores and GPUs."""
    made = [Node(name=f"n{i}", cpus=c, gpus={str(g): 1.0 for g in range(n)}) for i, (c, n) in enumerate(nodes)]
    return Capacity(made, where="the cluster")


def where(capacity: Capacity, resources: Resources) -> list[tuple[str, str | None]] | None:
    allocations = capacity.place(resources)
    return None if allocations is None else [(allocation.node, allocation.device) for allocation in allocations]


def want(ranks: int = 1, cpus: int = 1, gpus: float = 0) -> Resources:
    return Resources(ranks=ranks, cpus=cpus, gpus=gpus)


def test_a_run_goes_where_it_leaves_the_least_over() -> None:
    assert where(cluster((8, 4), (4, 1)), want(gpus=1)) == [("n1", "0")]
    assert where(cluster((8, 4), (4, 2)), want(ranks=2, gpus=1)) == [("n1", "0"), ("n1", "1")]


def test_a_run_without_gpus_leaves_the_gpu_nodes_alone() -> None:
    assert where(cluster((4, 2), (64, 0)), want()) == [("n1", None)]


def test_ranks_lie_on_several_nodes_where_none_holds_them_all() -> None:
    assert where(cluster((4, 1), (4, 2)), want(ranks=3, gpus=1)) == [("n1", "0"), ("n1", "1"), ("n0", "0")]
    assert where(cluster((4, 1), (4, 2)), want(ranks=4, gpus=1)) is None


def test_shares_fill_one_card_before_they_touch_the_next() -> None:
    capacity = cluster((8, 2))
    devices = []
    for _ in range(8):
        allocations = capacity.place(want(gpus=0.25))
        assert allocations is not None
        capacity.take(allocations)
        devices.append(allocations[0].device)
    assert devices == ["0"] * 4 + ["1"] * 4
    assert capacity.place(want(gpus=0.25)) is None
    assert capacity.why_not(want(gpus=0.25)) == "needs 0.25 GPUs, 0 free"


def test_thirds_of_a_gpu_add_up_to_a_whole_one() -> None:
    capacity = cluster((8, 1))
    for _ in range(3):
        capacity.take(capacity.place(want(gpus=1 / 3)) or pytest.fail("a third does not fit"))
    assert capacity.place(want(gpus=1 / 3)) is None


def test_a_gpu_that_its_node_does_not_have_is_not_booked_in_silence() -> None:
    with pytest.raises(KeyError, match="7"):
        cluster((4, 1)).take([Allocation(node="n0", cpus=1, device="7", gpus=1)])


def test_trying_something_on_a_copy_changes_nothing() -> None:
    capacity = cluster((4, 1))
    copy = capacity.copy()
    copy.take(copy.place(want(gpus=1)) or [])
    assert (capacity.cpus, capacity.gpus) == (4, 1)


def test_what_others_use_of_a_node_is_not_free() -> None:
    capacity = cluster((4, 2), (2, 0))
    names = list(capacity.nodes)
    capacity.withhold(names[0], 3, 1)
    assert (capacity.cpus, capacity.gpus) == (3, 1)
    capacity.withhold(names[1], 5, 1)
    capacity.withhold("gone", 1, 1)
    assert (capacity.cpus, capacity.gpus) == (1, 1)


@pytest.mark.parametrize(
    ("resources", "reason"),
    [
        (want(ranks=8, gpus=1), "needs 8 GPUs, 3 free"),
        (want(cpus=9), "needs 9 cores, 8 free"),
        (want(ranks=3, cpus=3), "needs 9 cores (3 ranks of 3), 8 free"),
        (want(cpus=6, gpus=1), "needs 1 GPU and 6 cores on one node, no node has that"),
        (want(ranks=2, cpus=4, gpus=1), "needs 1 GPU and 4 cores for each of 2 ranks, there is room for 1"),
    ],
)
def test_the_reason_names_what_is_needed_and_what_there_is(resources: Resources, reason: str) -> None:
    capacity = cluster((5, 1), (3, 2))
    assert capacity.place(resources) is None
    assert capacity.why_not(resources) == reason


def test_the_reason_is_that_no_card_has_enough_free_if_only_all_together_have() -> None:
    shared = Capacity([Node(name="n0", cpus=8, gpus={"0": 0.5, "1": 0.25, "2": 0.5})], where="the cluster")
    assert shared.why_not(want(gpus=1)) == "needs 1 GPU on one card, no card has more than 0.5 free"
    assert shared.why_not(want(gpus=0.75)) == "needs 0.75 GPUs on one card, no card has more than 0.5 free"


def test_what_can_never_fit_is_refused_with_the_whole_of_what_there_is() -> None:
    with pytest.raises(BackendError, match=r"^never fits: needs 8 GPUs, the cluster has 4$"):
        cluster((8, 2), (8, 2)).resolve(Resources(ranks=8), at_most=1)
    with pytest.raises(BackendError, match=r"^never fits: needs 20 cores \(2 ranks of 10\), the cluster has 16$"):
        cluster((8, 2), (8, 2)).resolve(Resources(ranks=2, cpus=10, gpus=0), at_most=1)


@pytest.mark.parametrize(
    ("nodes", "asked", "at_most", "cpus", "gpus"),
    [
        (((8, 2),), Resources(), 5, 4, 1),  # two at once, one for each GPU
        (((8, 2),), Resources(), 1, 4, 1),  # the other GPU is for another launch
        (((64, 8),), Resources(ranks=2), 1, 8, 1),
        (((64, 8), (64, 0)), Resources(), 1, 8, 1),
        (((8, 2),), Resources(gpus=0.25), 100, 1, 0.25),
        (((8, 2), (2, 2)), Resources(), 4, 1, 1),  # as many as the poorest node gives each of its GPUs
        (((4, 0),), Resources(ranks=2), 1, 2, 0),
        (((2, 0),), Resources(ranks=3), 1, 1, 0),  # more ranks than cores share them
        (((8, 2),), Resources(cpus=3), 9, 3, 1),
    ],
)
def test_open_choices_are_made_so_that_the_machine_is_shared_equally(
    nodes: tuple[tuple[float, int], ...], asked: Resources, at_most: int, cpus: int, gpus: float
) -> None:
    resolved = cluster(*nodes).resolve(asked, at_most)
    assert (resolved.cpus, resolved.gpus) == (cpus, gpus)


# -- GPUs by their memory and kind -------------------------------------------------------------------------------------

SMALL, LARGE = Card(type="NVIDIA RTX A5000", memory=lambda: 25), Card(type="NVIDIA A100-SXM4-80GB", memory=lambda: 80)


def machine_of(*cards: Card) -> Capacity:
    devices = {str(number): card for number, card in enumerate(cards)}
    node = Node(name="n0", cpus=16, gpus=dict.fromkeys(devices, 1.0), cards=devices)
    return Capacity([node], where="this machine")


def test_runs_that_need_memory_fill_each_card_by_its_own_size() -> None:
    capacity = machine_of(SMALL, LARGE)
    resources = capacity.resolve(Resources(gpu_memory_gb=20, cpus=1), 8)
    assert resources.gpus == 20 / 80
    found = []
    while (allocations := capacity.place(resources)) is not None:
        capacity.take(allocations)
        found += [(allocation.device, allocation.gpus) for allocation in allocations]
    assert sorted(found) == [("0", 20 / 25), *[("1", 20 / 80)] * 4]
    assert capacity.why_not(resources) == "needs 0.25 GPUs (20 GB), 0.2 free"


def test_each_rank_of_several_has_a_whole_card_with_the_memory_and_of_the_kind_that_it_needs() -> None:
    capacity = machine_of(SMALL, LARGE, SMALL, LARGE)
    resources = capacity.resolve(Resources(ranks=2, gpu_memory_gb=40), 1)
    assert (where(capacity, resources), resources.gpus) == ([("n0", "1"), ("n0", "3")], 1)
    assert where(capacity, capacity.resolve(Resources(ranks=2, accelerator_type="a5000"), 1)) == [
        ("n0", "0"),
        ("n0", "2"),
    ]
    with pytest.raises(BackendError, match=r"never fits: needs 3 GPUs \(A5000\), this machine has 2"):
        capacity.resolve(Resources(ranks=3, accelerator_type="A5000"), 1)


@pytest.mark.parametrize(
    ("name", "is_meant"), [("A100", True), ("a100 80gb", True), ("A10", False), ("H100", False), ("SXM4-A100", True)]
)
def test_a_kind_is_named_by_whole_words_of_its_name(name: str, is_meant: bool) -> None:
    assert LARGE.is_a(name) == is_meant


@pytest.mark.parametrize(
    ("cards", "wanted", "reason"),
    [
        ([SMALL], {"gpu_memory_gb": 30}, r"needs 1 GPU \(30 GB\), this machine has 0"),
        ([Card()], {"gpu_memory_gb": 1}, r"needs 1 GPU \(1 GB\), this machine has 0"),
        ([], {"gpu_memory_gb": 1}, r"needs 1 GPU \(1 GB\), this machine has 0"),
        ([], {"accelerator_type": "A100"}, r"needs 1 GPU \(A100\), this machine has 0"),
    ],
    ids=["too small", "of unknown size", "no GPU at all", "no GPU of the kind"],
)
def test_what_no_card_has_never_fits(cards: list[Card], wanted: dict[str, Any], reason: str) -> None:
    with pytest.raises(BackendError, match=reason):
        machine_of(*cards).resolve(Resources(**wanted), 1)

from __future__ import annotations

import pytest

from jobs.plan.capacity import Allocation, Capacity, Node
from jobs.plan.planned import PlannedRun
from jobs.plan.queue import Queue, places
from jobs.plan.totals import makespan
from jobs.spec import Resources, RunSpec
from tests.fakes import make_planned
from tests.training.studies import make_config


def waiting(number: int, seconds: float | None, *, flops: float = 0.0, cpus: int = 1, **resources: float) -> PlannedRun:
    wishes = Resources(cpus=cpus, **{"gpus": 0, **resources})  # type: ignore[arg-type]
    spec = RunSpec(name=str(number), config=make_config(), resources=wishes, order=number)
    return make_planned(spec, seconds, flops=flops)


def machine(cpus: int = 2, gpus: int = 0) -> Capacity:
    return Capacity([Node(name="here", cpus=cpus, gpus={str(i): 1.0 for i in range(gpus)})], where="here")


def test_a_place_is_priority_then_length_then_the_order_of_the_manifest() -> None:
    runs = [waiting(0, 1.0), waiting(1, 3.0), waiting(2, 1.0), waiting(3, 0.5, priority=1)]
    place = places(runs)
    assert sorted(place, key=lambda key: place[key]) == ["3", "1", "0", "2"]
    assert list(Queue(runs).reasons) == ["3", "1", "0", "2"], "the queue itself has the same order"


def test_operations_order_the_queue_where_the_time_of_any_run_is_unknown() -> None:
    place = places([waiting(0, 9.0, flops=1.0), waiting(1, None, flops=2.0)])
    assert place["1"] < place["0"]


def test_runs_side_by_side_take_as_long_as_the_longest_first_order_leaves() -> None:
    # Longest first on two cores: 4 | 3, then 2 after 3, 1 after 4: both end at 5. As written: 1 + 3 | 2 + 4 = 6.
    runs = [waiting(0, 1.0), waiting(1, 2.0), waiting(2, 3.0), waiting(3, 4.0)]
    assert makespan(runs, machine(cpus=2)) == 5.0
    assert makespan(runs, machine(cpus=1)) == 10.0
    assert makespan(runs, machine(cpus=4)) == 4.0


def test_at_most_so_many_at_once() -> None:
    runs = [waiting(number, 1.0) for number in range(4)]
    assert makespan(runs, machine(cpus=4), max_parallel=1) == 4.0
    assert makespan(runs, machine(cpus=4), max_parallel=3) == 2.0


def test_shares_of_a_gpu_and_several_ranks_are_placed_as_the_backend_places_them() -> None:
    quarters = [waiting(number, 1.0, gpus=0.25) for number in range(8)]
    assert makespan(quarters, machine(cpus=8, gpus=1)) == 2.0
    wide = [waiting(number, 1.0, ranks=2, gpus=1) for number in range(3)]
    assert makespan(wide, machine(cpus=8, gpus=4)) == 2.0


def test_a_run_that_fits_beside_a_larger_one_does_not_wait_for_it() -> None:
    runs = [waiting(0, 4.0, cpus=2), waiting(1, 3.0, cpus=2), waiting(2, 1.0)]
    assert makespan(runs, machine(cpus=3)) == 7.0


def test_of_two_runs_that_fit_and_need_different_things_the_longer_starts() -> None:
    # The wide one and a narrow one, then the other narrow one. Both narrow ones first would end at 7.
    runs = [waiting(0, 4.0, cpus=2), waiting(1, 3.0), waiting(2, 3.0)]
    assert makespan(runs, machine(cpus=3)) == 6.0


def test_a_higher_priority_starts_first_though_it_makes_the_whole_longer() -> None:
    runs = [waiting(0, 1.0, priority=1), waiting(1, 1.0, priority=1), waiting(2, 4.0)]
    assert makespan(runs, machine(cpus=2)) == 5.0


def test_one_unknown_time_makes_the_whole_unknown() -> None:
    assert makespan([waiting(0, 1.0), waiting(1, None)], machine()) is None


def test_no_run_takes_no_time() -> None:
    assert makespan([], machine()) == 0.0


def test_the_simulation_leaves_the_capacity_as_it_was() -> None:
    free = machine()
    makespan([waiting(0, 1.0), waiting(1, None)], free)
    assert free.cpus == 2


def test_the_work_grows_with_the_runs_and_not_with_their_square(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Resources] = []
    place = Capacity.place

    def count(self: Capacity, resources: Resources) -> list[Allocation] | None:
        asked.append(resources)
        return place(self, resources)

    monkeypatch.setattr(Capacity, "place", count)
    runs = [waiting(number, 1.0 + number % 7, gpus=(0.25, 1)[number % 2]) for number in range(300)]
    assert makespan(runs, machine(cpus=64, gpus=2)) is not None
    assert len(asked) < 10 * len(runs)

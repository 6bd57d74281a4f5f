from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from jobs.plan.capacity import Allocation, Capacity, Node
from jobs.plan.planned import PlannedRun
from jobs.plan.queue import Queue
from jobs.spec import Resources, RunSpec
from tests.fakes import make_planned
from tests.training.studies import make_config

CONFIG = make_config()


def waiting(name: str, *, ranks: int = 1, order: int = 0, seconds: float | None = None, flops: float = 0) -> PlannedRun:
    spec = RunSpec(name=name, config=CONFIG, resources=Resources(ranks=ranks, cpus=1, gpus=0), order=order)
    return make_planned(spec, seconds, flops=flops)


class Room:
    """A fake machine with ``slots`` slots, the jobs on it, and a queue."""

    def __init__(self, slots: int, *items: PlannedRun, max_parallel: int | None = None) -> None:
        self.capacity = Capacity([Node(name="n", cpus=slots, gpus={})], where="here")
        self.queue = Queue(items, max_parallel=max_parallel)
        self.live: list[tuple[float | None, Sequence[Allocation]]] = []

    def free(self) -> Capacity:
        free = self.capacity.copy()
        for _, allocations in self.live:
            free.take(allocations)
        return free

    def occupy(self, ranks: int, until: float | None) -> None:
        allocations = self.free().place(Resources(ranks=ranks, cpus=1, gpus=0))
        assert allocations is not None
        self.live.append((until, allocations))

    def start(self, now: float = 0.0) -> list[str]:
        started = []
        while (item := self.queue.take(self.free(), self.live, now)) is not None:
            end = None if item.seconds is None else now + item.seconds
            self.live.append((end, self.free().place(item.spec.resources) or []))
            started.append(item.run.id)
        return started


def test_the_longest_goes_first_where_times_are_known_and_the_largest_where_they_are_not() -> None:
    times = [waiting("a", seconds=1, flops=9), waiting("b", seconds=3, flops=1), waiting("c", seconds=2, flops=5)]
    assert Room(3, *times).start() == ["b", "c", "a"]
    assert Room(3, *times[:2], waiting("c", flops=5)).start() == ["a", "c", "b"]


def test_equal_runs_go_in_the_order_of_the_manifest() -> None:
    assert Room(9, *(waiting(f"r{order}", order=order) for order in (2, 0, 1))).start() == ["r0", "r1", "r2"]


def test_a_run_that_does_not_fit_says_what_it_needs_and_is_not_overtaken_where_times_are_unknown() -> None:
    room = Room(4, waiting("wide", ranks=4, flops=2), waiting("narrow", flops=1))
    room.occupy(1, until=None)
    assert room.start() == []
    assert room.queue.reasons == {"wide": "needs 4 cores (4 ranks of 1), 3 free", "narrow": "wide is to start first"}


def test_a_short_run_overtakes_where_it_delays_nobody() -> None:
    room = Room(4, waiting("wide", ranks=4, seconds=100), waiting("long", seconds=50), waiting("short", seconds=5))
    room.occupy(1, until=10)
    assert room.start() == ["short"], "it has ended when the wide one can start at 10; the long one has not"


def test_a_long_run_overtakes_where_the_one_in_front_finds_room_beside_it() -> None:
    room = Room(4, waiting("wide", ranks=3, seconds=100), waiting("long", seconds=50))
    room.occupy(2, until=10)
    assert room.start() == ["long"], "at 10 three of four slots are free for the wide one"


def test_a_run_that_is_late_does_not_let_others_in_for_ever() -> None:
    room = Room(2, waiting("wide", ranks=2, seconds=100), waiting("other", seconds=5))
    room.occupy(1, until=10)
    assert room.start(now=20) == []


def test_no_more_than_max_parallel_start() -> None:
    room = Room(9, *(waiting(f"r{order}", order=order) for order in range(3)), max_parallel=2)
    assert room.start() == ["r0", "r1"]
    assert room.queue.reasons == {"r2": "at most 2 at once"}


def test_a_run_that_was_put_back_waits_for_its_time_at_its_old_place() -> None:
    room = Room(1, waiting("a", seconds=2), waiting("b", seconds=1))
    assert room.start() == ["a"]
    room.live.clear()
    room.queue.put_back(waiting("a", seconds=2), not_before=5)
    assert room.start(now=1) == ["b"]
    room.live.clear()
    assert room.queue.reasons == {"a": "tried again in a moment"}
    assert room.start(now=6) == ["a"]
    assert not room.queue


def test_a_long_queue_is_looked_through_without_working_out_the_wide_runs_start_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room = Room(4, waiting("wide", ranks=4, seconds=1000), *(waiting(f"r{i}", seconds=500) for i in range(200)))
    room.occupy(1, until=10)
    placed: list[Resources] = []
    place = Capacity.place

    def counted(capacity: Capacity, resources: Resources) -> list[Allocation] | None:
        placed.append(resources)
        return place(capacity, resources)

    monkeypatch.setattr(Capacity, "place", counted)
    assert room.start() == []
    assert len(placed) < 10


# -- boundaries ----------------------------------------------------------------------------------------------------


def prior(name: str, priority: int, **options: Any) -> PlannedRun:
    """The same as :func:`waiting`, with a priority."""
    item = waiting(name, **options)
    resources = Resources(cpus=1, gpus=0, priority=priority)
    return dataclasses.replace(item, spec=dataclasses.replace(item.spec, resources=resources))


def test_a_higher_priority_goes_first_however_short_the_run() -> None:
    items = [prior("low", -1, seconds=100), prior("high", 2, seconds=1), waiting("normal", seconds=50)]
    assert Room(3, *items).start() == ["high", "normal", "low"]


def test_a_run_with_no_time_left_is_shorter_than_any_other() -> None:
    assert Room(2, waiting("done", seconds=0.0), waiting("short", seconds=0.5)).start() == ["short", "done"]
    assert Room(2, waiting("done"), waiting("large", flops=0.5)).start() == ["large", "done"]
    unknown = dataclasses.replace(waiting("unknown"), estimate=None)
    assert Room(2, unknown, waiting("large", flops=0.5)).start() == ["large", "unknown"]


def test_the_run_in_front_is_expected_at_the_first_end_that_makes_room_for_it() -> None:
    def room(seconds: float) -> Room:
        made = Room(4, waiting("wide", ranks=4, seconds=100), waiting("other", seconds=seconds))
        made.occupy(1, until=50)
        made.occupy(1, until=10)
        return made

    assert room(50).start() == ["other"], "it ends at the moment at which the wide one can start"
    assert room(50.5).start() == []


def test_jobs_that_end_at_the_same_time_are_no_error() -> None:
    room = Room(5, waiting("wide", ranks=5, seconds=100), waiting("other", seconds=10))
    for cpus in (2, 1):
        allocations = [Allocation(node="n", cpus=cpus, device=None, gpus=0)]
        room.live.append((10, allocations))
    assert room.start() == ["other"]


def test_a_job_whose_end_is_unknown_is_taken_to_run_on() -> None:
    room = Room(4, waiting("wide", ranks=3, seconds=100), waiting("long", ranks=2, seconds=11), waiting("b", seconds=9))
    room.occupy(1, until=None)
    room.occupy(1, until=10)
    assert room.start() == ["b"], "the wide one starts at 10 beside the job without an end"


def test_nothing_overtakes_where_it_is_unknown_when_the_run_in_front_starts() -> None:
    room = Room(4, waiting("wide", ranks=4, seconds=100), waiting("short", seconds=1))
    room.occupy(1, until=None)
    assert room.start() == []


def test_a_run_of_unknown_length_does_not_overtake() -> None:
    room = Room(4, waiting("wide", ranks=4, flops=2), waiting("narrow", flops=1))
    room.occupy(1, until=10)
    assert room.start() == []
    assert room.queue.reasons["narrow"] == "wide is to start first"


def test_a_run_that_was_put_back_starts_at_its_time_and_not_a_moment_later() -> None:
    room = Room(1, waiting("a"))
    assert room.start() == ["a"]
    room.live.clear()
    room.queue.put_back(waiting("a"), not_before=5.0)
    assert room.start(now=4.9) == []
    assert room.start(now=5.0) == ["a"]


def test_reasons_name_the_waiting_runs_alone_in_the_order_in_which_they_start() -> None:
    room = Room(3, waiting("a", seconds=1), waiting("b", seconds=3), waiting("c", seconds=2))
    assert list(room.queue.reasons.items()) == [(name, "about to start") for name in "bca"]
    first = room.queue.take(room.free(), room.live, 0.0)
    assert first is not None
    assert first.run.id == "b"
    assert list(room.queue.reasons) == ["c", "a"]
    room.queue.put_back(first)
    assert list(room.queue.reasons.items()) == [
        ("b", "tried again in a moment"),
        ("c", "about to start"),
        ("a", "about to start"),
    ]

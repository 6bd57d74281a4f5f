"""The queue of a launch, by the rules of EASY backfilling: whatever waits, runs, and is free."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.plan.capacity import Allocation, Capacity, Node
from jobs.plan.planned import PlannedRun
from jobs.plan.queue import Queue, places
from jobs.spec import Resources, RunSpec
from tests.fakes import make_planned
from tests.training.studies import make_config

CONFIG = make_config()


def waiting(name: str, order: int = 0, seconds: float | None = None, flops: float = 0, **wishes: Any) -> PlannedRun:
    resources = Resources(**{"cpus": 1, "gpus": 0, **wishes})
    return make_planned(RunSpec(name=name, config=CONFIG, resources=resources, order=order), seconds, flops=flops)


class Room:
    """A fake machine with ``slots`` slots, the jobs on it, and a queue."""

    def __init__(self, slots: int, *items: PlannedRun, max_parallel: int | None = None) -> None:
        self.capacity = Capacity([Node(name="n", cpus=slots, gpus={})], where="here")
        self.queue = Queue(items, max_parallel=max_parallel)
        self.max_parallel = max_parallel
        self.live: list[tuple[float | None, Sequence[Allocation]]] = []

    def free(self, at: float = -math.inf) -> Capacity:
        """What is free once the jobs have ended that end until a time."""
        free = self.capacity.copy()
        for end, allocations in self.live:
            if end is None or end > at:
                free.take(allocations)
        return free

    def fits(self, item: PlannedRun, at: float = -math.inf) -> bool:
        return self.free(at).place(item.spec.resources) is not None

    def first_start(self, item: PlannedRun) -> float:
        """The first end of a job with which an item fits; infinite if no end is known to make room for it."""
        ends = sorted(end for end, _ in self.live if end is not None)
        return next((end for end in ends if self.fits(item, end)), math.inf)

    def occupy(self, cpus: int, until: float | None) -> None:
        self.live.append((until, self.free().place(Resources(cpus=cpus, gpus=0)) or pytest.fail("no room")))

    def begin(self, item: PlannedRun, now: float) -> None:
        end = None if item.seconds is None else now + item.seconds
        self.live.append((end, self.free().place(item.spec.resources) or pytest.fail(f"{item} does not fit")))

    def start(self, now: float = 0.0) -> list[str]:
        started = []
        while (item := self.queue.take(self.free(), self.live, now)) is not None:
            self.begin(item, now)
            started.append(item.run.id)
        return started


@st.composite
def rooms(draw: st.DrawFn) -> tuple[Room, list[PlannedRun]]:
    slots = draw(st.integers(1, 5))
    seconds = st.sampled_from([0.0, 1.0, 2.0, 5.0, 9.0])
    times = draw(st.sampled_from([seconds, st.none() | seconds]))
    items = [
        waiting(
            f"r{order}",
            order,
            draw(times),
            draw(st.sampled_from([1.0, 2.0])),
            ranks=draw(st.integers(1, slots)),
            priority=draw(st.sampled_from([0, 0, 0, 1])),
        )
        for order in range(draw(st.integers(0, 6)))
    ]
    room = Room(slots, *draw(st.permutations(items)), max_parallel=draw(st.none() | st.integers(1, 3)))
    for _ in range(draw(st.integers(0, slots))):
        room.occupy(1, draw(st.none() | st.integers(1, 12).map(float)))
    return room, items


@settings(max_examples=300, deadline=None, derandomize=True)
@given(rooms(), st.sampled_from([0.0, 4.0]))
def test_a_run_starts_if_it_fits_and_delays_no_run_that_stands_before_it(
    drawn: tuple[Room, list[PlannedRun]], now: float
) -> None:
    room, items = drawn
    place = places(items)
    left = sorted(items, key=lambda item: place[item.run.id])
    while True:
        is_full = room.max_parallel is not None and len(room.live) >= room.max_parallel
        front = next((item for item in left if not room.fits(item)), None)

        def may_start(item: PlannedRun, front: PlannedRun | None = front) -> bool:
            """Whether it fits, and if it overtakes, whether the run in front starts as early as it would."""
            if not room.fits(item) or front is None or left.index(item) < left.index(front):
                return room.fits(item)
            expected = room.first_start(front)
            if item.seconds is None or expected == math.inf:
                return False
            room.begin(item, now)
            delayed = room.first_start(front) > max(expected, now)
            room.live.pop()
            return not delayed

        expected = None if is_full else next((item for item in left if may_start(item)), None)
        found = room.queue.take(room.free(), room.live, now)
        assert found == expected
        if found is None:
            break
        left.remove(found)
        room.begin(found, now)
    assert list(room.queue.reasons) == [item.run.id for item in left]
    assert all(room.queue.reasons.values())
    assert len(room.queue) == len(left)


def test_the_longest_goes_first_where_times_are_known_and_the_largest_where_they_are_not() -> None:
    times = [waiting("a", 0, 1, 9), waiting("b", 1, 3, 1), waiting("c", 2, 2, 5), waiting("d", 3, 1)]
    assert Room(4, *times).start() == ["b", "c", "a", "d"], "of equal ones the first of the manifest"
    assert Room(4, *times[:2], waiting("c", flops=5)).start() == ["a", "c", "b"]
    assert Room(4, *times, waiting("e", priority=2, seconds=0)).start()[0] == "e"


def test_reasons_say_what_a_run_waits_for() -> None:
    room = Room(4, waiting("wide", ranks=4, flops=2), waiting("narrow", flops=1))
    room.occupy(1, until=None)
    assert room.start() == []
    assert room.queue.reasons == {"wide": "needs 4 cores (4 ranks of 1), 3 free", "narrow": "wide is to start first"}
    room = Room(9, *(waiting(f"r{order}", order) for order in range(3)), max_parallel=2)
    assert set(room.queue.reasons.values()) == {"about to start"}
    assert room.start() == ["r0", "r1"]
    assert room.queue.reasons == {"r2": "at most 2 at once"}


def test_a_run_that_was_put_back_waits_for_its_time_at_its_old_place() -> None:
    room = Room(1, waiting("a", seconds=2), waiting("b", seconds=1))
    assert room.start() == ["a"]
    room.live.clear()
    room.queue.put_back(waiting("a", seconds=2), not_before=5)
    assert list(room.queue.reasons) == ["a", "b"]
    assert room.start(now=4.9) == ["b"]
    room.live.clear()
    assert room.queue.reasons == {"a": "tried again in a moment"}
    assert room.start(now=5) == ["a"]
    assert not room.queue


def test_a_run_whose_length_is_unknown_is_the_shortest() -> None:
    unknown = dataclasses.replace(waiting("unknown"), estimate=None)
    assert Room(2, unknown, waiting("large", flops=0.5)).start() == ["large", "unknown"]


def test_a_long_queue_is_looked_through_without_working_out_the_wide_runs_start_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room = Room(4, waiting("wide", ranks=4, seconds=1000), *(waiting(f"r{i}", i, 500) for i in range(200)))
    room.occupy(1, until=10)
    placed: list[Resources] = []
    place = Capacity.place

    def counted(capacity: Capacity, resources: Resources) -> list[Allocation] | None:
        placed.append(resources)
        return place(capacity, resources)

    monkeypatch.setattr(Capacity, "place", counted)
    assert room.start() == []
    assert len(placed) < 10

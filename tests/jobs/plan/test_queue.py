"""The queue of a launch: whatever waits, runs, and is free; and the time that playing it through takes."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.plan.capacity import Allocation, Capacity, Node
from jobs.plan.planned import PlannedRun
from jobs.plan.queue import Queue, places, wall_seconds
from jobs.spec import RunSpec
from seqlm.resources import Resources
from tests.fakes import make_planned
from tests.seqlm.training.studies import make_config

CONFIG = make_config()


def waiting(name: str, order: int = 0, seconds: float | None = None, flops: float = 0, **wishes: Any) -> PlannedRun:
    resources = Resources(**{"cpus": 1, "gpus": 0, **wishes})
    return make_planned(RunSpec(name=name, config=CONFIG, resources=resources, order=order), seconds, flops=flops)


def machine(cpus: int, gpus: int = 0) -> Capacity:
    return Capacity([Node(name="here", cpus=cpus, gpus={str(i): 1.0 for i in range(gpus)})], where="here")


class Room:
    """A fake machine with ``slots`` slots, of which some are taken, and a queue."""

    def __init__(self, slots: int, *items: PlannedRun, max_parallel: int | None = None, taken: int = 0) -> None:
        self.free = machine(slots)
        for _ in range(taken):
            self.free.take(self.free.place(Resources(cpus=1, gpus=0)) or pytest.fail("no room"))
        self.queue = Queue(items, max_parallel=max_parallel)
        self.live = taken

    def fits(self, item: PlannedRun) -> bool:
        return self.free.place(item.spec.resources) is not None

    def begin(self, item: PlannedRun) -> None:
        self.live += 1
        self.free.take(self.free.place(item.spec.resources) or pytest.fail(f"{item} does not fit"))

    def start(self, now: float = 0.0) -> list[str]:
        started = []
        while (item := self.queue.take(self.free, self.live, now)) is not None:
            self.begin(item)
            started.append(item.run.id)
        return started


@st.composite
def rooms(draw: st.DrawFn) -> tuple[Room, list[PlannedRun], int | None]:
    slots = draw(st.integers(1, 5))
    items = [
        waiting(
            f"r{order}",
            order,
            draw(st.none() | st.sampled_from([0.0, 1.0, 2.0])),
            draw(st.sampled_from([1.0, 2.0])),
            ranks=draw(st.integers(1, slots)),
            priority=draw(st.sampled_from([0, 0, 0, 1])),
        )
        for order in range(draw(st.integers(0, 6)))
    ]
    most = draw(st.none() | st.integers(1, 3))
    return Room(slots, *draw(st.permutations(items)), max_parallel=most, taken=draw(st.integers(0, slots))), items, most


@settings(max_examples=300, deadline=None, derandomize=True)
@given(rooms())
def test_the_first_run_that_fits_starts_and_overtakes_none_of_higher_priority(
    drawn: tuple[Room, list[PlannedRun], int | None],
) -> None:
    room, items, most = drawn
    place = places(items)
    left = sorted(items, key=lambda item: place[item.run.id])
    while True:
        expected = None if most is not None and room.live >= most else next(filter(room.fits, left), None)
        if expected is not None and left[0].spec.resources.priority > expected.spec.resources.priority:
            expected = None
        found = room.queue.take(room.free, room.live, 0.0)
        assert found == expected
        if found is None:
            break
        left.remove(found)
        room.begin(found)
    assert list(room.queue.reasons) == [item.run.id for item in left]
    assert all(room.queue.reasons.values())
    assert len(room.queue) == len(left)


def test_the_longest_goes_first_where_times_are_known_and_the_largest_where_they_are_not() -> None:
    times = [waiting("a", 0, 1, 9), waiting("b", 1, 3, 1), waiting("c", 2, 2, 5), waiting("d", 3, 1)]
    assert Room(4, *times).start() == ["b", "c", "a", "d"], "of equal ones the first of the manifest"
    assert Room(4, *times[:2], waiting("c", flops=5)).start() == ["a", "c", "b"]
    assert Room(4, *times, waiting("e", priority=2, seconds=0)).start()[0] == "e"
    unknown = dataclasses.replace(waiting("unknown"), estimate=None)
    assert Room(2, unknown, waiting("large", flops=0.5)).start() == ["large", "unknown"]


def test_reasons_say_what_a_run_waits_for() -> None:
    room = Room(4, waiting("wide", ranks=4, priority=1), waiting("narrow"), taken=1)
    assert room.start() == []
    assert room.queue.reasons == {"wide": "needs 4 cores (4 ranks of 1), 3 free", "narrow": "wide is to start first"}
    room = Room(9, *(waiting(f"r{order}", order) for order in range(3)), max_parallel=2)
    assert set(room.queue.reasons.values()) == {"about to start"}
    assert room.start() == ["r0", "r1"]
    assert room.queue.reasons == {"r2": "at most 2 at once"}


def test_a_run_that_was_put_back_waits_for_its_time_at_its_old_place() -> None:
    queue = Queue([waiting("a", seconds=2), waiting("b", seconds=1)])
    first = queue.take(machine(1), 0, 0.0)
    assert first is not None
    queue.put_back(first, not_before=5)
    assert list(queue.reasons) == ["a", "b"]
    second, none, again = (queue.take(machine(1), 0, now) for now in (4.9, 4.9, 5))
    assert (second and second.run.id, none, again) == ("b", None, first)
    assert not queue


# -- the time that it takes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runs", "here", "most", "expected"),
    [
        # Longest first on two cores: 4 | 3, then 2 after 3, 1 after 4: both end at 5. As written: 1 + 3 | 2 + 4 = 6.
        ([waiting(str(n), n, n) for n in range(1, 5)], machine(2), None, 5.0),
        ([waiting(str(n), n, n) for n in range(1, 5)], machine(1), None, 10.0),
        ([waiting(str(n), n, n) for n in range(1, 5)], machine(4), None, 4.0),
        ([waiting(str(n), n, 1) for n in range(4)], machine(4), 1, 4.0),
        ([waiting(str(n), n, 1) for n in range(4)], machine(4), 3, 2.0),
        ([waiting(str(n), n, 1, gpus=0.25) for n in range(8)], machine(8, 1), None, 2.0),
        ([waiting(str(n), n, 1, gpus=1, ranks=2) for n in range(3)], machine(8, 4), None, 2.0),
        ([waiting("a", 0, 1, priority=1), waiting("b", 1, 1, priority=1), waiting("c", 2, 4)], machine(2), None, 5.0),
        ([waiting("a", 0, 1), waiting("b", 1)], machine(2), None, None),
        ([], machine(2), None, 0.0),
    ],
)
def test_the_time_of_a_study_is_that_of_its_queue_played_through(
    runs: list[PlannedRun], here: Capacity, most: int | None, expected: float | None
) -> None:
    assert wall_seconds(runs, here, max_parallel=most) == expected


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=8))
def test_a_study_of_unlike_runs_takes_no_less_than_its_work_and_its_longest_run(wide: list[tuple[int, int]]) -> None:
    runs = [waiting(str(n), n, seconds, cpus=cpus) for n, (cpus, seconds) in enumerate(wide)]
    found = wall_seconds(runs, machine(4))
    assert found is not None
    assert max(sum(c * s for c, s in wide) / 4, *(s for _, s in wide)) <= found + 1e-6 <= sum(s for _, s in wide) + 1e-5


def test_a_long_queue_is_looked_through_with_few_looks_at_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[Resources] = []
    place = Capacity.place

    def counted(capacity: Capacity, resources: Resources) -> list[Allocation] | None:
        placed.append(resources)
        return place(capacity, resources)

    monkeypatch.setattr(Capacity, "place", counted)
    runs = [waiting(str(n), n, 1.0 + n % 7, cpus=(2, 3)[n % 2]) for n in range(200)]
    assert Room(4, *runs, taken=3).start() == []
    assert wall_seconds(runs, machine(4)) is not None
    assert len(placed) < 20


def test_runs_of_equal_priority_and_unknown_length_keep_the_order_in_which_they_came() -> None:
    """The runs of a SLURM job have no estimate; their plan has them in the order in which they are to start."""
    names = ["long", "middle", "urgent", "short"]
    room = Room(9, *(waiting(name, priority=int(name == "urgent")) for name in names))
    assert [run.split("-")[0] for run in room.start()] == ["urgent", "long", "middle", "short"]

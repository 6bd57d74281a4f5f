"""The queue of a launch: the order in which runs start, backfilling, and the reason why each run waits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

from jobs.plan.capacity import Allocation, Capacity
from jobs.spec import Resources, RunSpec


@dataclass(frozen=True, kw_only=True)
class Work:
    """The remaining work of a run."""

    flops: float = 0.0
    """Floating-point operations of the remaining training."""
    seconds: float | None = None
    """Expected time. ``None`` means that neither an earlier run nor a canary measured the speed."""


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A run in the queue."""

    id: str
    spec: RunSpec
    """The run, with resolved resources."""
    work: Work
    not_before: float = -math.inf
    """Earliest start, on the caller's clock. Delays the retry of a run that has just failed."""


SortKey: TypeAlias = tuple[float, float, int]
"""A run's sort key in the queue; the lowest starts first."""


def places(items: Iterable[Waiting]) -> dict[str, SortKey]:
    """Return the sort key of each run, by run id: higher priority first, then longer runs, then manifest order.

    Length is the expected time if that is known for all runs, else the number of operations.
    """
    items = list(items)
    timed = all(item.work.seconds is not None for item in items)
    length = {item.id: (item.work.seconds or 0.0) if timed else item.work.flops for item in items}
    return {item.id: (-item.spec.resources.priority, -length[item.id], item.spec.order) for item in items}


@dataclass(frozen=True, kw_only=True)
class Live:
    """A started run that has not ended."""

    allocations: Sequence[Allocation]
    expected_end: float | None
    """Expected end, on the caller's clock. ``None`` means unknown."""


@final
class Queue:
    """Waiting runs: higher priority first, then longer ones first, so that the last runs to end are short.

    The first run starts as soon as it fits. A later run overtakes it only if, by the expected times, this does not
    delay the first run ("EASY" backfilling: Lifka, The ANL/IBM SP scheduling system, 1995).
    """

    def __init__(self, items: Sequence[Waiting], *, max_parallel: int | None = None) -> None:
        self._places = places(items)
        self._max_parallel = max_parallel
        self._items = sorted(items, key=self._place)
        self.reasons: dict[str, str] = {item.id: "about to start" for item in self._items}
        """Run id -> why the run waits, in queue order, as of the last :meth:`startable`."""

    def __len__(self) -> int:
        return len(self._items)

    def put_back(self, item: Waiting) -> None:
        """Put a run that was taken out back at its old position."""
        self._items = sorted([*self._items, item], key=self._place)
        self.reasons = {other.id: self.reasons.get(other.id, "tried again in a moment") for other in self._items}

    def _place(self, item: Waiting) -> SortKey:
        return self._places[item.id]

    def startable(self, free: Callable[[], Capacity], live: Mapping[str, Live], now: float) -> Iterator[Waiting]:
        """Remove and yield the runs that can start, one at a time.

        The caller must start each run before it takes the next one: by then ``live`` holds that run, and ``free`` no
        longer counts its resources.
        """
        while (found := self._next(free(), live, now)) is not None:
            yield found

    def _next(self, free: Capacity, live: Mapping[str, Live], now: float) -> Waiting | None:
        full = self._max_parallel is not None and len(live) >= self._max_parallel
        lacks: dict[Resources, str | None] = {}
        front: Waiting | None = None
        reservation: _Reservation | None = None
        reasons: dict[str, str] = {}
        for item in self._items:
            resources = item.spec.resources
            if item.not_before > now:
                reasons[item.id] = "tried again in a moment"
                continue
            if full:
                reasons[item.id] = f"at most {self._max_parallel} at once"
                continue
            if resources not in lacks:
                lacks[resources] = None if free.place(resources) is not None else free.why_not(resources)
            lack = lacks[resources]
            if lack is None and front is not None and reservation is None:
                reservation = _Reservation(front, free, live)
            if lack is None and (reservation is None or reservation.lets(item, now)):
                self._items.remove(item)
                self.reasons.pop(item.id, None)
                return item
            front = front or item
            reasons[item.id] = lack or f"{front.spec.name} is to start first"
        self.reasons = reasons
        return None


@final
class _Reservation:
    """The reservation of the first run, which does not fit now: when it can start, and what is free then.

    Computed once per pass through the queue rather than for each later run, since it does not change during a pass.
    """

    def __init__(self, front: Waiting, free: Capacity, live: Mapping[str, Live]) -> None:
        self._front = front
        self._free = free
        self._later = free.copy()
        self._fits_alongside: dict[Resources, bool] = {}
        self._start = self._when(live)

    def _when(self, live: Mapping[str, Live]) -> float | None:
        """Return when the first run can start, or ``None`` if that is unknown."""
        ends = [(job.expected_end, job.allocations) for job in live.values() if job.expected_end is not None]
        for end, allocations in sorted(ends, key=lambda pair: pair[0]):
            self._later.give_back(allocations)
            if self._later.place(self._front.spec.resources) is not None:
                return end
        return None

    def lets(self, item: Waiting, now: float) -> bool:
        """Return whether ``item``, which fits now, can start without delaying the first run."""
        if self._start is None or item.work.seconds is None:
            return False
        return now + item.work.seconds <= max(self._start, now) or self._leaves_room(item.spec.resources)

    def _leaves_room(self, resources: Resources) -> bool:
        if resources not in self._fits_alongside:
            own = self._free.place(resources)
            assert own is not None, "only runs that fit now are checked"
            trial = self._later.copy()
            trial.take(own)
            self._fits_alongside[resources] = trial.place(self._front.spec.resources) is not None
        return self._fits_alongside[resources]

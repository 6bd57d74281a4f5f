"""The runs of a launch that wait: in which order they start, which may overtake, and why each one waits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

from jobs.plan.capacity import Allocation, Capacity
from jobs.spec import Resources, RunSpec


@dataclass(frozen=True, kw_only=True)
class Work:
    """How much there is to do in a run."""

    flops: float = 0.0
    """Floating-point operations of what is left of its training."""
    seconds: float | None = None
    """The same in time, where earlier runs or the canary tell how fast it goes."""


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A run in the queue."""

    id: str
    spec: RunSpec
    """With resolved resources."""
    work: Work
    not_before: float = -math.inf
    """Time (of the caller's clock) before which it does not start: it has failed a moment ago."""


SortKey: TypeAlias = tuple[float, float, int]
"""Where a run stands in the queue; the lowest place is in front."""


def places(items: Iterable[Waiting]) -> dict[str, SortKey]:
    """Run id -> its place: higher priority first, then the longest, then as in the manifest.

    Length is the expected time where that is known of all of them, else the operations.
    """
    items = list(items)
    timed = all(item.work.seconds is not None for item in items)
    length = {item.id: (item.work.seconds or 0.0) if timed else item.work.flops for item in items}
    return {item.id: (-item.spec.resources.priority, -length[item.id], item.spec.order) for item in items}


@dataclass(frozen=True, kw_only=True)
class Live:
    """A run that is under way."""

    allocations: Sequence[Allocation]
    expected_end: float | None
    """Time at which it should end, none where that is not known."""


@final
class Queue:
    """Waiting runs: higher priority first, then the longest, so that the last ones to end are short.

    The run in front starts as soon as it fits. One behind it overtakes only if the run in front will, as far as is
    known, start no later for it ("EASY" backfilling: Lifka, The ANL/IBM SP scheduling system, 1995).
    """

    def __init__(self, items: Sequence[Waiting], *, max_parallel: int | None = None) -> None:
        self._places = places(items)
        self._max_parallel = max_parallel
        self._items = sorted(items, key=self._place)
        self.reasons: dict[str, str] = {item.id: "about to start" for item in self._items}
        """Why each run waits, in the order in which they are to start; as of the last :meth:`startable`."""

    def __len__(self) -> int:
        return len(self._items)

    def put_back(self, item: Waiting) -> None:
        """A run that was taken out waits again, at its old place."""
        self._items = sorted([*self._items, item], key=self._place)
        self.reasons = {other.id: self.reasons.get(other.id, "tried again in a moment") for other in self._items}

    def _place(self, item: Waiting) -> SortKey:
        return self._places[item.id]

    def startable(self, free: Callable[[], Capacity], live: Mapping[str, Live], now: float) -> Iterator[Waiting]:
        """Take out, one after the other, the runs that can start; ask for the next once this one has started.

        ``live`` must then hold the run that was started, and ``free`` no longer return what it holds.
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
    """The place in time of the run in front, which does not fit now: when it can start, and what is free then.

    None of it changes while the queue is looked through, so it is worked out once and not for each run behind.
    """

    def __init__(self, front: Waiting, free: Capacity, live: Mapping[str, Live]) -> None:
        self._front = front
        self._free = free
        self._later = free.copy()
        self._beside: dict[Resources, bool] = {}
        self._start = self._when(live)

    def _when(self, live: Mapping[str, Live]) -> float | None:
        """When the run in front can start; none: nobody knows."""
        ends = [(job.expected_end, job.allocations) for job in live.values() if job.expected_end is not None]
        for end, allocations in sorted(ends, key=lambda pair: pair[0]):
            self._later.give_back(allocations)
            if self._later.place(self._front.spec.resources) is not None:
                return end
        return None

    def lets(self, item: Waiting, now: float) -> bool:
        """Whether the run in front starts no later if ``item``, which fits, starts now."""
        if self._start is None or item.work.seconds is None:
            return False
        return now + item.work.seconds <= max(self._start, now) or self._has_room_beside(item.spec.resources)

    def _has_room_beside(self, resources: Resources) -> bool:
        if resources not in self._beside:
            own = self._free.place(resources)
            assert own is not None, "what may overtake fits"
            trial = self._later.copy()
            trial.take(own)
            self._beside[resources] = trial.place(self._front.spec.resources) is not None
        return self._beside[resources]

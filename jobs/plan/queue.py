"""The queue of a launch: the order in which runs start, backfilling, and the reason why each run waits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias, final

from jobs.plan.capacity import Allocation, Capacity
from jobs.plan.planned import PlannedRun
from jobs.spec import Resources

SortKey: TypeAlias = tuple[float, float, int]
"""A run's sort key in the queue; the lowest starts first."""

Live: TypeAlias = Sequence[tuple[float | None, Sequence[Allocation]]]
"""Of each live run: its expected end on the caller's clock (``None``: unknown), and what it holds."""


def places(items: Iterable[PlannedRun]) -> dict[str, SortKey]:
    """Return the sort key of each run, by run id: higher priority first, then longer runs, then manifest order.

    Length is the expected time if that is known for all runs, else the number of operations.
    """
    items = list(items)
    timed = all(item.seconds is not None for item in items)
    length = {item.run.id: (item.seconds or 0.0) if timed else item.flops for item in items}
    return {item.run.id: (-item.spec.resources.priority, -length[item.run.id], item.spec.order) for item in items}


@final
class Queue:
    """Waiting runs: higher priority first, then longer ones first, so that the last runs to end are short.

    The first run starts as soon as it fits. A later run overtakes it only if, by the expected times, this does not
    delay the first run ("EASY" backfilling: Lifka, The ANL/IBM SP scheduling system, 1995).
    """

    def __init__(self, items: Sequence[PlannedRun], *, max_parallel: int | None = None) -> None:
        """Queue runs with resolved resources."""
        self._places = places(items)
        self._max_parallel = max_parallel
        self._items = sorted(items, key=self._place)
        self._not_before: dict[str, float] = {}
        self.reasons: dict[str, str] = {item.run.id: "about to start" for item in self._items}
        """Run id -> why the run waits, in queue order, as of the last :meth:`take`."""

    def __len__(self) -> int:
        return len(self._items)

    def put_back(self, item: PlannedRun, *, not_before: float = -math.inf) -> None:
        """Put a run that was taken out back at its old position. ``not_before``: its earliest start."""
        self._not_before[item.run.id] = not_before
        self._items = sorted([*self._items, item], key=self._place)
        reasons = self.reasons
        self.reasons = {other.run.id: reasons.get(other.run.id, "tried again in a moment") for other in self._items}

    def _place(self, item: PlannedRun) -> SortKey:
        return self._places[item.run.id]

    def hold(self, reason: str) -> None:
        """Note why all runs wait that are left."""
        self.reasons = {item.run.id: reason for item in self._items}

    def take_all(self) -> list[PlannedRun]:
        """Remove and return all runs."""
        items, self._items, self.reasons = self._items, [], {}
        return items

    def take(self, free: Capacity, live: Live, now: float) -> PlannedRun | None:
        """Remove and return the next run that can start at ``now``, on the caller's clock; ``None`` if there is none.

        The caller starts it, and counts it in ``free`` and ``live``, before it takes the next one.
        """
        full = self._max_parallel is not None and len(live) >= self._max_parallel
        lacks: dict[Resources, str | None] = {}
        front: PlannedRun | None = None
        reservation: _Reservation | None = None
        reasons: dict[str, str] = {}
        for position, item in enumerate(self._items):
            resources = item.spec.resources
            if self._not_before.get(item.run.id, -math.inf) > now:
                reasons[item.run.id] = "tried again in a moment"
                continue
            if full:
                reasons[item.run.id] = f"at most {self._max_parallel} at once"
                continue
            if resources not in lacks:
                lacks[resources] = None if free.place(resources) is not None else free.why_not(resources)
            lack = lacks[resources]
            if lack is None and front is not None and reservation is None:
                reservation = _Reservation(front, free, live)
            if lack is None and (reservation is None or reservation.lets(item, now)):
                del self._items[position]
                self.reasons.pop(item.run.id, None)
                return item
            front = front or item
            reasons[item.run.id] = lack or f"{front.spec.name} is to start first"
        self.reasons = reasons
        return None


@final
class _Reservation:
    """The reservation of the first run, which does not fit now: when it can start, and what is free then.

    Computed once per pass through the queue rather than for each later run, since it does not change during a pass.
    """

    def __init__(self, front: PlannedRun, free: Capacity, live: Live) -> None:
        self._needs = front.spec.resources
        self._free = free
        self._later = free.copy()
        self._fits_alongside: dict[Resources, bool] = {}
        self._start: float | None = None
        """When the first run can start. ``None``: unknown."""
        ends = [(end, allocations) for end, allocations in live if end is not None]
        for end, allocations in sorted(ends, key=lambda pair: pair[0]):
            self._later.give_back(allocations)
            if self._later.place(self._needs) is not None:
                self._start = end
                break

    def lets(self, item: PlannedRun, now: float) -> bool:
        """Return whether ``item``, which fits now, can start without delaying the first run."""
        if self._start is None or item.seconds is None:
            return False
        if now + item.seconds <= max(self._start, now):
            return True
        resources = item.spec.resources
        if resources not in self._fits_alongside:
            own = self._free.place(resources)
            assert own is not None, "only runs that fit now are checked"
            trial = self._later.copy()
            trial.take(own)
            self._fits_alongside[resources] = trial.place(self._needs) is not None
        return self._fits_alongside[resources]

"""The queue of a launch: the order in which runs start, and the reason why each run waits."""

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias, final

from jobs.plan.capacity import Capacity
from jobs.plan.planned import PlannedRun
from jobs.spec import Resources

SortKey: TypeAlias = tuple[float, float, int]
"""A run's sort key in the queue; the lowest starts first."""


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

    The first run that fits starts. None overtakes a run of higher priority.
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

    def take(self, free: Capacity, live: int, now: float) -> PlannedRun | None:
        """Remove and return the next run that can start at ``now``, on the caller's clock; ``None`` if there is none.

        ``live`` runs are there already. The caller starts the run, and counts it in ``free`` and ``live``, before it
        takes the next one.
        """
        full = self._max_parallel is not None and live >= self._max_parallel
        lacks: dict[Resources, str | None] = {}
        front: PlannedRun | None = None
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
            if lack is None and (front is None or front.spec.resources.priority == resources.priority):
                del self._items[position]
                self.reasons.pop(item.run.id, None)
                return item
            front = front or item
            reasons[item.run.id] = lack or f"{front.spec.name} is to start first"
        self.reasons = reasons
        return None

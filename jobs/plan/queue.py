"""The queue of a launch: the order in which runs start, why each waits, and what all of them cost."""

import functools
import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

from jobs.plan.capacity import TINY, Capacity
from jobs.plan.planned import PlannedRun
from seqlm.architectures import CustomConfig
from seqlm.resources import Resources

SortKey: TypeAlias = tuple[float, int, float, int]
"""A run's sort key in the queue; the lowest starts first."""


def places(items: Iterable[PlannedRun]) -> dict[str, SortKey]:
    """Return the sort key of each run, by run id: higher priority first, then longer runs, then manifest order.

    Of the runs of comparisons, those of lower seeds go first, whatever their length, so that later seeds may be spared.

    Length is the expected time if that is known for all runs, else the number of operations.
    """
    items = list(items)
    timed = all(item.seconds is not None for item in items)
    length = {item.run.id: (item.seconds or 0.0) if timed else item.flops for item in items}
    return {
        item.run.id: (-item.spec.resources.priority, item.spec.turn, -length[item.run.id], item.spec.order)
        for item in items
    }


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
        self._not_before: dict[str, tuple[float, str]] = {}
        """Run id -> its earliest start, and why."""
        self.lacking: Sequence[Resources] = ()
        """What the first waiting runs need, of one priority, for which there was no room in the last :meth:`take`."""
        self.reasons: dict[str, str] = {item.run.id: "about to start" for item in self._items}
        """Run id -> why the run waits, in queue order, as of the last :meth:`take`."""

    def __len__(self) -> int:
        return len(self._items)

    def hold_until_released(self, run_id: str, why: str) -> None:
        """Keep a run of the queue from starting until :meth:`release`."""
        self._not_before[run_id] = math.inf, why
        self.reasons[run_id] = why

    def release(self, run_id: str) -> None:
        """Let a run start that was held."""
        del self._not_before[run_id]
        self.reasons[run_id] = "about to start"

    def held(self) -> list[PlannedRun]:
        """Return the runs that are held."""
        return [item for item in self._items if self._is_held(item)]

    def drop(self, run_id: str) -> None:
        """Remove a run."""
        self._items = [item for item in self._items if item.run.id != run_id]
        self.reasons.pop(run_id, None)

    def ids(self) -> set[str]:
        """Return the ids of all runs."""
        return {item.run.id for item in self._items}

    def _is_held(self, item: PlannedRun) -> bool:
        return self._not_before.get(item.run.id, (0.0, ""))[0] == math.inf

    def limit(self, max_parallel: int | None) -> None:
        """Set how many runs there may be at once. ``None``: as many as there is room for."""
        self._max_parallel = max_parallel

    def put_back(self, item: PlannedRun, *, not_before: float = -math.inf, why: str = "starts in a moment") -> None:
        """Put a run that was taken out back at its old position. ``not_before``: its earliest start.

        A run that was never in the queue goes to the end.
        """
        self._not_before[item.run.id] = not_before, why
        self._items = sorted([*self._items, item], key=self._place)
        reasons = self.reasons
        self.reasons = {other.run.id: reasons.get(other.run.id, why) for other in self._items}

    def _place(self, item: PlannedRun) -> SortKey:
        return self._places.get(item.run.id, (math.inf, 0, 0.0, 0))

    def hold(self, reason: str) -> None:
        """Note why all runs wait that are left."""
        self.reasons = {item.run.id: reason for item in self._items}

    def take_all(self) -> list[PlannedRun]:
        """Remove and return all runs."""
        items, self._items, self.reasons = self._items, [], {}
        return items

    def waiting(self, live: int) -> list[Resources]:
        """Return the resources of the runs that could start if there was room, ``live`` runs being there already."""
        items = [item for item in self._items if not self._is_held(item)]
        most = len(items) if self._max_parallel is None else max(0, self._max_parallel - live)
        return [item.spec.resources for item in items[:most]]

    def take(self, free: Capacity, live: int, now: float) -> PlannedRun | None:
        """Remove and return the next run that can start at ``now``, on the caller's clock; ``None`` if there is none.

        ``live`` runs are there already. The caller starts the run, and counts it in ``free`` and ``live``, before it
        takes the next one.
        """
        full = self._max_parallel is not None and live >= self._max_parallel
        lacks: dict[Resources, str | None] = {}
        front: PlannedRun | None = None
        reasons: dict[str, str] = {}
        lacking: list[Resources] = []
        self.lacking = ()
        for position, item in enumerate(self._items):
            resources = item.spec.resources
            not_before, why = self._not_before.get(item.run.id, (-math.inf, ""))
            if not_before > now:
                reasons[item.run.id] = why
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
            if lack is not None and front.spec.resources.priority == resources.priority:
                lacking.append(resources)
            reasons[item.run.id] = lack or f"{front.spec.name} is to start first"
        self.reasons, self.lacking = reasons, lacking
        return None


# -- totals --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums over the runs of a plan."""

    gpu_hours: float | None
    """Sum over the runs to do of hours times GPUs."""
    wall_seconds: float | None
    """Time from the first start to the last end of the runs to do."""
    disk_bytes: int
    """Size of the checkpoints of all runs, including existing ones."""
    unknown: str | None
    """Why hours and time are unknown, else ``None``."""


def totals(planned: Sequence[PlannedRun], capacity: Callable[[], Capacity], *, max_parallel: int | None) -> Totals:
    """Return the totals of planned runs, which have estimates, and resolved resources unless they are skipped."""
    todo = [item for item in planned if item.action != "skip"]
    unknown = [item.spec for item in todo if item.seconds is None]
    reason = None
    if unknown:
        archs = " or ".join(dict.fromkeys(spec.config.model.kind for spec in unknown))
        reason = f"no {archs} of about this size has been trained here on such a text yet"
        if not all(isinstance(spec.config.model, CustomConfig) for spec in unknown):
            reason += "; `doctor --calibrate` measures its speed"
    gpu_seconds = sum(
        (item.seconds or 0.0) * item.spec.resources.ranks * (item.spec.resources.gpus or 0) for item in todo
    )
    return Totals(
        gpu_hours=None if unknown else gpu_seconds / 3600,
        wall_seconds=None if unknown else wall_seconds(todo, capacity(), max_parallel=max_parallel),
        disk_bytes=sum(item.estimate.disk_bytes or 0 for item in planned if item.estimate),
        unknown=reason,
    )


def wall_seconds(runs: Sequence[PlannedRun], capacity: Capacity, *, max_parallel: int | None = None) -> float | None:
    """Return about how many seconds pass until all runs have ended; ``None`` if the time of a run is unknown.

    The queue is played through with each run taking 1/n of the machine, if n such runs fit at once. Start-up times are
    ignored. Pure; ``runs`` have resolved resources, and each fits into ``capacity``.
    """
    if any(run.seconds is None for run in runs):
        return None
    place, most = places(runs), min(len(runs), max_parallel or len(runs))
    share = functools.cache(lambda resources: 1 / capacity.how_many(resources, most))
    ends: list[tuple[float, float]] = []
    now, taken = 0.0, 0.0
    for run in sorted(runs, key=lambda run: place[run.run.id]):
        own = share(run.spec.resources)
        while taken + own > 1 + TINY:
            now, freed = heapq.heappop(ends)
            taken -= freed
        heapq.heappush(ends, (now + (run.seconds or 0.0), own))
        taken += own
    return max((end for end, _ in ends), default=0.0)

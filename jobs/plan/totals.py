"""The total cost of a launch (GPU hours, wall time, disk), the study's budget, and its search."""

import functools
import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.plan.capacity import TINY, Capacity
from jobs.plan.planned import PlannedRun
from jobs.plan.queue import places
from jobs.study.budget import UNITS, Budget, hours_of, total
from seqlm.architectures import CustomConfig
from seqlm.search import Search


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


# -- the budget ------------------------------------------------------------------------------------------------------


def budget_of(todo: Sequence[PlannedRun], budget: Budget) -> tuple[str, dict[str, Any]] | None:
    """Return what ``plan`` says of the study's budget, and its entry of ``--json``. ``None``: it has no limits.

    What the runs to do need is ``None`` if it is not known. The runs that a search will stop are counted in full.
    """
    data = budget.to_dict()
    if data is None:
        return None
    known = [hours_of(item.spec.resources, item.seconds) for item in todo if item.seconds is not None]
    needs = total(known) if len(known) == len(todo) else {}
    amounts = [f"{needs[key]:.3g} {UNITS[key]}" for key in data if key in needs]
    what = f"the rest needs at most about {' and '.join(amounts)}" if amounts else "it is not known what the rest needs"
    return f"{budget.line()}; {what}", {key: {**found, "needs": needs.get(key)} for key, found in data.items()}


def search_line(search: Search) -> str:
    """Return one line about a search: its rungs, and what it compares."""
    rungs = ", ".join(map(str, search.rungs))
    among = f" among runs of equal {', '.join(search.within)}" if search.within else ""
    return f"search: {search.keep:.3g} of the runs go on after epochs {rungs} by {search.metric}{among}"

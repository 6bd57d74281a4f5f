"""The total cost of a launch (GPU hours, wall time, disk), and beside it the study's budget."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.manifests.policy import Policy
from jobs.plan.capacity import Allocation, Capacity
from jobs.plan.planned import PlannedRun
from jobs.plan.queue import places
from jobs.spec import Resources
from jobs.study.budget import UNITS, Budget, hours_of, total
from seqlm.architectures import CustomConfig


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
        wall_seconds=None if unknown else makespan(todo, capacity(), max_parallel=max_parallel),
        disk_bytes=sum(item.estimate.disk_bytes or 0 for item in planned if item.estimate),
        unknown=reason,
    )


def makespan(runs: Sequence[PlannedRun], capacity: Capacity, *, max_parallel: int | None = None) -> float | None:
    """Return the seconds until all runs have ended, or ``None`` if the time of a run is unknown.

    List scheduling (Graham, Bounds on multiprocessing timing anomalies, 1969): whenever resources are free, the first
    run of the queue that fits starts. Reservations of the real queue and start-up times are ignored. Pure; ``runs``
    have resolved resources, and each fits into ``capacity``.
    """
    place = places(runs)
    lanes: dict[Resources, deque[PlannedRun]] = {}  # runs with equal needs: if the first does not fit, none does
    for run in sorted(runs, key=lambda run: place[run.run.id]):
        lanes.setdefault(replace(run.spec.resources, priority=0), deque()).append(run)
    free = capacity.copy()
    ends: list[tuple[float, int, list[Allocation]]] = []
    now, started = 0.0, 0
    while True:
        while max_parallel is None or len(ends) < max_parallel:
            found = [(place[lane[0].run.id], need) for need, lane in lanes.items() if free.place(need) is not None]
            if not found:
                break
            need = min(found, key=lambda pair: pair[0])[1]
            run = lanes[need].popleft()
            if not lanes[need]:
                del lanes[need]
            allocations = free.place(need)
            if run.seconds is None:
                return None
            assert allocations is not None, "it was placed a moment ago"
            free.take(allocations)
            started += 1
            heapq.heappush(ends, (now + run.seconds, started, allocations))
        if not ends:
            assert not lanes, "every run fits when all is free"
            return now
        now, _, allocations = heapq.heappop(ends)
        free.give_back(allocations)


# -- the budget ------------------------------------------------------------------------------------------------------


def budget_of(
    planned: Sequence[PlannedRun], policy: Policy, study_dir: Path, share: float
) -> tuple[str, dict[str, Any]] | None:
    """Return what ``plan`` says of the study's budget, and its entry of ``--json``. ``None``: the policy has none.

    ``share`` is that of the epochs which a search trains. What the runs to do need is ``None`` if it is not known.
    """
    budget, todo = Budget(study_dir, policy), [item for item in planned if item.action != "skip"]
    data = budget.to_dict()
    if data is None:
        return None
    known = [hours_of(item.spec.resources, item.seconds) for item in todo if item.seconds is not None]
    needs = {key: hours * share for key, hours in total(known).items()} if len(known) == len(todo) else {}
    amounts = [f"{needs[key]:.3g} {UNITS[key]}" for key in data if key in needs]
    what = f"the rest needs about {' and '.join(amounts)}" if amounts else "it is not known what the rest needs"
    return f"{budget.line()}; {what}", {key: {**found, "needs": needs.get(key)} for key, found in data.items()}

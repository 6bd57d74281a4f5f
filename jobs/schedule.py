"""How long a launch takes from its first start to its last end: its queue played through before anything starts."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from jobs.capacity import Capacity, Share
from jobs.queue import Waiting, places
from jobs.spec import Resources


def wall_seconds(runs: Sequence[Waiting], capacity: Capacity, *, max_parallel: int | None = None) -> float | None:
    """Seconds until all runs have ended, or none where the time of some run is unknown.

    List scheduling (Graham, Bounds on multiprocessing timing anomalies, 1969): whenever something is free, the first
    run of the queue that fits starts. The real queue also holds a place for a large run in front, and runs need some
    seconds to start; both are left out. Pure; ``runs`` have resolved resources, and each fits into ``capacity``.
    """
    seconds = {run.id: run.work.seconds for run in runs}
    place = places(runs)
    lanes: dict[Resources, deque[Waiting]] = {}  # alike in what they need: if the first does not fit, none does
    for run in sorted(runs, key=lambda run: place[run.id]):
        lanes.setdefault(replace(run.spec.resources, priority=0), deque()).append(run)
    free = capacity.copy()
    ends: list[tuple[float, int, list[Share]]] = []
    now, started = 0.0, 0
    while True:
        while max_parallel is None or len(ends) < max_parallel:
            found = [(place[lane[0].id], need) for need, lane in lanes.items() if free.place(need) is not None]
            if not found:
                break
            need = min(found, key=lambda pair: pair[0])[1]
            run = lanes[need].popleft()
            if not lanes[need]:
                del lanes[need]
            lasts, shares = seconds[run.id], free.place(need)
            if lasts is None:
                return None
            assert shares is not None, "asked a moment ago"
            free.take(shares)
            started += 1
            heapq.heappush(ends, (now + lasts, started, shares))
        if not ends:
            assert not lanes, "every run fits when all is free"
            return now
        now, _, shares = heapq.heappop(ends)
        free.give_back(shares)

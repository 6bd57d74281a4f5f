"""How long a study still takes, from what its own runs have taken so far. Pure."""

from __future__ import annotations

import heapq
import statistics
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast one run goes, and what else goes like it."""

    arch: str
    shape: Hashable
    """What decides how long an epoch takes: runs of the same shape take the same time."""
    seconds_per_epoch: float | None
    """As this run has gone so far."""


def expected_seconds_per_epoch(paces: Sequence[Pace]) -> list[float | None]:
    """For each run: its own figure, else the median of runs of its shape, else of its architecture, else none."""
    by_shape: defaultdict[Hashable, list[float]] = defaultdict(list)
    by_arch: defaultdict[str, list[float]] = defaultdict(list)
    for pace in paces:
        if pace.seconds_per_epoch is not None:
            by_shape[pace.shape].append(pace.seconds_per_epoch)
            by_arch[pace.arch].append(pace.seconds_per_epoch)
    shapes = {shape: statistics.median(seconds) for shape, seconds in by_shape.items()}
    archs = {arch: statistics.median(seconds) for arch, seconds in by_arch.items()}

    def expected(pace: Pace) -> float | None:
        if pace.seconds_per_epoch is not None:
            return pace.seconds_per_epoch
        return shapes.get(pace.shape, archs.get(pace.arch))

    return [expected(pace) for pace in paces]


def study_seconds_left(running: Sequence[float | None], waiting: Iterable[float | None]) -> float | None:
    """Seconds until the last run ends, where each waiting run starts when the next of the running ones ends.

    As many go at once as do now. None where nothing runs or the time of any run is not known.
    """
    ends = [seconds for seconds in running if seconds is not None]
    if not ends or len(ends) < len(running):
        return None
    heapq.heapify(ends)
    last = max(ends)
    for seconds in waiting:
        if seconds is None:
            return None
        end = ends[0] + seconds
        heapq.heapreplace(ends, end)
        last = max(last, end)
    return last

"""Which runs a search keeps if the best ones start slowly: by the order of starting, and by the stopping rule."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from seqlm.search import goes_on, places

RUNS, WORKERS, EPOCHS = 60, 6, 27
RUNGS = (1, 3, 9)
KEEP, MIN_RUNS = 0.33, 3
BEST = 6
"""Number of the best runs, by their loss at the end."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run that nothing has started."""

    losses: Sequence[float]
    """After each epoch, if nothing stops it."""
    seconds: float
    """Of an epoch."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a rule made of the runs."""

    finished: set[int]
    """Places of the runs that came to their end."""
    spent: float
    """Seconds that all runs trained, as a share of those without stopping."""


Rule: TypeAlias = Callable[[Sequence[Job]], Kept]


SLOWNESS = {"none": 0.0, "some": 0.2, "much": 0.35}
"""Power of the width by which wide models learn more slowly per epoch."""


def jobs_of(seed: int, slowness: float) -> list[Job]:
    """Return runs of widths from 32 to 512.

    A wide model takes longer and ends lower, and with ``slowness`` it starts slowly.
    """
    rng = random.Random(seed)
    jobs = []
    for _ in range(RUNS):
        doublings = rng.uniform(0, 4)
        end = 4.6 - 0.12 * doublings + abs(rng.gauss(0, 0.15))
        speed = 1.2 * 2 ** (-slowness * doublings) * math.exp(rng.gauss(0, 0.1))
        last = math.exp(-speed * EPOCHS)
        losses = [end + 3 * (math.exp(-speed * epoch) - last) for epoch in range(1, EPOCHS + 1)]
        jobs.append(Job(losses=losses, seconds=2**doublings))
    return jobs


def shipped(jobs: Sequence[Job]) -> Kept:
    """Longest first; a run that is behind stops at once."""
    return _stopping(jobs, sorted(range(len(jobs)), key=lambda place: -jobs[place].seconds))


def manifest_order(jobs: Sequence[Job]) -> Kept:
    """The same rule, in the order of the manifest."""
    return _stopping(jobs, range(len(jobs)))


def _stopping(jobs: Sequence[Job], order: Sequence[int]) -> Kept:
    waiting = list(order)
    reached: dict[int, list[float]] = {rung: [] for rung in RUNGS}
    stages = (*RUNGS, EPOCHS)
    events: list[tuple[float, int, int]] = []
    """Time, place and stage of what each worker reaches next."""
    finished: set[int] = set()
    spent = 0.0

    def start(now: float) -> None:
        if waiting:
            place = waiting.pop(0)
            heapq.heappush(events, (now + stages[0] * jobs[place].seconds, place, 0))

    for _ in range(WORKERS):
        start(0.0)
    while events:
        now, place, stage = heapq.heappop(events)
        job, epochs = jobs[place], stages[stage]
        spent += (epochs - (stages[stage - 1] if stage else 0)) * job.seconds
        if epochs == EPOCHS:
            finished.add(place)
            start(now)
            continue
        loss = job.losses[epochs - 1]
        reached[epochs].append(loss)
        if goes_on(loss, reached[epochs], keep=KEEP, min_runs=MIN_RUNS):
            more = stages[stage + 1] - epochs
            heapq.heappush(events, (now + more * job.seconds, place, stage + 1))
        else:
            start(now)
    return Kept(finished=finished, spent=spent / _whole(jobs))


def promotion(jobs: Sequence[Job]) -> Kept:
    """ASHA as published: a run pauses at each rung, and goes on once it is among the best third of those there."""
    stages = (*RUNGS, EPOCHS)
    waiting = list(range(len(jobs)))
    at: dict[int, list[int]] = {stage: [] for stage in range(len(stages))}
    """Stage -> runs that have come there."""
    promoted: set[tuple[int, int]] = set()
    events: list[tuple[float, int, int]] = []
    idle, spent = WORKERS, 0.0

    def next_one() -> tuple[int, int] | None:
        for stage in reversed(range(len(RUNGS))):
            ranked = sorted(at[stage], key=lambda place: jobs[place].losses[stages[stage] - 1])
            for place in ranked[: int(len(ranked) * KEEP)]:
                if (place, stage) not in promoted:
                    promoted.add((place, stage))
                    return place, stage + 1
        return (waiting.pop(0), 0) if waiting else None

    def start(now: float) -> None:
        nonlocal idle
        while idle and (found := next_one()) is not None:
            place, stage = found
            epochs = stages[stage] - (stages[stage - 1] if stage else 0)
            heapq.heappush(events, (now + epochs * jobs[place].seconds, place, stage))
            idle -= 1

    start(0.0)
    while events:
        now, place, stage = heapq.heappop(events)
        spent += (stages[stage] - (stages[stage - 1] if stage else 0)) * jobs[place].seconds
        at[stage].append(place)
        idle += 1
        start(now)
    return Kept(finished=set(at[len(RUNGS)]), spent=spent / _whole(jobs))


def synchronous_halving(jobs: Sequence[Job]) -> Kept:
    """All runs go to a rung, then the best third of them goes on."""
    left, spent, before = list(range(len(jobs))), 0.0, 0
    for epochs in (*RUNGS, EPOCHS):
        spent += sum((epochs - before) * jobs[place].seconds for place in left)
        before = epochs
        if epochs != EPOCHS:
            left = sorted(left, key=lambda place: jobs[place].losses[epochs - 1])[: places(len(left), KEEP)]
    return Kept(finished=set(left), spent=spent / _whole(jobs))


RULES: Mapping[str, Rule] = {
    "longest first, as shipped": shipped,
    "manifest order": manifest_order,
    "ASHA, promotion": promotion,
    "synchronous halving": synchronous_halving,
}


def _whole(jobs: Sequence[Job]) -> float:
    return sum(EPOCHS * job.seconds for job in jobs)


def share_kept(jobs: Sequence[Job], kept: Kept, best: int) -> float:
    """Return the share of the ``best`` runs that came to their end."""
    lowest = sorted(range(len(jobs)), key=lambda place: jobs[place].losses[-1])[:best]
    return sum(place in kept.finished for place in lowest) / best


def regret(jobs: Sequence[Job], kept: Kept) -> float:
    """Return how much lower the best run would have ended than the best one that came to its end."""
    return min(jobs[place].losses[-1] for place in kept.finished) - min(job.losses[-1] for job in jobs)

"""The stopping rule of a search, and the epochs that a search is expected to take. Pure, and without torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeAlias

from jobs.spec import RunSpec
from seqlm.search import Search, goes_on, places

__all__ = ["expected_share", "expected_shares", "goes_on", "rungs_within"]

Shares: TypeAlias = tuple[tuple[int, float], ...]
"""Rungs of a search, ascending from 0. Each has the share of its epochs that a run is expected to reach if it passes
the rung."""
ALL_EPOCHS: Shares = ((0, 1.0),)
"""Without a search."""


def epochs_left(epochs: int, done: int, shares: Shares = ALL_EPOCHS) -> float:
    """Return how many more epochs a run of ``epochs`` is expected to train that has finished ``done``."""
    share = max(pair for pair in shares if pair[0] <= done)[1]
    return max(0.0, share * epochs - done)


def expected_share(search: Search, runs: Sequence[RunSpec]) -> float:
    """Return the expected share of all epochs of ``runs`` that a search trains, if no run has begun.

    The number of runs that go on is a mean over all orders in which runs can come to a rung: the i-th
    is among the best ceil(i keep) of i with probability ceil(i keep) / i. The order at one rung is taken to say nothing
    about the values at the next. In real searches it does, and somewhat more runs go on.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for run in runs:
        known = run.config.by_key()
        groups.setdefault(tuple(known.get(key) for key in search.within), []).append(run.config.train.epochs)
    return sum(_epochs(search, epochs) for epochs in groups.values()) / sum(map(sum, groups.values()))


def expected_shares(search: Search, runs: Sequence[RunSpec]) -> Shares:
    """Return the share of its epochs that a run is expected to reach, for a run that has not begun and after each rung.

    After a rung it is that of a search with the rungs that are left, among as many runs.
    """
    found = []
    for number, rung in enumerate((0, *search.rungs)):
        left = search.rungs[number:]
        found.append((rung, expected_share(replace(search, rungs=left), runs) if left else 1.0))
    return tuple(found)


def rungs_within(search: Search, runs: Sequence[RunSpec], share: float) -> tuple[int, ...] | None:
    """Return rungs with which a search is expected to train at most this share of all epochs. ``None``: no rungs do.

    Each rung is 1 / ``keep`` times the one before, rounded up, and below the fewest epochs of a run. Of such ladders
    the one with the highest first rung is returned: it knows most of a run before it stops it.
    """
    most = min(run.config.train.epochs for run in runs)
    for first in range(most - 1, 0, -1):
        rungs = [first]
        while (following := max(rungs[-1] + 1, math.ceil(round(rungs[-1] / search.keep, 9)))) < most:
            rungs.append(following)
        if expected_share(replace(search, rungs=tuple(rungs)), runs) <= share:
            return tuple(rungs)
    return None


def _epochs(search: Search, epochs: Sequence[int]) -> float:
    """Return the expected epochs of a group of runs. ``epochs`` are those of each run."""
    left = float(len(epochs))
    total = float(_between(0, search.rungs[0], epochs))
    for rung, following in itertools.pairwise([*search.rungs, math.inf]):
        left = _going_on(search, round(left))
        total += left / len(epochs) * _between(rung, following, epochs)
    return total


def _between(first: float, last: float, epochs: Iterable[int]) -> float:
    return sum(max(0, min(own, last) - first) for own in epochs)


def _going_on(search: Search, number: int) -> float:
    """Return how many of ``number`` runs that come to a rung go on from it."""
    return sum(1.0 if place < search.min_runs else places(place, search.keep) / place for place in range(1, number + 1))


def search_line(search: Search, share: float) -> str:
    """Return one line about a search: its rungs, what it compares, and the share of all epochs that it takes."""
    rungs = ", ".join(map(str, search.rungs))
    among = f" among runs of equal {', '.join(search.within)}" if search.within else ""
    return (
        f"search: {search.keep:.3g} of the runs go on after epochs {rungs} by {search.metric}{among}; "
        f"about {share:.0%} of the epochs of all runs"
    )

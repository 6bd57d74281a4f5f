"""The epochs that a search is expected to take. Pure, and without torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

from jobs.spec import RunSpec
from seqlm.search import Search, places


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

"""Tell whether paired differences have a mean other than 0, looking after each of them: a sequential t test.

The prior of the effect is N(0, 1) in units of the unknown standard deviation, which has the prior 1/sigma. The evidence
against a mean is then a Bayes factor in closed form. For normal differences with that mean, it exceeds 1/error at any
time with a probability of at most ``error`` (Ville's inequality): one may look after each difference.
Pure functions of numbers. Standard library alone.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Outcome: TypeAlias = Literal["lower", "higher", "no difference", "undecided"]


def evidence(differences: Sequence[float], mean: float = 0.0) -> float:
    """Return the evidence against a mean of the differences: 1 is none, 20 is that of an error of 0.05.

    Differences that are all equal to each other give infinite evidence against every other mean.
    """
    n = len(differences)
    if n < 2:
        return 1.0
    around_own_mean = statistics.variance(differences) * (n - 1)
    squared_shift = n * (statistics.fmean(differences) - mean) ** 2
    if around_own_mean == 0:
        return math.inf if squared_shift else (1 + n) ** -0.5
    ratio = squared_shift / around_own_mean
    logarithm = n / 2 * (math.log1p(ratio) - math.log1p(ratio / (1 + n))) - math.log(1 + n) / 2
    return math.exp(logarithm) if logarithm < 700 else math.inf


def interval(differences: Sequence[float], error: float) -> tuple[float, float]:
    """Return the lowest and the highest mean against which the evidence is not above 1/error."""
    if len(differences) < 2:
        return -math.inf, math.inf
    return _around(statistics.fmean(differences), statistics.variance(differences), len(differences), error)


def fewest(error: float) -> int:
    """Return the fewest differences that bound the mean at all.

    >>> fewest(0.05), fewest(0.05 / 12)
    (5, 6)
    """
    return next(n for n in itertools.count(2) if _factor(n, error) < 1 + n)


def _around(mean: float, variance: float, n: int, error: float) -> tuple[float, float]:
    factor = _factor(n, error)
    if factor >= 1 + n:
        return -math.inf, math.inf
    reach = math.sqrt(variance * (n - 1) * (factor - 1) / (n * (1 - factor / (1 + n))))
    return mean - reach, mean + reach


def _factor(n: int, error: float) -> float:
    return float((math.sqrt(1 + n) / error) ** (2 / n))


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What differences of a and b show, a less b."""

    outcome: Outcome
    """``lower``: a is lower than b. ``no difference``: none above the margin."""
    number: int
    """Differences that were used."""
    decided_after: int | None
    """The fewest first differences that decide it. ``None``: it is undecided."""
    mean: float
    """NaN: there is no difference."""
    low: float
    """What all intervals, after each difference, have in common. It may be infinite. Likewise ``high``."""
    high: float

    @property
    def is_decided(self) -> bool:
        return self.outcome != "undecided"


def finding(differences: Sequence[float], *, error: float, comparisons: int = 1, margin: float = 0.0) -> Finding:
    """Return what differences show, in the order of their seeds, if chance may err in a share ``error`` of studies.

    ``comparisons``: of the study, which share the error. ``margin``: a smaller difference does not matter.

    The interval after each difference holds with all others. If two of them exclude each other, which happens in fewer
    than ``error`` of studies, nothing is decided.
    """
    low, high, decided_after = -math.inf, math.inf, None
    mean = squares = 0.0
    for n, one in enumerate(differences, start=1):
        shift = one - mean
        mean += shift / n
        squares += shift * (one - mean)  # around the mean; Welford, 1962
        if n < 2:
            continue
        lowest, highest = _around(mean, squares / (n - 1), n, error / comparisons)
        low, high = max(low, lowest), min(high, highest)
        if decided_after is None and _outcome(low, high, margin) != "undecided":
            decided_after = n
    outcome = _outcome(low, high, margin)
    return Finding(
        outcome=outcome,
        number=len(differences),
        decided_after=None if outcome == "undecided" else decided_after,
        mean=mean if differences else math.nan,
        low=low,
        high=high,
    )


def _outcome(low: float, high: float, margin: float) -> Outcome:
    if low > high:
        return "undecided"
    if high < 0:
        return "lower"
    if low > 0:
        return "higher"
    return "no difference" if -margin <= low and high <= margin else "undecided"

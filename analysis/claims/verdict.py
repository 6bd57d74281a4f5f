"""When two numbers are told apart: one policy for losses and one for times (docs/explanation/report.md).

Pure functions of numbers. Losses are in nats per predicted token.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Self, TypeAlias

import numpy as np
import numpy.typing as npt

Losses: TypeAlias = npt.NDArray[np.float64]
"""One of each token of a text, in its order; NaN: not predicted."""

LEVEL = 0.05
"""A difference is told apart if chance alone gives one as large in fewer than this share of studies."""
EQUAL_NATS = 0.01
"""Losses are equal if their difference is smaller than this, and that is certain. As perplexities: 1 %."""
BLOCK_TOKENS = 100
"""Successive tokens whose losses depend on each other; means over blocks of them hardly do."""
FEWEST_BLOCKS = 10
"""Blocks from which a deviation is taken."""
RANGE_OF_THREE = 3.655
"""Mean of the squared range of three normal values of variance 1."""
MOST_SEEDS = 10
"""No more seeds than these are asked for."""
CLEAR_TIMES = 3.0
"""Times are told apart if their summed log ratios are this many standard errors."""
LEAST_RATIO = 1.05
"""Each ratio of times that are told apart is beyond this."""


class Verdict(StrEnum):
    """What two losses show."""

    APART = "told apart"
    """Another seed would keep the order, and so would another text of this kind if token losses are recorded."""
    THIS_TEXT = "told apart on this text"
    """Another text of this kind would keep the order. What another seed would give is not known."""
    EQUAL = "equal"
    """They differ by less than 1 %."""
    NOT_APART = "not told apart"
    UNKNOWN = "no verdict"
    """What chance does is not known."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How far losses of one setting with other seeds are apart."""

    variance: float = math.nan
    """Nats squared, over single runs; NaN: not known."""
    freedom: int = 0
    """Degrees of freedom of this estimate."""

    @property
    def is_known(self) -> bool:
        return self.freedom > 0

    @classmethod
    def of(cls, settings: Iterable[Sequence[float]], ranges: Iterable[tuple[float, float]] = ()) -> Self:
        """Pool the variances of settings with several seeds, and those of published ranges of three replications.

        ``settings``: the losses of the seeds of each. ``ranges``: the lowest and the highest of three losses.
        """
        squares, freedom = 0.0, 0
        for losses in settings:
            if len(losses) > 1:
                mean = statistics.fmean(losses)
                squares += sum((loss - mean) ** 2 for loss in losses)
                freedom += len(losses) - 1
        for low, high in ranges:
            squares += 2 * (high - low) ** 2 / RANGE_OF_THREE
            freedom += 2
        return cls(variance=squares / freedom, freedom=freedom) if freedom else cls()


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The loss of b less that of a, with what is known of its chance."""

    nats: float
    text_error: float = math.nan
    """Standard error over texts of this kind; NaN: the losses of the tokens are not recorded."""
    blocks: int = 0
    """Blocks that it was taken from."""
    seeds: tuple[int, int] = (1, 1)
    """Of a and of b."""

    def _variances(self, noise: Noise) -> list[tuple[float, int]]:
        """Return the variances that add up to that of the difference, each with its degrees of freedom."""
        parts = []
        if math.isfinite(self.text_error):
            parts.append((self.text_error**2, self.blocks - 1))
        if noise.is_known:
            parts.append((noise.variance * (1 / self.seeds[0] + 1 / self.seeds[1]), noise.freedom))
        return parts

    def error(self, noise: Noise) -> float:
        """Return its standard error; NaN: nothing is known of its chance."""
        parts = self._variances(noise)
        return math.sqrt(sum(variance for variance, _ in parts)) if parts else math.nan

    def freedom(self, noise: Noise) -> float:
        """Return the degrees of freedom of Student's t: those of a sum of variances (Satterthwaite, 1946)."""
        parts = self._variances(noise)
        total = sum(variance for variance, _ in parts)
        if not total:
            return float(sum(freedom for _, freedom in parts))
        return total**2 / sum(variance**2 / freedom for variance, freedom in parts)

    def p_value(self, noise: Noise) -> float:
        """Return how often chance alone gives a difference as large; NaN: not known."""
        error = self.error(noise)
        if math.isnan(error):
            return math.nan
        if error == 0:
            return 0.0 if self.nats else 1.0
        from scipy.special import stdtr  # slow to import

        return 2 * float(stdtr(self.freedom(noise), -abs(self.nats) / error))

    def reach(self, noise: Noise) -> float:
        """Return half the width of its 95 % interval; NaN: not known."""
        from scipy.special import stdtrit

        error = self.error(noise)
        return math.nan if math.isnan(error) else float(stdtrit(self.freedom(noise), 1 - LEVEL / 2)) * error

    def seeds_needed(self, noise: Noise) -> int | None:
        """Return how many seeds a side would tell such a difference apart; ``None``: more than ten, or not known."""
        if not noise.is_known or not self.nats:
            return None
        from scipy.special import stdtrit

        wanted = abs(self.nats) / float(stdtrit(self.freedom(noise), 1 - LEVEL / 2))
        room = wanted**2 - (0.0 if math.isnan(self.text_error) else self.text_error**2)
        needed = math.ceil(2 * noise.variance / room) if room > 0 else MOST_SEEDS + 1
        return needed if max(self.seeds) < needed <= MOST_SEEDS else None


def difference(
    losses: tuple[float, float],
    tokens: tuple[Losses | None, Losses | None] = (None, None),
    seeds: tuple[int, int] = (1, 1),
) -> Difference:
    """Return the loss of b less that of a.

    ``losses``: mean losses of a and b. ``tokens``: the losses of their tokens, means over seeds, where they are
    recorded; the difference is then over the tokens that both predict.
    """
    nats = losses[1] - losses[0]
    a, b = tokens
    if a is None or b is None or len(a) != len(b):
        return Difference(nats=nats, seeds=seeds)
    each = b - a
    each = each[np.isfinite(each)]
    blocks = len(each) // BLOCK_TOKENS
    if blocks < FEWEST_BLOCKS:
        return Difference(nats=nats, seeds=seeds)
    means = each[: blocks * BLOCK_TOKENS].reshape(blocks, BLOCK_TOKENS).mean(axis=1)
    return of_blocks(float(each.mean()), means, seeds)


def of_blocks(nats: float, blocks: Losses, seeds: tuple[int, int] = (1, 1)) -> Difference:
    """Return a difference with its error over texts, from the same difference in each of at least two blocks."""
    error = float(blocks.std(ddof=1)) / math.sqrt(len(blocks))
    return Difference(nats=nats, text_error=error, blocks=len(blocks), seeds=seeds)


def verdicts(differences: Sequence[Difference], noise: Noise) -> list[Verdict]:
    """Return a verdict on each difference of one question.

    The more comparisons a question has, the smaller must the chance of each be: Holm (1979, A Simple Sequentially
    Rejective Multiple Test Procedure).
    """
    known = sorted(
        (p_value, place) for place, one in enumerate(differences) if not math.isnan(p_value := one.p_value(noise))
    )
    apart = set[int]()
    for rank, (p_value, place) in enumerate(known):
        if p_value >= LEVEL / (len(known) - rank):
            break
        apart.add(place)
    found = []
    for place, one in enumerate(differences):
        if math.isnan(one.error(noise)):
            found.append(Verdict.UNKNOWN)
        elif place in apart:
            found.append(Verdict.APART if noise.is_known else Verdict.THIS_TEXT)
        elif noise.is_known and abs(one.nats) + one.reach(noise) < EQUAL_NATS:
            found.append(Verdict.EQUAL)
        else:
            found.append(Verdict.NOT_APART)
    return found


# -- times -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EpochTimes:
    """The times of the epochs of a setting on one machine, without the first epoch of each run."""

    seconds: tuple[float, ...]

    @cached_property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def squared_error(self) -> float:
        """The squared standard error of the logarithm of the median, from the median absolute deviation.

        1.4826 makes that deviation the standard deviation of a normal distribution, and 1.2533 is the standard error of
        its median as a multiple of that of its mean. One slow epoch moves neither median far.
        """
        median = self.median
        spread = statistics.median(abs(one - median) for one in self.seconds)
        return (1.2533 * 1.4826 * spread / median) ** 2 / len(self.seconds)


def times_apart(pairs: Sequence[tuple[EpochTimes, EpochTimes]]) -> bool:
    """Return whether the second of each pair takes longer than the first in all, or shorter in all, clearly."""
    ratios = [math.log(b.median / a.median) for a, b in pairs]
    error = math.sqrt(sum(a.squared_error + b.squared_error for a, b in pairs))
    one_way = min(ratios) > math.log(LEAST_RATIO) or max(ratios) < -math.log(LEAST_RATIO)
    return one_way and abs(sum(ratios)) >= CLEAR_TIMES * error

"""Compare minima of unequal numbers of runs: of more tries, the lowest is lower by chance alone."""

from __future__ import annotations

import math
from collections.abc import Sequence


def expected_minimum(values: Sequence[float], draws: int) -> float:
    """Return the mean, over all choices of ``draws`` of the ``values`` without repetition, of their lowest.

    This is the unbiased estimate of the expected minimum of ``draws`` tries (Tang et al., 2020, Showing Your Work
    Doesn't Always Work).

    >>> expected_minimum([3.0, 1.0, 2.0], 1), expected_minimum([3.0, 1.0, 2.0], 2), expected_minimum([3.0, 1.0, 2.0], 3)
    (2.0, 1.3333333333333333, 1.0)

    Raises:
        ValueError: ``draws`` is not from 1 to the number of values.
    """
    n = len(values)
    if not 1 <= draws <= n:
        raise ValueError(f"draws: expected a whole number from 1 to {n}, got {draws}")
    ways = math.comb(n, draws)
    # The value of place i is the lowest of a choice that takes the rest from the n - 1 - i values above it.
    return math.fsum(value * (math.comb(n - 1 - place, draws - 1) / ways) for place, value in enumerate(sorted(values)))


def expected_lowest_perplexity(perplexities: Sequence[float], draws: int) -> float:
    """Return :func:`expected_minimum` of the losses, as a perplexity."""
    return math.exp(expected_minimum([math.log(value) for value in perplexities], draws))

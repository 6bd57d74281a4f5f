"""What the curves of a behaviour say in numbers. Time steps are counted from 1, as in the figures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from analysis.trained.behaviour_files import Values

STRETCH = 10
"""Steps over which losses are averaged where a single step's would say too little."""
NEAR = 1.02
"""A loss up to so many times the lowest counts as near it."""
VANISHED = 0.01
"""A gradient below this share of its maximum counts as vanished."""
CLEAR = 2.0
"""A change counts as one from so many standard errors on."""
FEWEST = 3
"""Steps without which a mean is not compared."""


def rescaled(values: Values) -> Values:
    """A curve taken to [0, 1]: (v - min) / (max - min), and 0 where it is constant.

    >>> rescaled(np.array([1.0, 3.0, 2.0])).tolist()
    [0.0, 1.0, 0.5]
    """
    finite = values[np.isfinite(values)]
    if not len(finite) or finite.max() == finite.min():
        return np.where(np.isfinite(values), 0.0, math.nan)
    scaled: Values = (values - finite.min()) / (finite.max() - finite.min())
    return scaled


def last_mean(losses: Values) -> float:
    """Mean over the last ``STRETCH`` steps, or over all after the first where there are fewer."""
    return float(losses[max(1, len(losses) - STRETCH) :].mean()) if len(losses) > 1 else math.nan


def settles_at(losses: Values) -> int | None:
    """First step from which the mean of ``STRETCH`` successive losses is within 2 % of the lowest such mean.

    None where there are no two such stretches, or a loss is not finite.
    """
    if len(losses) <= STRETCH or not np.isfinite(losses).all():
        return None
    means = np.convolve(losses, np.full(STRETCH, 1 / STRETCH), mode="valid")
    return int(np.flatnonzero(means <= NEAR * means.min())[0]) + 1


def vanishes_after(norms: Values) -> int | None:
    """How many steps before the last one the gradient is first below 1 % of its maximum, walking back.

    None where it never is, or where there is no maximum above 0.

    >>> vanishes_after(np.array([0.5, 0.001, 0.2, 1.0]))
    2
    """
    top = np.nanmax(norms) if np.isfinite(norms).any() else math.nan
    if not top > 0:
        return None
    below = np.flatnonzero(norms[::-1] < VANISHED * top)
    return int(below[0]) if len(below) else None


@dataclass(frozen=True, kw_only=True)
class Beyond:
    """Mean losses on both sides of the training length; NaN where there are too few steps."""

    before: float
    after: float
    error: float
    """Standard error of their difference, from how much the steps scatter."""

    @property
    def verdict(self) -> str | None:
        """``rises``, ``falls`` or ``does not clearly change``; none where nothing can be said."""
        difference = self.after - self.before
        if math.isnan(difference) or math.isnan(self.error):
            return None
        if abs(difference) <= CLEAR * self.error:
            return "does not clearly change"
        return "rises" if difference > 0 else "falls"


def beyond(losses: Values, seq_len: int) -> Beyond:
    """The steps past the training length against those of its second half, where context is no longer scarce."""
    inside, after = losses[seq_len // 2 : seq_len], losses[seq_len:]
    if min(len(inside), len(after)) < FEWEST:
        return Beyond(before=math.nan, after=math.nan, error=math.nan)
    error = math.sqrt(inside.var(ddof=1) / len(inside) + after.var(ddof=1) / len(after))
    return Beyond(before=float(inside.mean()), after=float(after.mean()), error=error)

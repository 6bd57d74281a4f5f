"""Runs that differ in nothing but the seed, as one setting with an interval.

The interval is Student's t for the mean of the best validation losses in nats, then taken to perplexities, so the
centre is the geometric mean of the perplexities. With the two to ten seeds of a study, a bootstrap over seeds is too
narrow (resampling three values can never leave their range); Student's t holds for any number from two on where the
losses of seeds are about normal (Student, 1908; Agarwal et al., 2021, on the trouble with few seeds).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy.special import stdtrit

from analysis import units

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over seeds with its confidence interval, as perplexities."""

    centre: float
    low: float
    """NaN with a single seed, of which nothing is known."""
    high: float
    n: int
    """Seeds."""

    def overlaps(self, other: Interval) -> bool:
        """Whether the two could be the same; a single seed counts as a point."""
        return self._low <= other._high and other._low <= self._high

    @property
    def _low(self) -> float:
        return self.centre if self.n == 1 else self.low

    @property
    def _high(self) -> float:
        return self.centre if self.n == 1 else self.high


def interval(perplexities: Sequence[float]) -> Interval:
    """The geometric mean of perplexities and the interval around it.

    >>> found = interval([99.0, 100.0, 101.0])
    >>> round(found.centre, 2), round(found.low, 2), round(found.high, 2)
    (100.0, 97.54, 102.51)

    Raises:
        ValueError: there are none, or one is not a positive finite number.
    """
    n = len(perplexities)
    if n == 0 or not all(math.isfinite(value) and value > 0 for value in perplexities):
        raise ValueError(f"perplexities: found {list(perplexities)}, valid are positive finite numbers")
    losses = [math.log(value) for value in perplexities]
    mean = sum(losses) / n
    if n == 1:
        return Interval(centre=perplexities[0], low=math.nan, high=math.nan, n=1)
    deviation = math.sqrt(sum((loss - mean) ** 2 for loss in losses) / (n - 1))
    reach = float(stdtrit(n - 1, 0.5 + CONFIDENCE / 2)) * deviation / math.sqrt(n)
    return Interval(centre=math.exp(mean), low=math.exp(mean - reach), high=math.exp(mean + reach), n=n)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One configuration but for the seed, with the finished runs of it."""

    number: int
    """Number of its first run."""
    name: str
    """Name of its first finished run, without the seed where it has several."""
    arch: str | None
    optimizer: str | None
    runs: list[int]
    """Numbers of the finished runs."""
    val_ppl: Interval

    @property
    def reference(self) -> str:
        """How a text refers to it: by its runs' numbers and a name."""
        return f"{'/'.join(map(str, self.runs))} {self.name}"


def settings_of(runs: pd.DataFrame) -> list[Setting]:
    """The settings that have a finished run with a validation perplexity, by number."""
    columns = ["setting", "number", "name", "arch", "optimizer", "val_ppl"]
    members: dict[int, list[dict[Any, Any]]] = {}
    for row in finished(runs)[columns].sort_values("number").to_dict("records"):
        members.setdefault(row["setting"], []).append(row)
    return [
        Setting(
            number=number,
            name=_without_seed(rows[0]["name"]) if len(rows) > 1 else rows[0]["name"],
            arch=rows[0]["arch"],
            optimizer=rows[0]["optimizer"],
            runs=[row["number"] for row in rows],
            val_ppl=interval([row["val_ppl"] for row in rows]),
        )
        for number, rows in sorted(members.items())
    ]


def _without_seed(name: str) -> str:
    return re.sub(r"-seed\d+$", "", name) or name


def finished(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that are done and have a validation perplexity: all that conclusions may rest on."""
    return runs[(runs["state"] == "done") & runs["val_ppl"].map(units.is_number)]


def repeats_seeds(runs: pd.DataFrame) -> bool:
    """Whether some setting has been finished with more than one seed."""
    return bool(finished(runs)["setting"].duplicated().any())


def clear_winners(settings: Sequence[Setting]) -> list[Setting]:
    """Of each architecture the best setting, where no other's interval overlaps with its own."""
    winners = []
    for arch in dict.fromkeys(setting.arch for setting in settings):
        members = sorted((s for s in settings if s.arch == arch), key=lambda setting: setting.val_ppl.centre)
        best, rest = members[0], members[1:]
        if not any(best.val_ppl.overlaps(other.val_ppl) for other in rest):
            winners.append(best)
    return winners

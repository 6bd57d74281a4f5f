"""Phrases that sections and figures share."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from analysis.study import units
from analysis.study.settings import Setting
from analysis.study.study import Study


def described(setting: Setting) -> str:
    """``103 (6 gru-sgd)``; with several seeds also the interval over them."""
    return f"{units.rounded(setting.val_ppl)} ({setting.reference}{interval_phrase(setting)})"


def interval_phrase(setting: Setting) -> str:
    """``, mean of 3 seeds, 97.5 to 102``; nothing for a single one."""
    found = setting.interval
    if found.n == 1:
        return ""
    low, high = distinct(found.low, found.high)
    return f", mean of {found.n} seeds, 95 % interval {low} to {high}"


def distinct(one: float, other: float, write: Callable[[Any], str] = units.rounded) -> tuple[str, str]:
    """Two perplexities as text, with more digits where rounding would hide which is lower."""
    texts = write(one), write(other)
    if texts[0] != texts[1] or one == other or write is not units.rounded:
        return texts
    return units.perplexity(one), units.perplexity(other)


def times(factor: float) -> str:
    """A ratio: ``1.03 times``, ``12 times``."""
    return f"{factor:.2f} times" if factor < 10 else f"{factor:,.0f} times"


def median(values: Iterable[float]) -> float:
    """Of the numbers there are; NaN of none."""
    numbers = [float(value) for value in values if units.is_number(value)]
    return statistics.median(numbers) if numbers else math.nan


def first_few(items: Sequence[str], most: int) -> str:
    """A listing that ends in ``and 12 more`` where it would be long."""
    if len(items) <= most:
        return units.listing(list(items))
    return f"{', '.join(items[:most])} and {len(items) - most} more"


def device_sentences(study: Study) -> list[str]:
    """A warning where times do not compare."""
    if len(study.origin.devices) < 2:
        return []
    devices = first_few(study.origin.devices, 4)
    return [f"The runs were trained on different devices ({devices}); times compare only between runs of the same one."]

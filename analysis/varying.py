"""The hyperparameters in which the finished runs of a study differ, and how their values are sorted and written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from analysis import units
from analysis.load import HYPERPARAMETERS
from analysis.pairs import CHOICES


def varying_keys(done: pd.DataFrame) -> dict[str, dict[int, Any]]:
    """Keys but the seed with more than one value, in the order of the configuration.

    For each the value of every run of ``done`` that has the key, by number.
    """
    found = {}
    for key in HYPERPARAMETERS:
        values = {int(n): v for n, v in zip(done["number"], done[key], strict=True) if applies(v)}
        if key != "seed" and len(set(values.values())) > 1:
            found[key] = values
    return found


def applies(value: Any) -> bool:
    """Whether a run has the key at all; none is a value, NaN is not."""
    return not (isinstance(value, float) and math.isnan(value))


def is_numeric(value: Any) -> bool:
    """Whether a value has a place on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def sorted_values(key: str, values: Iterable[Any]) -> list[Any]:
    """Each value once: numbers by size, architectures and optimizers in the report's order, others by name."""

    def place(value: Any) -> tuple[int, float, str]:
        if key in CHOICES:
            return units.rank(CHOICES[key], value), 0.0, str(value)
        return (0, float(value), "") if is_numeric(value) else (1, 0.0, str(value))

    return sorted(set(values), key=place)


def printed(key: str, value: Any) -> str:
    """A value as tables and axes show it."""
    return CHOICES[key].get(value, units.UNKNOWN) if key in CHOICES else units.plain_value(value)

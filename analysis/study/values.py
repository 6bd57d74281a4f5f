"""Read single values of a run's files, whatever the files hold there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Values: TypeAlias = NDArray[np.float64]
"""One number for each epoch, time step or token; NaN if it is missing."""


def as_number(value: Any) -> float:
    """Return a value as a number; NaN if it is none."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Return a value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def clean(text: str) -> str:
    """Return a text on one line, without characters that no page, table or figure can show."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def whole(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return whole numbers below 2^53 with room for missing ones; anything else is missing."""
    numbers = pd.to_numeric(column, errors="coerce").astype(float)
    return numbers.where((numbers % 1 == 0) & (numbers.abs() < 2**53)).astype("Int64")


def rows_of(frame: pd.DataFrame) -> Iterator[Any]:
    """Return the rows of a frame as tuples with the columns as attributes, those whose names are identifiers."""
    return frame.itertuples(index=False)

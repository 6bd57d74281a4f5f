"""Read single values of a run's files, whatever the files hold there."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqlm.errors import FileError

T = TypeVar("T")

Values: TypeAlias = NDArray[np.float64]
"""One number for each epoch, time step or token; NaN if it is missing."""


def read_or_warn(read: Callable[[], T | None], otherwise: T, warnings: list[str]) -> T:
    """Return what ``read`` returns, ``otherwise`` for ``None``. If a file cannot be read, also add a warning."""
    try:
        found = read()
    except FileError as error:
        warnings.append(str(error))
        found = None
    return otherwise if found is None else found


def as_number(value: Any) -> float:
    """Return a value as a number; NaN if it is none."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Return a value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def as_text(value: Any) -> str | None:
    """Return a value as one printable line; ``None`` if it is empty, a list or a mapping."""
    return None if value is None or isinstance(value, dict | list) else clean(str(value)) or None


def clean(text: str) -> str:
    """Return a text on one line, without characters that no page, table or figure can show."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def rows_of(frame: pd.DataFrame) -> Iterator[Any]:
    """Return the rows of a frame as tuples with the columns as attributes, those whose names are identifiers."""
    return frame.itertuples(index=False)

"""Read single values of a run's files, whatever the files hold there."""

import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seqlm.errors import FileError
from seqlm.trace import COLUMNS, Trace

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


def columns_of(
    records: Sequence[Mapping[str, Any]], keys: Sequence[str], most_others: int
) -> dict[str, "array[float]"]:
    """Return the numbers of records by key: of ``keys``, and of the first other keys. NaN stands for any other value.

    They take a tenth of the memory of the records, and as much whatever the records hold.
    """
    others: dict[str, None] = {}
    for record in records:
        new = (key for key, value in record.items() if key not in others and key not in keys)
        others |= {key: None for key in new if not math.isnan(as_number(record[key]))}
        if len(others) >= most_others:
            break
    return {
        key: array("d", (as_number(record.get(key)) for record in records)) for key in [*keys, *[*others][:most_others]]
    }


def as_text(value: Any) -> str | None:
    """Return a value as one printable line; ``None`` if it is empty, a list or a mapping."""
    return None if value is None or isinstance(value, dict | list) else clean(str(value)) or None


def clean(text: str) -> str:
    """Return a text on one line, without characters that no page, table or figure can show."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def steps_of(trace: Trace) -> NDArray[np.float32]:
    """Return loss, gradient norm and time of each step of a run, one row for each; NaN if it is not recorded.

    It shares the memory of the trace.
    """
    table = np.frombuffer(trace.rows.numbers, np.float32).reshape(-1, COLUMNS)
    table[table[:, -1] == 0] = math.nan
    return table


def rows_of(frame: pd.DataFrame) -> Iterator[Any]:
    """Return the rows of a frame as tuples with the columns as attributes, those whose names are identifiers."""
    return frame.itertuples(index=False)

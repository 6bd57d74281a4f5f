"""Numbers that the environment sets, such as ``SEQLM_LEASE_SECONDS``. Standard library alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

from seqlm.errors import UsageError


def positive_number(env: Mapping[str, str], name: str, default: float, unit: str) -> float:
    """The number in the variable ``name``, in ``unit``; ``default`` where it is not set or empty.

    Raises:
        UsageError: it is not a finite number above 0.
    """
    text = env.get(name) or ""
    if not text.strip():
        return default
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise UsageError(f'{name}: found "{text}", valid is a number of {unit} above 0, by default {default:g}')
    return number

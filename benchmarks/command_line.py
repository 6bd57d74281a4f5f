"""What the command lines of the benchmarks have in common."""

from __future__ import annotations

import argparse
import math
from typing import NoReturn

from seqlm.errors import UsageError


class Parser(argparse.ArgumentParser):
    """A parser whose errors are a UsageError of one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def positive(text: str) -> int:
    """A whole number above 0, for ``type=`` of an argument."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text}")
    return value


def not_negative(text: str) -> float:
    """A finite number of at least 0, for ``type=`` of an argument."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text}")
    return value

"""Text output of the launcher: tables, numbers with units, and lines on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TextIO

from seqlm.errors import printable


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Return a table as text, its columns aligned with spaces.

    Columns whose index is in ``right`` are right-aligned. Control characters in cells are escaped.
    """
    lines = [list(header), *[[printable(cell) for cell in row] for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def render(line: Sequence[str]) -> str:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join(render(line) for line in lines)


def quantity(value: float | None, units: Sequence[str], base: float) -> str:
    """Return a number with the unit that leaves one to three digits before the point, or a dash for ``None``.

    >>> quantity(1_234_567, ("", "k", "M", "G"), 1000)
    '1.2M'
    """
    if value is None:
        return "-"
    for unit in units[:-1]:
        if abs(value) < base:
            return f"{value:.0f}{unit}" if unit == units[0] else f"{value:.1f}{unit}"
        value /= base
    return f"{value:.1f}{units[-1]}"


def short_number(value: float | None) -> str:
    """Return a number such as ``12.3M``, or a dash for ``None``."""
    return quantity(value, ("", "k", "M", "G", "T"), 1000)


def memory(value: float | None) -> str:
    """Return a number of bytes such as ``1.5 GiB``, or a dash for ``None``."""
    return quantity(value, (" B", " KiB", " MiB", " GiB"), 1024)


def duration(seconds: float | None) -> str:
    """Return a time such as ``45 s``, ``12 min`` or ``3.5 h``, or a dash for ``None``."""
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def perplexity(value: float | None) -> str:
    """Return a perplexity with two decimals below 1000 and none above, or a dash for ``None``."""
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 1000 else f"{value:.0f}"


def tell(line: str) -> None:
    """Print a line on stderr. Control characters are escaped, so that no name or message can control the terminal."""
    print(printable(line), file=sys.stderr, flush=True)


def can_redraw(stream: TextIO) -> bool:
    """Return whether ``stream`` is a terminal that can redraw lines in place, which a dumb one cannot."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("", "dumb", "unknown")

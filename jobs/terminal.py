"""What the launcher prints for a person: tables, and a line for each thing that happens."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TextIO

from seqlm.errors import printable


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Columns aligned with spaces; the columns numbered in ``right`` to the right. Cells cannot break a line."""
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
    """A number with the unit that leaves one to three digits before the point, or a dash for none.

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


def count(value: float | None) -> str:
    """12.3M and the like."""
    return quantity(value, ("", "k", "M", "G", "T"), 1000)


def memory(value: float | None) -> str:
    """1.5 GiB and the like, from bytes."""
    return quantity(value, (" B", " KiB", " MiB", " GiB"), 1024)


def duration(seconds: float | None) -> str:
    """45 s, 12 min or 3.5 h; a dash for none."""
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def perplexity(value: float | None) -> str:
    """Two decimals below a thousand, none above; a dash for none."""
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 1000 else f"{value:.0f}"


def tell(line: str) -> None:
    """A line on stderr, with control characters as escapes: what names and messages hold must not drive a terminal."""
    print(printable(line), file=sys.stderr, flush=True)


def can_redraw(stream: TextIO) -> bool:
    """Whether lines on ``stream`` can be drawn anew in place: a terminal, and not one that calls itself dumb."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("", "dumb", "unknown")

"""Tables: columns of records, which are also the documents of ``--json``."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs import terminal
from seqlm.errors import printable


@dataclass(frozen=True)
class Column:
    """A column of a table: how the cell of a record reads. A record is a mapping or an object."""

    title: str
    value: str | Callable[[Any], Any] = ""
    """Key or attribute of a record, or a function of it. Empty: the title."""
    text: Callable[[Any], str] = lambda value: "" if value is None else str(value)
    """Value -> text of the cell."""
    right: bool = False
    colors: Mapping[Any, str] | None = None
    """Value -> color of its cell."""
    spare: int = 0
    """Above 0: left out if the table is too wide, the highest number first."""
    optional: bool = False
    """Left out if no record has a value."""

    def of(self, record: Any) -> Any:
        """Return the value of a record."""
        if callable(self.value):
            return self.value(record)
        key = self.value or self.title
        return record[key] if isinstance(record, Mapping) else getattr(record, key)


def lines_of(
    columns: Sequence[Column],
    records: Sequence[Any],
    *,
    width: int | None = None,
    colored: bool = False,
) -> list[str]:
    """Return a table as lines: titles, if there are any, and a line for each record. Cells cannot break a line.

    If it is wider than ``width``, spare columns are left out.
    """
    columns = [one for one in columns if not one.optional or any(one.of(record) is not None for record in records)]
    cells = [[printable(column.text(column.of(record))) for record in records] for column in columns]
    wide = [max(map(len, [column.title, *texts])) for column, texts in zip(columns, cells, strict=True)]
    for place in sorted(range(len(columns)), key=lambda place: columns[place].spare, reverse=True):
        if width is not None and columns[place].spare and sum(wide) + 2 * len([*filter(None, wide)]) - 2 > width:
            wide[place] = 0
    places = [place for place in range(len(columns)) if wide[place]]

    def aligned(place: int, text: str) -> str:
        return text.rjust(wide[place]) if columns[place].right else text.ljust(wide[place])

    lines = ["  ".join(aligned(place, columns[place].title) for place in places)]
    for number, record in enumerate(records):
        found = []
        for place in places:
            cell = aligned(place, text := cells[place][number])
            color = (columns[place].colors or {}).get(columns[place].of(record)) if colored else None
            found.append(cell.replace(text, terminal.paint(text, color)) if color else cell)
        lines.append("  ".join(found))
    return [line.rstrip() for line in lines[0 if lines[0].strip() else 1 :]]


def show(columns: Sequence[Column], records: Sequence[Any]) -> None:
    """Print a table as a result. A terminal that is too narrow for all of its columns gets fewer."""
    stream = terminal.results()
    width = shutil.get_terminal_size().columns if stream.isatty() else None
    print(*lines_of(columns, records, width=width, colored=terminal.has_color(stream)), sep="\n", file=stream)


STATE = Column("state", colors=terminal.STATE_COLORS)
LEVELS = {"ok": "green", "note": "yellow", "bad": "red"}
FINDINGS = (Column("", "level", colors=LEVELS), Column("", "subject"), Column("", "text"))
"""The columns of what ``doctor`` and ``check-model`` found."""

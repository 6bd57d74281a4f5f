"""A table of the report and its forms as text: CSV, LaTeX and Markdown. The page's template makes the HTML."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import getitem
from typing import Any, Literal, NamedTuple

import pandas as pd

from analysis.study import units
from analysis.study.numbering import RunNumber

FORMULA_STARTS = ("=", "+", "-", "@")
"""A spreadsheet takes a text that begins like this for a formula. The CSV files of tables, which people open in a
spreadsheet, put an apostrophe in front of such a text. The files of data are for programs and keep it as it is.

https://owasp.org/www-community/attacks/CSV_Injection
"""


@dataclass(frozen=True)
class Column:
    """One column of a table: its headings, the value that it takes from a record, and how the value is written."""

    key: str
    """Heading in the CSV file."""
    title: str
    """Heading for a person."""
    text: Callable[[Any], str] = str
    """Write a value."""
    of: Callable[[Any], Any] | None = None
    """Take the value from a record. ``None``: the item ``key`` of a dictionary, else the attribute."""
    shown: Callable[[Any], str] | None = None
    """Write a record, for a text that says more than the value. ``None``: ``text`` of the value."""
    numeric: bool = False
    """Set flush right, with figures of equal width."""
    emphasised: bool = False
    """Bold in the rows that stand out."""
    kind: Literal["text", "state"] = "text"
    detail: bool = False
    """Left out on a narrow screen."""

    def cell(self, record: Any, *, bold: bool) -> "Cell":
        """Return the cell of a record."""
        item = getitem if isinstance(record, dict) else getattr
        value = item(record, self.key) if self.of is None else self.of(record)
        text = self.text(value) if self.shown is None else self.shown(record)
        return Cell(text=text, value=value, bold=bold and self.emphasised)


def number(
    key: str, title: str, text: Callable[[Any], str] = str, of: Callable[[Any], Any] | None = None, **more: Any
) -> Column:
    """Return a column of numbers. ``more``: further fields of it."""
    return Column(key, title, text, of, numeric=True, **more)


RUN_COLUMNS = [
    number("number", "No."),
    Column("name", "Run", emphasised=True),
    Column("architecture", "Architecture", units.architecture, lambda run: run["arch"]),
    Column("optimizer", "Optimizer", units.optimizer),
]
"""The columns that say which run a row is about, for records with the columns of the runs table."""


class Cell(NamedTuple):
    """One cell: what is shown, and the value behind it at full precision."""

    text: str
    value: Any
    bold: bool


class Row(NamedTuple):
    """One row, and a line of code beneath it that takes the table's whole width."""

    cells: list[Cell]
    code: str | None
    run: RunNumber | None
    """Number of the run that the row is about."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with its caption. ``name`` is the stem of its files and its anchor on the page."""

    name: str
    title: str
    """First words of the caption."""
    caption: str
    """The rest of the caption; explains every shorthand."""
    columns: Sequence[Column]
    records: pd.DataFrame | Sequence[Any] = ()
    """What each row is about."""
    run: Callable[[Any], RunNumber | None] = lambda record: record.get("number") if isinstance(record, dict) else None
    """Number of the run that a record is about."""
    bold: Callable[[Any], bool] = lambda record: False
    """Whether a record stands out."""
    code: Callable[[Any], str | None] = lambda record: None
    """Lines of code beneath a record."""
    code_title: str | None = None
    """What the lines of code are, for a table that has them."""

    @cached_property
    def rows(self) -> list[Row]:
        """The records as they are shown."""
        records = self.records
        if isinstance(records, pd.DataFrame):
            names = list(records)
            records = [dict(zip(names, row, strict=True)) for row in records.itertuples(index=False, name=None)]
        rows = []
        for record in records:
            bold = self.bold(record)
            cells = [column.cell(record, bold=bold) for column in self.columns]
            rows.append(Row(cells=cells, code=self.code(record), run=self.run(record)))
        return rows

    def to_csv(self) -> str:
        """Full precision, empty cells for missing values, no lines of code."""
        cells = ([cell.value for cell in row.cells] for row in self.rows)
        return csv_text([column.key for column in self.columns], cells)

    def to_markdown(self, label: str = "") -> str:
        """The caption, then the table; lines of code form its last column."""
        caption = f"**{label}{escape_markdown(self.title)}.** {escape_markdown(self.caption)}"
        return "\n".join([caption, "", *self._markdown_lines]) + "\n"

    @cached_property
    def _markdown_lines(self) -> list[str]:
        code = [self.code_title] if self.code_title else []
        rows = [
            [escape_markdown(title) for title in [*(column.title for column in self.columns), *code]],
            [*("---:" if column.numeric else "---" for column in self.columns), *("---" for _ in code)],
        ]
        for row in self.rows:
            cells = [f"**{escape_markdown(c.text)}**" if c.bold else escape_markdown(c.text) for c in row.cells]
            shown = markdown_code(" ⏎ ".join(row.code.splitlines())).replace("|", "\\|") if row.code else "–"
            rows.append([*cells, *(shown for _ in code)])
        return [f"| {' | '.join(row)} |" for row in rows]


# -- escaping ------------------------------------------------------------------------------------------------------


_MARKDOWN = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {sign: f"\\{sign}" for sign in "\\`*_[]|~#"})


def escape_markdown(text: str) -> str:
    """Text that Markdown (and the HTML inside it) prints as it is."""
    return text.translate(_MARKDOWN)


def markdown_code(text: str) -> str:
    """A code span, fenced by more backticks than the text has in a row."""
    fence = "`" * (longest_run_of_backticks(text) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def longest_run_of_backticks(text: str) -> int:
    """What a fence around the text must exceed."""
    return max((len(run) for run in re.findall(r"`+", text)), default=0)


def csv_text(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A CSV file in which no text is a formula; missing values are empty cells."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(map(_csv_value, row) for row in rows)
    return text.getvalue()


def _csv_value(value: Any) -> str:
    if value is None or (not isinstance(value, str) and pd.isna(value)):
        return ""
    if isinstance(value, str):
        text = value.replace("\r", " ")  # the csv module does not quote it, and spreadsheets begin a row with it
        return f"'{text}" if text.lstrip().startswith(FORMULA_STARTS) else text
    return repr(float(value)) if isinstance(value, float) else str(value)

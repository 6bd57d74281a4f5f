"""What the launcher prints for a person: tables, lines, and whether they have color."""

import contextlib
import io
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TextIO

from seqlm.errors import UsageError, printable

CODES = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "cyan": 36}
"""Color -> its ANSI code."""
STATE_COLORS = {"running": "cyan", "failed": "red", "cancelled": "yellow", "done": "green", "stopped": "blue"}
"""State of a run -> color; the other states have none."""
LONGEST_REPEATED = 80
"""Most characters of a text that stands in each of several rows."""
LEAST_WRAPPED = 20
"""Least characters of a line in which texts are wrapped; in less room they are as they are."""
WRAPPING: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
"""A word, such as a path, stays whole."""
LEVELS = {"error:": "red", "warning:": "yellow"}
"""First word of a line on stderr -> its color."""


_json = _verbose = _is_library = False
_told: list[str] = []


def configure(*, json: bool = False, verbose: bool = False) -> None:
    """Set how this process prints. ``json``: one document on stdout, and warnings and errors on stderr; no results."""
    global _json, _verbose
    _json, _verbose = json, verbose
    _told.clear()


def told() -> list[str]:
    """Return what :func:`tell` was given, but for errors: with ``--json`` these lines are in the document."""
    return list(_told)


@contextlib.contextmanager
def called_from_python() -> Iterator[None]:
    """Mark the block as called from a script or a notebook: what it prints names the command ``seqlm``."""
    global _is_library
    before, _is_library = _is_library, True
    try:
        yield
    finally:
        _is_library = before


def is_library() -> bool:
    """Whether a script or a notebook has called, and no command runs."""
    return _is_library


def program() -> str:
    """Return what the user typed to start this program: ``seqlm``, or ``python launch.py`` from a checkout."""
    return "seqlm" if _is_library or Path(sys.argv[0]).name == "seqlm" else "python launch.py"


def paint(text: str, color: str | None) -> str:
    """Return a text in a color of :data:`CODES`; as it is for ``None``."""
    return text if color is None else f"\x1b[{CODES[color]}m{text}\x1b[0m"


def has_color(stream: TextIO) -> bool:
    """Whether text on ``stream`` may be colored: it is a terminal, and ``NO_COLOR`` is not set (no-color.org)."""
    return can_redraw(stream) and not os.environ.get("NO_COLOR")


class OutputError(OSError):
    """Stdout cannot be written: its disk is full, for example."""


class Output(io.TextIOBase):
    """A stream like ``stdout`` that raises :class:`OutputError` if that cannot be written."""

    def __init__(self, stdout: TextIO) -> None:
        self._stdout = stdout

    def write(self, text: str) -> int:
        with _output_errors():
            return self._stdout.write(text)

    def flush(self) -> None:
        with _output_errors():
            self._stdout.flush()

    def close(self) -> None:
        """Leave stdout as it is: it is the process's, and may be closed before this object is collected."""

    def isatty(self) -> bool:
        return self._stdout.isatty()

    def fileno(self) -> int:
        return self._stdout.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stdout.encoding


@contextlib.contextmanager
def _output_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(error.errno, error.strerror) from None


def discard(stream: TextIO) -> None:
    """Let a stream lead nowhere from now on."""
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


class _Nowhere(io.TextIOBase):
    """A stream that discards what it gets."""

    def write(self, text: str) -> int:
        return len(text)


_NOWHERE: Any = _Nowhere()


def results() -> TextIO:
    """Return the stream on which a person reads the result of a command. With ``--json``, it discards all it gets."""
    return _NOWHERE if _json else sys.stdout


def progress() -> TextIO:
    """Return the stream on which a person follows a command. With ``--json``, it discards all it gets."""
    return _NOWHERE if _json else sys.stderr


def say(*lines: str) -> None:
    """Print lines of a result, with control characters as escapes. No text can make a line of its own."""
    print(*map(printable, lines), sep="\n", file=results())


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
    return f"{value:.1f}{units[-1]}" if abs(value) < base**2 else f"{value:.1e}{units[-1]}"


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
    """Return a perplexity with two decimals below 1000, none below a million, else as :func:`short_number`."""
    if value is None or value >= 1e6:
        return short_number(value)
    return f"{value:.2f}" if value < 1000 else f"{value:.0f}"


def tell_progress(line: str) -> None:
    """Print a line about what a command is doing on stderr, which nobody needs later."""
    if not _json:
        _print(line)


def tell(line: str) -> None:
    """Print a line on stderr, with control characters as escapes. With ``--json``, only a warning or an error."""
    level = line.partition(" ")[0]
    if level != "error:":
        _told.append(printable(line))
    if level in LEVELS or not _json:
        _print(line)


def tell_error(message: str) -> None:
    """Print an error on stderr, a line for each problem. An indented line belongs to the one before."""
    for line in message.split("\n"):
        _print(line if line.startswith(" ") else f"error: {line}")


def _print(line: str) -> None:
    level, text = line.partition(" ")[0], printable(line)
    if level in LEVELS and has_color(sys.stderr):
        text = paint(level, LEVELS[level]) + text.removeprefix(level)
    with survives(sys.stderr):
        if _is_library:
            from tqdm.std import tqdm

            tqdm.write(text, file=sys.stderr)  # above a bar
        else:
            print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def survives(stream: TextIO) -> Iterator[None]:
    """Print to ``stream`` in the block. If its terminal or the reader of its pipe is gone, discard all it gets."""
    try:
        yield
    except OSError:
        discard(stream)


def confirm(question: str, *, without_terminal: str, refused: str) -> None:
    """Ask on stderr and read the answer.

    Raises:
        UsageError: there is no terminal to ask on (``without_terminal``), or the answer is not yes (``refused``).
    """
    if not sys.stdin.isatty():
        raise UsageError(without_terminal)
    print(f"{question}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError(refused)


def detail(text: str) -> None:
    """Print lines on stderr that only ``--verbose`` shows."""
    for line in text.splitlines() if _verbose else ():
        _print(line)


def can_redraw(stream: TextIO) -> bool:
    """Return whether ``stream`` is a terminal that can redraw lines in place, which a dumb one cannot."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("", "dumb", "unknown")


# -- what a command has found ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a command has found, apart from how it is shown. Its fields are the document of ``--json``."""

    HIDDEN: ClassVar[frozenset[str]] = frozenset()
    """Fields that only a person is shown."""

    def document(self) -> dict[str, Any]:
        """Return the document of ``--json``."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in self.HIDDEN}

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        return 0

    def render(self) -> None:
        """Print it for a person."""
        raise NotImplementedError


# -- tables: columns of records, which are also the documents of --json ----------------------------------------------


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
    cut: bool = False
    """Ends with an ellipsis where a terminal is too narrow for it, and is not wrapped; for the last column."""
    folded: bool = False
    """A long text that an earlier row has too reads ``as`` and the first cell of that row."""

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

    If it is wider than ``width``, spare columns are left out, then the texts of the last column are cut, or wrapped
    between words below each other.
    """
    columns = [one for one in columns if not one.optional or any(one.of(record) is not None for record in records)]
    cells = [[printable(column.text(column.of(record))) for record in records] for column in columns]
    cells = [_folded(texts, cells[0]) if column.folded else texts for column, texts in zip(columns, cells, strict=True)]
    wide = [max(map(len, [column.title, *texts])) for column, texts in zip(columns, cells, strict=True)]
    for place in sorted(range(len(columns)), key=lambda place: columns[place].spare, reverse=True):
        if width is not None and columns[place].spare and sum(wide) + 2 * len([*filter(None, wide)]) - 2 > width:
            wide[place] = 0
    places = [place for place in range(len(columns)) if wide[place]]
    room = (width or math.inf) - sum(wide[:-1]) - 2 * (len(places) - 1)
    below: list[list[str]] = [[] for _ in records]
    if columns and columns[-1].cut and wide[-1] > room:
        most = max(int(room), len(columns[-1].title), 1)
        cells[-1] = [text if len(text) <= most else f"{text[: most - 1]}…" for text in cells[-1]]
        wide[-1] = most
    elif columns and not columns[-1].right and LEAST_WRAPPED <= room < wide[-1]:
        wrapped = [textwrap.wrap(text, int(room), **WRAPPING) or [""] for text in cells[-1]]
        cells[-1], below = [first for first, *_ in wrapped], [others for _, *others in wrapped]
        wide[-1] = max(map(len, [columns[-1].title, *cells[-1]]))
    start = sum(wide[place] + 2 for place in places[:-1])

    def aligned(place: int, text: str) -> str:
        return text.rjust(wide[place]) if columns[place].right else text.ljust(wide[place])

    lines = ["  ".join(aligned(place, columns[place].title) for place in places)]
    for number, record in enumerate(records):
        found = []
        for place in places:
            cell = aligned(place, text := cells[place][number])
            colors = columns[place].colors if colored else None
            color = colors.get(columns[place].of(record)) if colors else None
            found.append(cell.replace(text, paint(text, color)) if color else cell)
        lines.append("  ".join(found))
        lines += [" " * start + text for text in below[number]]
    return [line.rstrip() for line in lines[0 if lines[0].strip() else 1 :]]


def _folded(texts: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return texts of a column, where a long one that an earlier row has too names that row."""
    firsts = dict(zip(reversed(texts), reversed(names), strict=True))
    seen = set[str]()
    found = []
    for text in texts:
        found.append(f"as {firsts[text]}" if text in seen and len(text) > LONGEST_REPEATED else text)
        seen.add(text)
    return found


def show(columns: Sequence[Column], records: Sequence[Any]) -> None:
    """Print a table as a result. A terminal that is too narrow for all of its columns gets fewer."""
    stream = results()
    width = shutil.get_terminal_size().columns if stream.isatty() else None
    print(*lines_of(columns, records, width=width, colored=has_color(stream)), sep="\n", file=stream)


STATE = Column("state", colors=STATE_COLORS)
FINDING_COLORS = {"ok": "green", "note": "yellow", "bad": "red"}
FINDINGS = (Column("", "level", colors=FINDING_COLORS), Column("", "subject"), Column("", "text"))
"""The columns of what ``doctor`` and ``check-model`` found."""

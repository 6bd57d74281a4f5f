"""The live table of a study's runs: the columns of ``status`` and more, cut to fit a terminal. rich redraws it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TextIO, final

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.text import Text

from jobs import terminal
from jobs.cli.tables import STATE, Column, lines_of
from jobs.cli.view import NUMBERS, STATES, TRAIN_PPL, VAL_PPL, RunView, StudyView, place_in_queue, summary
from seqlm.errors import printable

BAR_WIDTH = 8
LEAST_NAME_WIDTH, MOST_NAME_WIDTH = 12, 36


@final
class StudyTable:
    """A study as a table that fits the console. It shows a view and reads no files."""

    def __init__(self, study: StudyView) -> None:
        self._study = study

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = options.max_height - 1  # the cursor needs the line after the last
        yield from table_lines(self._study, options.max_width, height, ascii_only=options.ascii_only)


def table_lines(study: StudyView, width: int, height: int | None = None, *, ascii_only: bool = False) -> list[Text]:
    """Return the lines of the table, at most ``width`` columns wide and ``height`` lines high.

    The runs are in the order of ``STATES``, so that running and failed ones are hidden last. ``None``: no limit.
    """
    runs = sorted(study.runs, key=lambda run: (STATES.index(run.state), place_in_queue(run)))
    below = ["", summary(study), *([study.slow_line] if study.slow_line else [])]
    rows = len(runs) if height is None else max(1, height - 1 - len(below))
    shown = runs if len(runs) <= rows else runs[: rows - 1]
    lines = lines_of(_columns(width, ascii_only), shown, width=width, colored=True, note=_note)
    if hidden := Counter(run.state for run in runs[len(shown) :]):
        counts = ", ".join(f"{count} {state}" for state, count in hidden.items())
        lines.append(f"{'...' if ascii_only else '…'} and {counts}")
    texts = [Text.from_ansi(line, no_wrap=True) for line in [*lines, *map(printable, below)][:height]]
    for text in texts:
        text.truncate(width, overflow="crop" if ascii_only else "ellipsis")
    return texts


def _columns(width: int, ascii_only: bool) -> Sequence[Column]:
    most = max(LEAST_NAME_WIDTH, min(MOST_NAME_WIDTH, width // 4))
    full, empty = ("#", "-") if ascii_only else ("━", "─")

    def bar(run: RunView) -> str:
        part = (run.epochs_done + (run.share or 0.0)) / run.epochs if run.epochs else 0.0
        done = min(BAR_WIDTH, int(part * BAR_WIDTH))
        return full * done + empty * (BAR_WIDTH - done)

    return (
        Column("run", "name", lambda name: shortened(printable(name), most)),
        STATE,
        Column("", bar, spare=2),
        Column("epoch", _epoch),
        TRAIN_PPL,
        VAL_PPL,
        *NUMBERS,
        Column("device", spare=4),
    )


def _note(run: RunView) -> str | None:
    """Return what a run that neither runs nor is done has in place of numbers."""
    if run.state in ("running", "done"):
        return None
    best = f"best {terminal.perplexity(run.best_val_ppl)}  " if run.best_val_ppl is not None else ""
    return best + " ".join((run.reason or "").split())


def _epoch(run: RunView) -> str:
    """Return the current epoch of a running run, counted from 1, and its share; of others the finished epochs."""
    if not run.epochs:
        return "-"
    if run.state != "running":
        return f"{run.epochs_done}/{run.epochs}"
    within = "val" if run.phase == "valid" else "" if run.share is None else f"{run.share:.0%}"
    within = "test" if run.epochs_done >= run.epochs else within
    return f"{min(run.epochs_done + 1, run.epochs)}/{run.epochs} {within:>4}"


def shortened(name: str, width: int) -> str:
    """A name cut in the middle where it is too long: those of a grid differ at their end.

    >>> shortened("transformer-adam-lr0.001-seed17", 21)
    'transforme~001-seed17'
    """
    if len(name) <= width:
        return name
    tail = (width - 1) // 2
    return f"{name[: width - 1 - tail]}~{name[-tail:]}"


def live(stream: TextIO, latest: Callable[[], StudyView | None] | None = None) -> Live:
    """Return a place on a terminal for the table. The last table stays.

    With ``latest``, the table is that of the study that ``latest`` returns, drawn twice a second, and does not stay.
    """
    console = Console(file=stream, no_color=not terminal.has_color(stream))
    if latest is None:
        return Live(console=console, auto_refresh=False)

    def drawn() -> RenderableType:
        study = latest()
        return Text() if study is None else StudyTable(study)

    return Live(console=console, get_renderable=drawn, refresh_per_second=2, transient=True)

"""The live table of a study's runs, drawn with rich to fit a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TextIO, final

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from jobs import terminal
from jobs.cli.view import COLUMNS, RunView, StudyView, place_in_queue
from seqlm.errors import printable

STYLES = {"queued": "default", "pending": "default", **terminal.STATE_COLORS}
NUMBERS = ("train ppl", "val ppl", "best val ppl", "tok/s", "ETA")
"""Columns of runs that run or are done."""
GROUPS = (("running",), ("failed", "cancelled"), ("queued",), ("done",), ("stopped",), ("pending",))
"""In the order of the screen. Running runs are never hidden by others."""
LEAST_ROWS = 8
"""With fewer rows of runs than this, the matrix is left out."""
LEAST_DEVICE_WIDTH = 14
"""With fewer columns left than this, and than the devices need, they are listed below the table."""
LEAST_NAME_WIDTH = 8
MOST_NAME_WIDTH = 36


@final
class StudyTable:
    """A study as a table that fits the console. It shows a view and reads no files."""

    def __init__(self, study: StudyView) -> None:
        self._study = study

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = options.max_height - 1  # the cursor needs the line after the last
        yield from table_lines(self._study, options.max_width, height, ascii_only=options.ascii_only)


def table_lines(
    study: StudyView, width: int, height: int | None = None, *, ascii_only: bool = False
) -> list[RenderableType]:
    """Return the lines of the table, at most ``width`` columns wide and ``height`` lines high, and the matrix below it.

    ``None``: no limit.
    """
    layout = _Layout(study, width, ascii_only=ascii_only)
    slow = [] if study.slow_line is None else [Text(printable(study.slow_line), style="yellow")]
    below = [Text(), _summary(study), *slow, *layout.devices_below()]
    matrix: list[RenderableType] = [Text(), coverage(study)]
    matrix_height = 2 + len({run.arch for run in study.runs})
    grouped = [[run for run in study.runs if run.state in group] for group in GROUPS]
    groups = [runs for runs in grouped if runs]
    for runs in groups:
        if runs[0].state == "queued":
            runs.sort(key=place_in_queue)
    shown = [len(runs) for runs in groups]
    if height is not None:
        rows = height - 1 - len(below) - matrix_height
        if rows < LEAST_ROWS:
            rows, matrix = rows + matrix_height, []
        shown = allot(shown, max(rows, 1), first_goes_before=bool(groups) and groups[0][0].state == "running")
    lines = [layout.header()]
    for runs, number in zip(groups, shown, strict=True):
        lines += [layout.row(run) for run in runs[:number]]
        if number < len(runs):
            ellipsis = "..." if ascii_only else "…"
            hidden = Counter(run.state for run in runs[number:])
            counts = ", ".join(f"{count} {state}" for state, count in hidden.items())
            lines.append(Text(f"{ellipsis} and {counts}", style="dim"))
    lines += below
    for line in lines:
        line.truncate(width, overflow="crop" if ascii_only else "ellipsis")
        line.no_wrap = True
    return [*lines[:height], *matrix]


def allot(sizes: Sequence[int], lines: int, *, first_goes_before: bool = False) -> list[int]:
    """Return how many rows each group gets, so that all fit in ``lines`` with one more for each shortened group.

    The groups grow in turns. With ``first_goes_before`` the first group grows as far as it can before the others.
    """
    shown = [0] * len(sizes)
    turns = [group for turn in range(lines) for group, size in enumerate(sizes) if turn < size]
    if first_goes_before:
        turns = [0] * min(sizes[0], lines) + turns
    for group in turns:
        grown = [number + (place == group) for place, number in enumerate(shown)]
        needed = sum(grown) + sum(number < size for number, size in zip(grown, sizes, strict=True))
        if grown[group] <= sizes[group] and needed <= lines:
            shown = grown
    return shown


def _summary(study: StudyView) -> Text:
    line = Text(printable(study.name), style="bold")
    for state, number in study.counts().items():
        line.append(f"   {number} {state}", style=f"not bold {STYLES[state]}")
    if study.seconds_left is not None:
        line.append(f"   about {terminal.duration(study.seconds_left)} left", style="not bold")
    return line


def coverage(study: StudyView) -> Table:
    """Return the matrix of architecture by optimizer: runs done of all, best validation perplexity, failures."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    optimizers = list(dict.fromkeys(run.optimizer for run in study.runs))
    for title in ("", *optimizers):
        table.add_column(Text(title), no_wrap=True, overflow="crop")
    for arch in dict.fromkeys(run.arch for run in study.runs):
        runs = [run for run in study.runs if run.arch == arch]
        cells = [_cell([run for run in runs if run.optimizer == optimizer]) for optimizer in optimizers]
        table.add_row(Text(arch), *cells)
    return table


def _cell(runs: Sequence[RunView]) -> Text:
    if not runs:
        return Text("-", style="dim")
    done = sum(run.state == "done" for run in runs)
    failed = sum(run.state == "failed" for run in runs)
    best = min((run.best_val_ppl for run in runs if run.best_val_ppl is not None), default=None)
    cell = Text(f"{done}/{len(runs)} done", style="green" if done == len(runs) else "")
    if best is not None:
        cell.append(f" {terminal.perplexity(best)}", style="default")
    if failed:
        cell.append(f" {failed} failed", style="red")
    return cell


@final
class _Layout:
    """The columns of the table at a given width."""

    def __init__(self, study: StudyView, width: int, *, ascii_only: bool) -> None:
        self._full, self._empty = ("#", "-") if ascii_only else ("━", "─")
        self._gap = " " if width < 100 else "  "
        self._bar = 6 if width < 100 else 10 if width < 130 else 16
        self._state = max((len(run.state) for run in study.runs), default=0)
        self._fraction = max((len(_fraction(run)) for run in study.runs), default=0)
        self._within = max((len(_within(run)) for run in study.runs), default=0)
        self._epoch = self._fraction + self._within
        words = 1 if width < 100 else 2
        self._titles = {title: " ".join(title.split()[:words]) for title in NUMBERS}
        self._numbers = {title: max(6, len(short)) for title, short in self._titles.items()} | {"tok/s": 5}
        numbers = sum(self._numbers.values())
        room = width - self._state - self._bar - self._epoch - numbers - 8 * len(self._gap)
        longest = max((len(run.name) for run in study.runs), default=0)
        self._name = max(LEAST_NAME_WIDTH, min(longest, MOST_NAME_WIDTH, room))
        self._device = room - self._name - len(self._gap)
        self._running_on = dict.fromkeys(run.device for run in study.runs if run.state == "running" and run.device)
        devices = max((len(run.device or "") for run in study.runs), default=0)
        self._has_device_column = self._device >= min(devices, LEAST_DEVICE_WIDTH) > 0

    def header(self) -> Text:
        titles = ["run".ljust(self._name), "state".ljust(self._state)]
        titles += ["epoch".ljust(self._bar + len(self._gap) + self._epoch)]
        titles += [self._titles[title].rjust(width) for title, width in self._numbers.items()]
        titles += ["device"] if self._has_device_column else []
        return Text(self._gap.join(titles), style="bold")

    def row(self, run: RunView) -> Text:
        line = Text(shortened(printable(run.name), self._name).ljust(self._name))
        line.append(self._gap).append(run.state.ljust(self._state), style=STYLES[run.state])
        part = (run.epochs_done + (run.share or 0.0)) / run.epochs if run.epochs else 0.0
        full = min(self._bar, int(part * self._bar))
        line.append(self._gap).append(self._full * full, style=STYLES[run.state])
        line.append(self._empty * (self._bar - full), style="dim default")
        line.append(self._gap).append(_fraction(run).rjust(self._fraction) + _within(run).ljust(self._within))
        if run.state not in ("running", "done"):
            best = f"best {terminal.perplexity(run.best_val_ppl)}  " if run.best_val_ppl is not None else ""
            reason = printable(" ".join((run.reason or "").split()))
            line.append(f"{self._gap}{best}{reason}", style="red" if run.state == "failed" else "dim")
            return line
        for title, width in self._numbers.items():
            line.append(self._gap).append(COLUMNS[title](run).rjust(width))
        if self._has_device_column:
            line.append(self._gap).append(printable(run.device or ""), style="dim")
        return line

    def devices_below(self) -> list[Text]:
        if self._has_device_column or not self._running_on:
            return []
        return [Text(printable(f"running on {', '.join(self._running_on)}"), style="dim")]


def _fraction(run: RunView) -> str:
    """Return the current epoch of a running run, counted from 1; of other runs the number of finished epochs."""
    if not run.epochs:
        return "-"
    begun = run.epochs_done + (run.state == "running")
    return f"{min(begun, run.epochs)}/{run.epochs}"


def _within(run: RunView) -> str:
    """Return the progress of a running run within its epoch, in five columns, so that the table keeps its width."""
    if run.state != "running" or not run.epochs:
        return ""
    if run.epochs_done >= run.epochs:
        return " test"
    return f" {'val' if run.phase == 'valid' else '' if run.share is None else f'{run.share:.0%}':>4}"


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

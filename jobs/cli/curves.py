"""``curves``: the curves of runs, drawn in the terminal, also while they train and over several studies."""

import math
import shutil
import string
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.plots.palette import SHADES, colours_of, shade
from jobs import terminal
from jobs.cli.arguments import Arguments
from jobs.cli.naming import chosen_runs, named_runs
from jobs.cli.view import Watcher
from jobs.study.folder import ObservedRun, find_study, observe_study
from jobs.terminal import STATE, Column, Result, lines_of
from seqlm.architectures import CustomConfig
from seqlm.config import labels
from seqlm.errors import UsageError, nearest, nearest_key, printable
from seqlm.naming import UnknownRunError
from seqlm.reading import finite
from seqlm.state import State

MOST_CURVES = 12
"""Most curves of one picture: of more runs, the best are drawn."""
HEIGHT, LEAST_HEIGHT = 18, 6
"""Lines of the picture without its axes: usually, and on a terminal with few lines."""
WIDTH = 80
"""Columns without a terminal."""
WATCH_SECONDS = 2.0
"""Least time between two pictures of ``curves --watch``."""
LETTERS = string.ascii_lowercase
"""The marks of the curves if colours do not tell them apart."""
LABEL_WIDTH = 8
"""Columns of the numbers at the vertical axis."""
PLAIN_FRAME = str.maketrans("┌┐└┘─│", "++++-|")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The values of one key over the finished epochs of a run."""

    study: str
    name: str
    id: str
    arch: str
    """Key of the architecture, or the source of the user's own model."""
    state: State
    epochs: Sequence[int]
    """The epochs that have a finite value, counted from 1."""
    values: Sequence[float]

    @property
    def best(self) -> float:
        """The lowest value. Infinite if there is none."""
        return min(self.values, default=math.inf)

    @property
    def last(self) -> float | None:
        """The newest value. ``None``: there is none."""
        return self.values[-1] if self.values else None


@dataclass(frozen=True, kw_only=True)
class CurvesResult(Result):
    """The curves of runs."""

    key: str
    runs: Sequence[Curve]

    def document(self) -> dict[str, Any]:
        return {"key": self.key, "runs": [vars(curve) for curve in self.runs]}

    def render(self) -> None:
        stream = terminal.results()
        is_terminal = stream.isatty()
        size = shutil.get_terminal_size() if is_terminal else None
        can_draw = "utf" in (stream.encoding or "").lower()
        lines = picture(
            self.key,
            self.runs,
            width=size.columns if size else WIDTH,
            height=size.lines if size else None,
            colored=terminal.has_color(stream),
            fine=is_terminal and can_draw,
        )
        print(*lines, sep="\n", file=stream)


def curves(arguments: Arguments) -> CurvesResult | tuple[Any, int]:
    """Return the curves of runs, or redraw them until every run is over."""
    if not arguments.watch:
        return _read(arguments)
    if arguments.json:
        raise UsageError("--watch redraws the picture, --json prints one document; use one of them")
    if not terminal.can_redraw(sys.stdout):
        raise UsageError("--watch redraws the picture, which needs a terminal; `status --watch` prints lines")
    _watch(arguments)
    return None, 0


def _watch(arguments: Arguments) -> None:
    """Redraw the curves until every run of their studies is over."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(no_color=not terminal.has_color(sys.stdout))
    watchers = [Watcher(study_dir) for study_dir in _chosen(arguments)]
    with Live(console=console, auto_refresh=False) as live:
        while True:
            looks = [watcher.look() for watcher in watchers]
            found = _read(arguments)
            width, height = console.size
            colored = terminal.has_color(sys.stdout)
            lines = picture(found.key, found.runs, width=width, height=height, colored=colored, fine=True)
            live.update(Text.from_ansi("\n".join(lines), no_wrap=True, overflow="crop"), refresh=True)
            if all(look.is_over for look in looks):
                return
            time.sleep(max(WATCH_SECONDS, *(watcher.pause_seconds for watcher in watchers)))


# -- which curves --------------------------------------------------------------------------------------------------


def _read(arguments: Arguments) -> CurvesResult:
    chosen = _chosen(arguments)
    records = [(study_dir, run, run.epochs()) for study_dir, runs in chosen.items() for run in runs]
    known = dict.fromkeys(key for _, _, epochs in records for one in epochs for key in one if _is_measured(key, one))
    key = arguments.key
    if known and key not in known:
        raise UsageError(f"--key: expected one of {', '.join(known)}, got {key}{nearest_key(key, list(known))}")
    return CurvesResult(key=key, runs=[_curve(key, *record) for record in records])


def _is_measured(key: str, epoch: Mapping[str, Any]) -> bool:
    return key != "epoch" and finite(epoch[key]) is not None


def _curve(key: str, study_dir: Path, run: ObservedRun, epochs: Iterable[Mapping[str, Any]]) -> Curve:
    points = [(one["epoch"] + 1, value) for one in epochs if (value := finite(one.get(key))) is not None]
    model = run.config.model if run.config else None
    return Curve(
        study=study_dir.name,
        name=run.name,
        id=run.run.id,
        arch=model.source if isinstance(model, CustomConfig) else model.arch if model else "",
        state=run.observation.state,
        epochs=[epoch for epoch, _ in points],
        values=[value for _, value in points],
    )


def _chosen(arguments: Arguments) -> dict[Path, list[ObservedRun]]:
    """Return the runs that the words of the command line name, by study.

    A word is a run of the study before it, or else a study. A study of which no run is named has all of its runs.
    """
    named: dict[Path, list[ObservedRun]] = {}
    every: dict[Path, list[ObservedRun]] = {}
    study_dir: Path | None = None
    for word in arguments.words:
        if study_dir is not None:
            try:
                named[study_dir] += named_runs(every[study_dir], word, study_dir)
                continue
            except UnknownRunError:
                pass  # it is a study
        try:
            study_dir = find_study(word, arguments.runs_dir)
        except UsageError as error:
            if study_dir is None:
                raise
            hint = nearest(word, [run.name for run in every[study_dir]])
            raise UsageError(f'expected a run of {study_dir.name} or a study, got "{word}"{hint}') from error
        every[study_dir] = observe_study(study_dir)
        named[study_dir] = []
    chosen = {}
    for folder, runs in named.items():
        passing = chosen_runs(arguments, folder, every[folder])
        ids = {run.run.id for run in runs}
        chosen[folder] = [run for run in passing if not ids or run.run.id in ids]
    return chosen


# -- the picture ---------------------------------------------------------------------------------------------------


def picture(key: str, runs: Sequence[Curve], *, width: int, height: int | None, colored: bool, fine: bool) -> list[str]:
    """Return curves and their legend as lines.

    Args:
        key: what the curves show.
        runs: a curve each; those without a value are in the legend alone.
        width: columns of the terminal.
        height: lines of the terminal. ``None``: there is no end.
        colored: each architecture has its colour of the report.
        fine: the terminal shows the dots of Braille. They are used if no two curves have one colour; otherwise each
            curve consists of its letter.
    """
    drawn = sorted((curve for curve in runs if curve.values), key=lambda curve: curve.best)[:MOST_CURVES]
    others = [curve for curve in runs if curve not in drawn]
    if not drawn:
        return [f"no run has finished an epoch with {key}" if runs else "no run to draw"]
    colours = _colours(drawn)
    is_fine = fine and colored and len({*colours}) == len(drawn)
    legend = _legend(drawn, others, colours, is_fine=is_fine, colored=colored, width=width)
    rows = HEIGHT if height is None else max(LEAST_HEIGHT, min(HEIGHT, height - len(legend) - 6))
    return [f"{key} by epoch", *_axes(drawn, colours if colored else None, key, width, rows, is_fine=is_fine), *legend]


def _axes(
    drawn: Sequence[Curve], colours: Sequence[str] | None, key: str, width: int, rows: int, *, is_fine: bool
) -> list[str]:
    """Return the lines of the axes with the curves in them, the numbers of the vertical axis on the left."""
    from uniplot import plot_to_string  # it imports NumPy, which only a picture needs

    values = [value for curve in drawn for value in curve.values]
    is_log = key.endswith("_ppl") and min(values) > 0
    forth, back = (math.log, math.exp) if is_log else (float, float)
    low, high = forth(min(values)), forth(max(values))
    if low == high:
        margin = max(0.5, abs(low) / 10)
        low, high = low - margin, high + margin
    last = max(epoch for curve in drawn for epoch in curve.epochs)
    text = plot_to_string(
        xs=[curve.epochs for curve in drawn],
        ys=[[forth(value) for value in curve.values] for curve in drawn],
        lines=True,
        color=list(colours) if colours else False,
        character_set="braille" if is_fine else "ascii",
        force_ascii_characters=list(LETTERS[: len(drawn)]),
        width=max(10, width - LABEL_WIDTH - 3),
        height=rows,
        x_min=0.5,
        x_max=last + 0.5,
        y_min=low,
        y_max=high,
        x_gridlines=[],
        y_gridlines=[],
        y_labels=False,
    )
    lines = text.rstrip("\n").split("\n")
    if not is_fine:
        lines = [line.translate(PLAIN_FRAME) for line in lines]
    labels_at = {1 + row: back(high - (high - low) * (row + 0.5) / rows) for row in range(0, rows, 4)}
    numbered = []
    for place, line in enumerate(lines):
        label = terminal.perplexity(labels_at[place]) if is_log and place in labels_at else ""
        if not is_log and place in labels_at:
            label = f"{labels_at[place]:.4g}"
        numbered.append(f"{label:>{LABEL_WIDTH}} {line}".rstrip())
    return numbered


def _colours(drawn: Sequence[Curve]) -> list[str]:
    """Return the colour of each curve: that of its architecture in the report, in shades for a dark page."""
    own = [name for name in labels("model") if name not in CustomConfig.LABELS]
    archs = [*own, *dict.fromkeys(curve.arch for curve in drawn if curve.arch not in own)]
    of_arch = colours_of(archs)
    seen = Counter[str]()
    colours = []
    for curve in drawn:
        colours.append(shade(of_arch[curve.arch], SHADES[seen[curve.arch] % len(SHADES)][1]))
        seen[curve.arch] += 1
    return colours


def _legend(
    drawn: Sequence[Curve],
    others: Sequence[Curve],
    colours: Sequence[str],
    *,
    is_fine: bool,
    colored: bool,
    width: int,
) -> list[str]:
    """Return a line for each curve, the lowest first, and one about the runs that have none."""
    many_studies = len({curve.study for curve in (*drawn, *others)}) > 1
    records = [
        {
            "mark": "━━" if is_fine else LETTERS[place],
            "run": f"{curve.study}/{curve.name}" if many_studies else curve.name,
            "epoch": curve.epochs[-1],
            "last": curve.last,
            "best": curve.best,
            "state": None if curve.state == "done" else curve.state,
        }
        for place, curve in enumerate(drawn)
    ]
    columns = (
        Column("", "mark"),
        Column("run"),
        Column("epoch", right=True),
        Column("last", text=_number, right=True),
        Column("best", text=_number, right=True),
        Column("", "state", colors=STATE.colors),
    )
    title, *rows = lines_of(columns, records, width=width, colored=colored)
    if colored:
        rows = [_painted(row, colour) for row, colour in zip(rows, colours, strict=True)]
    lines = [title, *rows]
    left = [curve for curve in others if curve.values]
    if left:
        lines.append(f"the {len(drawn)} lowest of {len(drawn) + len(left)} curves; name runs, or choose with --only")
    empty = [curve for curve in others if not curve.values]
    if empty:
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        lines.append(printable(f"without a value yet: {empty[0].name}{more}"))
    return lines


def _number(value: float) -> str:
    return terminal.perplexity(value) if abs(value) >= 1 else f"{value:.4g}"


def _painted(row: str, colour: str) -> str:
    """Return a line of the legend with its mark, the first word, in the colour of its curve."""
    mark, space, rest = row.partition(" ")
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"\x1b[38;2;{red};{green};{blue}m{mark}\x1b[0m{space}{rest}"

"""Follow runs until they are over: a table that updates in place on a terminal, else lines."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, assert_never, final

from jobs import terminal
from jobs.cli.tables import lines_of
from jobs.cli.view import STATES, STATUS, RunView, StudyView, changes, compared, epochs_of, place_in_queue, view_of
from jobs.launch.dispatch import Happening, Tell
from jobs.plan.planned import PlannedRun
from jobs.study.folder import Observer, study_name
from jobs.study.squeue import Scheduler
from seqlm.errors import SeqlmError, printable
from seqlm.rundir import Observation, RunDirectory

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live

LOOK_SECONDS = 0.5
"""Time between two polls of a study."""
LOOK_SHARE = 0.2
"""Largest share of the time that polling may take: a study of thousands of runs is polled less often."""
LEAST_NAME_WIDTH, MOST_NAME_WIDTH = 12, 36


@final
class Watcher:
    """Polls a study. A run that is over is read once; runs that are not watched are not read."""

    def __init__(
        self, study_dir: Path, ids: Collection[str] | None = None, *, every_seconds: float | None = None
    ) -> None:
        """``ids`` are the runs to watch; ``None``: all. ``every_seconds`` is the time between two polls."""
        self._study_dir = study_dir
        self._every_seconds = every_seconds
        self._ids = None if ids is None else frozenset(ids)
        self._scheduler = Scheduler()
        self._over: dict[str, tuple[tuple[float, ...], RunView]] = {}
        """Run id -> when something last came to the run: a file, an attempt, a request; and the run's view."""

    def look(self) -> StudyView:
        """Return the study as it is now."""
        requests = _written(self._study_dir / "launches")
        ids = RunDirectory.ids_in(self._study_dir) if self._ids is None else self._ids
        paths = map(self._study_dir.joinpath, ids)
        runs = {
            path.name: ((_written(path), _written(path / "attempts"), requests), RunDirectory(path)) for path in paths
        }
        over = {run_id: known for run_id, known in self._over.items() if runs.get(run_id, ())[:1] == known[:1]}
        rest = {run_id: run for run_id, (_, run) in runs.items() if run_id not in over and run.is_known()}
        observer = Observer(self._study_dir, self._scheduler, rest)
        views = [view for _, view in over.values()]
        for run_id, run in rest.items():
            seen = observer.look_at(run)
            view = view_of(seen, is_over=observer.is_over(seen.observation))
            views.append(view)
            if view.is_over and seen.observation.state != "pending":
                over[run_id] = (runs[run_id][0], view)
        self._over = over
        launcher = observer.launcher
        places = list(launcher.waiting) if launcher is not None else []
        watched = set(places) if self._ids is None else self._ids.intersection(places)
        has_listed = launcher is None or launcher.has_listed
        return StudyView(
            name=self._study_dir.name,
            runs=tuple(compared(sorted(views, key=lambda view: view.order), places)),
            is_starting=not (has_listed and watched <= runs.keys() & {view.id for view in views}),
        )

    def looks(self) -> Iterator[StudyView]:
        """Poll the study until every run is over."""
        while True:
            started = time.monotonic()
            study = self.look()
            yield study
            if study.is_over:
                return
            time.sleep(self.pause(time.monotonic() - started))

    def pause(self, took_seconds: float) -> float:
        """Return the seconds to wait before the next poll, after one that took ``took_seconds``."""
        return max(self._every_seconds or LOOK_SECONDS, took_seconds / LOOK_SHARE)


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


# -- the live table ---------------------------------------------------------------------------------------------------


@final
class StudyTable:
    """A study as a table that fits the console. rich draws it; importing rich is left to who shows it."""

    def __init__(self, study: StudyView) -> None:
        self._study = study

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        height = options.max_height - 1  # the cursor needs the line after the last
        for line in table_lines(self._study, options.max_width, height):
            text = Text.from_ansi(line, no_wrap=True)
            text.truncate(options.max_width)
            yield text


def table_lines(study: StudyView, width: int, height: int) -> list[str]:
    """Return the lines of the table, at most ``height``; those wider than ``width`` are to be cut.

    The runs are in the order of ``STATES``, so that running and failed ones are hidden last.
    """
    runs = sorted(study.runs, key=lambda run: (STATES.index(run.state), place_in_queue(run)))
    below = ["", study.summary, *filter(None, [study.slow_line])]
    rows = max(1, height - 1 - len(below))
    shown = runs if len(runs) <= rows else runs[: rows - 1]
    most = max(LEAST_NAME_WIDTH, min(MOST_NAME_WIDTH, width // 4))
    columns = [replace(STATUS[0], text=lambda name: shortened(printable(name), most)), *STATUS[1:-1]]
    lines = lines_of(columns, shown, width=width, colored=True, note=_note)
    if hidden := Counter(run.state for run in runs[len(shown) :]):
        lines.append(f"... and {', '.join(f'{count} {state}' for state, count in hidden.items())}")
    return [*lines, *map(printable, below)][:height]


def _note(run: RunView) -> str | None:
    """Return what a run that neither runs nor is done has in place of numbers."""
    if run.state in ("running", "done"):
        return None
    best = f"best {terminal.perplexity(run.best_val_ppl)}" if run.best_val_ppl is not None else ""
    return "  ".join(filter(None, [epochs_of(run), best, " ".join((run.reason or "").split())]))


def shortened(name: str, width: int) -> str:
    """A name cut in the middle where it is too long: those of a grid differ at their end.

    >>> shortened("transformer-adam-lr0.001-seed17", 21)
    'transforme~001-seed17'
    """
    tail = (width - 1) // 2
    return name if len(name) <= width else f"{name[: width - 1 - tail]}~{name[-tail:]}"


def _table(stream: TextIO, **how: Any) -> Live:
    """Return a place on a terminal for the table, which rich redraws."""
    from rich.console import Console
    from rich.live import Live

    return Live(console=Console(file=stream, no_color=not terminal.has_color(stream)), **how)


# -- ways to follow ---------------------------------------------------------------------------------------------------


def watch(watcher: Watcher) -> None:
    """Show a study as a result until every run is over: a table on a terminal, else a line for each change."""
    stream = terminal.results()
    if terminal.can_redraw(stream) and not terminal.is_quiet():
        with _table(stream, auto_refresh=False) as table:
            for study in watcher.looks():
                table.update(StudyTable(study), refresh=True)
        return
    before: StudyView | None = None
    for study in watcher.looks():
        if study.is_starting and before is None:
            continue
        for line in [*changes(before, study), *([study.summary] if study.is_over and before is not None else [])]:
            terminal.say(line)
        stream.flush()
        before = study


def tell_skipped(planned: Sequence[PlannedRun]) -> None:
    """Print which runs a launch leaves alone, and why: the first in each state. ``--verbose`` prints all."""
    skipped = [item for item in planned if item.action == "skip"]
    told = Counter(item.observation.state for item in skipped if item.reason != "done")
    for item in skipped:
        line, state = f"skipped {item.spec.name}: {item.reason}", item.observation.state
        if item.reason == "done" or state not in told:
            terminal.detail(line)
        else:
            more = told.pop(state) - 1
            terminal.tell(f"{line}; and {more} more {state} (--verbose names them)" if more else line)


def follow_launch(study_dir: Path, where: str, planned: Sequence[PlannedRun], dispatch: Callable[[Tell], None]) -> None:
    """Show a launch on stderr, which ``dispatch`` runs to its end: what happens, and on a terminal the study's table.

    ``dispatch`` gets the function to call when something happens to a run.
    """
    todo = [item for item in planned if item.action != "skip"]
    terminal.tell(f"{study_name(study_dir)}: {len(todo)} of {len(planned)} runs to do on {where}")
    tell_skipped(planned)
    width = max((len(item.spec.name) for item in todo), default=0)
    ended = itertools.count(1)
    has_table = bool(todo) and not terminal.is_quiet() and terminal.can_redraw(sys.stderr)

    def tell(happening: Happening, item: PlannedRun, seen: Observation) -> None:
        best = f"best val ppl {terminal.perplexity(seen.best_val_ppl)}"
        match happening:
            case "started":
                verb = {"resume": "resumes", "extend": "extends"}.get(item.action, "starts")
                words = [f"{verb} {item.reason or ''}".rstrip()]
            case "epoch" if has_table:  # it shows epochs, which would fill the screen
                return
            case "epoch":
                words = [f"epoch {seen.epochs_done}/{item.spec.config.train.epochs}", best]
            case "retried":  # without a reason, the worker found another one at the run and wrote no failure
                words = [f"tried again: {seen.reason or 'another worker had the run'}"]
            case "ended":
                detail = seen.reason or (best if seen.best_val_ppl is not None else "")
                words = [seen.state, detail, f"({next(ended)}/{len(todo)})"]
            case _:
                assert_never(happening)
        terminal.tell("  ".join(filter(None, [item.spec.name.ljust(width), *words])))

    with _table_below(Watcher(study_dir, [item.run.id for item in planned])) if has_table else contextlib.nullcontext():
        dispatch(tell)


@contextlib.contextmanager
def _table_below(watcher: Watcher) -> Iterator[None]:
    """Show the table of a study below all that the block prints on stderr, and remove it at its end."""
    due, latest, stream = 0.0, StudyTable(StudyView(name="", runs=())), sys.stderr

    def drawn() -> StudyTable:
        nonlocal due, latest
        started = time.monotonic()
        if started >= due:
            with contextlib.suppress(SeqlmError, OSError):  # a file that cannot be read for a moment ends no table
                latest = StudyTable(watcher.look())
            due = time.monotonic() + watcher.pause(time.monotonic() - started)
        return latest

    table = _table(stream, get_renderable=drawn, refresh_per_second=2, transient=True)
    table.start()
    try:
        yield
    finally:
        with terminal.survives(stream):
            table.stop()

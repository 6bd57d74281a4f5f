"""Follow runs until they are over: a table that updates in place on a terminal, else lines."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, assert_never, final

from jobs import terminal
from jobs.cli.tables import lines_of
from jobs.cli.view import STATES, STATUS, StudyView, changes, records_of
from jobs.launch.dispatch import Happening, Tell
from jobs.plan.planned import PlannedRun
from jobs.study.folder import launcher_of, observe_study, study_name
from jobs.study.squeue import Scheduler
from seqlm.errors import SeqlmError, printable
from seqlm.rundir import Observation

if TYPE_CHECKING:
    from rich.console import Console, Group

LOOK_SECONDS = 0.5
"""Time between two polls of a study."""
LOOK_SHARE = 0.2
"""Largest share of the time that polling may take: a study of thousands of runs is polled less often."""


@final
class Watcher:
    """Polls a study."""

    def __init__(
        self, study_dir: Path, ids: Collection[str] | None = None, *, every_seconds: float | None = None
    ) -> None:
        """``ids`` are the runs to watch; ``None``: all. ``every_seconds`` is the time between two polls."""
        self._study_dir, self._ids, self._every_seconds = study_dir, ids, every_seconds
        self._scheduler = Scheduler()

    def look(self) -> StudyView:
        """Return the study as it is now."""
        launcher = launcher_of(self._study_dir)
        return StudyView(
            name=self._study_dir.name,
            runs=records_of(observe_study(self._study_dir, self._scheduler, self._ids)),
            is_starting=launcher is not None and not launcher.has_listed,
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


# -- the live table ---------------------------------------------------------------------------------------------------


def table_lines(study: StudyView, width: int, height: int) -> list[str]:
    """Return the lines of the table, at most ``height``; those wider than ``width`` are to be cut.

    The runs are in the order of ``STATES``, so that running and failed ones are hidden last.
    """
    runs = sorted(study.runs, key=lambda run: STATES.index(run["state"]))
    below = ["", study.summary, *filter(None, [study.slow_line])]
    rows = max(1, height - 1 - len(below))
    shown = runs if len(runs) <= rows else runs[: rows - 1]
    lines = lines_of(STATUS, shown, width=width, colored=True)
    if hidden := Counter(run["state"] for run in runs[len(shown) :]):
        lines.append(f"... and {', '.join(f'{count} {state}' for state, count in hidden.items())}")
    return [*lines, *map(printable, below)][:height]


def drawn(study: StudyView, console: Console) -> Group:
    """Return a study as a table that fits the console. The cursor needs the line after the last."""
    from rich.console import Group
    from rich.text import Text

    width, height = console.size
    return Group(Text.from_ansi("\n".join(table_lines(study, width, height - 1)), no_wrap=True, overflow="crop"))


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    return Console(file=stream, no_color=not terminal.has_color(stream))


# -- ways to follow ---------------------------------------------------------------------------------------------------


def watch(watcher: Watcher) -> None:
    """Show a study as a result until every run is over: a table on a terminal, else a line for each change."""
    stream = terminal.results()
    if terminal.can_redraw(stream):
        from rich.live import Live

        with Live(console=(console := _console(stream)), auto_refresh=False) as table:
            for study in watcher.looks():
                table.update(drawn(study, console), refresh=True)
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
    by_state = defaultdict[str, list[str]](list)
    for item in planned:
        if item.action == "skip":
            state = "done" if item.reason == "done" else f"more {item.observation.state}"
            by_state[state].append(f"skipped {item.spec.name}: {item.reason}")
    terminal.detail("\n".join(by_state.pop("done", [])))
    for state, (first, *others) in by_state.items():
        terminal.tell(f"{first}; and {len(others)} {state} (--verbose names them)" if others else first)
        terminal.detail("\n".join(others))


def follow_launch(study_dir: Path, where: str, planned: Sequence[PlannedRun], dispatch: Callable[[Tell], None]) -> None:
    """Show a launch on stderr, which ``dispatch`` runs to its end: what happens, and on a terminal the study's table.

    ``dispatch`` gets the function to call when something happens to a run.
    """
    todo = [item for item in planned if item.action != "skip"]
    terminal.tell(f"{study_name(study_dir)}: {len(todo)} of {len(planned)} runs to do on {where}")
    tell_skipped(planned)
    width = max((len(item.spec.name) for item in todo), default=0)
    ended = itertools.count(1)
    has_table = bool(todo) and terminal.can_redraw(sys.stderr)

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
    from rich.live import Live

    console, due, latest = _console(sys.stderr), 0.0, StudyView(name="", runs=())

    def seen() -> Group:
        nonlocal due, latest
        started = time.monotonic()
        if started >= due:
            with contextlib.suppress(SeqlmError, OSError):  # a file that cannot be read for a moment ends no table
                latest = watcher.look()
            due = time.monotonic() + watcher.pause(time.monotonic() - started)
        return drawn(latest, console)

    table = Live(console=console, get_renderable=seen, refresh_per_second=2, transient=True)
    table.start()
    try:
        yield
    finally:
        with terminal.survives(sys.stderr):
            table.stop()

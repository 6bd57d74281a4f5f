"""Follow runs until they are over: a table that updates in place on a terminal, else lines."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, assert_never, final

from jobs import terminal
from jobs.cli.view import RunView, StudyView, changes, compared, outcome, summary, view_of
from jobs.launch.dispatch import Event
from jobs.plan.planned import PlannedRun
from jobs.study.finality import FinalityTracker
from jobs.study.folder import AtWork, ObservedRun, at_work, look_at, observe_run, study_name
from jobs.study.squeue import Scheduler
from seqlm.errors import SeqlmError, printable
from seqlm.reading import listed
from seqlm.rundir import RunDirectory

if TYPE_CHECKING:
    from rich.live import Live

LOOK_SECONDS = 0.5
"""Time between two polls of a study."""
LOOK_SHARE = 0.2
"""Largest share of the time that polling may take: a study of thousands of runs is polled less often."""


@final
class Watcher:
    """Polls a study. Files that cannot change any more are read once; runs that are not watched are not read."""

    def __init__(
        self, study_dir: Path, ids: Collection[str] | None = None, *, every_seconds: float | None = None
    ) -> None:
        """``ids`` are the runs to watch; ``None``: all. ``every_seconds`` is the time between two polls."""
        self._study_dir = study_dir
        self._every_seconds = every_seconds
        self._ids = None if ids is None else frozenset(ids)
        self._settling = FinalityTracker()
        self._scheduler = Scheduler()
        self._over: dict[str, tuple[float, RunView]] = {}
        """Run id -> the time at which a file was last put into its folder, and the run's view."""
        self._known: dict[str, tuple[float, ObservedRun]] = {}
        """Run id -> the time at which its configuration had been written, and the run."""
        self._host = socket.gethostname()
        self._latest: StudyView | None = None
        self._next = 0.0

    def look(self) -> StudyView:
        """Return the study as it is now."""
        views, rest = [], []
        for run in map(RunDirectory, self._folders()):
            written, view = self._over.get(run.id, (None, None))
            if view is not None and written == _written(run.path):
                views.append(view)
            elif (self._ids is None and run.id in self._known) or run.is_there():
                rest.append(run)
        work = at_work(self._study_dir, self._scheduler, {run.id for run in rest})
        views += [self._read(run, work) for run in rest]
        views.sort(key=lambda view: view.order)
        launcher = work.launcher
        places = launcher.waiting if launcher is not None else ()
        runs = compared(views, {run_id: place for place, run_id in enumerate(places)}, self._host)
        watched = {run_id for run_id in places if self._ids is None or run_id in self._ids}
        is_starting = launcher is not None and not (launcher.has_listed and watched <= {run.id for run in runs})
        return StudyView(name=self._study_dir.name, runs=tuple(runs), is_starting=is_starting)

    def looks(self) -> Iterator[StudyView]:
        """Poll the study until every run is over."""
        while True:
            started = time.monotonic()
            study = self.look()
            yield study
            if study.is_over:
                return
            time.sleep(self.pause(time.monotonic() - started))

    def latest(self) -> StudyView | None:
        """Return the study, polled again if the pause is over. ``None``: it could not be read yet."""
        started = time.monotonic()
        if started >= self._next:
            # A file that cannot be read for a moment must not end the thread that draws.
            with contextlib.suppress(SeqlmError, OSError):
                self._latest = self.look()
            self._next = time.monotonic() + self.pause(time.monotonic() - started)
        return self._latest

    def pause(self, took_seconds: float) -> float:
        """Return the seconds to wait before the next poll, after one that took ``took_seconds``."""
        return max(self._every_seconds or LOOK_SECONDS, took_seconds / LOOK_SHARE)

    def _folders(self) -> list[Path]:
        if self._ids is not None:
            return [self._study_dir / run_id for run_id in self._ids]
        return listed(self._study_dir, "[!.]*")

    def _read(self, run: RunDirectory, work: AtWork) -> RunView:
        self._over.pop(run.id, None)
        written = _written(run.path)
        has_outcome = any(_written(file) > 0 for file in (run.result_file, run.failure_file, run.stopped_file))
        observed = self._observe(run, work)
        view = view_of(observed, is_over=self._settling.is_over(run.id, observed.observation, work))
        if view.is_over and has_outcome:
            self._over[run.id] = (written, view)
        return view

    def _observe(self, run: RunDirectory, work: AtWork) -> ObservedRun:
        written = _written(run.config_file)
        if run.id in self._known and self._known[run.id][0] == written:
            with contextlib.suppress(SeqlmError):  # a file was damaged meanwhile; the reason below names it
                return replace(self._known[run.id][1], observation=observe_run(run, work))
        observed = look_at(run, work)
        if observed.config is not None:
            self._known[run.id] = (written, observed)
        return observed


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


# -- on the screen -------------------------------------------------------------------------------------------------


def watch(watcher: Watcher) -> None:
    """Show a study on stdout until every run is over: a table on a terminal, else a line for each change."""
    if not terminal.can_redraw(sys.stdout):
        watch_in_lines(watcher, sys.stdout)
        return
    from jobs.cli.live_table import StudyTable, live  # rich: only where the table is shown

    with live(sys.stdout) as table:
        for study in watcher.looks():
            table.update(StudyTable(study), refresh=True)


def watch_in_lines(watcher: Watcher, stream: TextIO) -> None:
    """Print a line for each change until every run is over."""
    before: StudyView | None = None
    for study in watcher.looks():
        if study.is_starting and before is None:
            continue
        lines = list(changes(before, study))
        if study.is_over and before is not None:
            lines.append(summary(study))
        for line in lines:
            print(printable(line), file=stream)
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
        elif more := told.pop(state) - 1:
            terminal.tell(f"{line}; and {more} more {state} (--verbose names them)")
        else:
            terminal.tell(line)


CAUSES = {
    "oom": "was short of memory (smaller micro-batches)",
    "preempted": "was preempted",
    "timeout": "ran out of time",
    "node": "lost its node",
}
"""Kind of failure -> why a run is tried again."""


@final
class LaunchProgress:
    """Shows a launch on stderr: a line for each event, and on a terminal the table of the study below them."""

    def __init__(self, study_dir: Path, where: str, planned: Sequence[PlannedRun]) -> None:
        """Print what is to be done and where, and show the table if there is one."""
        todo = [item for item in planned if item.action != "skip"]
        terminal.tell(f"{study_name(study_dir)}: {len(todo)} of {len(planned)} runs to do on {where}")
        tell_skipped(planned)
        self._total = len(todo)
        self._ended = 0
        self._width = max((len(item.spec.name) for item in todo), default=0)
        self._table: Live | None = None
        if todo and not terminal.is_quiet() and terminal.can_redraw(sys.stderr):
            from jobs.cli.live_table import live  # rich: only where the table is shown

            self._table = live(sys.stderr, Watcher(study_dir, [item.run.id for item in planned]).latest)
            self._table.start()

    def show(self, event: Event) -> None:
        """Show an event."""
        kind, item, seen = event
        best = f"best val ppl {terminal.perplexity(seen.best_val_ppl)}"
        match kind:
            case "started":
                verb = {"resume": "resumes", "extend": "extends"}.get(item.action, "starts")
                words = [f"{verb} {item.reason or ''}".rstrip()]
            case "epoch":
                if self._table is not None:  # it shows epochs, which would fill the screen
                    return
                done = 0 if seen.epoch is None else seen.epoch + 1
                words = [f"epoch {done}/{item.spec.config.train.epochs}", best]
            case "retried":
                # Without a kind, the worker exited with EXIT_BUSY and wrote no failure.
                reason = f": {seen.reason}" if seen.reason else ""
                words = [f"{CAUSES.get(str(seen.kind), 'had another worker at it')}, tried again{reason}"]
            case "ended":
                self._ended += 1
                detail = seen.reason or (best if seen.best_val_ppl is not None else "")
                words = [*outcome(seen.state, detail), f"({self._ended}/{self._total})"]
            case _:
                assert_never(kind)
        line = "  ".join(filter(None, [item.spec.name.ljust(self._width), *words]))
        if self._table is None:
            terminal.tell(line)
        else:
            with terminal.survives(sys.stderr):
                self._table.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Remove the table from the terminal; printed lines stay. May be called more than once."""
        if self._table is not None:
            with terminal.survives(sys.stderr):
                self._table.stop()

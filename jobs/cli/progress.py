"""Progress of a launch or a study for a person: a table on a terminal, else lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from jobs import terminal
from jobs.cli.lines import LaunchProgress, Progress
from jobs.cli.view import StudyView, Watcher, changes, summary
from jobs.plan.planned import PlannedRun
from jobs.terminal import can_redraw
from seqlm.errors import printable


def launch_progress(planned: Sequence[PlannedRun], study_dir: Path) -> Progress:
    """Return what shows the events of a launch: a table that updates in place on a terminal, else plain lines."""
    if not terminal.is_quiet() and can_redraw(sys.stderr) and any(item.action != "skip" for item in planned):
        from jobs.cli.live_table import LiveProgress  # rich: only where the table is shown

        return LiveProgress(planned, study_dir)
    return LaunchProgress(planned)


def watch(watcher: Watcher) -> None:
    """Show a study on stdout until every run is over: a table on a terminal, else a line for each change."""
    if terminal.can_redraw(sys.stdout):
        from jobs.cli.live_table import watch_in_place  # rich: only where the table is shown

        watch_in_place(watcher)
    else:
        watch_in_lines(watcher, sys.stdout)


def watch_in_lines(watcher: Watcher, stream: TextIO) -> None:
    """Print a line for each change until every run is over."""
    before: StudyView | None = None
    while True:
        started = time.monotonic()
        after = watcher.look()
        for line in changes(before, after):
            print(printable(line), file=stream)
        if after.is_over:
            if before is not None:
                print(printable(summary(after)), file=stream)
            return
        before = after
        stream.flush()
        time.sleep(watcher.pause(time.monotonic() - started))

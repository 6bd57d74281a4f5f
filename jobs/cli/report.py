"""``report``: write the report of studies, with the behaviour of trained models that is missing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs import terminal
from jobs.cli.arguments import ReportArguments
from jobs.cli.choice import BackendChoice
from jobs.cli.request import attend
from jobs.launch.behaviour import FAILURES, BehaviourLaunch
from jobs.plan.record import kept_untracked
from jobs.study.folder import find_study, is_behaviour_study, observe_study
from jobs.study.kept_code import distrust
from seqlm.errors import SeqlmError, UsageError
from seqlm.machine import cpu_count

REPORT_SECONDS = 10
"""How often ``report --watch`` checks for changes, and its page reloads."""

MOST_PROCESSES = 8
"""How many processes draw the figures of a large study, however many cores there are."""


def report(arguments: ReportArguments) -> tuple[Any, int]:
    """Write the report, with the behaviour of trained models that is missing."""
    if arguments.watch and arguments.json:
        raise UsageError("--watch writes the report at each change, --json prints one document; use one of them")
    study_dirs = [find_study(name, arguments.runs_dir) for name in arguments.studies]
    if arguments.watch:
        _watch_report(study_dirs, arguments.output)
    behaviour = []
    if arguments.behaviour is not False:
        asked = arguments.behaviour is True
        behaviour = [found for study_dir in study_dirs for found in compute_missing_behaviour(study_dir, asked=asked)]
    page = write_report(study_dirs, arguments.output, processes=min(cpu_count(), MOST_PROCESSES))
    terminal.say(str(page))
    names = [study_dir.name for study_dir in study_dirs]
    return {"study": names[0], "studies": names, "report": str(page), "behaviour": behaviour}, 0


def _watch_report(study_dirs: Sequence[Path], output: Path | None) -> None:
    """Write the report now and at each finished epoch or changed state, until every run is over."""
    written = None
    while True:
        runs = [run for study_dir in study_dirs for run in observe_study(study_dir)]
        seen = [(run.run.path, run.observation.state, run.observation.epoch) for run in runs]
        if not any(run.observation.state in ("queued", "running") for run in runs):
            return
        if seen != written:
            page = write_report(study_dirs, output, refresh_seconds=REPORT_SECONDS)
            done = sum(run.observation.state == "done" for run in runs)
            terminal.tell(f"{page}: {done} of {len(runs)} runs done")
            written = seen
        time.sleep(REPORT_SECONDS)


def write_report(
    study_dirs: Sequence[Path], output: Path | None, *, refresh_seconds: int | None = None, processes: int = 1
) -> Path:
    """Write the report of these studies and return its page.

    ``refresh_seconds``: how often the page reloads. ``processes``: how many draw the figures of a large study.
    """
    from analysis.report import write_report as write  # pandas and matplotlib: a second that only the report needs

    return write(*study_dirs, output=output, refresh_seconds=refresh_seconds, processes=processes)


def compute_missing_behaviour(study_dir: Path, *, asked: bool) -> list[dict[str, Any]]:
    """Compute on this machine the behaviour that a report lacks. Problems go to stderr and do not stop the report.

    Unless ``asked`` for by a flag, nothing is computed where that might run another user's code. A result is kept as
    long as its checkpoints are unchanged, whatever its settings. If nothing is missing, only checkpoints are read.
    """
    if is_behaviour_study(study_dir):
        return []
    try:
        problem = None if asked else distrust(study_dir, untracked=kept_untracked(study_dir))
        if problem is not None:
            terminal.tell(f"behaviour is left as it is: {problem}; --behaviour computes what is missing")
            return []
        wanted = BehaviourLaunch(study_dir)
        if wanted.specs:
            attend(wanted.specs, wanted.options(), BackendChoice(name="local"))
        outcomes = wanted.outcomes()
    except SeqlmError as error:
        terminal.tell(f"behaviour is left as it is: {'; '.join(str(error).splitlines())}")
        return []
    if not outcomes:
        terminal.tell("no run is done, so there is no behaviour to compute")
    for found in outcomes:
        if found["state"] in (*FAILURES, "kept"):
            terminal.tell(behaviour_line(found))
    return outcomes


def behaviour_line(found: Mapping[str, Any]) -> str:
    """Return one line about the behaviour of a run."""
    return f"behaviour of {found['name']}: {found['state']}: {found['reason'] or 'no reason is known'}"

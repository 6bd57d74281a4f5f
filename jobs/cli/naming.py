"""Which runs of a study a command is about: those that pass its filters, and one by its name, id or number."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs import terminal
from jobs.cli.arguments import Arguments, Filters
from jobs.manifests.filters import select, whole_id
from jobs.study.folder import ObservedRun, find_study, is_behaviour_study, observe_study
from seqlm.errors import UsageError, nearest


def find_trained(arguments: Arguments) -> Path:
    """Return the folder of a study of runs that train."""
    study_dir = find_study(arguments.study, arguments.runs_dir)
    if is_behaviour_study(study_dir):
        command = "clean" if arguments.command == "clean" else "behaviour"
        hint = f"{terminal.program()} {command} {study_dir.parent}"
        raise UsageError(f"{study_dir} holds behaviour jobs; expected their study: {hint}")
    return study_dir


def chosen_runs(arguments: Filters, study_dir: Path, every: Sequence[ObservedRun] | None = None) -> list[ObservedRun]:
    """Return the runs of a study that pass the filters. If there are none, a line says why; that is no error.

    ``every`` run, if the caller has observed the study.
    """
    found = observe_study(study_dir) if every is None else every
    noted = study_dir.parent if is_behaviour_study(study_dir) else study_dir
    runs, why = select(found, arguments.only, arguments.exclude, ObservedRun.facts, noted)
    if why is not None:
        terminal.tell(why)
    return runs


def named_runs(runs: Sequence[ObservedRun], text: str, study_dir: Path) -> list[ObservedRun]:
    """Return the runs of this name, else the one with this number in the report, this id or beginning of an id.

    Raises:
        UsageError: there is no such run, or several ids begin so.
    """
    named = [run for run in runs if run.name == text]
    if named:
        return named
    number = re.fullmatch(r"\d+[a-z]*", text) and {row["number"]: run_id for run_id, row in reported(study_dir).items()}
    run_id = (number or {}).get(text) or whole_id(text, [run.run.id for run in runs])
    found = [run for run in runs if run.run.id == run_id]
    if not found:
        hint = nearest(text, [run.name for run in runs])
        raise UsageError(f'{study_dir.name} has no run "{text}"{hint}; `status` lists them')
    return found


def one_run(runs: Sequence[ObservedRun], text: str, study_dir: Path) -> ObservedRun:
    """Return the only run that a text names.

    Raises:
        UsageError: as :func:`named_runs`, or several runs have this name.
    """
    named = named_runs(runs, text, study_dir)
    if len(named) > 1:
        ids = ", ".join(run.run.id for run in named)
        raise UsageError(f'"{text}" is the name of several runs; use an id: {ids}')
    return named[0]


REPORTED = ("number", "name", "id", "val_ppl", "best_epoch", "epochs_done", "test_ppl", "wall_seconds")


def reported(study_dir: Path) -> dict[str, dict[str, Any]]:
    """Return what the report has in the columns :data:`REPORTED` of each run, by its id and in order of its number.

    The number is a text, such as ``3b``. ``None``: missing, or infinite.
    """
    import pandas as pd  # with the report's tables, most of a second that only numbers and results need

    from analysis.study.study import load_study

    table = load_study(study_dir).runs[list(REPORTED)].astype(object)
    rows: Any = table.where(pd.notna(table) & (table != math.inf), None).to_dict("records")
    return {row["id"]: {**row, "number": str(row["number"])} for row in rows}

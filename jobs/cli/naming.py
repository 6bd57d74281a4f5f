"""Which runs of a study a command is about: those that pass its filters, and one by its name or id."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs import terminal
from jobs.cli.arguments import Arguments, Filters
from jobs.manifests.filters import select
from jobs.study.folder import ObservedRun, find_study, is_behaviour_study, observe_study
from seqlm.errors import UsageError
from seqlm.naming import Candidate, ids_named, listing


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
    """Return the runs that a text names (:mod:`seqlm.naming`).

    Raises:
        UsageError: as :func:`seqlm.naming.ids_named`.
    """
    candidates = [Candidate(run.run.id, run.name, run.observation.best_val_ppl, text_of(run)) for run in runs]
    ids = ids_named(text, candidates, study_dir.name)
    return [run for run in runs if run.run.id in ids]


def text_of(run: ObservedRun) -> str:
    """Return what tells the text and the vocabulary of a run from others."""
    return "" if run.config is None else repr(run.config.data)


def one_run(runs: Sequence[ObservedRun], text: str, study_dir: Path) -> ObservedRun:
    """Return the only run that a text names.

    Raises:
        UsageError: as :func:`named_runs`, or it names several runs.
    """
    named = named_runs(runs, text, study_dir)
    if len(named) > 1:
        raise UsageError(f'"{text}" names several runs; use an id: {listing([run.run.id for run in named])}')
    return named[0]


REPORTED = (
    *("number", "name", "id", "text", "val_ppl", "best_epoch", "epochs_done", "test_ppl", "wall_seconds"),
    *("val_bits_per_byte", "test_bits_per_byte", "lossless"),
)


def reported(study_dir: Path) -> dict[str, dict[str, Any]]:
    """Return what the report has in the columns :data:`REPORTED` of each run, by its id and in order of its number.

    The number is a text, such as ``3b``. ``None``: missing, or infinite.
    """
    import pandas as pd  # with the report's tables, most of a second that only numbers and results need

    from analysis.study.study import load_study

    table = load_study(study_dir).runs[list(REPORTED)].astype(object)
    rows: Any = table.where(pd.notna(table) & (table != math.inf), None).to_dict("records")
    return {row["id"]: {**row, "number": str(row["number"])} for row in rows}

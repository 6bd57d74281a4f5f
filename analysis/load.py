"""A study as its files tell it: one table of runs, one of epochs. Nothing is recomputed that a run has written down.

A run that is damaged, absent or diverged stays in the table with its reason and with NaN for what it cannot tell;
it is never shown as zero and never averaged in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.origin import Origin, origin_of
from analysis.run_files import LoadedRun, LogTail, clean, read_run
from seqlm.config import valid_keys
from seqlm.errors import UsageError
from seqlm.rundir import RunDirectory

HYPERPARAMETERS = valid_keys()
"""Columns of the runs table that hold the configuration, such as ``optim.lr``; NaN where a key does not apply."""

METRICS = [
    *("epoch", "train_loss", "val_loss", "train_ppl", "val_ppl", "lr", "epoch_seconds", "elapsed_seconds"),
    *("train_tokens_per_second", "peak_memory_bytes", "attempt"),
]
"""Columns of the epochs table after ``id`` and ``number``; whatever else a run has recorded follows them."""

RUN_COLUMNS = [
    *("number", "name", "id", "arch", "optimizer", "state", "reason", "failure_kind", "failure_message"),
    *("failure_where", "epochs_done", "best_epoch", "train_ppl", "val_ppl", "final_train_ppl", "final_val_ppl"),
    *("test_ppl", "parameters", "wall_seconds", *HYPERPARAMETERS, "command"),
]
"""Columns of the runs table. ``train_ppl`` and ``val_ppl`` are those of the best epoch, counted from 0."""

WHOLE_NUMBERS = ["epochs_done", "best_epoch", "parameters"]


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything the report is made of."""

    name: str
    directory: Path
    runs: pd.DataFrame
    """One row for each run directory, in manifest order; see ``RUN_COLUMNS``."""
    epochs: pd.DataFrame
    """One row for each finished epoch of each run; see ``METRICS``."""
    absent: list[int]
    """Numbers of runs that the manifest has before the last one known here, but that have no directory."""
    log_tails: dict[str, LogTail]
    """The end of the newest log of each failed or cancelled run that has one, by run id."""
    origin: Origin
    """Where the results come from: commits, versions, devices, times of launch."""
    warnings: list[str]
    """What could not be read, one line each."""

    @property
    def size(self) -> int:
        """Runs of the study, the absent ones too."""
        return len(self.runs) + len(self.absent)

    def epochs_of(self, run_id: str) -> pd.DataFrame:
        return self.epochs[self.epochs["id"] == run_id]


def load_study(study_dir: Path) -> Study:
    """Read every run below ``study_dir``.

    Raises:
        UsageError: the folder holds no runs.
    """
    found = [read_run(RunDirectory(file.parent)) for file in sorted(study_dir.glob("*/config.json"))]
    if not found:
        raise UsageError(f"{study_dir} holds no runs, so there is nothing to report; `run` a manifest first")
    found.sort(key=lambda run: (math.inf if run.order is None else run.order, run.row["id"]))
    absent = _number(found)
    provenances = [run.provenance for run in found]
    names = [str(p["study"]) for p in provenances if p.get("study")]
    return Study(
        name=clean(names[0]) if names else clean(study_dir.resolve().name),
        directory=study_dir,
        runs=_runs_table(found),
        epochs=_epochs_table(found),
        absent=absent,
        log_tails={run.row["id"]: run.log_tail for run in found if run.log_tail},
        origin=origin_of(provenances),
        warnings=[clean(line.replace(f"{study_dir}/", "")) for run in found for line in run.warnings],
    )


# -- all runs ------------------------------------------------------------------------------------------------------


def _number(runs: list[LoadedRun]) -> list[int]:
    """Give each run its number, its place in the manifest from 1; returns the numbers that have no run.

    Runs without a place follow. Where two runs claim one place (two manifests launched into one study), nothing is
    known of places, and all are counted through.
    """
    places = [run.order for run in runs if run.order is not None]
    if len(set(places)) < len(places):
        places = []
    following = max(places, default=-1) + 1
    for run in runs:
        if places and run.order is not None:
            run.row["number"] = run.order + 1
        else:
            run.row["number"] = following + 1
            following += 1
    taken = {place + 1 for place in places}
    return [number for number in range(1, max(taken, default=0) + 1) if number not in taken]


def _runs_table(runs: Iterable[LoadedRun]) -> pd.DataFrame:
    table = pd.DataFrame([run.row for run in runs], columns=RUN_COLUMNS, dtype=object)
    for column in ("train_ppl", "val_ppl", "final_train_ppl", "final_val_ppl", "test_ppl", "wall_seconds"):
        table[column] = pd.to_numeric(table[column], errors="coerce").astype(float)
    for column in WHOLE_NUMBERS:
        table[column] = _whole(table[column])
    table["number"] = table["number"].astype(int)
    return table


def _epochs_table(runs: Iterable[LoadedRun]) -> pd.DataFrame:
    rows = [{"id": run.row["id"], "number": run.row["number"], **epoch} for run in runs for epoch in run.epochs]
    more = sorted({key for row in rows for key in row} - {"id", "number", *METRICS})
    table = pd.DataFrame(rows, columns=["id", "number", *METRICS, *more])
    for column in METRICS:
        if column in ("epoch", "attempt", "peak_memory_bytes"):
            table[column] = _whole(table[column])
        else:
            table[column] = pd.to_numeric(table[column], errors="coerce").astype(float)
    return table


def _whole(column: pd.Series[Any]) -> pd.Series[Any]:
    """Whole numbers with room for missing ones; anything else is missing."""
    numbers = pd.to_numeric(column, errors="coerce").astype(float)
    return numbers.where(numbers % 1 == 0).astype("Int64")

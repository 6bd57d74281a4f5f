"""Read studies as tables of runs, epochs and attempts. Nothing is recomputed that a run has recorded.

A run that is damaged, absent or diverged stays in the table with its reason, and with NaN for what is not known. It is
never shown as zero and never averaged in. Several studies become one: their runs follow each other and are numbered
through.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.study.behaviour import Behaviour
from analysis.study.columns import EPOCHS, table_of
from analysis.study.numbering import Numbering, RunNumber, number_runs
from analysis.study.record import ExcludedRun, Expectation, PlannedRun, StudyRecord, read_study_record
from analysis.study.run import LoadedRun, LogTail, Origin, origin_of, read_run
from analysis.study.values import clean
from seqlm.errors import UsageError
from seqlm.rundir import RunDirectory, slugify

WITHIN = 1.05
"""Near a best perplexity: at most this many times it."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything the report is made of."""

    name: str
    """Its name; those of several joined by ``+``."""
    directories: dict[str, Path]
    """The folder of each study by its name."""
    runs: pd.DataFrame
    """One row for each run directory, by number."""
    epochs: pd.DataFrame
    """One row for each finished epoch of each run."""
    attempts: pd.DataFrame
    """One row for each attempt of each run."""
    absent: list[PlannedRun]
    """Entries of the manifests that have no run directory."""
    groups: dict[str, list[str]]
    """Title of each group of ``[report] groups`` -> ids of its runs."""
    excluded: list[ExcludedRun]
    """Combinations that the manifest leaves out."""
    expectations: list[Expectation]
    """With the ids of runs in place of fingerprints; an entry that has no run directory is left out."""
    log_tails: dict[str, LogTail]
    """The end of the newest log of each failed or cancelled run that has one, by run id."""
    behaviours: dict[str, Behaviour]
    """How the trained models of the runs behave for which that has been computed, by run id."""
    origin: Origin
    """Where the results come from: commits, versions, devices, times of launch."""
    warnings: list[str]
    """What could not be read, one line each."""

    @property
    def size(self) -> int:
        """Places of the study: its runs without further ones of the same entry, and the absent ones."""
        return sum(isinstance(number, int) for number in self.runs["number"].tolist()) + len(self.absent)

    def group_name(self, title: str) -> str:
        """A name of a group for files and anchors, such as ``1-model-comparison``."""
        return f"{list(self.groups).index(title) + 1}-{slugify(title)}"

    def directory_of(self, run_id: str) -> RunDirectory:
        """The folder of a run."""
        row = self.runs.loc[self.runs["id"] == run_id].iloc[0]
        return RunDirectory(self.directories[row["study"]] / run_id.rpartition("/")[2])

    def epochs_of(self, run_id: str) -> pd.DataFrame:
        """The epochs of one run; empty where none has been finished."""
        return self._epochs_by_run.get(run_id, self.epochs.iloc[:0])

    @functools.cached_property
    def _epochs_by_run(self) -> dict[str, pd.DataFrame]:
        return {str(run_id): epochs for run_id, epochs in self.epochs.groupby("id", sort=False)}


def load_study(*study_dirs: Path) -> Study:
    """Read every run below each of ``study_dirs``.

    Raises:
        UsageError: a folder holds neither runs nor the plan of any, or is given twice.
    """
    parts: list[_Part] = []
    for study_dir in study_dirs:
        part = _read_part(
            study_dir, taken={part.name for part in parts}, first=sum(part.numbering.size for part in parts)
        )
        if any(part.directory.resolve() == other.directory.resolve() for other in parts):
            raise UsageError(f"{study_dir} is given twice; name each study once")
        parts.append(part)
    several = len(parts) > 1
    found = [run for part in parts for run in part.runs]
    if several:
        for part in parts:
            for run in part.runs:
                run.row["id"] = f"{part.name}/{run.row['id']}"
    epochs = _epochs_table(found)
    return Study(
        name=" + ".join(part.name for part in parts),
        directories={part.name: part.directory for part in parts},
        runs=_runs_table(found, epochs),
        epochs=epochs,
        attempts=table_of(
            "attempts", ({**_named(run), **attempt} for run in found for attempt in run.attempts), dtype=object
        ),
        absent=[run for part in parts for run in part.numbering.absent],
        groups={
            f"{part.name}: {clean(group.title)}" if several else clean(group.title): part.ids(
                group.members, variants=True
            )
            for part in parts
            for group in part.record.groups
        },
        excluded=[run for part in parts for run in part.record.excluded],
        expectations=[expectation for part in parts for expectation in part.expectations()],
        log_tails={run.row["id"]: run.log_tail for run in found if run.log_tail},
        behaviours={run.row["id"]: run.behaviour for run in found if run.behaviour},
        origin=origin_of([run.provenance for run in found]),
        warnings=[line for part in parts for line in part.warnings],
    )


# -- one study -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One of the studies that are reported together."""

    name: str
    directory: Path
    runs: list[LoadedRun]
    numbering: Numbering
    record: StudyRecord
    warnings: list[str]

    def ids(self, digits: Iterable[str], *, variants: bool) -> list[str]:
        """Ids of the first run of each of some entries; with ``variants`` of all its runs."""
        members = [self.numbering.members.get(entry, []) for entry in digits]
        return [run.row["id"] for runs in members for run in (runs if variants else runs[:1])]

    def expectations(self) -> Iterable[Expectation]:
        """Those of the record, with ids in place of fingerprints."""
        for expectation in self.record.expectations:
            lower, higher = (tuple(self.ids(side, variants=False)) for side in (expectation.lower, expectation.higher))
            yield dataclasses.replace(expectation, text=clean(expectation.text), lower=lower, higher=higher)


def _read_part(study_dir: Path, *, taken: set[str], first: int) -> _Part:
    found = [read_run(RunDirectory(file.parent)) for file in sorted(study_dir.glob("*/config.json"))]
    record, damage = read_study_record(study_dir)
    if not found and not record.planned:
        raise UsageError(f"{study_dir} holds no runs, so there is nothing to report; `run` a manifest first")
    found.sort(key=lambda run: (math.inf if run.order is None else run.order, run.row["id"]))
    numbering = number_runs(found, record.planned, first)
    found.sort(key=lambda run: run.row["number"])
    names = [str(run.provenance["study"]) for run in found if run.provenance.get("study")]
    name = clean(names[0]) if names else clean(study_dir.resolve().name)
    name = next(n for n in [name, *(f"{name} ({i})" for i in range(2, len(taken) + 3))] if n not in taken)
    for run in found:
        run.row["study"] = name
        run.row["estimated_seconds"] = record.estimated_seconds.get(run.digits)
    warnings = damage + [line for run in found for line in run.warnings]
    return _Part(
        name=name,
        directory=study_dir,
        runs=found,
        numbering=numbering,
        record=record,
        warnings=[clean(line.replace(f"{study_dir}/", "")) for line in warnings],
    )


# -- all runs ------------------------------------------------------------------------------------------------------


def _runs_table(runs: Sequence[LoadedRun], epochs: pd.DataFrame) -> pd.DataFrame:
    settings: dict[Any, RunNumber] = {}
    for run in runs:
        key = run.row["id"] if run.setting_key is None else run.setting_key
        run.row["setting"] = settings.setdefault(key, run.row["number"])
    table = table_of("runs", [run.row for run in runs], dtype=object)
    best = dict(zip(table["id"], table["val_ppl"], strict=True))
    near = epochs[epochs["val_ppl"] <= WITHIN * epochs["id"].map(best).astype(float)].drop_duplicates("id")
    table["gap"] = table["val_ppl"] - table["train_ppl"]
    table["epoch_seconds"] = table["id"].map(epochs.groupby("id")["epoch_seconds"].median()).astype(float)
    table["seconds_to_5pct"] = table["id"].map(near.set_index("id")["elapsed_seconds"]).astype(float)
    return table


def _named(run: LoadedRun) -> dict[str, Any]:
    return {"id": run.row["id"], "number": run.row["number"]}


def _epochs_table(runs: Iterable[LoadedRun]) -> pd.DataFrame:
    rows = [{**_named(run), **epoch} for run in runs for epoch in run.epochs]
    return table_of("epochs", rows, sorted({key for row in rows for key in row} - set(EPOCHS)))

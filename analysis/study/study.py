"""Studies as their files tell them: a table of runs, one of epochs. Nothing is recomputed that a run has written down.

A run that is damaged, absent or diverged stays in the table with its reason and with NaN for what it cannot tell;
it is never shown as zero and never averaged in. Several studies become one: their runs follow each other and are
numbered through.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.study.attempts import attempts_table
from analysis.study.behaviour import Behaviour
from analysis.study.numbering import Numbering, number_runs
from analysis.study.record import ExcludedRun, Expectation, PlannedRun, StudyRecord, read_study_record
from analysis.study.run import LoadedRun, LogTail, Origin, origin_of, read_run
from analysis.study.values import as_number, clean, whole
from seqlm.config import valid_keys
from seqlm.errors import UsageError
from seqlm.rundir import RunDirectory, slugify

HYPERPARAMETERS = valid_keys()
"""Columns of the runs table that hold the configuration, such as ``optim.lr``; NaN where a key does not apply."""

METRICS = [
    *("epoch", "train_loss", "val_loss", "train_ppl", "val_ppl", "lr", "epoch_seconds", "elapsed_seconds"),
    *("train_tokens_per_second", "peak_memory_bytes", "attempt"),
]
"""Columns of the epochs table after ``id`` and ``number``; whatever else a run has recorded follows them."""

RUN_COLUMNS = [
    *("number", "name", "variant", "id", "study", "arch", "optimizer", "setting", "state", "reason", "failure_kind"),
    *("failure_message", "failure_where", "epochs_done", "best_epoch", "train_ppl", "val_ppl", "final_train_ppl"),
    *("final_val_ppl", "test_ppl", "gap", "parameters", "wall_seconds", "epoch_seconds", "seconds_to_5pct"),
    *("estimated_seconds", "published_train_ppl", "published_val_ppl", "published_epochs", "replications_low"),
    *("replications_high", *HYPERPARAMETERS, "command"),
]
"""Columns of the runs table. ``number`` is an integer, or a ``VariantNumber`` for a further run of the same entry of
the manifest. ``variant`` says in which keys a run differs from its entry, and ends its ``name``; missing if in none.
``train_ppl`` and ``val_ppl`` are those of the best epoch, counted from 0; ``gap`` is their difference,
``val_ppl - train_ppl``. ``published_epochs`` is the number of epochs after which ``published_train_ppl`` was measured.
``setting`` is the number of the first run that differs in nothing but the seed. ``epoch_seconds`` is the median epoch's
time; ``seconds_to_5pct`` that from the start to the end of the first epoch whose validation perplexity is at most 1.05
times the run's best."""

NUMBERS = [
    *("train_ppl", "val_ppl", "final_train_ppl", "final_val_ppl", "test_ppl", "gap", "wall_seconds", "epoch_seconds"),
    *("seconds_to_5pct", "estimated_seconds", "published_train_ppl", "published_val_ppl", "replications_low"),
    "replications_high",
]
WHOLE_NUMBERS = ["epochs_done", "best_epoch", "published_epochs", "parameters"]


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything the report is made of."""

    name: str
    """Its name; those of several joined by ``+``."""
    directories: dict[str, Path]
    """The folder of each study by its name."""
    runs: pd.DataFrame
    """One row for each run directory, by number; see ``RUN_COLUMNS``."""
    epochs: pd.DataFrame
    """One row for each finished epoch of each run; see ``METRICS``."""
    attempts: pd.DataFrame
    """One row for each attempt of each run; see ``ATTEMPT_COLUMNS``."""
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
    runs, epochs = _runs_table(found), _epochs_table(found)
    return Study(
        name=" + ".join(part.name for part in parts),
        directories={part.name: part.directory for part in parts},
        runs=runs,
        epochs=epochs,
        attempts=attempts_table({**_named(run), **attempt} for run in found for attempt in run.attempts),
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


def _runs_table(runs: Sequence[LoadedRun]) -> pd.DataFrame:
    for run in runs:
        run.row |= _derived(run)
    settings: dict[Any, int] = {}
    for run in runs:
        key = run.setting_key if run.setting_key is not None else run.row["id"]
        run.row["setting"] = settings.setdefault(key, run.row["number"])
    table = pd.DataFrame([run.row for run in runs], columns=RUN_COLUMNS, dtype=object)
    for column in NUMBERS:
        table[column] = pd.to_numeric(table[column], errors="coerce").astype(float)
    for column in WHOLE_NUMBERS:
        table[column] = whole(table[column])
    for column in ("number", "setting"):
        table[column] = table[column].infer_objects()
    return table


def _derived(run: LoadedRun) -> dict[str, Any]:
    """What follows from a run's own records: see ``RUN_COLUMNS``."""
    epochs = [
        (as_number(e.get("val_ppl")), as_number(e.get("elapsed_seconds")), as_number(e.get("epoch_seconds")))
        for e in run.epochs
    ]
    times = sorted(seconds for _, _, seconds in epochs if math.isfinite(seconds))
    best = as_number(run.row.get("val_ppl"))
    within = next((elapsed for ppl, elapsed, _ in epochs if ppl <= 1.05 * best), None)
    return {
        "gap": best - as_number(run.row.get("train_ppl")),
        "epoch_seconds": statistics.median(times) if times else None,
        "seconds_to_5pct": within,
    }


def _named(run: LoadedRun) -> dict[str, Any]:
    return {"id": run.row["id"], "number": run.row["number"]}


def _epochs_table(runs: Iterable[LoadedRun]) -> pd.DataFrame:
    rows = [{**_named(run), **epoch} for run in runs for epoch in run.epochs]
    more = sorted({key for row in rows for key in row} - {"id", "number", *METRICS})
    table = pd.DataFrame(rows, columns=["id", "number", *METRICS, *more])
    for column in METRICS:
        if column in ("epoch", "attempt", "peak_memory_bytes"):
            table[column] = whole(table[column])
        else:
            table[column] = pd.to_numeric(table[column], errors="coerce").astype(float)
    return table

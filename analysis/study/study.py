"""Read studies as tables of runs, epochs and attempts. Nothing is recomputed that a run has recorded.

A run that is damaged, absent or diverged stays in the table with its reason, and with NaN for what is not known. It is
never shown as zero and never averaged in. Several studies become one: their runs follow each other and are numbered
consecutively.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from analysis.study import units
from analysis.study.audits import read_audits
from analysis.study.behaviour import Behaviour
from analysis.study.columns import EPOCHS, FREE_KEYS, forget_single_digests, table_of
from analysis.study.comparison import APART, compared_epochs, cut, finished, text_names, with_times
from analysis.study.numbering import RunNumber, number_runs
from analysis.study.record import Expectation, ManifestFacts, PlannedEntry, WrittenNote, read_manifest_facts
from analysis.study.run import LoadedRun, origin_of, read_run
from analysis.study.settings import Setting, timed_settings
from analysis.study.values import as_text, clean, read_or_warn
from seqlm.comparisons import read_comparisons, verdict_of
from seqlm.errors import UsageError
from seqlm.notes import Noted, read_notes
from seqlm.reading import confine, one_look
from seqlm.records.comparisons import ComparisonVerdict
from seqlm.rundir import RunDirectory, require_format, slugify
from seqlm.search import Search

OVERFITTED_FROM = 1.05
"""A run whose last validation perplexity is above this multiple of its best has become worse by the end."""


@dataclass(frozen=True, kw_only=True)
class ComparedSettings:
    """Two settings that are compared over seeds."""

    verdict: ComparisonVerdict
    """What the seeds show by now."""
    a: frozenset[str]
    """Ids of the runs of a. Likewise ``b``."""
    b: frozenset[str]

    def named(self, prefix: str) -> Self:
        """Return it with a prefix before each id, which names the study."""
        a, b = (frozenset(prefix + run for run in side) for side in (self.a, self.b))
        return dataclasses.replace(self, a=a, b=b)


@dataclass(frozen=True, kw_only=True)
class StudyFiles:
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
    absent: list[PlannedEntry]
    """Entries of the manifests that have no run directory."""
    groups: dict[str, list[str]]
    """Title of each group of ``[report] groups`` -> ids of its runs; of an absent one, its first digits."""
    behaviour_of: list[str]
    """Ids of the runs whose trained models the manifest asks about; of an absent one, its first digits."""
    notes: list[WrittenNote]
    """What the manifests say themselves, in the order of the studies."""
    excluded: list[tuple[str | None, str | None]]
    """Architecture and optimizer of the runs that the manifest leaves out."""
    expectations: list[Expectation]
    """With the ids of runs in place of fingerprints, but for absent ones."""
    searches: dict[str, Search]
    """The rule of each search by the name of its study; without the studies that are none."""
    log_tails: dict[str, list[str]]
    """The last lines of the newest log of each failed or cancelled run that has one, by run id."""
    behaviours: dict[str, Behaviour]
    """How the trained models of the runs behave for which that has been computed, by run id."""
    origin: dict[str, list[str]]
    """Where the results come from: launch, commits, devices, hosts, versions. Several values: the runs differ.

    A study that was audited has a line for each audit (:mod:`analysis.study.audits`).
    """
    warnings: list[str]
    """What could not be read, one line each."""
    comparisons: list[ComparedSettings]
    """The comparisons over seeds: each ``[[decide]]`` and ``seqlm compare``."""
    final_seeds: frozenset[str]
    """Ids of the final seeds of searches, which no rung has compared."""
    own_models: dict[str, str]
    """Each user's own model, such as ``lstm.py:LSTM``, with its name in print (:func:`units.set_own_models`)."""

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

    @functools.cached_property
    def texts(self) -> pd.Series[int]:
        """The number of finished runs on each text by its name, the commonest text first."""
        names = finished(self.runs).sort_values("number")["text"]
        return names.groupby(names, sort=False).size().sort_values(ascending=False, kind="stable")

    @functools.cached_property
    def settings(self) -> list[Setting]:
        """Every setting with a finished run, by number."""
        return timed_settings(self.runs, self.epochs)

    @functools.cached_property
    def on_one_text(self) -> Self:
        """The study with the runs alone that predict the text of the most finished runs."""
        runs = self.runs
        if self.texts.empty or runs["text"].nunique() < 2:
            return self
        is_on_it = (runs["text"] == self.texts.index[0]) | runs["data.corpus"].isna()
        return self if is_on_it.all() else dataclasses.replace(self, runs=runs[is_on_it])

    @functools.cached_property
    def compared(self) -> Self:
        """The study at equal epochs: each run as it was after ``compared_epochs``. The report ranks by it.

        A run with a result that has gone as far is "done" here, also if it was to go further since. Best and final
        perplexities and times are those of its first epochs. The test perplexity is missing if the best epoch of all is
        a later one. ``epochs_done`` keeps the epochs gone. A done run that does not compare is in the state "apart".

        >>> study.compared.runs["compared_epochs"].unique().tolist()
        [3]
        """
        study = self.after(self.runs["compared_epochs"])
        apart = finished(study.runs)["compared_epochs"].isna().reindex(study.runs.index, fill_value=False)
        if not apart.any():
            return study
        return dataclasses.replace(study, runs=study.runs.assign(state=study.runs["state"].mask(apart, APART)))

    def after(self, epochs: int | pd.Series[Any]) -> Self:
        """Return the study as it was after some epochs of each run; a run with fewer stays as it is.

        Args:
            epochs: a number, or one for each run, by the index of ``runs``; missing: all epochs.

        >>> study.after(2).runs["val_ppl"].tolist()[:3]
        [190.0, 180.0, 400.0]
        """
        limits = pd.Series(epochs, index=self.runs.index) if isinstance(epochs, int) else epochs
        runs, kept = cut(self.runs, self.epochs, limits)
        return self if runs is self.runs else dataclasses.replace(self, runs=runs, epochs=kept)

    def epochs_of(self, run_id: str) -> pd.DataFrame:
        """The epochs of one run; empty if none has been finished."""
        return self.epochs[self.epochs["id"] == run_id]


def load_study(*study_dirs: Path) -> StudyFiles:
    """Read every run below each of ``study_dirs``.

    Raises:
        UsageError: a folder holds neither runs nor the plan of any, is given twice, or is of another version.
    """
    read: dict[str, tuple[Path, list[LoadedRun], ManifestFacts]] = {}
    warnings: list[str] = []
    comparisons: list[ComparedSettings] = []
    audited: list[str] = []
    for study_dir in study_dirs:
        confine(study_dir)
        require_format(study_dir)
        lines: list[str] = []
        with one_look():
            record = read_manifest_facts(study_dir, lines)
            found = [read_run(run) for run in RunDirectory.unordered_in(study_dir) if run.left_out() is None]
            _add_notes(study_dir, found, lines)
            names = {run.row["id"]: run.row["name"] for run in found}
            audits: list[str] = read_or_warn(functools.partial(read_audits, study_dir, names, lines), [], lines)
            over_seeds: list[ComparedSettings] = read_or_warn(functools.partial(_over_seeds, study_dir), [], lines)
        found.sort(key=lambda run: (math.inf if run.order is None else run.order, run.row["id"]))
        lines += (line for run in found for line in run.warnings)
        warnings += [clean(line.replace(f"{study_dir}/", "")) for line in lines]
        if not found and not record.planned:
            raise UsageError(f"{study_dir} holds no runs, so there is nothing to report; `run` a manifest first")
        if study_dir.resolve() in (folder.resolve() for folder, _, _ in read.values()):
            raise UsageError(f"{study_dir} is given twice; name each study once")
        name = _free_name(found, study_dir, read)
        read[name] = study_dir, found, record
        prefix = f"{name}/" if len(study_dirs) > 1 else ""
        audited += (clean(f"{prefix}{line}") for line in audits)
        comparisons += (one.named(prefix) for one in over_seeds)
    records = {name: record for name, (_, _, record) in read.items()}
    configs = (config for _, found, _ in read.values() for run in found for config in (run.config, run.row))
    forget_single_digests([*configs, *(entry.config for record in records.values() for entry in record.planned)])
    absent: list[PlannedEntry] = []
    groups: dict[str, list[str]] = {}
    behaviour_of: list[str] = []
    expectations: list[Expectation] = []
    notes: list[WrittenNote] = []
    size = 0
    runs: list[LoadedRun] = []
    for name, (_, found, record) in read.items():
        without_run, members, places = number_runs(found, record.planned, first=size)
        over = {run.digits for run in found if run.row["state"] in ("stopped", "failed", "cancelled")}
        absent += (entry for entry in without_run if entry.after not in over)  # their final seeds are not to be trained
        size += places
        found.sort(key=lambda run: run.row["number"])
        runs += found
        for run in found:
            run.row |= {"study": name, "estimated_seconds": record.estimates.get(run.digits)}
            if len(study_dirs) > 1:
                run.row["id"] = f"{name}/{run.row['id']}"
        for title, digits in record.groups:
            title = f"{name}: {title}" if len(study_dirs) > 1 else title
            groups[title] = _ids(members, digits)
        behaviour_of += _ids(members, record.behaviour, most=1)
        for expectation in record.expectations:
            lower, higher = (tuple(_ids(members, side, most=1)) for side in (expectation.lower, expectation.higher))
            expectations.append(dataclasses.replace(expectation, lower=lower, higher=higher))
        for note in record.notes:
            ids = {run: _ids(members, [digits], most=1)[0] for run, digits in note.runs.items()}
            notes.append(dataclasses.replace(note, study=name, runs=ids))
    excluded = [entry for record in records.values() for entry in record.excluded]
    archs = [*(r.row["arch"] for r in runs), *(plan.arch for plan in absent), *(arch for arch, _ in excluded)]
    own = {run.row["arch"]: clean(str(label)) for run in runs if (label := run.provenance.label)}
    own_models = units.names_in_print(archs, own)
    units.set_own_models(own_models)
    epochs = _epochs_table(runs)
    return StudyFiles(
        name=" + ".join(read),
        directories={name: folder for name, (folder, _, _) in read.items()},
        runs=_runs_table(runs, epochs),
        epochs=epochs,
        attempts=table_of(
            "attempts", ({**_named(run), **attempt} for run in runs for attempt in run.attempts), dtype=object
        ),
        absent=absent,
        groups=groups,
        behaviour_of=behaviour_of,
        notes=notes,
        excluded=excluded,
        expectations=expectations,
        searches={name: record.search for name, record in records.items() if record.search},
        log_tails={run.row["id"]: run.log_tail for run in runs if run.log_tail},
        behaviours={run.row["id"]: run.behaviour for run in runs if run.behaviour},
        origin={**origin_of(runs), **({"Audits": audited} if audited else {})},
        comparisons=comparisons,
        final_seeds=frozenset(run.row["id"] for run in runs if run.provenance.first_seed is not None),
        warnings=warnings,
        own_models=own_models,
    )


def _over_seeds(study_dir: Path) -> list[ComparedSettings]:
    known = read_comparisons(study_dir)
    return [
        ComparedSettings(
            verdict=verdict_of(study_dir, one, len(known)),
            a=frozenset(pair.a for pair in one.pairs),
            b=frozenset(pair.b for pair in one.pairs),
        )
        for one in known.values()
        if one.pairs
    ]


def _add_notes(study_dir: Path, runs: Iterable[LoadedRun], warnings: list[str]) -> None:
    notes: dict[str, Noted] = read_or_warn(lambda: read_notes(study_dir), {}, warnings)
    for run in runs:
        noted = notes.get(run.row["id"], Noted())
        run.row |= {"tags": as_text(" ".join(noted.tags)), "note": as_text(noted.text)}


def _free_name(runs: Sequence[LoadedRun], study_dir: Path, taken: Collection[str]) -> str:
    """Return the name of a study, with a number if another study has it."""
    names = [run.provenance.study for run in runs if run.provenance.study]
    name = clean(names[0] if names else study_dir.resolve().name)
    return next(n for n in [name, *(f"{name} ({i})" for i in range(2, len(taken) + 3))] if n not in taken)


def _ids(members: Mapping[str, list[LoadedRun]], digits: Iterable[str], most: int | None = None) -> list[str]:
    """Return the ids of the runs of each entry, or of its first ``most`` runs; of an entry without a run its digits."""
    found = []
    for entry in digits:
        found += [run.row["id"] for run in members.get(entry, [])[:most]] or [entry]
    return found


def _named(run: LoadedRun) -> dict[str, Any]:
    return {"id": run.row["id"], "number": run.row["number"]}


def _epochs_table(runs: Sequence[LoadedRun]) -> pd.DataFrame:
    lengths = [len(run.epochs["epoch"]) for run in runs]
    named = {key: np.repeat(np.array([run.row[key] for run in runs], object), lengths) for key in ("id", "number")}
    keys = dict.fromkeys(key for run in runs for key in run.epochs)
    empty = [np.full(length, math.nan) for length in lengths]
    parts = {key: [run.epochs.get(key, other) for run, other in zip(runs, empty, strict=True)] for key in keys}
    values = {key: np.concatenate(found) for key, found in parts.items()}
    return table_of("epochs", {**named, **values}, more=sorted(key for key in keys if key not in EPOCHS))


def _runs_table(runs: Sequence[LoadedRun], epochs: pd.DataFrame) -> pd.DataFrame:
    settings: dict[str, RunNumber] = {}
    for run in runs:
        key = repr({**run.config, **dict.fromkeys(FREE_KEYS)}) if run.config else run.row["id"]
        run.row["setting"] = settings.setdefault(key, run.row["number"])
    table = with_times(table_of("runs", [run.row for run in runs], dtype=object), epochs)
    table["text"] = text_names(table)
    table = table.assign(compared_epochs=compared_epochs(table))
    first, _ = cut(table, epochs, table["compared_epochs"])
    return table.assign(compared_val_ppl=first["val_ppl"], compared_best_epoch=first["best_epoch"])

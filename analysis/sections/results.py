"""The tables of a study: results and hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.blocks.table import Column, Table, csv_text, number, run_columns
from analysis.study import units
from analysis.study.settings import Setting, best_runs, clear_winners, in_report_order, repeats_seeds, settings_of
from analysis.study.study import HYPERPARAMETERS, Study

ALWAYS_SHOWN = {
    "optim.lr": "Learning rate",
    "train.batch_size": "Batch",
    "model.hidden_size": "Hidden",
    "model.num_layers": "Layers",
    "model.keep": "Keep",
}
"""Hyperparameters that have a column even where all runs agree, with the column's heading."""


# -- results -------------------------------------------------------------------------------------------------------

RESULT_COLUMNS = [
    *run_columns(),
    Column("train_ppl", "Train", units.perplexity, numeric=True, emphasised=True),
    Column("val_ppl", "Valid.", units.perplexity, numeric=True, emphasised=True),
    number("test_ppl", "Test", units.perplexity),
    number("epochs_to_best", "Best epoch", units.whole, lambda run: _from_1(run["best_epoch"])),
    Column("epochs_done", "Epochs", shown=lambda run: _epochs(run), numeric=True),
    number("wall_seconds", "Time", units.duration),
    Column("state", "State", kind="state"),
]


def results_table(study: Study) -> Table:
    """Train and validation perplexity of every run at its best epoch.

    The best of each architecture is bold, unless seeds are repeated: then :func:`settings_table` says what is best.
    """
    repeated = repeats_seeds(study.runs)
    best = set() if repeated else set(best_runs(study.runs)["id"])
    bold = (
        "What is best is told by the next table, from all seeds of a setting."
        if repeated
        else "Bold: lowest validation perplexity of each architecture among finished runs; each setting has one seed "
        "(n = 1), so small differences may be chance."
    )
    caption = (
        "No.: place in the manifest, the same throughout this report. Train, Valid., Test: perplexity, exp(mean loss "
        "per predicted token), at the epoch with the lowest validation perplexity (training with dropout on, the other "
        "two without). Best epoch: that epoch, counted from 1. Epochs: passes finished, of those planned. Time: wall "
        f"clock of all epochs. {bold} {units.MISSING}: not available."
    )
    return Table(
        name="results",
        title="Perplexity of each run",
        caption=caption,
        columns=RESULT_COLUMNS,
        records=in_report_order(study.runs),
        run=lambda run: run["number"],
        bold=lambda run: run["id"] in best,
        anchored=True,
    )


def _from_1(epoch: Any) -> Any:
    """An epoch as a reader counts it; the files count from 0."""
    return epoch + 1 if units.is_number(epoch) else None


def _epochs(run: Mapping[Any, Any]) -> str:
    return f"{run['epochs_done']} of {units.plain_value(run['train.epochs'])}"


def settings_table(study: Study) -> Table | None:
    """Validation perplexity of each setting over its seeds; none where no setting has been finished with two."""
    if not repeats_seeds(study.runs):
        return None
    settings = settings_of(study.runs)
    bold = {setting.number for setting in clear_winners(settings)}
    values = dict(zip(study.runs["number"], study.runs["val_ppl"], strict=True))

    def place(setting: Setting) -> tuple[int, int, int]:
        arch = units.rank(units.ARCHITECTURES, setting.arch)
        return arch, units.rank(units.OPTIMIZERS, setting.optimizer), setting.number

    columns = [
        number("number", "No.", of=lambda setting: setting.number),
        Column("name", "Setting", of=lambda setting: setting.name, emphasised=True),
        Column("architecture", "Architecture", units.architecture, lambda setting: setting.arch),
        Column("optimizer", "Optimizer", units.optimizer, lambda setting: setting.optimizer),
        number("n", "n", of=lambda setting: setting.interval.n),
        Column("val_ppl", "Valid.", units.perplexity, lambda s: s.val_ppl, numeric=True, emphasised=True),
        number("low", "From", units.perplexity, lambda setting: setting.interval.low),
        number("high", "To", units.perplexity, lambda setting: setting.interval.high),
        number("best_seed", "Best seed", units.perplexity, lambda setting: min(values[n] for n in setting.runs)),
        number("worst_seed", "Worst seed", units.perplexity, lambda setting: max(values[n] for n in setting.runs)),
        Column("runs", "Runs", of=lambda setting: " ".join(map(str, setting.runs))),
    ]
    caption = (
        "A setting: runs that differ in nothing but the seed; No.: its first run's. n: finished seeds. Valid.: "
        "geometric mean over seeds of the best validation perplexity; From, To: its 95 % interval (Student's t on the "
        "loss). Best, worst seed: the lowest and the highest of them. Runs: their numbers. Bold: lowest of its "
        "architecture, where its interval overlaps with that of no other; a single seed counts as a point. "
        f"{units.MISSING}: not available with one seed."
    )
    return Table(
        name="settings",
        title="Perplexity of each setting over its seeds",
        caption=caption,
        columns=columns,
        records=sorted(settings, key=place),
        bold=lambda setting: setting.number in bold,
    )


# -- hyperparameters -----------------------------------------------------------------------------------------------


def hyperparameters_table(study: Study) -> Table:
    """Every hyperparameter of every run, and the command that launches it. What all runs share is in the caption."""
    shared = {key: value for key in HYPERPARAMETERS if (value := _shared_value(study.runs[key])) is not None}
    hidden = {"model.arch", "optim.optimizer", *(set(shared) - set(ALWAYS_SHOWN))}
    unused = {key for key in HYPERPARAMETERS if not _applies(study.runs[key]).any()} - set(ALWAYS_SHOWN)
    varying = [key for key in HYPERPARAMETERS if key not in hidden | unused]
    keys = [*ALWAYS_SHOWN, *(key for key in varying if key not in ALWAYS_SHOWN)]
    columns = [
        *run_columns(),
        *(number(key, ALWAYS_SHOWN.get(key, key), units.plain_value) for key in keys),
    ]
    stated = ", ".join(f"{key} = {value}" for key, value in shared.items() if key not in keys)
    caption = (
        "Beneath each run: the command that launches it alone. Hidden: units of a layer; Layers: stacked layers or "
        "blocks; Keep: probability of keeping a unit (1 - dropout); Batch: columns of the global batch. "
        f"{units.MISSING}: does not apply."
    )
    if stated:
        caption += f" The same in every run to which it applies: {stated}."
    return Table(
        name="hyperparameters",
        title="Hyperparameters and commands",
        caption=caption,
        columns=columns,
        records=in_report_order(study.runs),
        run=lambda run: run["number"],
        code=lambda run: run["command"] if isinstance(run["command"], str) else None,
        code_title="Command",
        full_csv=hyperparameters_csv(study),
    )


def hyperparameters_csv(study: Study) -> str:
    """All hyperparameters as columns, the shared ones too, for a program to read."""
    keys = ["number", "name", "id", *HYPERPARAMETERS, "command"]
    return csv_text(keys, in_report_order(study.runs)[keys].itertuples(index=False))


def _applies(column: pd.Series[Any]) -> pd.Series[bool]:
    """Which runs have the key at all; none is a value, NaN is not."""
    return column.map(lambda value: not (isinstance(value, float) and pd.isna(value)))


def _shared_value(column: pd.Series[Any]) -> str | None:
    """The value that all runs with this key have in common."""
    values = {units.plain_value(value) for value in column[_applies(column)]}
    return values.pop() if len(values) == 1 else None

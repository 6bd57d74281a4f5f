"""The tables of a study: results and hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.blocks.section import Block, Prose
from analysis.blocks.table import Column, Table, csv_text, number, run_columns
from analysis.study import units
from analysis.study.columns import HYPERPARAMETERS
from analysis.study.numbering import RunNumber
from analysis.study.settings import (
    CONFIDENCE,
    Setting,
    best_runs,
    best_settings,
    finished,
    in_report_order,
    repeats_seeds,
    settings_of,
)
from analysis.study.study import Study

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
    number("final_train_ppl", "Final train", units.perplexity),
    number("final_val_ppl", "Final valid.", units.perplexity),
    Column("epochs_done", "Epochs", shown=lambda run: _epochs(run), numeric=True),
    number("wall_seconds", "Time", units.duration),
    Column("state", "State", kind="state"),
]


def results_table(study: Study, group: str | None = None) -> Table:
    """Perplexity of every run, or of those of a group, at its best epoch and after its last.

    The lowest validation perplexity of each architecture among the finished runs of the table is bold.
    """
    runs = study.runs if group is None else study.runs[study.runs["id"].isin(study.groups[group])]
    best = set(best_runs(runs)["id"])
    seeds = (
        "The next table compares settings over seeds."
        if repeats_seeds(study.runs)
        else "One seed per setting (n = 1): small differences may be chance."
    )
    caption = (
        "Train, valid., test: perplexity at the epoch with the lowest validation perplexity; final: after the last "
        f"epoch. Bold: lowest of each architecture. {seeds if group is None else ''}"
    )
    return Table(
        name="results" if group is None else f"group-{study.group_name(group)}",
        title="Perplexity of each run" if group is None else f"{group}: perplexity of each run",
        caption=caption.strip(),
        columns=RESULT_COLUMNS,
        records=in_report_order(runs),
        run=lambda run: run["number"],
        bold=lambda run: run["id"] in best,
        anchored=group is None,
    )


OVERFITTED_FROM = 1.05
"""A run whose last validation perplexity is above this multiple of its best has become worse by the end."""

MOST_NAMED = 5
"""A sentence names at most this many runs, and counts the others."""


def overfitting(study: Study) -> list[Prose]:
    """Return a paragraph on the finished runs whose validation perplexity rose again after its best; empty if none."""
    done = finished(study.runs)
    worse = done[done["final_val_ppl"] > OVERFITTED_FROM * done["val_ppl"]].copy()
    worse["rise"] = worse["final_val_ppl"] / worse["val_ppl"]
    rows: list[dict[Any, Any]] = worse.sort_values(["rise", "number"], ascending=[False, True]).to_dict("records")
    overfitted = [row for row in rows if row["final_train_ppl"] <= row["train_ppl"]]
    unstable = [row for row in rows if row["final_train_ppl"] > row["train_ppl"]]
    texts = [
        ("Overfitted by the last epoch (training perplexity fell on, validation perplexity rose)", overfitted),
        ("Worse at the last epoch in training and validation", unstable),
    ]
    sentences = [f"{text}: {units.listing(_rises(found))}." for text, found in texts if found]
    return [Prose(text=" ".join(sentences))] if sentences else []


def _rises(rows: Sequence[Mapping[Any, Any]]) -> list[str]:
    texts = [
        f"{row['number']} {row['name']} (validation {units.rounded(row['val_ppl'])} at epoch {row['best_epoch'] + 1}, "
        f"{units.rounded(row['final_val_ppl'])} at epoch {row['epochs_done']}; training "
        f"{units.rounded(row['train_ppl'])}, then {units.rounded(row['final_train_ppl'])})"
        for row in rows[:MOST_NAMED]
    ]
    return [*texts, *([units.count(len(rows) - MOST_NAMED, "other")] if len(rows) > MOST_NAMED else [])]


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
    best = best_settings(settings)
    values = dict(zip(study.runs["number"], study.runs["val_ppl"], strict=True))

    def is_best(setting: Setting) -> bool:
        return setting.val_ppl == best[setting.arch].val_ppl

    def p_value(setting: Setting) -> float | None:
        return None if is_best(setting) else setting.interval.p_value(best[setting.arch].interval)

    def place(setting: Setting) -> tuple[int, int, RunNumber]:
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
        Column("p_value", "p", of=p_value, shown=lambda setting: _tie(p_value(setting)), numeric=True),
        Column("runs", "Runs", of=lambda setting: " ".join(map(str, setting.runs))),
    ]
    caption = (
        "Valid.: geometric mean over n seeds, with its 95 % interval. Bold: lowest of its architecture. p: Welch's t "
        f"test of the losses against it; {TIE}: no difference at 5 %; n = 1: not testable."
    )
    return Table(
        name="settings",
        title="Perplexity of each setting over its seeds",
        caption=caption,
        columns=columns,
        records=sorted(settings, key=place),
        bold=is_best,
    )


TIE = "\N{ALMOST EQUAL TO}"
"""Marks a setting whose seeds show no difference from the best."""


def _tie(p_value: float | None) -> str:
    """The p value of a setting against the best; ``None`` for the best itself."""
    if p_value is None:
        return "best"
    if math.isnan(p_value):
        return "n = 1"
    text = f"{p_value:.3f}" if p_value >= 0.001 else "< 0.001"
    return f"{text} {TIE}" if p_value >= 1 - CONFIDENCE else text


# -- hyperparameters -----------------------------------------------------------------------------------------------


def hyperparameter_blocks(study: Study) -> list[Block]:
    """Every hyperparameter of every run, and the command that launches it; a sentence names what all runs share."""
    shared = {key: value for key in HYPERPARAMETERS if (value := _shared_value(study.runs[key])) is not None}
    hidden = {"model.arch", "optim.optimizer", *(set(shared) - set(ALWAYS_SHOWN))}
    unused = {key for key in HYPERPARAMETERS if not _applies(study.runs[key]).any()} - set(ALWAYS_SHOWN)
    varying = [key for key in HYPERPARAMETERS if key not in hidden | unused]
    keys = [*ALWAYS_SHOWN, *(key for key in varying if key not in ALWAYS_SHOWN)]
    stated = ", ".join(f"{key} = {value}" for key, value in shared.items() if key not in keys)
    prose = [Prose(text=f"The same in every run to which it applies: {stated}.")] if stated else []
    return [*prose, _hyperparameters_table(study, keys)]


def _hyperparameters_table(study: Study, keys: Sequence[str]) -> Table:
    columns = [
        *run_columns(),
        *(number(key, ALWAYS_SHOWN.get(key, key), units.plain_value) for key in keys),
    ]
    caption = (
        "Beneath each run: the command that launches it alone. Hidden: units of a layer. Keep: probability of keeping "
        f"a unit (1 - dropout). Batch: columns of the global batch. {units.MISSING}: does not apply."
    )
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

"""The tables of a study: results and hyperparameters."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.blocks.table import Cell, Column, Row, Table, csv_text
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
    Column(key="number", title="No.", numeric=True),
    Column(key="name", title="Run"),
    Column(key="architecture", title="Architecture"),
    Column(key="optimizer", title="Optimizer"),
    Column(key="train_ppl", title="Train", numeric=True),
    Column(key="val_ppl", title="Valid.", numeric=True),
    Column(key="test_ppl", title="Test", numeric=True),
    Column(key="epochs_to_best", title="Best epoch", numeric=True),
    Column(key="epochs_done", title="Epochs", numeric=True),
    Column(key="wall_seconds", title="Time", numeric=True),
    Column(key="state", title="State"),
]


def results_table(study: Study) -> Table:
    """Train and validation perplexity of every run at its best epoch.

    The best of each architecture is bold, unless seeds are repeated: then :func:`settings_table` says what is best.
    """
    repeated = repeats_seeds(study.runs)
    best = set() if repeated else set(best_runs(study.runs)["id"])
    rows = [_result_row(run, bold=run["id"] in best) for run in _records(in_report_order(study.runs))]
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
    return Table(name="results", title="Perplexity of each run", caption=caption, columns=RESULT_COLUMNS, rows=rows)


SETTING_COLUMNS = [
    Column(key="number", title="No.", numeric=True),
    Column(key="name", title="Setting"),
    Column(key="architecture", title="Architecture"),
    Column(key="optimizer", title="Optimizer"),
    Column(key="n", title="n", numeric=True),
    Column(key="val_ppl", title="Valid.", numeric=True),
    Column(key="low", title="From", numeric=True),
    Column(key="high", title="To", numeric=True),
    Column(key="best_seed", title="Best seed", numeric=True),
    Column(key="worst_seed", title="Worst seed", numeric=True),
    Column(key="runs", title="Runs"),
]


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

    rows = [
        _setting_row(setting, [values[run] for run in setting.runs], bold=setting.number in bold)
        for setting in sorted(settings, key=place)
    ]
    caption = (
        "A setting: runs that differ in nothing but the seed; No.: its first run's. n: finished seeds. Valid.: "
        "geometric mean over seeds of the best validation perplexity; From, To: its 95 % interval (Student's t on the "
        "loss). Best, worst seed: the lowest and the highest of them. Runs: their numbers. Bold: lowest of its "
        "architecture, where its interval overlaps with that of no other; a single seed counts as a point. "
        f"{units.MISSING}: not available with one seed."
    )
    title = "Perplexity of each setting over its seeds"
    return Table(name="settings", title=title, caption=caption, columns=SETTING_COLUMNS, rows=rows)


def _setting_row(setting: Setting, seeds: list[float], *, bold: bool) -> Row:
    found = setting.val_ppl
    runs = " ".join(map(str, setting.runs))
    cells = [
        Cell(text=str(setting.number), value=setting.number),
        Cell(text=setting.name, value=setting.name, bold=bold),
        Cell(text=units.architecture(setting.arch), value=setting.arch),
        Cell(text=units.optimizer(setting.optimizer), value=setting.optimizer),
        Cell(text=str(found.n), value=found.n),
        Cell(text=units.perplexity(found.centre), value=found.centre, bold=bold),
        Cell(text=units.perplexity(found.low), value=found.low),
        Cell(text=units.perplexity(found.high), value=found.high),
        Cell(text=units.perplexity(min(seeds)), value=min(seeds)),
        Cell(text=units.perplexity(max(seeds)), value=max(seeds)),
        Cell(text=runs, value=runs),
    ]
    return Row(cells=cells)


def _result_row(run: dict[str, Any], *, bold: bool) -> Row:
    best = run["best_epoch"] + 1 if units.is_number(run["best_epoch"]) else None  # the files count from 0
    planned = units.plain_value(run["train.epochs"])
    cells = [
        Cell(text=str(run["number"]), value=run["number"]),
        Cell(text=run["name"], value=run["name"], bold=bold),
        Cell(text=units.architecture(run["arch"]), value=run["arch"]),
        Cell(text=units.optimizer(run["optimizer"]), value=run["optimizer"]),
        Cell(text=units.perplexity(run["train_ppl"]), value=run["train_ppl"], bold=bold),
        Cell(text=units.perplexity(run["val_ppl"]), value=run["val_ppl"], bold=bold),
        Cell(text=units.perplexity(run["test_ppl"]), value=run["test_ppl"]),
        Cell(text=units.MISSING if best is None else str(best), value=best),
        Cell(text=f"{run['epochs_done']} of {planned}", value=run["epochs_done"]),
        Cell(text=units.duration(run["wall_seconds"]), value=run["wall_seconds"]),
        Cell(text=run["state"], value=run["state"], kind="state"),
    ]
    return Row(cells=cells, run=run["number"], anchor=f"run-{run['number']}")


# -- hyperparameters -----------------------------------------------------------------------------------------------


def hyperparameters_table(study: Study) -> Table:
    """Every hyperparameter of every run, and the command that launches it. What all runs share is in the caption."""
    shared = {key: value for key in HYPERPARAMETERS if (value := _shared_value(study.runs[key])) is not None}
    hidden = {"model.arch", "optim.optimizer", *(set(shared) - set(ALWAYS_SHOWN))}
    unused = {key for key in HYPERPARAMETERS if not _applies(study.runs[key]).any()} - set(ALWAYS_SHOWN)
    varying = [key for key in HYPERPARAMETERS if key not in hidden | unused]
    keys = [*ALWAYS_SHOWN, *(key for key in varying if key not in ALWAYS_SHOWN)]
    columns = [
        *RESULT_COLUMNS[:4],
        *(Column(key=key, title=ALWAYS_SHOWN.get(key, key), numeric=True) for key in keys),
    ]
    rows = [
        Row(
            cells=[
                *_result_row(run, bold=False).cells[:4],
                *(Cell(text=units.plain_value(run[key]), value=run[key]) for key in keys),
            ],
            code=run["command"] if isinstance(run["command"], str) else None,
            run=run["number"],
        )
        for run in _records(in_report_order(study.runs))
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
        rows=rows,
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


def _records(runs: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in runs.to_dict("records")]

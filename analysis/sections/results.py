"""The tables of a study: results, of all runs and of each group, and hyperparameters."""

from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.blocks.section import Block, Section, Subheading, paragraphs
from analysis.blocks.sentences import (
    caption,
    scope,
    scope_of,
    scope_sentences,
    scoring_sentences,
    sentences,
    text_sentences,
)
from analysis.blocks.table import RUN_COLUMNS, Column, Table, number
from analysis.plots.curve_figures import group_chart
from analysis.plots.curves import curves_of
from analysis.study import units
from analysis.study.columns import HYPERPARAMETERS, SAME_TEXT, SETTING_KEYS, TEXT_KEYS
from analysis.study.comparison import finished, went_further
from analysis.study.pairs import FOLLOWS
from analysis.study.settings import (
    best_runs,
    best_settings,
    by_perplexity,
    in_report_order,
    repeats_seeds,
    settings_of,
)
from analysis.study.study import StudyFiles
from seqlm.config import LATER_KEYS

ALWAYS_SHOWN = {
    "optim.lr": "Learning rate",
    "train.batch_size": "Batch",
    "model.hidden_size": "Hidden",
    "model.num_layers": "Layers",
    "model.keep": "Keep",
}
"""Hyperparameters that have a column even where all runs agree, with the column's heading."""

KIND = ["arch", "optimizer"]
"""What is told of each run wherever runs are compared."""

SWITCHED_OFF = [later for later in LATER_KEYS if not isinstance(later[2], str)]
"""Keys of techniques that a study may use, with the values that mean it does not: those are not mentioned."""

BITS = number("val_bits_per_byte", "Bits/byte", units.decimals(".3f"), detail=True)


def results_blocks(study: StudyFiles) -> list[Block]:
    """What the runs predict and how it is scored, and tables of runs and settings."""
    compared = study.compared
    return [
        *paragraphs(text_sentences(study, "Each table compares runs on the same text only.")),
        *paragraphs([*only_text(study), *scoring_sentences(study), *scope_sentences(compared)]),
        *([settings_table(compared)] if repeats_seeds(compared.runs) else []),
        results_table(study),
        *notes_blocks(study),
        *bits_blocks(compared),
    ]


def only_text(study: StudyFiles) -> list[str]:
    """Name what all finished runs predict; nothing if that is several texts, or no run has finished."""
    if len(study.texts) != 1:
        return []
    run = finished(study.runs).iloc[0]
    facts = {"corpus": "corpus", "digest": "sha256", "level": "level", "vocabulary": "vocab_size"}
    return sentences("text", **{name: run[f"data.{key}"] for name, key in facts.items()})


def groups_section(study: StudyFiles) -> Section:
    """A table and a figure for each group of ``[report] groups`` that has a run; no block if there is none."""
    blocks: list[Block] = []
    curves = curves_of(study) if study.groups else []
    for title, ids in study.groups.items():
        if study.runs["id"].isin(ids).any():
            blocks += [Subheading(text=title), results_table(study, title)]
            blocks += filter(None, [group_chart(study, title, curves)])
    return Section(name="groups", title="Groups of runs", short="Groups", blocks=blocks)


# -- results -------------------------------------------------------------------------------------------------------


def results_table(study: StudyFiles, group: str | None = None) -> Table:
    """Perplexity of every run, or of those of a group, at its best epoch and after its last, at equal epochs.

    The lowest run of the best setting of each architecture among those of the table is bold; on each text, if the study
    has several.
    """
    all_runs = study.runs
    absent = {run.digits for run in study.absent}.intersection(study.groups[group]) if group else study.absent
    study = study.compared
    texts = list(study.texts.index)
    whole = {"of_all": all_runs["val_ppl"], "at": all_runs["best_epoch"] + 1, "whole_state": all_runs["state"]}
    runs = best_first(study.runs.assign(**whole, test_ppl=all_runs["test_ppl"]))
    longer = went_further(runs)
    if group is not None:
        runs = runs[runs["id"].isin(study.groups[group])]
    ended_worse = bool((runs["final_val_ppl"] > runs["val_ppl"]).any())
    if len(texts) > 1:
        place = {name: number for number, name in enumerate(texts)}
        runs = runs.sort_values("text", key=lambda names: names.map(place), kind="stable")
    best = set(best_runs(runs, study.settings if group is None else settings_of(runs))["id"])
    of_all = [
        number("of_all", "Of all", units.perplexity, detail=True),
        number("at", "Its epoch", units.whole, detail=True),
    ]
    final = [
        number("final_train_ppl", "Final train", units.perplexity, detail=True),
        number("final_val_ppl", "Final valid.", units.perplexity, detail=True),
    ]
    bits = [BITS] if runs["val_bits_per_byte"].map(units.is_number).any() else []
    of, seeds = scope_of(runs, len(absent)), repeats_seeds(study.runs)
    varying, constant = columns_of_kind(runs)
    return Table(
        name="results" if group is None else f"group-{study.group_name(group)}",
        title="Perplexity of each run" if group is None else f"{group}: perplexity of each run",
        caption=caption("results", longer=longer, bits=bits, several=len(texts) > 1, of=of, group=group, seeds=seeds),
        columns=[
            *RUN_COLUMNS[:2],
            number("val_ppl", "Valid.", units.perplexity, emphasised=True),
            number("test_ppl", "Test", units.perplexity),
            number("train_ppl", "Train", units.perplexity, emphasised=True, detail=True),
            *varying,
            *([Column("text", "Text", detail=True)] if len(texts) > 1 else []),
            number("epochs_to_best", "Best epoch", units.whole, detail=True),
            *(of_all if longer else []),
            *bits,
            *(final if ended_worse else []),
            Column("epochs_done", "Epochs", shown=epochs_of_run, numeric=True, detail=True),
            number("wall_seconds", "Time", units.duration, detail=True),
            *constant,
            Column("state", "State", of=lambda run: run["whole_state"], kind="state"),
        ],
        records=runs.assign(epochs_to_best=runs["best_epoch"] + 1),
        bold=lambda run: run["id"] in best,
    )


def columns_of_kind(runs: pd.DataFrame) -> tuple[list[Column], list[Column]]:
    """Return the columns that tell runs apart, and those that are the same for all.

    They are architecture and optimizer, then the hyperparameters in which runs of one architecture and optimizer
    differ.
    """
    kind = [replace(column, detail=True) for column in RUN_COLUMNS[2:]]
    varying = [column for column, key in zip(kind, KIND, strict=True) if runs[key].nunique() > 1]
    values = runs.groupby(KIND)[[key for key in SETTING_KEYS if key not in (*TEXT_KEYS, *FOLLOWS)]].nunique().max()
    keys = [key for key in dict.fromkeys([*ALWAYS_SHOWN, *values.index]) if values[key] > 1]
    named = {key: ALWAYS_SHOWN.get(key, key.rpartition(".")[2]) for key in keys}
    columns = [number(key, title, units.plain_value, detail=True) for key, title in named.items()]
    return [*varying, *columns], [column for column in kind if column not in varying]


def best_first(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs by validation perplexity, the lowest first; those without one last, by number."""
    return runs.sort_values(["val_ppl", "number"], na_position="last")


def notes_blocks(study: StudyFiles) -> list[Block]:
    """Return a table of the runs about which somebody has written a note; nothing if nobody has."""
    runs = study.runs[study.runs["tags"].notna() | study.runs["note"].notna()]
    columns = [Column("tags", "Tags", units.text), Column("note", "Note", units.text)]
    table = Table(
        name="notes",
        title="Notes",
        caption="As written with the command note.",
        columns=[*RUN_COLUMNS, *columns],
        records=in_report_order(runs),
    )
    return [] if runs.empty else [table]


def epochs_of_run(run: Any) -> str:
    """Return the epochs of a run, gone and asked for."""
    return units.epochs(run["epochs_done"], run["epochs_asked"])


def settings_table(study: StudyFiles) -> Table:
    """Validation perplexity of each setting over its seeds; the lowest of each architecture and text is bold."""
    lowest = {setting.number for setting in best_settings(study.settings)}
    on_text = " on its text" if len(study.texts) > 1 else ""
    return Table(
        name="settings",
        title="Perplexity of each setting over its seeds",
        caption="Valid.: geometric mean over n seeds, with the 95 % interval of its own seeds. Bold: lowest of its "
        f"architecture{on_text}.{scope(study)}",
        columns=[
            number("number", "No."),
            Column("name", "Setting", emphasised=True),
            number("val_ppl", "Valid.", units.perplexity, emphasised=True),
            number("test_ppl", "Test", units.perplexity),
            number("n", "n", of=lambda setting: setting.interval.n),
            number("low", "From", units.perplexity, lambda setting: setting.interval.low, detail=True),
            number("high", "To", units.perplexity, lambda setting: setting.interval.high, detail=True),
            Column("architecture", "Architecture", units.architecture, lambda setting: setting.arch, detail=True),
            Column("optimizer", "Optimizer", units.optimizer, lambda setting: setting.optimizer, detail=True),
            Column("runs", "Runs", of=lambda setting: " ".join(map(str, setting.runs)), detail=True),
        ],
        records=sorted(by_perplexity(study.settings), key=lambda setting: list(study.texts.index).index(setting.text)),
        bold=lambda setting: setting.number in lowest,
    )


# -- bits per byte: runs on one text with different vocabularies, whose perplexities do not compare ----------------


def bits_blocks(study: StudyFiles) -> list[Block]:
    """Return a ranking of the runs on each text that is predicted with several vocabularies; nothing if none is."""
    ranked = _ranked_by_bits(study)
    if ranked.empty:
        return []
    why = "Perplexities with different vocabularies do not compare, so runs on one text are ranked by bits per byte."
    return [*paragraphs([why]), _bits_table(ranked)]


def _ranked_by_bits(study: StudyFiles) -> pd.DataFrame:
    """Return the finished runs whose text is also predicted with another vocabulary, best first on each text."""
    runs = finished(study.runs)
    several = runs.groupby(SAME_TEXT, dropna=False)["text"].transform("nunique") > 1
    ranked = runs[several].sort_values(["val_bits_per_byte", "number"], na_position="last")
    places = ranked.groupby(SAME_TEXT, dropna=False, sort=False).ngroup()
    ranked = ranked.assign(place=places).sort_values("place", kind="stable")
    exact = ranked["val_bits_per_byte"].where(ranked["lossless"].eq(True))
    lowest = exact.groupby(ranked["place"]).transform("min")
    return ranked.assign(is_best=exact.notna() & (exact == lowest))


def _bits_table(ranked: pd.DataFrame) -> Table:
    return Table(
        name="bits",
        title="Bits per byte across vocabularies",
        caption="Valid., test: loss in bits per byte of the text. Exact: the tokens determine the text; runs that "
        "predict <unk> in place of words are not exact and not ranked. Bold: lowest of each text.",
        columns=[
            *RUN_COLUMNS,
            Column("text", "Text"),
            Column("val_bits_per_byte", "Valid.", units.decimals(".3f"), numeric=True, emphasised=True),
            number("test_bits_per_byte", "Test", units.decimals(".3f")),
            Column("lossless", "Exact", lambda value: {True: "yes", False: "no"}.get(value, units.MISSING)),
            number("val_ppl", "Perplexity", units.perplexity),
        ],
        records=ranked,
        bold=lambda run: run["is_best"],
    )


# -- hyperparameters -----------------------------------------------------------------------------------------------


def hyperparameter_blocks(study: StudyFiles) -> list[Block]:
    """Every hyperparameter of every run, and the command that launches it; a sentence names what all runs share."""
    values = {key: set(map(units.plain_value, study.runs[key])) - {units.MISSING} for key in HYPERPARAMETERS}
    varying = [key for key in HYPERPARAMETERS if len(values[key]) > 1 and key not in ("model.arch", "optim.optimizer")]
    keys = [*ALWAYS_SHOWN, *(key for key in varying if key not in ALWAYS_SHOWN)]
    off = {(f"{section}.{key}", units.plain_value(neutral)) for section, key, neutral in SWITCHED_OFF}
    one = [(key, min(found)) for key, found in values.items() if key not in keys and len(found) == 1]
    shared = [f"{key} = {value}" for key, value in one if (key, value) not in off]
    told = [f"The same in every run to which it applies: {', '.join(shared)}."] if shared else []
    table = Table(
        name="hyperparameters",
        title="Hyperparameters and commands",
        caption="Below each run: the command that launches it alone. Hidden: units of a layer. Keep: probability of "
        f"keeping a unit (1 - dropout). Batch: columns of the global batch. {units.MISSING}: does not apply.",
        columns=[
            *RUN_COLUMNS,
            number("parameters", "Parameters", units.decimals(",.0f")),
            *(number(key, ALWAYS_SHOWN.get(key, key), units.plain_value) for key in keys),
        ],
        records=in_report_order(study.runs),
        code=lambda run: run["command"] if isinstance(run["command"], str) else None,
        code_title="Command",
    )
    return [*paragraphs(told), table]

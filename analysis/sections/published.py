"""Published perplexities beside the reproduced ones."""

import math
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.blocks.section import Section
from analysis.blocks.table import RUN_COLUMNS, Column, Table, number
from analysis.claims.published import published_runs
from analysis.study import units
from analysis.study.study import StudyFiles


def published_section(study: StudyFiles) -> Section:
    """Published and reproduced numbers of each run; no block where nothing has been published."""
    runs = published_runs(study)
    return Section(
        name="published",
        title="Published against reproduced",
        short="Published",
        blocks=[] if runs.empty else [published_table(runs)],
    )


def published_table(compared: pd.DataFrame) -> Table:
    """A row for each run that has published numbers, each seed by itself."""
    return Table(
        name="published",
        title="Published and reproduced perplexity",
        caption="Train: perplexity after the published number of epochs. Valid.: at the best of them. Later epochs do "
        "not count. Diff.: of validation.",
        columns=[
            *RUN_COLUMNS[:2],
            number("published_val_ppl", "Valid. publ.", _published),
            number("val_ppl", "Valid. repr.", units.perplexity),
            number("percent", "Diff. (%)", units.decimals("+,.1f")),
            Column("verdict", "Verdict"),
            number("replications", "Replications", units.text, _replications, detail=True),
            number("epochs_to_best", "Best epoch", units.whole, detail=True),
            number("published_train_ppl", "Train publ.", _published, detail=True),
            number("train_ppl", "Train repr.", units.perplexity, detail=True),
            number("published_epochs", "Epochs", units.whole, detail=True),
            *(replace(column, detail=True) for column in RUN_COLUMNS[2:]),
        ],
        records=compared,
    )


def _replications(run: Any) -> str | None:
    ends = sorted((run["replications_low"], run["replications_high"]))
    return None if math.isnan(ends[0]) else "–".join(map(units.plain_value, ends))


def _published(value: Any) -> str:
    """A published number with the digits that were published."""
    return units.plain_value(value) if units.is_number(value) else units.MISSING

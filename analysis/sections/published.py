"""Published perplexities beside the reproduced ones."""

import math
from collections import Counter
from typing import Any

import pandas as pd

from analysis.blocks.section import Block, Section, paragraphs
from analysis.blocks.sentences import sentences
from analysis.blocks.table import RUN_COLUMNS, Column, Table, number
from analysis.study import units
from analysis.study.settings import in_report_order
from analysis.study.study import StudyFiles
from analysis.study.values import rows_of

WITHIN, BELOW, ABOVE, NO_REPLICATIONS = "within", "below", "above", "no replications"
"""Where a perplexity is by the replications' spread."""

PUBLISHED = ["published_val_ppl", "published_train_ppl"]
"""Columns of the runs table; a run that has one of them is compared."""


def published_section(study: StudyFiles) -> Section:
    """How close the runs come to what has been published of them; no block where nothing has been."""
    runs = in_report_order(study.after(study.runs["published_epochs"]).runs)
    published = runs[PUBLISHED].map(units.is_number).any(axis=1)
    blocks: list[Block] = []
    if published.any():
        compared = _compared(runs[published])
        absent = sum(any(units.is_number(run.published.get(key)) for key in PUBLISHED) for run in study.absent)
        blocks = [*paragraphs(_summary(compared, absent)), published_table(compared)]
    return Section(name="published", title="Published against reproduced", short="Published", blocks=blocks)


def _compared(runs: pd.DataFrame) -> pd.DataFrame:
    """Return runs, as they were after ``published_epochs``, with what they have reached of the published numbers.

    ``val_ppl`` is of the best epoch, number ``epochs_to_best`` from 1, and ``train_ppl`` of the last epoch, as
    published ones are. They are missing for a run without a result or with fewer epochs than published, as is
    ``percent``: the reproduced validation perplexity against the published.
    """
    is_short = runs["epochs_done"].astype(float) < runs["published_epochs"].astype(float)
    comparable = (runs["state"] == "done") & ~is_short
    reproduced, published = runs["val_ppl"].where(comparable), runs["published_val_ppl"]
    ratio = (reproduced / published).where((reproduced > 0) & (published > 0))
    compared = runs.assign(
        val_ppl=reproduced,
        train_ppl=runs["final_train_ppl"].where(comparable),
        epochs_to_best=(runs["best_epoch"] + 1).where(reproduced.notna()),
        percent=100 * (ratio - 1),
        is_short=is_short,
    )
    return compared.assign(verdict=[_verdict(run) for run in rows_of(compared)])


def _verdict(run: Any) -> str:
    if run.state == "done" and run.is_short:
        return f"{units.epochs(run.epochs_done, run.published_epochs)} epochs"
    if not units.is_number(run.val_ppl):
        return units.state_of(run.state, run.failure_kind)
    low, high = sorted((run.replications_low, run.replications_high))
    if math.isnan(low):
        return NO_REPLICATIONS
    return BELOW if run.val_ppl < low else ABOVE if run.val_ppl > high else WITHIN


def _summary(compared: pd.DataFrame, absent: int) -> list[str]:
    done = compared[compared["val_ppl"].map(units.is_number)]
    verdicts = Counter(done["verdict"])
    measured = list(rows_of(done[done["percent"].notna()]))
    return sentences(
        "published",
        compared=len(compared) + absent,
        done=len(done),
        judged=len(done) - verdicts[NO_REPLICATIONS],
        **{name: verdicts[name] for name in (WITHIN, BELOW, ABOVE)},
        measured=len(measured),
        median=done["percent"].abs().median(),
        most=max(measured, key=lambda run: abs(run.percent), default=None),
    )


def published_table(compared: pd.DataFrame) -> Table:
    """A row for each run that has published numbers, each seed by itself."""
    return Table(
        name="published",
        title="Published and reproduced perplexity",
        caption="Train: perplexity after the published number of epochs. Valid.: at the best of them. Later epochs do "
        "not count. Diff.: of validation.",
        columns=[
            *RUN_COLUMNS,
            number("published_train_ppl", "Train publ.", _published),
            number("train_ppl", "Train repr.", units.perplexity),
            number("published_epochs", "Epochs", units.whole),
            number("published_val_ppl", "Valid. publ.", _published),
            number("val_ppl", "Valid. repr.", units.perplexity),
            number("epochs_to_best", "Best epoch", units.whole),
            number("percent", "Diff. (%)", units.decimals("+,.1f")),
            Column("verdict", "Verdict"),
            number("replications", "Replications", units.text, _replications),
        ],
        records=compared,
    )


def _replications(run: Any) -> str | None:
    ends = sorted((run["replications_low"], run["replications_high"]))
    return None if math.isnan(ends[0]) else "–".join(map(units.plain_value, ends))


def _published(value: Any) -> str:
    """A published number with the digits that were published."""
    return units.plain_value(value) if units.is_number(value) else units.MISSING

"""How close the runs come to what has been published of them."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pandas as pd

from analysis.claims.answer import Answer
from analysis.claims.claim import MEASURES, Claim, Kind
from analysis.study import units
from analysis.study.settings import in_report_order
from analysis.study.study import StudyFiles
from analysis.study.values import rows_of

WITHIN, BELOW, ABOVE, NO_REPLICATIONS = "within", "below", "above", "no replications"
"""Where a perplexity is by the replications' spread."""
PUBLISHED = ["published_val_ppl", "published_train_ppl"]
"""Columns of the runs table; a run that has one of them is compared."""
NAME = "published"


def published(study: StudyFiles) -> Answer | None:
    """Count the perplexities within the spread of replications, and state how far they are from the published ones.

    ``None``: nothing has been published.
    """
    runs = published_runs(study)
    if runs.empty:
        return None
    title = "Are the published results reproduced?"
    absent = sum(any(units.is_number(run.published.get(key)) for key in PUBLISHED) for run in study.absent)
    done = runs[runs["val_ppl"].map(units.is_number)]
    points = [f"{len(done)} of the {units.count(len(runs) + absent, 'run')} with published numbers have a result."]
    claims: list[Claim] = []
    judged = done[done["verdict"] != NO_REPLICATIONS]
    if len(judged):
        members = (WITHIN, BELOW, ABOVE)
        values = tuple(float((judged["verdict"] == one).sum()) for one in members)
        claims.append(Claim(question=NAME, kind=Kind.COUNT, measure="runs", members=members, values=values))
        within, below, above = (f"{value:.0f}" for value in values)
        points.append(
            f"The validation perplexity is within the spread of independent replications in {within}, below it in "
            f"{below} and above it in {above}."
        )
    measured = done[done["percent"].notna()].sort_values("number")
    if len(measured):
        claim = Claim(
            NAME,
            Kind.VALUE,
            "published_percent",
            [f"{run.number} {run.name}" for run in rows_of(measured)],
            tuple(measured["percent"].astype(float)),
        )
        claims.append(claim)
        value, who = max(zip(claim.values, claim.members, strict=True), key=lambda one: abs(one[0]))
        median = statistics.median(map(abs, claim.values))
        of = f"median of {len(claim.values)} runs {median:.1f} %, " if len(claim.values) > 1 else ""
        said = f"{MEASURES[claim.measure].write(value)} % ({who})"
        points.append(f"Deviation from the published validation perplexity: {of}largest {said}.")
    return Answer(name=NAME, title=title, points=[" ".join(points)], claims=claims, evidence=("published",))


def published_runs(study: StudyFiles) -> pd.DataFrame:
    """Return the runs with published numbers, as they were after ``published_epochs``, and what they reached of these.

    ``val_ppl`` is of the best epoch, number ``epochs_to_best`` from 1, and ``train_ppl`` of the last epoch, as
    published ones are. They are missing for a run without a result or with fewer epochs than published, as is
    ``percent``: the reproduced validation perplexity against the published.
    """
    runs = in_report_order(study.after(study.runs["published_epochs"]).runs)
    runs = runs[runs[PUBLISHED].map(units.is_number).any(axis=1)]
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

"""The tables and figures of a search: rungs, stopped runs, the frontier, and importance."""

import math
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.blocks.figure import Chart
from analysis.blocks.section import Block, Section, paragraphs
from analysis.blocks.sentences import text_sentences
from analysis.blocks.table import RUN_COLUMNS, Column, Table, number
from analysis.claims.answer import Answer
from analysis.claims.claim import Claim
from analysis.claims.search import METRICS, at_rung, spent_hours
from analysis.plots.scatter import frontier_chart
from analysis.plots.slices import slices_chart
from analysis.sections.results import epochs_of_run
from analysis.study import units
from analysis.study.importance import BEST, CHANCE
from analysis.study.study import StudyFiles


def search_section(study: StudyFiles, found: Answer | None) -> Section:
    """Return what is behind an answer on a search; no block without one."""
    blocks: list[Block] = []
    if found is not None:
        rungs = [claim for claim in found.claims if claim.measure == "pairs"]
        stopped = study.runs[(study.runs["state"] == "stopped") & study.runs["rung"].notna()]
        stopped = stopped.sort_values(["rung", "rung_value", "number"])
        one = study.on_one_text
        epochs, hours = spent_hours(one)
        drawn = bool(epochs["best"].notna().any())
        blocks = [
            *([_rungs_table(rungs)] if rungs else []),
            *([_stopped_table(study, stopped)] if len(stopped) else []),
            *(paragraphs(text_sentences(study, "The figure is about the first text alone.")) if drawn else []),
            *([frontier_chart(one, epochs, hours)] if drawn else []),
            *filter(None, [rung_slices(one, rungs[0].given["epochs"])] if rungs else []),
            *(_importance_table(claim) for claim in found.claims if claim.measure == "importance"),
        ]
    return Section(name="search", title="Search", blocks=blocks)


def rung_slices(study: StudyFiles, epochs: int) -> Chart | None:
    """Every run that has reached a rung as it was there, over each hyperparameter; none if no hyperparameter varies."""
    there = at_rung(study, epochs)
    chart = slices_chart(there, of_search=True)
    if chart is None:
        return None
    first = "epoch" if epochs == 1 else f"{epochs} epochs"
    title = f"Best validation perplexity of the first {first} over each hyperparameter"
    caption = f"All {units.count(len(there.runs), 'run')} that came there, also those that were stopped then or later."
    return replace(chart, name="slices-rung", title=title, caption=f"{caption} {chart.caption}")


# -- tables --------------------------------------------------------------------------------------------------------


def _importance_table(claim: Claim) -> Table:
    return Table(
        name="search-importance",
        title="Importance of each hyperparameter",
        caption=f"PED-ANOVA of the settings in the best {units.percent(BEST)} after "
        f"{units.count(claim.given['epochs'], 'epoch')}. p: share of shuffled losses that make the hyperparameter as "
        "important, times the number of hyperparameters.",
        columns=[
            Column("key", "Hyperparameter"),
            number("share", "Share", units.percent),
            number("p", "p", units.decimals(".3f")),
            Column("verdict", "Matters"),
        ],
        records=[
            {"key": key, "share": share, "p": p, "verdict": "yes" if p <= CHANCE else "not shown"}
            for key, share, p in zip(claim.members, claim.values, claim.given["p"], strict=True)
        ],
    )


def _rungs_table(rungs: list[Claim]) -> Table:
    records = [
        {
            **claim.given,
            "agreeing": int(claim.values[0]),
            "share": claim.values[0] / claim.given["pairs"] if claim.given["pairs"] else math.nan,
        }
        for claim in rungs
    ]
    return Table(
        name="search-rungs",
        title="Rungs of the search",
        caption="Pairs: of finished runs that are compared with each other; agree: with the same order here as at the "
        "end, by best validation perplexity at equal epochs.",
        columns=[
            number("epochs", "Epochs"),
            number("reached", "Reached"),
            number("stopped", "Stopped"),
            number("went_on", "Went on"),
            number("pairs", "Pairs"),
            number("agreeing", "Agree"),
            number("share", "Share", units.percent),
        ],
        records=records,
    )


def _stopped_table(study: StudyFiles, stopped: pd.DataFrame) -> Table:
    """A row for each stopped run: what it was compared by, with how many, and what would have gone on."""

    def place(run: Any) -> str:
        return f"{units.ordinal(run['rung_rank'])} of {units.whole(run['rung_of'])}"

    metrics = {METRICS[rule.metric] for rule in study.searches.values()}
    value = units.listing(sorted(metrics)) if metrics else "what was compared"
    return Table(
        name="search-stopped",
        title="Runs that the search stopped",
        caption=f"{len(stopped)} of {units.count(len(study.runs) + len(study.absent), 'run')}. Rung: epochs at which "
        f"it was stopped. Value: {value} there. Place: among those that had reached the rung; goes on: how many of "
        "them, up to the value Cut.",
        columns=[
            *RUN_COLUMNS,
            number("rung", "Rung", units.whole),
            number("rung_value", "Value", units.perplexity),
            Column("rung_rank", "Place", shown=place, numeric=True),
            number("rung_goes_on", "Goes on", units.whole),
            number("rung_cut", "Cut", units.perplexity),
            number("val_ppl", "Best valid.", units.perplexity),
            Column("epochs_done", "Epochs", shown=epochs_of_run, numeric=True),
        ],
        records=stopped,
    )

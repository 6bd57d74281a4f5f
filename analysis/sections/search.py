"""What a search has stopped and why, what that saved, and how well its rungs knew the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from analysis.blocks.figure import Chart
from analysis.blocks.section import Block, Points, Prose, Section
from analysis.blocks.table import Column, Table, number, run_columns
from analysis.blocks.texts import on_one_text, text_sentences
from analysis.blocks.words import first_few
from analysis.plots.scatter import frontier_chart
from analysis.plots.slices import slices_chart
from analysis.sections.results import epochs_of_run
from analysis.sections.rungs import Rung, epochs_spent, rung_of, rungs_of, spent_hours, whole_hours
from analysis.study import units
from analysis.study.record import SearchRule
from analysis.study.study import Study

METRICS = {"val_ppl": "validation perplexity", "train_ppl": "training perplexity", "val_loss": "validation loss"}

MODES = {
    "async": "Each run decided for itself when it came to a rung, against those that had come there by then.",
    "sync": "All runs that came to a rung were decided about together.",
}


def search_section(study: Study) -> Section:
    """Rungs, stopped runs and the frontier; no block for a study that is no search and has no stopped run."""
    blocks: list[Block] = []
    if study.searches or (study.runs["state"] == "stopped").any():
        rungs = [rung_of(study, epochs) for epochs in rungs_of(study)]
        one = on_one_text(study)
        epochs, hours = spent_hours(one)
        drawn = bool(epochs["best"].notna().any())
        blocks = [
            Points(items=[*_rules(study), _states_sentence(study), *_spent_sentences(study), *_order_sentences(rungs)]),
            *([rungs_table(rungs)] if rungs else []),
            *(_stopped_blocks(study)),
            *(Prose(text=text) for text in text_sentences(study, "The figure is about the first text alone.") if drawn),
            *([frontier_chart(one, epochs, hours)] if drawn else []),
            *filter(None, [rung_slices(one, rungs[0].epochs)] if rungs else []),
        ]
    return Section(name="search", title="Search", blocks=blocks)


def rung_slices(study: Study, epochs: int) -> Chart | None:
    """Every run that has reached a rung as it was there, over each hyperparameter; none if no hyperparameter varies.

    These are the only equal epochs that stopped runs have.
    """
    runs = study.runs[study.runs["epochs_done"] >= epochs]
    there = replace(study, runs=runs.assign(state="done", finished_epochs=runs["epochs_done"])).after(epochs)
    chart = slices_chart(there, order=[])
    if chart is None:
        return None
    first = "epoch" if epochs == 1 else f"{epochs} epochs"
    title = f"Best validation perplexity of the first {first} over each hyperparameter"
    caption = f"All {units.count(len(runs), 'run')} that came there, also those that were stopped then or later."
    return replace(chart, name="slices-rung", title=title, caption=f"{caption} {chart.caption}")


# -- sentences -----------------------------------------------------------------------------------------------------


def _rules(study: Study) -> list[str]:
    several = len(study.directories) > 1
    return [f"Study {name}. {_rule(rule)}" if several else _rule(rule) for name, rule in study.searches.items()]


def _rule(rule: SearchRule) -> str:
    rungs = units.listing([str(rung) for rung in rule.rungs])
    within = f" of the same {units.listing(list(rule.within))}" if rule.within else ""
    return (
        f"Runs{within} were compared by {METRICS[rule.metric]} after {rungs} epochs. Of those that had reached a rung, "
        f"the lowest {units.percent(rule.keep)} went on; none was stopped before {units.whole(rule.min_runs)} had. "
        f"{MODES.get(rule.mode, '')}"
    )


def _states_sentence(study: Study) -> str:
    states = Counter(study.runs["state"])
    states.update({"absent": len(study.absent)} if study.absent else {})
    at = Counter(study.runs["rung"].dropna().astype(int))
    stopped = [f"{count} at epoch {rung}" for rung, count in sorted(at.items())]
    parts = [
        f"{count} {state}{f' ({units.listing(stopped)})' if state == 'stopped' and stopped else ''}"
        for state, count in states.most_common()
    ]
    return f"Of {units.count(len(study.runs) + len(study.absent), 'run')}: {', '.join(parts)}."


def _spent_sentences(study: Study) -> list[str]:
    gone, asked = epochs_spent(study)
    sentences = [f"Epochs: {gone:,} of the {asked:,} of the whole grid ({units.percent(gone / max(asked, 1))})."]
    epochs, hours = spent_hours(study)
    if len(epochs):
        spent, whole = float(epochs["hours"].iloc[-1]), whole_hours(study, epochs)
        sentences.append(
            f"{hours[0].upper()}{hours[1:]} of finished epochs: {units.hours(spent)} "
            f"({units.percent(spent / whole)} of the {units.hours(whole)} that the started runs would have taken for "
            "all their epochs, at the hours per epoch of each)."
        )
    return sentences


def _order_sentences(rungs: Sequence[Rung]) -> list[str]:
    parts = [
        f"{rung.agreeing} of {units.count(rung.pairs, 'pair')} at epoch {rung.epochs} ({units.percent(rung.share)})"
        for rung in rungs
        if rung.pairs
    ]
    if not parts:
        return ["Fewer than two runs that were compared with each other have finished, so the rungs cannot be judged."]
    return [
        f"The order at the rungs was that at the end in {units.listing(parts)}. This is known of finished runs alone: "
        "how the stopped ones would have ended is not."
    ]


# -- tables --------------------------------------------------------------------------------------------------------


def rungs_table(rungs: Sequence[Rung]) -> Table:
    """A row for each rung."""
    columns = [
        number("epochs", "Epochs", of=lambda rung: rung.epochs),
        number("reached", "Reached", of=lambda rung: rung.reached),
        number("stopped", "Stopped", of=lambda rung: rung.stopped),
        number("went_on", "Went on", of=lambda rung: rung.went_on),
        number("pairs", "Pairs", of=lambda rung: rung.pairs),
        number("agreeing", "Agree", of=lambda rung: rung.agreeing),
        number("share", "Share", units.percent, lambda rung: rung.share),
        Column("winners", "Place of the best", units.text, _winners),
    ]
    caption = (
        "Pairs: of finished runs that are compared with each other; agree: with the same order here as at the end, by "
        "best validation perplexity at equal epochs. Place here of the run that is best at the end."
    )
    return Table(name="search-rungs", title="Rungs of the search", caption=caption, columns=columns, records=rungs)


def _winners(rung: Rung) -> str:
    places = [f"{number}: {units.ordinal(place)} of {of}" for number, place, of in rung.winners]
    return first_few(places, 4) if places else ""


def _stopped_blocks(study: Study) -> list[Block]:
    stopped = study.runs[study.runs["state"] == "stopped"].sort_values(["rung", "rung_value", "number"])
    return [] if stopped.empty else [stopped_table(study, stopped.to_dict("records"))]


def stopped_table(study: Study, stopped: Sequence[dict[Any, Any]]) -> Table:
    """A row for each stopped run: what it was compared by, with how many, and what would have gone on."""
    metrics = {METRICS[rule.metric] for rule in study.searches.values()}
    columns = [
        *run_columns(),
        number("rung", "Rung", units.whole),
        number("rung_value", "Value", units.perplexity),
        Column("rung_rank", "Place", shown=_place, numeric=True),
        number("rung_goes_on", "Goes on", units.whole),
        number("rung_cut", "Cut", units.perplexity),
        number("val_ppl", "Best valid.", units.perplexity),
        Column("epochs_done", "Epochs", shown=epochs_of_run, numeric=True),
    ]
    value = units.listing(sorted(metrics)) if metrics else "what was compared"
    caption = (
        f"{len(stopped)} of {units.count(len(study.runs) + len(study.absent), 'run')}. Rung: epochs at which it was "
        f"stopped. Value: {value} there. Place: among those that had reached the rung; goes on: how many of them, up "
        "to the value Cut."
    )
    return Table(
        name="search-stopped",
        title="Runs that the search stopped",
        caption=caption,
        columns=columns,
        records=stopped,
        run=lambda run: run["number"],
    )


def _place(run: dict[Any, Any]) -> str:
    return f"{units.ordinal(run['rung_rank'])} of {units.whole(run['rung_of'])}"

"""What a search has stopped and why, what that saved, and how well its rungs knew the end."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.blocks.figure import Chart
from analysis.blocks.section import Block, Points, Section, paragraphs
from analysis.blocks.sentences import sentences, text_sentences
from analysis.blocks.table import RUN_COLUMNS, Column, Table, number
from analysis.plots.scatter import frontier_chart
from analysis.plots.slices import slices_chart
from analysis.sections.results import epochs_of_run
from analysis.study import units
from analysis.study.comparison import finished
from analysis.study.importance import BEST, CHANCE, FEWEST_SETTINGS, Importance, importances
from analysis.study.settings import config_of
from analysis.study.study import StudyFiles
from seqlm.reading import moment

METRICS = {"val_ppl": "validation perplexity", "train_ppl": "training perplexity", "val_loss": "validation loss"}


def search_section(study: StudyFiles) -> Section:
    """Rungs, stopped runs and the frontier; no block for a study that is no search and has no stopped run."""
    blocks: list[Block] = []
    stopped = study.runs[study.runs["state"] == "stopped"].sort_values(["rung", "rung_value", "number"])
    if study.searches or len(stopped):
        rungs = [rung_of(study, epochs) for epochs in rungs_of(study)]
        one = study.on_one_text
        epochs, hours = spent_hours(one)
        drawn = bool(epochs["best"].notna().any())
        blocks = [
            Points(items=_sentences(study, rungs)),
            *([_rungs_table(rungs)] if rungs else []),
            *([_stopped_table(study, stopped)] if len(stopped) else []),
            *(paragraphs(text_sentences(study, "The figure is about the first text alone.")) if drawn else []),
            *([frontier_chart(one, epochs, hours)] if drawn else []),
            *filter(None, [rung_slices(one, rungs[0]["epochs"])] if rungs else []),
            *(importance_blocks(one, rungs[0]["epochs"]) if rungs else []),
        ]
    return Section(name="search", title="Search", blocks=blocks)


def rung_slices(study: StudyFiles, epochs: int) -> Chart | None:
    """Every run that has reached a rung as it was there, over each hyperparameter; none if no hyperparameter varies.

    These are the only equal epochs that stopped runs have.
    """
    runs = study.runs[(study.runs["epochs_done"] >= epochs) & ~study.runs["id"].isin(study.final_seeds)]
    there = replace(study, runs=runs.assign(state="done", finished_epochs=runs["epochs_done"])).after(epochs)
    chart = slices_chart(there, of_search=True)
    if chart is None:
        return None
    first = "epoch" if epochs == 1 else f"{epochs} epochs"
    title = f"Best validation perplexity of the first {first} over each hyperparameter"
    caption = f"All {units.count(len(runs), 'run')} that came there, also those that were stopped then or later."
    return replace(chart, name="slices-rung", title=title, caption=f"{caption} {chart.caption}")


def importance_blocks(study: StudyFiles, epochs: int) -> list[Block]:
    """Say which hyperparameters decide whether a setting is among the best after ``epochs`` epochs, or why not.

    These are the only equal epochs that stopped runs have. A run that diverged before counts as the worst. Final seeds
    do not count: only the best settings have them.
    """
    runs = study.runs[~study.runs["id"].isin(study.final_seeds)]
    came = (runs["epochs_done"] >= epochs) & runs["failure_kind"].ne("diverged")
    there = replace(study, runs=runs.assign(state="done", finished_epochs=runs["epochs_done"])[came]).after(epochs).runs
    rows = [
        *there.to_dict("records"),
        *runs[runs["failure_kind"] == "diverged"].assign(val_ppl=math.inf).to_dict("records"),
    ]
    losses: dict[Any, list[float]] = defaultdict(list)
    configs: dict[Any, dict[str, Any]] = {}
    for run in rows:
        value = float(run["val_ppl"])
        losses[run["setting"]].append(math.log(value) if 0 < value < math.inf else math.inf)
        configs.setdefault(run["setting"], config_of(run))
    found: list[Importance] | None = []
    if len(configs) >= FEWEST_SETTINGS:
        found = importances(list(configs.values()), [sum(own) / len(own) for own in losses.values()])
    said = sentences(
        "importance",
        settings=len(configs),
        fewest=FEWEST_SETTINGS,
        has_optuna=found is not None,
        epochs=epochs,
        best=BEST,
        chance=CHANCE,
        shown=[row for row in found or [] if row.is_shown],
        others=[row.key for row in found or [] if not row.is_shown],
    )
    return [*paragraphs(said), *([_importance_table(found, epochs)] if found else [])]


def _importance_table(found: Sequence[Importance], epochs: int) -> Table:
    return Table(
        name="search-importance",
        title="Importance of each hyperparameter",
        caption=f"PED-ANOVA of the settings in the best {units.percent(BEST)} after {units.count(epochs, 'epoch')}. p: "
        "share of shuffled losses that make the hyperparameter as important, times the number of hyperparameters.",
        columns=[
            Column("key", "Hyperparameter"),
            number("share", "Share", units.percent),
            number("p", "p", units.decimals(".3f")),
            Column("verdict", "Matters"),
        ],
        records=[
            {"key": row.key, "share": row.share, "p": row.p, "verdict": "yes" if row.is_shown else "not shown"}
            for row in found
        ],
    )


def _sentences(study: StudyFiles, rungs: Sequence[dict[str, Any]]) -> list[str]:
    epochs, hours = spent_hours(study)
    spent = float(epochs["hours"].iloc[-1]) if len(epochs) else math.nan
    asked = int(study.runs["epochs_asked"].sum()) + sum(run.config.get("train.epochs", 0) for run in study.absent)
    return sentences(
        "search",
        rules=study.searches,
        several=len(study.directories) > 1,
        METRICS=METRICS,
        runs=len(study.runs) + len(study.absent),
        final_seeds=len(study.final_seeds),
        states=[
            *Counter(study.runs["state"]).most_common(),
            *([("absent", len(study.absent))] if study.absent else []),
        ],
        stopped=sorted(Counter(study.runs["rung"].dropna().astype(int)).items()),
        gone=int(study.runs["epochs_done"].sum()),
        asked=max(asked, 1),
        hours=hours,
        spent=spent,
        whole=whole_hours(study, epochs) if len(epochs) else math.nan,
        judged=[rung for rung in rungs if rung["pairs"]],
    )


# -- tables --------------------------------------------------------------------------------------------------------


def _rungs_table(rungs: Sequence[dict[str, Any]]) -> Table:
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
        records=rungs,
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


# -- rungs ---------------------------------------------------------------------------------------------------------


def rungs_of(study: StudyFiles) -> list[int]:
    """Return the rungs of the study's searches, and those at which a run was stopped, ascending."""
    stopped = set(study.runs["rung"].dropna().astype(int))
    return sorted(stopped.union(*(rule.rungs for rule in study.searches.values())))


def rung_of(study: StudyFiles, epochs: int) -> dict[str, Any]:
    """Return what became of the runs at a rung: how many reached it, were stopped here, and went on.

    Final seeds are none of them.

    ``pairs``: of finished runs that the search compares with each other, without ties; ``agreeing``, ``share``: those
    with the same order here as at the end. The order here is that of the metric after ``epochs`` epochs, the order at
    the end that of the best validation perplexity at equal epochs.
    """
    here = study.epochs[study.epochs["epoch"] == epochs - 1].drop_duplicates("id", keep="last").set_index("id")
    runs = study.runs[study.runs["id"].isin(here.index) & ~study.runs["id"].isin(study.final_seeds)]
    ends = finished(study.compared.runs).set_index("id")["val_ppl"]
    ended: dict[tuple[Any, ...], list[tuple[float, float]]] = defaultdict(list)
    for run in runs.to_dict("records"):
        rule = study.searches.get(run["study"])
        value = float(here.loc[run["id"], rule.metric if rule else "val_ppl"])
        own = {str(key): str(found) for key, found in run.items()}
        group = (run["study"], run["text"], *(rule.group_of(own).values() if rule else ()))
        if run["id"] in ends.index:
            ended[group].append((value if math.isfinite(value) else math.inf, ends[run["id"]]))
    pairs = agreeing = 0
    for members in ended.values():
        for (a, a_end), (b, b_end) in itertools.combinations(members, 2):
            differ = a != b and a_end != b_end
            pairs += differ
            agreeing += differ and (a < b) == (a_end < b_end)
    return {
        "epochs": epochs,
        "reached": len(runs),
        "stopped": int((study.runs["rung"] == epochs).sum()),
        "went_on": int((runs["epochs_done"] > epochs).sum()),
        "pairs": pairs,
        "agreeing": agreeing,
        "share": agreeing / pairs if pairs else math.nan,
    }


# -- hours ---------------------------------------------------------------------------------------------------------

HOURS = {"gpus": "GPU hours", "cores": "core hours", "runs": "run hours"}


def spent_hours(study: StudyFiles) -> tuple[pd.DataFrame, str]:
    """Return the epochs in the order in which they ended, with the ``hours`` that the study had spent by then.

    Also return what the hours are: GPU hours if every attempt was on GPUs, core hours if none was, else run hours.
    They are those of finished epochs alone, without start-up and tests. Epochs of attempts without a recorded start are
    left out. ``best`` is the lowest validation perplexity by then, of each architecture for itself.
    """
    facts = study.attempts[["id", "attempt", "started_at", "gpus", "cores"]]
    epochs = study.epochs.merge(facts, on=["id", "attempt"], how="left")
    epochs = epochs.merge(study.runs[["id", "name", "arch", "optimizer", "state"]], on="id")
    start = epochs["started_at"].map(moment).astype(float)
    seconds = epochs["epoch_seconds"].astype(float)
    epochs["ended"] = start + seconds.groupby([epochs["id"], epochs["attempt"]]).cumsum()
    epochs = epochs[epochs["ended"].notna()].sort_values(["ended", "number"], kind="stable")
    kind = "runs"
    if (epochs["gpus"] > 0).all():
        kind = "gpus"
    elif (epochs["gpus"] == 0).all() and epochs["cores"].notna().all():
        kind = "cores"
    devices = epochs[kind] if kind != "runs" else 1.0
    epochs["hours"] = (epochs["epoch_seconds"] * devices / 3600).cumsum()
    epochs["best"] = epochs.groupby("arch", dropna=False)["val_ppl"].cummin()
    return epochs, HOURS[kind]


def whole_hours(study: StudyFiles, epochs: pd.DataFrame) -> float:
    """Return the hours that the started runs would have taken for all their epochs, at their hours per epoch."""
    each = epochs.assign(own=epochs["hours"].diff().fillna(epochs["hours"]))
    own = each.groupby("id")["own"].agg(["sum", "size"])
    asked = study.runs.set_index("id")["epochs_asked"].reindex(own.index).astype(float)
    return float((own["sum"] / own["size"] * asked.clip(lower=own["size"])).sum())

"""What a search has stopped, what that saved, how often its rungs had the order of the end, and which keys matter."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.claims.answer import Answer
from analysis.claims.claim import MEASURES, Claim, Kind
from analysis.study import units
from analysis.study.comparison import finished
from analysis.study.importance import BEST, CHANCE, FEWEST_SETTINGS, importances
from analysis.study.settings import config_of
from analysis.study.study import StudyFiles
from seqlm.reading import moment

NAME = "search"
METRICS = {"val_ppl": "validation perplexity", "train_ppl": "training perplexity", "val_loss": "validation loss"}


def search(study: StudyFiles) -> Answer | None:
    """Say what the search stopped, what that saved, and how often rungs had the order of the end.

    ``None``: it is no search.
    """
    if not study.searches and not study.runs["rung"].notna().any():
        return None
    claims = [*counts(study), epochs_gone(study), *hours_spent(study)]
    rungs = [rung_of(study, epochs) for epochs in rungs_of(study)]
    claims += rungs
    points = [*_rules(study), " ".join(_used(study, claims)), _judged(rungs)]
    if rungs:
        importance, said = importance_of(study.on_one_text, int(rungs[0].given["epochs"]))
        claims += [importance] if importance is not None else []
        points.append(said)
    evidence = ("search-rungs", "search-stopped", "search-frontier", "search-importance")
    return Answer(name=NAME, title="What did the search find?", points=points, claims=claims, evidence=evidence)


def _rules(study: StudyFiles) -> list[str]:
    """State by which rule each search stops runs, and which runs no rung compared."""
    told = []
    for name, rule in study.searches.items():
        whose = f"Study {name}: runs" if len(study.directories) > 1 else "Runs"
        within = f" with the same {units.listing(list(rule.within))}" if rule.within else ""
        rungs = units.listing([str(rung) for rung in rule.rungs])
        told.append(
            f"{whose}{within} were compared by {METRICS[rule.metric]} after {rungs} epochs, each when it came there. "
            f"The lowest {units.percent(rule.keep)}, rounded up, went on; none was stopped before {rule.min_runs} had "
            "come there, unless its perplexity was above that of guessing."
        )
    if study.final_seeds:
        seeds = units.count(len(study.final_seeds), "final seed")
        told.append(
            f"No rung compared {seeds}: the first seed of a setting went on partly by luck, so the others say what it "
            "reaches."
        )
    return told


def counts(study: StudyFiles) -> list[Claim]:
    """Count the runs by state, and the stopped ones by rung."""
    states = Counter(study.runs["state"])
    stopped = sorted(Counter(study.runs["rung"].dropna().astype(int)).items())
    found = [_counted("state", states.most_common(), len(study.absent))]
    return [*found, *([_counted("rung", stopped, 0)] if stopped else [])]


def _counted(what: str, counted: Iterable[tuple[Any, int]], absent: int) -> Claim:
    members, values = zip(*counted, strict=True) if counted else ((), ())
    return Claim(
        NAME,
        Kind.COUNT,
        "runs",
        list(map(str, members)),
        list(map(float, values)),
        given={"counted": what, "absent": absent},
    )


def epochs_gone(study: StudyFiles) -> Claim:
    """State the epochs of all runs, gone and asked for."""
    absent = sum(run.config.get("train.epochs", 0) for run in study.absent)
    asked = int(study.runs["epochs_asked"].sum()) + absent
    return Claim(
        NAME,
        Kind.VALUE,
        "epochs",
        ("gone", "asked"),
        (float(study.runs["epochs_done"].sum()), float(max(asked, 1))),
        given={"absent": absent},
    )


def hours_spent(study: StudyFiles) -> list[Claim]:
    """State the hours of finished epochs, and those that the started runs would have taken; none if no time is known.

    The latter are at the hours per epoch of each run.
    """
    epochs, kind = spent_hours(study)
    if not len(epochs):
        return []
    own = epochs.assign(own=epochs["hours"].diff().fillna(epochs["hours"])).groupby("id")["own"].agg(["sum", "size"])
    asked = study.runs.set_index("id")["epochs_asked"].reindex(own.index).astype(float)
    whole = float((own["sum"] / own["size"] * asked.clip(lower=own["size"])).sum())
    values = (float(epochs["hours"].iloc[-1]), whole)
    return [Claim(NAME, Kind.VALUE, "hours", ("spent", "whole"), values, given={"kind": kind})]


def _used(study: StudyFiles, claims: Sequence[Claim]) -> list[str]:
    """Say what runs there are, and what they used."""
    told = []
    by_what = {claim.given.get("counted"): claim for claim in claims if claim.measure == "runs"}
    states = [
        f"{value:.0f} {state}" for state, value in zip(by_what["state"].members, by_what["state"].values, strict=True)
    ]
    states += [f"{len(study.absent)} absent"] if study.absent else []
    told.append(f"Of {units.count(len(study.runs) + len(study.absent), 'run')}: {', '.join(states)}.")
    if "rung" in by_what:
        stopped = by_what["rung"]
        at = [f"{value:.0f} at epoch {rung}" for rung, value in zip(stopped.members, stopped.values, strict=True)]
        told.append(f"Stopped: {', '.join(at)}.")
    for claim in claims:
        if claim.measure in ("epochs", "hours"):
            part, whole = map(MEASURES[claim.measure].write, claim.values)
            share = units.percent(claim.values[0] / claim.values[1])
            what = "Epochs" if claim.measure == "epochs" else f"{claim.given['kind'].capitalize()} of finished epochs"
            of = "all runs" if claim.measure == "epochs" else "the started runs at their pace"
            told.append(f"{what}: {part} of the {whole} of {of} ({share}).".replace("Gpu", "GPU"))
    return told


def _judged(rungs: Sequence[Claim]) -> str:
    known = [
        f"{rung.values[0]:.0f} of {units.count(rung.given['pairs'], 'pair')} at epoch {rung.given['epochs']}"
        for rung in rungs
        if rung.given["pairs"]
    ]
    if not known:
        return "Fewer than two runs that were compared with each other have finished, so the rungs cannot be judged."
    order = units.listing(known)
    return f"The order at a rung was that at the end in {order}. How the stopped runs would have ended is not known."


# -- which hyperparameter matters ----------------------------------------------------------------------------------


def importance_of(study: StudyFiles, epochs: int) -> tuple[Claim | None, str]:
    """Say which hyperparameters decide whether a setting is among the best after ``epochs`` epochs, or why not.

    A run that diverged counts as the worst. Final seeds do not count: only the best settings have them.
    """
    runs = study.runs[~study.runs["id"].isin(study.final_seeds)]
    diverged = runs[runs["failure_kind"] == "diverged"]
    there = at_rung(study, epochs).runs
    rows = [
        *there[~there["id"].isin(diverged["id"])].to_dict("records"),
        *diverged.assign(val_ppl=math.inf).to_dict("records"),
    ]
    losses: dict[Any, list[float]] = defaultdict(list)
    configs: dict[Any, dict[str, Any]] = {}
    for run in rows:
        value = float(run["val_ppl"])
        losses[run["setting"]].append(math.log(value) if 0 < value < math.inf else math.inf)
        configs.setdefault(run["setting"], config_of(run))
    if len(configs) < FEWEST_SETTINGS:
        came = (
            f"{units.count(len(configs), 'setting')} came to epoch {epochs}, and at least {FEWEST_SETTINGS} are needed"
        )
        return None, f"Which hyperparameter matters cannot be said: {came}."
    found = importances(list(configs.values()), [sum(own) / len(own) for own in losses.values()])
    if found is None:
        return None, "Which hyperparameter matters was not computed: the package optuna is not installed."
    claim = Claim(
        NAME,
        Kind.VALUE,
        "importance",
        [row.key for row in found],
        [row.share for row in found],
        given={"p": [row.p for row in found], "epochs": epochs, "settings": len(configs)},
    )
    shown = [f"{row.key} ({units.percent(row.share)} of the importance)" for row in found if row.is_shown]
    others = [row.key for row in found if not row.is_shown]
    told = f"Whether a setting was in the best {units.percent(BEST)} after epoch {epochs} depended on "
    told += units.listing(shown) if shown else "no hyperparameter that can be named"
    if others:
        chance = f"shuffled losses make each as important in more than {units.percent(CHANCE)} of cases"
        told += f"; of {units.listing(others)} no influence is shown ({chance})"
    return claim, f"{told}."


def at_rung(study: StudyFiles, epochs: int) -> StudyFiles:
    """Return every run but final seeds that has come to a rung, as it was there, also if it was stopped then or later.

    These are the only equal epochs that stopped runs have.
    """
    runs = study.runs[(study.runs["epochs_done"] >= epochs) & ~study.runs["id"].isin(study.final_seeds)]
    return replace(study, runs=runs.assign(state="done", finished_epochs=runs["epochs_done"])).after(epochs)


# -- rungs ---------------------------------------------------------------------------------------------------------


def rungs_of(study: StudyFiles) -> list[int]:
    """Return the rungs of the study's searches, and those at which a run was stopped, ascending."""
    stopped = set(study.runs["rung"].dropna().astype(int))
    return sorted(stopped.union(*(rule.rungs for rule in study.searches.values())))


def rung_of(study: StudyFiles, epochs: int) -> Claim:
    """Count the pairs of finished runs with the same order at a rung as at the end.

    Given are all pairs that the search compares with each other, without ties, and how many runs reached the rung, were
    stopped there, and went on. Final seeds are none of them. The order here is that of the metric after ``epochs``
    epochs, the order at the end that of the best validation perplexity at equal epochs.
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
    metrics = {rule.metric for rule in study.searches.values()}
    pairs = agreeing = 0
    for members in ended.values():
        for (a, a_end), (b, b_end) in itertools.combinations(members, 2):
            differ = a != b and a_end != b_end
            pairs += differ
            agreeing += differ and (a < b) == (a_end < b_end)
    return Claim(
        NAME,
        Kind.COUNT,
        "pairs",
        [f"epoch {epochs}"],
        [float(agreeing)],
        given={
            "epochs": epochs,
            "metric": metrics.pop() if len(metrics) == 1 else "val_ppl",
            "within": sorted({key for rule in study.searches.values() for key in rule.within}),
            "final_seeds": sorted(study.final_seeds),
            "pairs": int(pairs),
            "reached": len(runs),
            "stopped": int((study.runs["rung"] == epochs).sum()),
            "went_on": int((runs["epochs_done"] > epochs).sum()),
        },
    )


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

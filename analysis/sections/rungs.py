"""What a search has decided, from its files: its rule, the runs that it stopped, and what it spent."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.study.comparison import finished
from analysis.study.numbering import RunNumber
from analysis.study.study import Study
from seqlm.reading import moment


def rungs_of(study: Study) -> list[int]:
    """Return the rungs of the study's searches, and those at which a run was stopped, ascending."""
    stopped = set(study.runs["rung"].dropna().astype(int))
    return sorted(stopped.union(*(rule.rungs for rule in study.searches.values())))


@dataclass(frozen=True, kw_only=True)
class Rung:
    """What became of the runs of a study at a number of epochs."""

    epochs: int
    reached: int
    """Runs that have gone at least these epochs."""
    stopped: int
    """Runs that the search stopped here."""
    went_on: int
    """Runs that have gone further."""
    pairs: int
    """Pairs of finished runs that the search compares with each other; ties are left out."""
    agreeing: int
    """Pairs of them with the same order here as at the end."""
    winners: list[tuple[RunNumber, int, int]]
    """The best run at the end of each group: its number, its place here, and how many of the group came here."""

    @property
    def share(self) -> float:
        """Share of the pairs that agree."""
        return self.agreeing / self.pairs if self.pairs else math.nan


def rung_of(study: Study, epochs: int) -> Rung:
    """Return what became of the runs at a rung.

    The order here is that of the metric after ``epochs`` epochs, the order at the end that of the best validation
    perplexity at equal epochs. Both are within the groups that the search compares.
    """
    here = study.epochs[study.epochs["epoch"] == epochs - 1].set_index("id")
    runs = study.runs[study.runs["id"].isin(here.index)]
    ends = finished(study.compared.runs).set_index("id")["val_ppl"]
    places: dict[tuple[Any, ...], list[tuple[float, float, RunNumber]]] = {}
    for run in runs.to_dict("records"):
        rule = study.searches.get(run["study"])
        value = float(here.loc[run["id"], rule.metric if rule else "val_ppl"])
        group = (run["study"], run["text"], *(str(run.get(key)) for key in (rule.within if rule else ())))
        end = float(ends.get(run["id"], math.nan))
        places.setdefault(group, []).append((value if math.isfinite(value) else math.inf, end, run["number"]))
    pairs = agreeing = 0
    winners = []
    for members in places.values():
        ended = [member for member in members if not math.isnan(member[1])]
        for (a, a_end, _), (b, b_end, _) in itertools.combinations(ended, 2):
            pairs += a != b and a_end != b_end
            agreeing += (a - b) * (a_end - b_end) > 0
        if ended:
            value, _, number = min(ended, key=lambda member: member[1])
            winners.append((number, 1 + sum(other < value for other, _, _ in members), len(members)))
    return Rung(
        epochs=epochs,
        reached=len(runs),
        stopped=int((study.runs["rung"] == epochs).sum()),
        went_on=int((runs["epochs_done"] > epochs).sum()),
        pairs=pairs,
        agreeing=agreeing,
        winners=sorted(winners),
    )


def epochs_spent(study: Study) -> tuple[int, int]:
    """Return the epochs gone, and those that all runs of the study were to go, the absent ones too."""
    asked = [run.config.get("train.epochs", 0) for run in study.absent]
    return int(study.runs["epochs_done"].sum()), int(study.runs["epochs_asked"].sum()) + sum(asked)


# -- hours ---------------------------------------------------------------------------------------------------------

HOURS = {"gpus": "GPU hours", "cores": "core hours", "runs": "run hours"}


def spent_hours(study: Study) -> tuple[pd.DataFrame, str]:
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


def whole_hours(study: Study, epochs: pd.DataFrame) -> float:
    """Return the hours that the started runs would have taken for all their epochs, at their hours per epoch."""
    each = epochs.assign(own=epochs["hours"].diff().fillna(epochs["hours"]))
    own = each.groupby("id")["own"].agg(["sum", "size"])
    asked = study.runs.set_index("id")["epochs_asked"].reindex(own.index).astype(float)
    return float((own["sum"] / own["size"] * asked.clip(lower=own["size"])).sum())

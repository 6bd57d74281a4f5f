"""A run together with how its model behaves."""

from __future__ import annotations

import math
from dataclasses import dataclass

from analysis.study import units
from analysis.study.behaviour import Behaviour
from analysis.study.numbering import RunNumber
from analysis.study.settings import best_runs, in_report_order, places_of
from analysis.study.study import Study

FACTS = ["number", "id", "name", "arch", "place_on_text", "optimizer"]

MOST_RUNS = 12
"""Runs in the figures, sentences and samples; more would make a page that nobody reads."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Behaved:
    """A run whose behaviour is known."""

    number: RunNumber
    id: str
    name: str
    arch: str
    """As the configuration has it."""
    best_of_architecture: bool
    """On its text."""
    place_on_text: float
    """Place of its validation perplexity on its text, from 1; NaN without one."""
    optimizer: str
    place: int
    """Of its setting; see :func:`places_of`."""
    behaviour: Behaviour

    @property
    def reference(self) -> str:
        """How a text refers to the run."""
        return f"{self.number} {self.name}"


def behaved_runs(study: Study) -> list[Behaved]:
    """All of them, in the report's order."""
    places, best = places_of(study.runs), set(best_runs(study.runs)["id"])
    known = study.runs[study.runs["id"].isin(study.behaviours)]
    known = known.assign(place_on_text=known.groupby("text")["val_ppl"].rank(method="min"))
    return [
        Behaved(
            **{str(key): value for key, value in run.items()},
            best_of_architecture=run["id"] in best,
            place=places[run["id"]],
            behaviour=study.behaviours[run["id"]],
        )
        for run in in_report_order(known)[FACTS].to_dict("records")
    ]


def shown_runs(runs: list[Behaved]) -> list[Behaved]:
    """Return the runs that figures and samples show: the best of each architecture, then the lowest of each text."""

    def place(run: Behaved) -> tuple[bool, float]:
        return not run.best_of_architecture, run.place_on_text if units.is_number(run.place_on_text) else math.inf

    kept = {run.id for run in sorted(runs, key=place)[:MOST_RUNS]}
    return [run for run in runs if run.id in kept]

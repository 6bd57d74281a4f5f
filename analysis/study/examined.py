"""A run together with how its model behaves."""

from dataclasses import dataclass

from analysis.study.behaviour import Behaviour, GradientNorms, Sample, StepLosses
from analysis.study.numbering import RunNumber
from analysis.study.settings import best_runs, in_report_order, places_of
from analysis.study.study import StudyFiles
from analysis.study.values import rows_of
from seqlm.architectures import carries_state

MOST_RUNS = 12
"""Runs in the figures, sentences and samples; more would make a page that nobody reads."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ExaminedRun:
    """A run whose behaviour is known."""

    number: RunNumber
    id: str
    name: str
    arch: str
    """As the configuration has it."""
    optimizer: str
    place: int
    """Of its setting; see :func:`places_of`."""
    is_shown: bool
    """Whether figures and samples show it: the best of each architecture, then the lowest of each text."""
    behaviour: Behaviour

    @property
    def reference(self) -> str:
        """How a text refers to the run."""
        return f"{self.number} {self.name}"

    @property
    def carries_state(self) -> bool:
        return carries_state(self.arch)

    @property
    def losses(self) -> StepLosses:
        return self.behaviour.loss_per_step

    @property
    def gradients(self) -> GradientNorms | None:
        """``None`` for a model that shows no hidden states."""
        return self.behaviour.gradient_norms

    @property
    def samples(self) -> list[Sample]:
        return self.behaviour.samples

    @property
    def reaches_back(self) -> bool:
        """Whether the last step depends on earlier hidden states: not on those of one block without a state."""
        return self.gradients is not None and (self.carries_state or len(self.gradients.layers) > 1)


def examined_runs(study: StudyFiles) -> list[ExaminedRun]:
    """All of them, in the report's order."""
    if not study.behaviours:
        return []
    places = places_of(study.runs)
    known = in_report_order(study.runs[study.runs["id"].isin(study.behaviours)])
    ranked = known.assign(
        is_best=known["id"].isin(best_runs(study.runs, study.settings)["id"]),
        place_on_text=known.groupby("text")["val_ppl"].rank(method="min"),
    ).sort_values(["is_best", "place_on_text"], ascending=[False, True])
    shown = set(ranked["id"].head(MOST_RUNS))
    return [
        ExaminedRun(
            **{key: getattr(run, key) for key in ("number", "id", "name", "arch", "optimizer")},
            place=places[run.id],
            is_shown=run.id in shown,
            behaviour=study.behaviours[run.id],
        )
        for run in rows_of(known)
    ]

"""Runs whose validation perplexity was still falling when their epochs were over."""

from __future__ import annotations

import math
from dataclasses import dataclass

from analysis.load import Study
from analysis.seeds import finished

LAST_SHARE, LEAST_EPOCHS = 0.1, 2
"""The end of a run: this share of its epochs, and at least so many."""

FALL_PER_EPOCH = 0.001
"""Still falling: by more than this share of the perplexity in each epoch of the end, as the geometric mean."""


@dataclass(frozen=True, kw_only=True)
class Falling:
    """A finished run that was still getting better."""

    number: int
    name: str
    val_ppl: float
    epochs: int
    fall_per_epoch: float
    """Share of the perplexity by which it fell, the geometric mean over the last epochs."""

    @property
    def reference(self) -> str:
        return f"{self.number} {self.name}"


def falling_runs(study: Study) -> list[Falling]:
    """Finished runs whose best epoch is their last and that fell by more than 0.1 % an epoch, the lowest first."""
    found = []
    for run in finished(study.runs).to_dict("records"):
        values = study.epochs_of(run["id"])["val_ppl"].to_numpy(float)
        fall = fall_per_epoch([float(value) for value in values])
        if fall > FALL_PER_EPOCH:
            found.append(
                Falling(
                    number=run["number"],
                    name=run["name"],
                    val_ppl=run["val_ppl"],
                    epochs=len(values),
                    fall_per_epoch=fall,
                )
            )
    return sorted(found, key=lambda falling: (falling.val_ppl, falling.number))


def fall_per_epoch(perplexities: list[float]) -> float:
    """The share by which the end of a curve fell per epoch; 0 where its best epoch is not its last.

    >>> round(fall_per_epoch([120.0, 110.0, 99.0]), 3)
    0.1
    """
    last = max(LEAST_EPOCHS, math.ceil(LAST_SHARE * len(perplexities)))
    end = perplexities[-last:]
    if len(end) < LEAST_EPOCHS or not all(math.isfinite(value) and value > 0 for value in end):
        return 0.0
    if end[-1] > min(value for value in perplexities if math.isfinite(value)):
        return 0.0
    return 1 - math.pow(end[-1] / end[0], 1 / (len(end) - 1))

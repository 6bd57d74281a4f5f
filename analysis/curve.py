"""One run's learning curve: what is drawn, how, and what the run is called in legends and captions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import look, units
from analysis.load import Study

Progress: TypeAlias = Literal["epochs", "time"]
"""What the horizontal axis counts."""

Values: TypeAlias = NDArray[np.float64]

NAME_LENGTH = 26
"""Characters of a run's name in a legend or above a panel."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One run's perplexities over its progress; NaN is a gap in the line."""

    number: int
    name: str
    arch: str
    state: str
    progress: Values
    """Passes finished, or wall-clock time in the unit of the study (see ``time_unit``)."""
    train_ppl: Values
    val_ppl: Values
    style: look.LineStyle

    @property
    def label(self) -> str:
        short = self.name if len(self.name) <= NAME_LENGTH else self.name[: NAME_LENGTH - 1] + "…"
        return f"{self.number}  {short}"

    @property
    def reference(self) -> str:
        """How a caption refers to the run."""
        return f"{self.number} {self.name}"

    @property
    def ended_early(self) -> bool:
        return self.state in ("failed", "cancelled")


def curves_of(study: Study, progress: Progress) -> list[Curve]:
    """The curves of the runs that have a finite perplexity to draw, by number."""
    styles = look.line_styles(study.runs)
    seconds, _ = time_unit(study)
    curves = []
    for run in study.runs.sort_values("number").to_dict("records"):
        epochs = study.epochs_of(run["id"])
        column = epochs["epoch"] + 1 if progress == "epochs" else epochs["elapsed_seconds"] / seconds
        progress_values = _numbers(column)
        curve = Curve(
            number=run["number"],
            name=run["name"],
            arch=units.architecture(run["arch"]),
            state=run["state"],
            progress=progress_values,
            train_ppl=_perplexities(epochs["train_ppl"], progress_values),
            val_ppl=_perplexities(epochs["val_ppl"], progress_values),
            style=styles[run["id"]],
        )
        if np.isfinite(curve.val_ppl).any() or np.isfinite(curve.train_ppl).any():
            curves.append(curve)
    return curves


def time_unit(study: Study) -> tuple[float, str]:
    """Seconds in the unit of the study's time axes, and its name: the largest in which the longest run is above 2."""
    return unit_for(study.epochs["elapsed_seconds"].max())


def unit_for(longest: float) -> tuple[float, str]:
    """Seconds in the largest unit of time in which ``longest`` seconds are above 2, and its name."""
    for seconds, name in ((3600.0, "hours"), (60.0, "minutes")):
        if units.is_number(longest) and longest > 2 * seconds:
            return seconds, name
    return 1.0, "seconds"


def highest(values: Values) -> float:
    """The largest value there is, or NaN."""
    return float(np.nanmax(values)) if np.isfinite(values).any() else math.nan


def _numbers(column: pd.Series[float]) -> Values:
    return np.array(column.to_numpy(float, na_value=math.nan))


def _perplexities(column: pd.Series[float], progress: Values) -> Values:
    """Finite positive perplexities at a known progress; NaN in place of all others."""
    values = _numbers(column)
    values[~(np.isfinite(values) & (values > 0) & np.isfinite(progress))] = math.nan
    return values

"""One line of a learning-curve figure: a run, or the seeds of a setting with their band."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.plots import look
from analysis.plots.axes import Progress
from analysis.study import units
from analysis.study.numbering import RunNumber
from analysis.study.settings import finished
from analysis.study.study import Study
from analysis.study.values import Values

LABEL_LENGTH = 25
"""Characters of numbers and name together, in a legend or above a panel."""

NUMBERS_SHOWN = 4
"""Numbers of seeds that stand before the name of their setting; more are counted."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The perplexities of a run, or of the seeds of a setting, over their progress; NaN is a gap in the line."""

    number: RunNumber
    """Number of the run; of seeds, that of the first."""
    name: str
    arch: str | None
    optimizer: str | None
    state: str
    setting: RunNumber
    epochs: Values
    """Passes finished."""
    progress: Values
    """The same, or wall-clock time in the unit of the study (see ``time_unit``)."""
    train_ppl: Values
    val_ppl: Values
    """Of seeds: the geometric mean, where each of them has a value."""
    style: look.LineStyle
    runs: tuple[RunNumber, ...] = ()
    """Numbers of the seeds; none for a single run."""
    low: Values | None = None
    """Lowest and highest validation perplexity of the seeds."""
    high: Values | None = None

    @property
    def numbers(self) -> str:
        """``4``, ``1/4/7`` or, of many seeds, ``1/4/7/10/… (12)``."""
        if len(self.runs) > NUMBERS_SHOWN:
            return "/".join(map(str, self.runs[:NUMBERS_SHOWN])) + f"/… ({len(self.runs)})"
        return "/".join(map(str, self.runs or (self.number,)))

    @property
    def label(self) -> str:
        return units.shortened(f"{self.numbers}  {self.name}", LABEL_LENGTH)

    @property
    def reference(self) -> str:
        """How a caption refers to it."""
        return f"{self.numbers} {self.name}"

    @property
    def ended_early(self) -> bool:
        return self.state in ("failed", "cancelled")

    @property
    def best(self) -> float:
        """The lowest validation perplexity, or NaN."""
        return float(np.nanmin(self.val_ppl)) if self.is_validated else math.nan

    @property
    def is_validated(self) -> bool:
        """Whether there is a validation perplexity to draw."""
        return bool(np.isfinite(self.val_ppl).any())

    @property
    def drawn(self) -> list[Values]:
        """Everything of the validation that needs room on the vertical axis."""
        return [values for values in (self.val_ppl, self.low, self.high) if values is not None]


def curves_of(study: Study, progress: Progress) -> list[Curve]:
    """The curves of the runs that have a finite perplexity to draw, by number."""
    styles = look.line_styles(study.runs)
    columns = _columns(study, progress)
    places = study.epochs.groupby("id", sort=False).indices
    nowhere = np.array([], dtype=np.int64)
    curves = []
    for run in study.runs.sort_values("number")[_FACTS].to_dict("records"):
        values = columns[:, places.get(run["id"], nowhere)]
        curve = Curve(
            number=run["number"],
            name=run["name"],
            arch=_text(run["arch"]),
            optimizer=_text(run["optimizer"]),
            state=run["state"],
            setting=run["setting"],
            epochs=values[0],
            progress=values[1],
            train_ppl=values[2],
            val_ppl=values[3],
            style=styles[run["id"]],
        )
        if curve.is_validated or np.isfinite(curve.train_ppl).any():
            curves.append(curve)
    return curves


_FACTS = ["id", "number", "name", "arch", "optimizer", "state", "setting"]


def _columns(study: Study, progress: Progress) -> Values:
    """Epochs, progress, training and validation perplexity as rows, a column for each row of the epochs table.

    Perplexities are finite and positive at a known progress, and NaN otherwise.
    """
    epochs, (seconds, _) = study.epochs, time_unit(study)
    passes = _numbers(epochs["epoch"]) + 1
    along = passes if progress == "epochs" else _numbers(epochs["elapsed_seconds"]) / seconds
    ppl = np.stack([_numbers(epochs["train_ppl"]), _numbers(epochs["val_ppl"])])
    ppl[~(np.isfinite(ppl) & (ppl > 0) & np.isfinite(along))] = math.nan
    return np.stack([passes, along, *ppl])


def setting_curves(study: Study, curves: Sequence[Curve]) -> list[Curve]:
    """``curves`` with the finished seeds of a setting as one, by number; all others as they are."""
    done = set(finished(study.runs)["number"])
    members: dict[RunNumber, list[Curve]] = {}
    for curve in curves:
        if curve.number in done:
            members.setdefault(curve.setting, []).append(curve)
    several = {setting: group for setting, group in members.items() if len(group) > 1}
    others = [curve for curve in curves if curve.number not in done or curve.setting not in several]
    return sorted([*others, *map(_mean, several.values())], key=lambda curve: curve.number)


def _mean(group: list[Curve]) -> Curve:
    """The seeds of a setting as one curve; a gap where one of them has no value."""
    epochs = np.unique(np.concatenate([curve.epochs for curve in group]))
    progress, train_ppl, val_ppl = np.full((3, len(group), len(epochs)), math.nan)
    for row, curve in enumerate(group):
        places = np.searchsorted(epochs, curve.epochs)
        progress[row, places] = curve.progress
        train_ppl[row, places] = curve.train_ppl
        val_ppl[row, places] = curve.val_ppl
    return dataclasses.replace(
        group[0],
        epochs=epochs,
        progress=progress.mean(axis=0),
        train_ppl=np.exp(np.log(train_ppl).mean(axis=0)),
        val_ppl=np.exp(np.log(val_ppl).mean(axis=0)),
        runs=tuple(curve.number for curve in group),
        low=val_ppl.min(axis=0),
        high=val_ppl.max(axis=0),
    )


def time_unit(study: Study) -> tuple[float, str]:
    """Seconds in the unit of the study's time axes, and its name: the largest in which the longest run is above 2."""
    return unit_for(study.epochs["elapsed_seconds"].max())


def unit_for(longest: float) -> tuple[float, str]:
    """Seconds in the largest unit of time in which ``longest`` seconds are above 2, and its name."""
    for seconds, name in ((3600.0, "hours"), (60.0, "minutes")):
        if units.is_number(longest) and longest > 2 * seconds:
            return seconds, name
    return 1.0, "seconds"


def progress_name(study: Study, progress: Progress) -> str:
    """What stands before a value of the horizontal axis under the pointer."""
    return "epoch" if progress == "epochs" else time_unit(study)[1]


def highest(values: Values) -> float:
    """The largest value there is, or NaN."""
    return float(np.nanmax(values)) if np.isfinite(values).any() else math.nan


def _numbers(column: pd.Series[float]) -> Values:
    return np.array(column.to_numpy(float, na_value=math.nan))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None

"""One line of a learning-curve figure: a run, or the seeds of a setting with their band."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.plots import look
from analysis.plots.axes import Progress
from analysis.study import units
from analysis.study.comparison import finished
from analysis.study.numbering import RunNumber
from analysis.study.settings import places_of
from analysis.study.study import Study
from analysis.study.values import Values

LABEL_LENGTH = 28
"""Characters of numbers and name together, in a legend or above a panel."""

NUMBERS_SHOWN = 4
"""Numbers of seeds that stand before the name of their setting; more are counted."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The perplexities of a run, or of the seeds of a setting, over their progress; NaN is a gap in the line."""

    runs: tuple[RunNumber, ...]
    """Numbers of the run, or of the seeds."""
    name: str
    arch: str | None
    optimizer: str | None
    state: str
    text: str
    """What it predicts; perplexities of different texts do not compare."""
    setting: RunNumber
    epochs: Values
    """Passes finished."""
    progress: Values
    """The same, or wall-clock time in the unit of the study (see ``time_unit``)."""
    train_ppl: Values
    val_ppl: Values
    """Of seeds: the geometric mean, where each of them has a value."""
    style: look.LineStyle
    low: Values | None = None
    """Lowest and highest validation perplexity of the seeds."""
    high: Values | None = None

    @property
    def number(self) -> RunNumber:
        """The number in the figure: of seeds, that of the first."""
        return self.runs[0]

    @property
    def numbers(self) -> str:
        """``4``, ``1/4/7`` or, of many seeds, ``1/4/7/10/… (12)``."""
        more = f"/… ({len(self.runs)})" if len(self.runs) > NUMBERS_SHOWN else ""
        return "/".join(map(str, self.runs[:NUMBERS_SHOWN])) + more

    @property
    def label(self) -> str:
        numbers = f"{self.numbers}  "
        return numbers + units.short_name(self.name, LABEL_LENGTH - len(numbers), self.arch, self.optimizer)

    @property
    def reference(self) -> str:
        """How a caption refers to it."""
        return f"{self.numbers} {self.name}"

    @property
    def ended_early(self) -> bool:
        return self.state in ("failed", "cancelled", "stopped")

    @property
    def early_end(self) -> tuple[float, float] | None:
        """The last validation perplexity of a run that ended early, after its progress."""
        there = np.flatnonzero(np.isfinite(self.val_ppl))
        return (self.progress[there[-1]], self.val_ppl[there[-1]]) if self.ended_early and len(there) else None

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
    setting_places = places_of(study.runs)
    columns = _columns(study, progress)
    places = study.epochs.groupby("id", sort=False).indices
    nowhere = np.array([], dtype=np.int64)
    curves = []
    facts = ["id", "number", "name", "arch", "optimizer", "state", "text", "setting"]
    for run in study.runs.sort_values("number")[facts].to_dict("records"):
        epochs, along, train_ppl, val_ppl = columns[:, places.get(run["id"], nowhere)]
        arch, optimizer = (run[key] if isinstance(run[key], str) else None for key in ("arch", "optimizer"))
        curve = Curve(
            runs=(run["number"],),
            name=run["name"],
            arch=arch,
            optimizer=optimizer,
            state=run["state"],
            text=run["text"],
            setting=run["setting"],
            epochs=epochs,
            progress=along,
            train_ppl=train_ppl,
            val_ppl=val_ppl,
            style=look.line_style(arch, optimizer, setting_places[run["id"]]),
        )
        if curve.is_validated or np.isfinite(train_ppl).any():
            curves.append(curve)
    return curves


def _columns(study: Study, progress: Progress) -> Values:
    """Epochs, progress, training and validation perplexity as rows, a column for each row of the epochs table.

    Perplexities are finite and positive at a known progress, and NaN otherwise.
    """
    names = ["epoch", "elapsed_seconds", "train_ppl", "val_ppl"]
    passes, seconds, *ppl = (study.epochs[name].to_numpy(float, na_value=math.nan) for name in names)
    passes = passes + 1
    along = passes if progress == "epochs" else seconds / time_unit(study)[0]
    positive = [np.where(np.isfinite(v) & (v > 0) & np.isfinite(along), v, math.nan) for v in ppl]
    return np.stack([passes, along, *positive])


def setting_curves(study: Study, curves: Sequence[Curve]) -> list[Curve]:
    """``curves`` with the finished seeds of a setting as one, by number; all others as they are."""
    done = set(finished(study.runs)["number"])
    groups: dict[RunNumber, list[Curve]] = defaultdict(list)
    for curve in curves:
        groups[curve.setting].append(curve)
    found = []
    for group in groups.values():
        seeds = [curve for curve in group if curve.number in done]
        found += group if len(seeds) < 2 else [_mean(seeds), *(curve for curve in group if curve.number not in done)]
    return sorted(found, key=lambda curve: curve.number)


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

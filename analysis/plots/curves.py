"""Learning curves on axes: a line for each run, or for the seeds of a setting with their band."""

import dataclasses
import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.blocks.figure import name_values, run_mark
from analysis.plots import look
from analysis.plots.axes import ABOVE, Mark, Unit, fit, place_numbers, shared_cut, tick_text
from analysis.study import units
from analysis.study.comparison import finished
from analysis.study.numbering import RunNumber
from analysis.study.settings import places_of
from analysis.study.study import StudyFiles
from analysis.study.values import Values

LABEL_LENGTH = 28
"""Characters of numbers and name together in a legend, and of a name above a panel."""

NUMBERS_SHOWN = 4
"""Numbers of seeds that stand before the name of their setting; more are counted."""

MOST_LINES = 24
"""From more curves than this in one pair of axes, only the best stand out."""

STANDING_OUT, STANDING_OUT_OF_KIND = 10, 4
"""How many stand out then: of all, and of an architecture or an optimizer."""

MOST_GREY = 50
"""Of the others at most this many are drawn, evenly by perplexity."""

SINGLE_CUT_FACTOR = 100.0
"""An axis of one run ends at this many times its best perplexity."""

LINE_ABOVE_BEST, FARTHEST = 1.3, 1.5
"""An axis that several runs share shows each prominent one up to this many times its best perplexity, so that each has
a line; but not one whose best is above ``FARTHEST`` times the end of the axis without it, which the caption names."""

FLOPS = 6
"""Floating-point operations of training per parameter and token: forward 2, backward 4 (Hoffmann et al., 2022)."""

Progress: TypeAlias = Unit | Literal["tokens", "flops"] | None
"""What a curve is drawn over: time in a unit, training tokens, operations of training, or ``None``: epochs."""

TRAINING: dict[str, Any] = {"linestyle": (0, (3, 1.5)), "linewidth": 1.1}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The perplexities of a run, or of the seeds of a setting, after each epoch; NaN is a gap in the line."""

    runs: tuple[RunNumber, ...]
    """Numbers of the run, or of the seeds."""
    name: str
    arch: str | None
    optimizer: str | None
    state: str
    text: str
    """What it predicts; perplexities of different texts do not compare."""
    setting: RunNumber
    place: int
    """Of its setting; see :func:`analysis.study.settings.places_of`."""
    epochs: Values
    """Passes finished."""
    seconds: Values
    """Wall-clock time by then; NaN where it is not recorded."""
    tokens: Values
    """Training tokens by then; NaN where steps are not recorded."""
    parameters: float
    train_ppl: Values
    val_ppl: Values
    """Of seeds: the geometric mean, where each of them has a value."""
    low: Values | None = None
    """Lowest and highest validation perplexity of the seeds."""
    high: Values | None = None

    @property
    def number(self) -> RunNumber:
        """The number in the figure: of seeds, that of the first."""
        return self.runs[0]

    @property
    def reference(self) -> str:
        """Numbers and name; of many seeds the first numbers, and how many they are: ``1/4/7/10/… (12) gru``."""
        more = f"/… ({len(self.runs)})" if len(self.runs) > NUMBERS_SHOWN else ""
        return f"{'/'.join(map(str, self.runs[:NUMBERS_SHOWN]))}{more} {self.name}"

    @property
    def label(self) -> str:
        """The same, short enough for a legend."""
        numbers, _, _ = self.reference.removesuffix(self.name).rpartition(" ")
        name = units.short_name(self.name, LABEL_LENGTH - len(numbers) - 2, self.arch, self.optimizer)
        return f"{numbers}  {name}"

    @property
    def style(self) -> look.LineStyle:
        """The same in every figure of the study."""
        return look.line_style(self.arch, self.optimizer, self.place)

    @property
    def heading(self) -> str:
        """Number, architecture and optimizer, for a panel without a legend of them; below it the rest of the name."""
        kind = f"{self.number}  {units.architecture(self.arch)}, {units.optimizer(self.optimizer)}"
        rest = "-".join(part for part in self.name.split("-") if part not in (self.arch, self.optimizer))
        return f"{kind}\n{units.short_name(rest, LABEL_LENGTH)}" if rest else kind

    @property
    def of_seeds(self) -> str:
        return f", mean of {len(self.runs)} seeds" if len(self.runs) > 1 else ""

    def along(self, progress: Progress) -> Values:
        """The progress by the end of each epoch."""
        if progress is None:
            return self.epochs
        if isinstance(progress, Unit):
            return self.seconds / progress.seconds
        return self.tokens * (FLOPS * self.parameters if progress == "flops" else 1.0)

    @property
    def ended_early(self) -> bool:
        return self.state in ("failed", "cancelled", "stopped")

    @functools.cached_property
    def best(self) -> float:
        """The lowest validation perplexity; infinity if there is none."""
        return float(np.nanmin(self.val_ppl)) if self.is_validated else math.inf

    @functools.cached_property
    def is_validated(self) -> bool:
        """Whether there is a validation perplexity to draw."""
        return bool(np.isfinite(self.val_ppl).any())

    @property
    def drawn(self) -> Values:
        """Everything of the validation that needs room on the vertical axis."""
        return np.concatenate([values for values in (self.val_ppl, self.low, self.high) if values is not None])


def curves_of(study: StudyFiles) -> list[Curve]:
    """The curves of the runs that have a perplexity to draw, by number."""
    names = ["epoch", "elapsed_seconds", "steps", "train_ppl", "val_ppl"]
    columns = study.epochs[names].to_numpy(float, na_value=math.nan).T
    columns[0] += 1
    columns[3:] = np.where(np.isfinite(columns[3:]) & (columns[3:] > 0), columns[3:], math.nan)
    places = study.epochs.groupby("id", sort=False).indices
    ranks = places_of(study.runs)
    curves = []
    facts = ["number", "name", "arch", "optimizer", "state", "text", "setting", "parameters"]
    sizes = ["train.batch_size", "train.seq_len"]
    for row in study.runs.sort_values("number")[["id", *facts, *sizes]].to_dict("records"):
        run: dict[str, Any] = {str(key): value for key, value in row.items()}
        of_step = math.prod(float(size) if units.is_number(size := run.pop(key)) else math.nan for key in sizes)
        run["parameters"] = float(run["parameters"]) if units.is_number(run["parameters"]) else math.nan
        run["place"] = ranks[run["id"]]
        epochs, seconds, steps, train_ppl, val_ppl = columns[:, places.get(run.pop("id"), np.array([], dtype=np.int64))]
        if np.isfinite(val_ppl).any() or np.isfinite(train_ppl).any():
            run |= {key: run[key] if isinstance(run[key], str) else None for key in ("arch", "optimizer")}
            values = {"epochs": epochs, "seconds": seconds, "train_ppl": train_ppl, "val_ppl": val_ppl}
            values["tokens"] = np.cumsum(steps) * of_step
            curves.append(Curve(runs=(run.pop("number"),), **run, **values))
    return curves


def setting_curves(study: StudyFiles, curves: Sequence[Curve]) -> list[Curve]:
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
    seconds, tokens, train_ppl, val_ppl = np.full((4, len(group), len(epochs)), math.nan)
    for row, curve in enumerate(group):
        places = np.searchsorted(epochs, curve.epochs)
        seconds[row, places], train_ppl[row, places] = curve.seconds, curve.train_ppl
        tokens[row, places], val_ppl[row, places] = curve.tokens, curve.val_ppl
    return dataclasses.replace(
        group[0],
        name=re.sub(r"-seed\d+$", "", group[0].name) or group[0].name,
        epochs=epochs,
        seconds=seconds.mean(axis=0),
        tokens=tokens.mean(axis=0),
        train_ppl=np.exp(np.log(train_ppl).mean(axis=0)),
        val_ppl=np.exp(np.log(val_ppl).mean(axis=0)),
        runs=tuple(curve.number for curve in group),
        low=val_ppl.min(axis=0),
        high=val_ppl.max(axis=0),
    )


# -- which stand out, and how they look ----------------------------------------------------------------------------


def prominent(curves: Sequence[Curve], most: int = STANDING_OUT) -> list[Curve]:
    """All curves where they are few; else, in turn, the best of each architecture with each optimizer on each text."""
    if len(curves) <= MOST_LINES:
        return list(curves)
    ordered = sorted(curves, key=lambda curve: (curve.best, curve.number))
    turns = _turns(ordered, lambda curve: (curve.arch, curve.optimizer, curve.text))
    best = [place for _, place in sorted(zip(turns, range(len(ordered)), strict=True))[:most]]
    return sorted((ordered[place] for place in best), key=lambda curve: curve.number)


def _turns(curves: Iterable[Curve], kind: Callable[[Curve], Any]) -> list[int]:
    """How many of its kind come before each curve."""
    counts = Counter[Any]()
    turns = []
    for curve in curves:
        turns.append(counts[kind(curve)])
        counts[kind(curve)] += 1
    return turns


def legend_entries(curves: Iterable[Curve]) -> list[Line2D]:
    """Return the legend entries of the prominent ones, by architecture."""
    named = seen(curves := list(curves), prominent(curves))
    ordered = sorted(named, key=lambda curve: units.rank(units.ARCHITECTURES, curve.arch))
    return [look.run_entry(curve.number, curve.label, curve.style) for curve in ordered]


# -- drawing -------------------------------------------------------------------------------------------------------


def draw_curves(
    axes: Axes,
    curves: Sequence[Curve],
    unit: Progress = None,
    most: int = STANDING_OUT,
    rows: Sequence[Sequence[Curve]] = (),
) -> Axes:
    """Draw validation curves over their progress: numbers at the prominent ones, the others in grey.

    The axes fit all ``curves``, or those of all ``rows`` of a figure.
    """
    all_curves = [curve for row in (rows or [curves]) for curve in row]
    all_named = [curve for row in (rows or [curves]) for curve in prominent(row, most)]
    in_view = {curve.number for curve in seen(all_curves, all_named)}
    numbers = {curve.number for curve in prominent(curves, most)}
    named = [curve for curve in curves if curve.number in numbers & in_view]
    others = sorted((c for c in curves if c.number not in numbers), key=lambda curve: (curve.best, curve.number))
    crowd = others[:: math.ceil(len(others) / MOST_GREY) or 1]
    axes.set_autoscale_on(False)  # else each line looks for the limits, which are set below
    if crowd:
        x = np.concatenate([part for curve in crowd for part in (curve.along(unit), [math.nan])])
        y = np.concatenate([part for curve in crowd for part in (curve.val_ppl, [math.nan])])
        axes.plot(x, y, color=look.CROWD[0], linewidth=0.5, alpha=0.6, zorder=1.5)
    ends = [end for curve in crowd if (end := _early_end(curve, unit))]
    if ends:
        axes.plot(*zip(*ends, strict=True), "x", color=look.CROWD[0], markersize=4, mew=1, zorder=1.5)
    for curve in named:
        style, gid, x = curve.style, run_mark(curve.number), curve.along(unit)
        if curve.low is not None and curve.high is not None:
            axes.fill_between(x, curve.low, curve.high, color=style.colour, alpha=0.2, linewidth=0, gid=gid)
        spacing = max(1, math.ceil(len(x) / 8))
        markers: dict[str, Any] = {"marker": style.marker, "markevery": (int(curve.number) % spacing, spacing)}
        axes.plot(x, curve.val_ppl, gid=gid, label=f"{curve.reference}{curve.of_seeds}", **markers, **style.line)
        _mark_end(axes, curve, unit)
    fit(axes, "y", [curve.drawn for curve in all_curves], cut_at=axis_end(all_curves, all_named), log=True)
    axes.set_ylabel("Validation perplexity")
    _label_progress(axes, all_curves, unit)
    best_first = sorted(named, key=lambda curve: (curve.best, curve.number))
    marks = (_number(curve, axes, unit) for curve in best_first)
    place_numbers(axes, [mark for mark in marks if mark is not None])
    return axes


def axis_end(curves: Sequence[Curve], named: Sequence[Curve]) -> float:
    """Return where a vertical axis of these curves ends if one goes on above it. ``named`` have a line each."""
    if len(curves) == 1:
        return SINGLE_CUT_FACTOR * curves[0].best
    cut = shared_cut([curve.val_ppl for curve in curves])
    return max([cut, *(LINE_ABOVE_BEST * curve.best for curve in named if curve.best <= FARTHEST * cut)])


def seen(curves: Sequence[Curve], named: Sequence[Curve]) -> list[Curve]:
    """Return which of the ``named`` have a point on the axis that fits ``curves``."""
    end = axis_end(curves, named) if curves else math.inf
    return [curve for curve in named if curve.best <= end]


def draw_run(axes: Axes, curve: Curve, unit: Unit | None, curves: Sequence[Curve]) -> Axes:
    """Draw the training and validation perplexity of a run over epochs, with the wall-clock time above.

    The axes fit all ``curves``, those of the other panels of the figure. ``unit``: of the time.
    """
    gid, x, colour = run_mark(curve.number), curve.epochs, curve.style.colour
    axes.set_autoscale_on(False)
    axes.plot(
        x, curve.train_ppl, color=colour, gid=gid, label=f"{curve.reference}{curve.of_seeds}, training", **TRAINING
    )
    if curve.low is not None and curve.high is not None:
        axes.fill_between(x, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0, gid=gid)
    lone = "o" if len(x) == 1 else ""
    axes.plot(
        x, curve.val_ppl, color=colour, marker=lone, gid=gid, label=f"{curve.reference}{curve.of_seeds}, validation"
    )
    _mark_end(axes, curve, None)
    lines = [values for curve in curves for values in (curve.train_ppl, curve.drawn)]
    lowest = min((float(np.nanmin(values)) for values in lines if np.isfinite(values).any()), default=math.inf)
    fit(axes, "y", lines, cut_at=max(axis_end(curves, curves), lowest), log=True, ticks=5)
    axes.set_title(curve.heading, loc="left", fontsize=8)
    if curve.best > axes.get_ylim()[1]:
        axes.text(
            0.4, 0.6, f"{ABOVE} from {curve.best:,.0f}", transform=axes.transAxes, fontsize=8, color=look.ink_of(colour)
        )
    _label_progress(axes, curves, None)
    if unit is not None and len(x) > 1 and np.isfinite(curve.seconds).all():
        _time_above(axes, curve, unit)
    return axes


def _time_above(axes: Axes, curve: Curve, unit: Unit) -> None:
    """Write round wall-clock times at the top, each where the epochs have taken as long."""
    times = curve.along(unit)
    rounded = [time for time in MaxNLocator(3, steps=[1, 2, 5, 10]).tick_values(0, times[-1]) if 0 < time <= times[-1]]
    for time in rounded:
        at = float(np.interp(time, [0.0, *times], [0.0, *curve.epochs]))
        name = f" {unit.name[0] if unit.name != 'minutes' else 'min'}" if time == rounded[-1] else ""
        axes.annotate(
            f"{tick_text(round(time, 6))}{name}",
            (at, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -2),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=6.5,
            color=look.MUTED,
        )


def _early_end(curve: Curve, unit: Progress) -> tuple[float, float] | None:
    """The last validation perplexity of a run that ended early."""
    x = curve.along(unit)
    there = np.flatnonzero(np.isfinite(curve.val_ppl) & np.isfinite(x))
    return (x[there[-1]], curve.val_ppl[there[-1]]) if curve.ended_early and len(there) else None


def _mark_end(axes: Axes, curve: Curve, unit: Progress) -> None:
    """A cross where a run ended early."""
    if end := _early_end(curve, unit):
        axes.plot(*end, "x", gid=run_mark(curve.number), color=curve.style.colour, markersize=7, mew=2)


def _number(curve: Curve, axes: Axes, unit: Progress) -> Mark | None:
    """The number at the last point that the axis shows; with an arrow if the line goes on above it.

    ``None``: the axis shows no point.
    """
    x, top = curve.along(unit), axes.get_ylim()[1]
    there = np.flatnonzero(np.isfinite(curve.val_ppl) & np.isfinite(x))
    shown = there[curve.val_ppl[there] <= top]
    if not len(shown):
        return None
    last, leaves = shown[-1], shown[-1] != there[-1]
    text = f"{curve.number} {ABOVE}" if leaves else str(curve.number)
    return Mark(x[last], curve.val_ppl[last], text, curve.style.colour, curve.number)


def _label_progress(axes: Axes, curves: Sequence[Curve], unit: Progress) -> None:
    """Set up the horizontal axis: whole epochs from 1, wall-clock time from 0, or tokens and operations by decades."""
    if isinstance(unit, str):
        fit(axes, "x", [curve.along(unit) for curve in curves], log=True, room=0.03, ticks=5)
        axes.set_xlabel("Training tokens" if unit == "tokens" else "Training FLOPs (6 × parameters × tokens)")
        name_values(axes, unit)
        return
    last = max((x for curve in curves for x in curve.along(unit) if math.isfinite(x)), default=1.0)
    if unit is None:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        axes.set_xlim(1 - 0.015 * last, last + max(0.015 * last, 0.05))
        axes.set_xlabel("Epoch (1 = after the first pass)")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.set_xlim(0, last * 1.015 or 1.0)
        axes.set_xlabel(f"Wall-clock time ({unit.name})")
    name_values(axes, unit.name if unit else "epoch")

"""Axes for perplexities: where they end, their ticks, and the numbers of the runs at the ends of their lines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from analysis.blocks.figure import run_mark
from analysis.plots import look
from analysis.study.numbering import RunNumber
from analysis.study.values import Values

Progress: TypeAlias = Literal["epochs", "time"]
"""What the horizontal axis counts."""

CUT_FACTOR = 5.0
"""An axis that several runs share ends at this many times the median of their best perplexities."""

SINGLE_CUT_FACTOR = 100.0
"""An axis of one run ends at this many times its best perplexity."""

LOG_FROM = 3.0
"""The scale is logarithmic where the highest value is more than this many times the lowest."""

TICKS = ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
"""Ticks of a logarithmic axis within a decade, from many to few."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The vertical axis."""

    low: float
    high: float
    logarithmic: bool

    def cuts(self, values: Values) -> bool:
        """Whether a line leaves the axis at its top."""
        return bool((values[np.isfinite(values)] > self.high).any())


def scale_for(values: Sequence[Values], *, cut_at: float = math.inf) -> Scale:
    """An axis that holds all finite values up to ``cut_at``, with a little room on both sides."""
    finite = np.concatenate([v[np.isfinite(v)] for v in values])
    kept = finite[finite <= cut_at]
    low, high = float(kept.min()), float(kept.max())
    if high > LOG_FROM * low:
        return Scale(low=low / 1.08, high=high * 1.08, logarithmic=True)
    room = 0.06 * (high - low) or 0.05 * high
    return Scale(low=low - room, high=high + room, logarithmic=False)


def shared_cut(values: Sequence[Values]) -> float:
    """Where to end an axis that several runs share, so that one that explodes does not flatten all the others."""
    lowest = [float(np.nanmin(v)) for v in values if np.isfinite(v).any()]
    return (CUT_FACTOR if len(lowest) > 1 else SINGLE_CUT_FACTOR) * float(np.median(lowest))


def label_perplexity(axes: Axes, scale: Scale, label: str, *, most_ticks: int) -> None:
    """Set up the vertical axis."""
    axes.set_ylabel(label)
    if scale.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(FixedLocator(log_ticks(scale, most_ticks)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(most_ticks - 1))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}" if value < 1e7 else f"{value:.0e}"))
    axes.set_ylim(scale.low, scale.high)


def log_ticks(scale: Scale, most: int) -> list[float]:
    """At most so many round values of a logarithmic axis."""
    decades = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    found: list[float] = []
    for steps in TICKS:
        found = [step * 10.0**decade for decade in decades for step in steps]
        found = [tick for tick in found if scale.low <= tick <= scale.high]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]


def label_progress(axes: Axes, progress: Progress, unit: str, values: Iterable[Values], label: bool = True) -> None:
    """Set up the horizontal axis: whole epochs from 1, or wall-clock time from 0."""
    last = max(float(np.nanmax(v)) for v in values)
    if progress == "epochs":
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        axes.set_xlim(1 - 0.015 * last, last + max(0.015 * last, 0.05))
    else:
        axes.set_xlim(0, last * 1.015 or 1.0)
    if label:
        axes.set_xlabel("Epoch (1 = after the first pass)" if progress == "epochs" else f"Wall-clock time ({unit})")


@dataclass(frozen=True, kw_only=True)
class Mark:
    """The number of a run at a point of its line."""

    x: float
    y: float
    text: str
    colour: str
    run: RunNumber | None = None
    """Number of the run, with which the mark hides."""


MARK_HEIGHT, MARK_GAP, MARK_SHIFT = 8.5, 5.0, 2.0
"""In points: height of a mark, its distance from its point, and the shift from which on a thin line joins the two."""


def place_numbers(axes: Axes, marks: Sequence[Mark]) -> None:
    """Write each mark right of its point, and move marks apart where they would cover one another."""
    figure = axes.get_figure(root=True)
    assert figure is not None, "axes belong to a figure"
    points = axes.transData.transform([(mark.x, mark.y) for mark in marks]) * 72 / figure.dpi
    spans = [(left, left + 5.5 * len(mark.text) + 6) for (left, _), mark in zip(points, marks, strict=True)]
    (_, bottom), (_, top) = axes.transAxes.transform([(0, 0), (1, 1)]) * 72 / figure.dpi
    for group in _neighbours(spans):
        members = sorted(group, key=lambda index: (points[index][1], marks[index].text))
        heights = within(spread([float(points[index][1]) for index in members], MARK_HEIGHT), bottom, top, MARK_HEIGHT)
        for index, height in zip(members, heights, strict=True):
            _write_mark(axes, marks[index], height - float(points[index][1]))


def _neighbours(spans: Sequence[tuple[float, float]]) -> list[list[int]]:
    """Indices of spans in groups that are apart from one another."""
    groups: list[list[int]] = []
    reach = -math.inf
    for index in sorted(range(len(spans)), key=lambda index: spans[index]):
        left, right = spans[index]
        if left >= reach:
            groups.append([])
        groups[-1].append(index)
        reach = max(reach, right)
    return groups


def spread(heights: Sequence[float], distance: float) -> list[float]:
    """Ascending heights moved as little as possible (least squares) until each is ``distance`` above the one before.

    >>> spread([0.0, 0.0, 10.0], 4.0)
    [-2.0, 2.0, 10.0]
    """
    blocks: list[tuple[float, int]] = []  # mean of the heights less their steps, and how many
    for place, height in enumerate(heights):
        mean, size = height - place * distance, 1
        while blocks and blocks[-1][0] > mean:
            before, count = blocks.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        blocks.append((mean, size))
    means = [mean for mean, size in blocks for _ in range(size)]
    return [mean + place * distance for place, mean in enumerate(means)]


def within(heights: Sequence[float], bottom: float, top: float, distance: float) -> list[float]:
    """Ascending heights moved into the space from ``bottom`` to ``top``, closer together where there is too little.

    >>> within([-3.0, 1.0, 5.0], 0.0, 20.0, 4.0)
    [0.0, 4.0, 8.0]
    """
    if len(heights) < 2:
        return [min(max(height, bottom), top) for height in heights]
    step = min(distance, (top - bottom) / (len(heights) - 1))
    found = [max(height, bottom + place * step) for place, height in enumerate(heights)]
    left = len(heights) - 1
    return [min(height, top - (left - place) * step) for place, height in enumerate(found)]


def _write_mark(axes: Axes, mark: Mark, shift: float) -> None:
    moved = abs(shift) > MARK_SHIFT
    written = axes.annotate(
        mark.text,
        (mark.x, mark.y),
        xytext=(MARK_GAP + (6 if moved else 0), shift),
        textcoords="offset points",
        va="center",
        fontsize=7.5,
        fontweight="bold",
        color=mark.colour,
        annotation_clip=False,
        bbox={"boxstyle": "round,pad=0.1", "facecolor": look.PAPER, "edgecolor": "none", "alpha": 0.8},
        arrowprops={"arrowstyle": "-", "color": mark.colour, "linewidth": 0.6, "shrinkB": 2} if moved else None,
        zorder=4,
    )
    if mark.run is not None:
        written.set_gid(run_mark(mark.run))
        if written.arrow_patch is not None:
            written.arrow_patch.set_gid(run_mark(mark.run))

"""Figures and their axes: size and layout, limits and ticks, and the numbers of the runs at the ends of their lines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Annotation
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

PANEL_COLUMNS = 3
"""Columns of a grid of panels."""


# -- figures -------------------------------------------------------------------------------------------------------


def panels_with_legend(
    plot_inches: float, entries: Sequence[Artist], columns: int | None = None, *, panels: int = 1, share: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return a new figure: panels side by side, and beneath them a legend of ``columns``. ``None``: one line.

    ``share``: the panels have one vertical axis. On the right of each is room for numbers.
    """
    rows = math.ceil(len(entries) / columns) if columns else 1
    height = plot_inches + 0.6 + 0.19 * rows
    layout = ConstrainedLayoutEngine(rect=(0, 0, 0.955, 1 - 0.06 / height), wspace=0.11)
    figure = Figure(figsize=(look.WIDTH_INCHES, height), layout=layout)
    look.add_legend(figure, entries, columns)
    return figure, list(figure.subplots(1, panels, squeeze=False, sharey=share).flat)


def panel_grid(count: int, panel_inches: float, *, top_inches: float) -> tuple[Figure, list[Axes]]:
    """Return a new figure of ``count`` small panels in rows, with room above for a legend.

    Its margins are fixed: a constrained layout of 48 panels takes longer than drawing them.
    """
    columns = min(PANEL_COLUMNS, count)
    rows = math.ceil(count / columns)
    height = panel_inches * rows + top_inches + 0.3
    figure = Figure(figsize=(look.WIDTH_INCHES, height))
    figure.subplots_adjust(0.085, 0.5 / height, 0.965, 1 - top_inches / height, wspace=0.32, hspace=0.5)
    panels = [figure.add_subplot(rows, columns, place + 1) for place in range(count)]
    for axes in panels:
        axes.tick_params(labelsize=7.5)
    return figure, panels


def label_grid(panels: Sequence[Axes], y: str, x: str | None = None) -> None:
    """Name the vertical axes in the first column, and the horizontal ones that have no panel below.

    ``None``: keep the names of the horizontal ones.
    """
    for place, axes in enumerate(panels):
        axes.set_ylabel("" if place % PANEL_COLUMNS else y, fontsize=8)
        if x is not None:
            axes.set_xlabel(x if place + PANEL_COLUMNS >= len(panels) else "", fontsize=8)


# -- scales --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The range of an axis."""

    low: float
    high: float
    logarithmic: bool

    def widened(self, share: float) -> Scale:
        """The scale with more room at both ends, each a share of its length."""
        if self.logarithmic:
            room = (self.high / self.low) ** share
            return replace(self, low=self.low / room, high=self.high * room)
        room = (self.high - self.low) * share
        return replace(self, low=self.low - room, high=self.high + room)

    def cuts(self, values: Values) -> bool:
        """Whether a line leaves the axis at its top."""
        return bool((values[np.isfinite(values)] > self.high).any())

    def applied_to(self, axes: Axes, name: Literal["x", "y"], most_ticks: int) -> None:
        """Set scale, limits and round ticks of an axis, at most about ``most_ticks``."""
        axis = axes.xaxis if name == "x" else axes.yaxis
        if self.logarithmic:
            axes.set(**{f"{name}scale": "log"})
            axis.set_major_locator(FixedLocator(log_ticks(self, most_ticks)))
            axis.set_minor_locator(NullLocator())
        else:
            axis.set_major_locator(MaxNLocator(most_ticks - 1))
        axis.set_major_formatter(FuncFormatter(tick_text))
        axes.set(**{f"{name}lim": (self.low, self.high)})


def scale_for(values: Sequence[Values], *, cut_at: float = math.inf, logarithmic: bool | None = None) -> Scale:
    """Return an axis that holds all finite values up to ``cut_at``, with a little room on both sides.

    ``logarithmic`` overrides the choice by ``LOG_FROM``; ``None``: no override.
    """
    finite = np.concatenate([v[np.isfinite(v)] for v in values])
    kept = finite[finite <= cut_at]
    if not len(kept):
        return Scale(low=0.1, high=1.0, logarithmic=bool(logarithmic))
    low, high = float(kept.min()), float(kept.max())
    if logarithmic or (logarithmic is None and low > 0 and high > LOG_FROM * low):
        return Scale(low=low / 1.08, high=high * 1.08, logarithmic=True)
    room = 0.06 * (high - low) or 0.05 * high or 1.0
    return Scale(low=low - room, high=high + room, logarithmic=False)


def shared_cut(values: Sequence[Values]) -> float:
    """Where to end an axis that several runs share, so that one that explodes does not flatten all the others."""
    lowest = [float(np.nanmin(v)) for v in values if np.isfinite(v).any()]
    return (CUT_FACTOR if len(lowest) > 1 else SINGLE_CUT_FACTOR) * float(np.median(lowest))


def log_ticks(scale: Scale, most: int) -> list[float]:
    """At most ``most`` round values of a logarithmic axis."""
    decades = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    found: list[float] = []
    for steps in TICKS:
        found = [step * 10.0**decade for decade in decades for step in steps]
        found = [tick for tick in found if scale.low <= tick <= scale.high]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]


def tick_text(value: float, _: object = None) -> str:
    """Return the number at a tick.

    >>> tick_text(1500.0), tick_text(0.002), tick_text(3e-7), tick_text(1e8)
    ('1,500', '0.002', '3·10⁻⁷', '10⁸')
    """
    if value == 0 or 1e-4 <= abs(value) < 1e7:
        return f"{value:,.6g}"
    mantissa, exponent = f"{value:.5e}".split("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if float(mantissa) == 1 else f"{float(mantissa):g}·{power}"


def label_progress(axes: Axes, progress: Progress, unit: str, values: Iterable[Values]) -> None:
    """Set up the horizontal axis: whole epochs from 1, or wall-clock time from 0."""
    last = max(float(np.nanmax(v)) for v in values)
    if progress == "epochs":
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        axes.set_xlim(1 - 0.015 * last, last + max(0.015 * last, 0.05))
    else:
        axes.set_xlim(0, last * 1.015 or 1.0)
    axes.set_xlabel("Epoch (1 = after the first pass)" if progress == "epochs" else f"Wall-clock time ({unit})")


# -- numbers at the ends of lines ----------------------------------------------------------------------------------


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
    if marks:
        axes.add_artist(_Spread(marks, [_written(axes, mark) for mark in marks]))


def _written(axes: Axes, mark: Mark) -> Annotation:
    written = axes.annotate(
        mark.text,
        (mark.x, mark.y),
        xytext=(MARK_GAP, 0),
        textcoords="offset points",
        va="center",
        fontsize=7.5,
        fontweight="bold",
        color=mark.colour,
        annotation_clip=False,
        bbox={"boxstyle": "round,pad=0.1", "facecolor": look.PAPER, "edgecolor": "none", "alpha": 0.8},
        arrowprops={"arrowstyle": "-", "color": mark.colour, "linewidth": 0.6, "shrinkB": 2},
        zorder=4,
    )
    written.set_in_layout(False)
    if mark.run is not None and written.arrow_patch is not None:
        written.set_gid(run_mark(mark.run))
        written.arrow_patch.set_gid(run_mark(mark.run))
    return written


class _Spread(Artist):
    """Places marks whenever their figure is drawn, for the size that the axes have then."""

    zorder = 0

    def __init__(self, marks: Sequence[Mark], written: Sequence[Annotation]) -> None:
        super().__init__()
        self.set_in_layout(False)
        self._marks, self._written = marks, written

    def draw(self, renderer: RendererBase) -> None:
        axes = self.axes
        assert axes is not None, "added to axes"
        to_points = 72 / axes.figure.dpi
        points = axes.transData.transform([(mark.x, mark.y) for mark in self._marks]) * to_points
        (_, bottom), (_, top) = axes.transAxes.transform([(0, 0), (1, 1)]) * to_points
        lefts = points[:, 0].tolist()
        spans = [(left, left + 5.5 * len(mark.text) + 6) for left, mark in zip(lefts, self._marks, strict=True)]
        for group in _neighbours(spans):
            members = sorted(group, key=lambda index: (points[index][1], self._marks[index].text))
            heights = spread([float(points[index][1]) for index in members], MARK_HEIGHT)
            for index, height in zip(members, within(heights, bottom, top, MARK_HEIGHT), strict=True):
                written, shift = self._written[index], height - float(points[index][1])
                moved = abs(shift) > MARK_SHIFT
                written.xyann = (MARK_GAP + (6 if moved else 0), shift)
                if written.arrow_patch is not None:
                    written.arrow_patch.set_visible(moved)


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

"""Axes for perplexities: where they end, their ticks, and the numbers of the runs at the ends of their lines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from analysis import look
from analysis.curve import Progress, Values

CUT_FACTOR = 5.0
"""An axis that several runs share ends at this many times the median of their best perplexities."""

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
    return CUT_FACTOR * float(np.median(lowest)) if len(lowest) > 1 else math.inf


def label_perplexity(axes: Axes, scale: Scale, label: str, *, most_ticks: int) -> None:
    """Set up the vertical axis."""
    axes.set_ylabel(label)
    if scale.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(FixedLocator(_log_ticks(scale, most_ticks)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(most_ticks - 1))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}" if value < 1e7 else f"{value:.0e}"))
    axes.set_ylim(scale.low, scale.high)


def _log_ticks(scale: Scale, most: int) -> list[float]:
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


def place_numbers(axes: Axes, marks: Iterable[tuple[float, float, str, str]]) -> None:
    """Write texts right of points (x, y, text, colour), moved up where they would cover one another."""
    points_per_pixel = 72 / axes.get_figure(root=True).dpi  # type: ignore[union-attr]
    taken: list[tuple[float, float, float]] = []
    placed = sorted(((*axes.transData.transform((x, y)), x, y, text, colour) for x, y, text, colour in marks))
    for pixel_x, pixel_y, x, y, text, colour in sorted(placed, key=lambda mark: (mark[1], mark[4])):
        left, height, width = pixel_x * points_per_pixel, pixel_y * points_per_pixel, 5.5 * len(text)
        right, shifted = left + width, height
        for other_left, other_right, other_height in sorted(taken, key=lambda box: box[2]):
            if left < other_right and other_left < right and abs(shifted - other_height) < 8.5:
                shifted = other_height + 8.5
        taken.append((left, right, shifted))
        axes.annotate(
            text,
            (x, y),
            xytext=(5, shifted - height),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            fontweight="bold",
            color=look.shade(colour, -0.15),
            annotation_clip=False,
            bbox={"boxstyle": "round,pad=0.1", "facecolor": look.PAPER, "edgecolor": "none", "alpha": 0.8},
            zorder=4,
        )

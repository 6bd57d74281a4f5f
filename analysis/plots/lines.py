"""The lines of a figure: each curve with its number, its entry in the legend, and the crowd behind them."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.blocks.figure import Line, key_mark, run_mark
from analysis.plots import look
from analysis.plots.axes import Mark, Scale
from analysis.plots.curves import Curve
from analysis.study import units
from analysis.study.numbering import RunNumber
from analysis.study.values import Values

Factor: TypeAlias = Literal["arch", "optimizer"]
"""By what the columns of a legend are made."""

MOST_LINES = 24
"""From more curves than this in one pair of axes, only the best stand out."""

STANDING_OUT = 10
"""How many stand out then."""

LETTERS = 84
"""Of all labels in a line of a legend."""
CHUNK = 50
"""Curves of the crowd in one path: few elements for the page, and short enough for the rasteriser."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Curves of one pair of axes, parted into those with colour and number, and the crowd in grey."""

    named: list[Curve]
    crowd: list[Curve]

    @property
    def all(self) -> list[Curve]:
        return [*self.named, *self.crowd]

    def among(self, curves: Sequence[Curve]) -> Choice:
        """The same choice among the same curves over another progress."""
        styles = {curve.number: curve.style for curve in self.named}
        return Choice(
            named=[dataclasses.replace(c, style=styles[c.number]) for c in curves if c.number in styles],
            crowd=[curve for curve in curves if curve.number not in styles],
        )


def choose(curves: Sequence[Curve]) -> Choice:
    """All curves where they are few; else, in turn, the best of each architecture with each optimizer on each text."""
    if len(curves) <= MOST_LINES:
        return Choice(named=list(curves), crowd=[])
    ordered = sorted(curves, key=lambda curve: (curve.best, curve.number))
    in_turn = sorted(zip(_places(ordered), range(len(ordered)), strict=True))
    best = {ordered[place].number for _, place in in_turn[:STANDING_OUT]}
    named = [curve for curve in curves if curve.number in best]
    styles = [look.line_style(c.arch, c.optimizer, place) for c, place in zip(named, _places(named), strict=True)]
    return Choice(
        named=[dataclasses.replace(curve, style=style) for curve, style in zip(named, styles, strict=True)],
        crowd=[curve for curve in curves if curve.number not in best],
    )


def _places(curves: Sequence[Curve]) -> list[int]:
    """The place of each curve among those of its architecture with its optimizer on its text."""
    counts = Counter[tuple[str | None, ...]]()
    places = []
    for curve in curves:
        kind = curve.arch, curve.optimizer, curve.text
        places.append(counts[kind])
        counts[kind] += 1
    return places


# -- curves --------------------------------------------------------------------------------------------------------


def draw_crowd(axes: Axes, curves: Sequence[Curve]) -> None:
    """Thin grey lines, without a number; a small cross where one ended early."""
    gap = [math.nan]
    for start in range(0, len(curves), CHUNK):
        chunk = curves[start : start + CHUNK]
        x = np.concatenate([part for curve in chunk for part in (curve.progress, gap)])
        y = np.concatenate([part for curve in chunk for part in (curve.val_ppl, gap)])
        axes.plot(x, y, color=look.CROWD[0], linewidth=0.5, alpha=0.6, zorder=1.5)
    ends = [curve.early_end for curve in curves if curve.early_end is not None]
    if ends:
        axes.plot(*zip(*ends, strict=True), "x", color=look.CROWD[0], markersize=4, mew=1, zorder=1.5)


def draw_curve(axes: Axes, curve: Curve) -> None:
    """The line with about eight markers, the band of its seeds, and a cross where it ended early."""
    style, gid = curve.style, run_mark(curve.number)
    if curve.low is not None and curve.high is not None:
        axes.fill_between(curve.progress, curve.low, curve.high, color=style.colour, alpha=0.2, linewidth=0, gid=gid)
    spacing = max(1, math.ceil(len(curve.val_ppl) / 8))
    markers = (int(curve.number) % spacing, spacing)
    axes.plot(curve.progress, curve.val_ppl, markevery=markers, marker=style.marker, gid=gid, **style.line)
    mark_end(axes, curve)


def mark_end(axes: Axes, curve: Curve) -> None:
    """A cross on the last validation perplexity of a run that ended early."""
    if curve.early_end is not None:
        axes.plot(*curve.early_end, "x", color=curve.style.colour, markersize=7, mew=2, gid=run_mark(curve.number))


def number_mark(curve: Curve, scale: Scale) -> Mark:
    """The number at the last point that the axis shows; with an arrow where the line goes on above it."""
    finite = np.flatnonzero(np.isfinite(curve.val_ppl))
    place, y, text = finite[-1], curve.val_ppl[finite[-1]], str(curve.number)
    if y > scale.high:
        shown = np.flatnonzero(curve.val_ppl[finite] <= scale.high)
        place = finite[shown[-1] + 1] if len(shown) else finite[len(finite) // 2]
        y, text = scale.high, f"{curve.number} ▲"
    return Mark(x=curve.progress[place], y=y, text=text, colour=curve.style.colour, run=curve.number)


def pointer_line(curve: Curve) -> Line:
    """What the page shows of a curve under the pointer."""
    seeds = f", mean of {len(curve.runs)} seeds" if len(curve.runs) > 1 else ""
    return Line(label=f"{curve.reference}{seeds}", x=curve.progress, y=curve.val_ppl, run=curve.number)


def shown_values(curves: Sequence[Curve]) -> list[Values]:
    """The validation perplexities of curves, with the edges of their bands."""
    return [np.concatenate(curve.drawn) for curve in curves]


# -- legend --------------------------------------------------------------------------------------------------------


def legend_columns(curves: Sequence[Curve], by: Factor = "arch") -> tuple[list[Line2D], int]:
    """Return legend entries, and the number of their columns: one with a title for each value, or three."""
    names = units.ARCHITECTURES if by == "arch" else units.OPTIMIZERS
    members: dict[str, list[Line2D]] = {title: [] for title in [*names.values(), units.UNKNOWN]}
    for curve in curves:
        members[names.get(getattr(curve, by), units.UNKNOWN)].append(legend_entry(curve))
    columns = [[_text(title), *entries] for title, entries in members.items() if entries]
    if len(columns) == 1:
        return columns[0], 3
    if len(columns) > 3:  # as wide as three columns of whole labels
        for entry in (entry for column in columns for entry in column[1:]):
            entry.set_label(units.shortened(str(entry.get_label()), LETTERS // len(columns) - 3))
    longest = max(map(len, columns))
    return [entry for column in columns for entry in [*column, *[_text(" ")] * (longest - len(column))]], len(columns)


def _text(label: str) -> Line2D:
    return Line2D([], [], linestyle="", label=label)


def legend_entry(curve: Curve) -> Line2D:
    """Return the line that stands for a curve in a legend."""
    return run_entry(curve.number, curve.label, curve.style, marker=curve.style.marker)


def run_entry(number: RunNumber, label: str, style: look.LineStyle, marker: str = "") -> Line2D:
    """Return a legend entry on which a reader clicks to hide and show a run."""
    return Line2D([], [], marker=marker, label=label, gid=key_mark(number), **style.line)

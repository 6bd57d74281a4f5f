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
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.blocks.figure import Line, key_mark, run_mark
from analysis.plots import look
from analysis.plots.axes import Mark, Scale
from analysis.plots.curves import Curve
from analysis.study import units
from analysis.study.values import Values

Factor: TypeAlias = Literal["arch", "optimizer"]
"""By what the columns of a legend are made."""

MOST_LINES = 24
"""From more curves than this in one pair of axes, only the best stand out."""

STANDING_OUT = 10
"""How many stand out then."""

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
    """All curves where they are few; else, in turn, the best of each architecture with each optimizer."""
    if len(curves) <= MOST_LINES:
        return Choice(named=list(curves), crowd=[])
    places: Counter[tuple[str | None, str | None]] = Counter()
    ranked = []
    for curve in sorted(curves, key=lambda curve: (curve.best, curve.number)):
        kind = (curve.arch, curve.optimizer)
        ranked.append((places[kind], curve.best, curve.number))
        places[kind] += 1
    best = {number for _, _, number in sorted(ranked)[:STANDING_OUT]}
    return Choice(
        named=_restyled([curve for curve in curves if curve.number in best]),
        crowd=[curve for curve in curves if curve.number not in best],
    )


def _restyled(curves: Sequence[Curve]) -> list[Curve]:
    """With the shades counted among these few alone, or two of them might look the same."""
    places: Counter[tuple[str | None, str | None]] = Counter()
    restyled = []
    for curve in curves:
        kind = (curve.arch, curve.optimizer)
        restyled.append(dataclasses.replace(curve, style=look.line_style(*kind, places[kind])))
        places[kind] += 1
    return restyled


# -- curves --------------------------------------------------------------------------------------------------------


def draw_crowd(axes: Axes, curves: Sequence[Curve]) -> None:
    """Thin grey lines, without a number; a small cross where one ended early."""
    gap = [math.nan]
    for start in range(0, len(curves), CHUNK):
        chunk = curves[start : start + CHUNK]
        x = np.concatenate([part for curve in chunk for part in (curve.progress, gap)])
        y = np.concatenate([part for curve in chunk for part in (curve.val_ppl, gap)])
        axes.plot(x, y, color=look.CROWD[0], linewidth=0.5, alpha=0.6, zorder=1.5)
    ends = [(curve.progress[last], curve.val_ppl[last]) for curve in curves if (last := _early_end(curve)) is not None]
    if ends:
        axes.plot(*zip(*ends, strict=True), "x", color=look.CROWD[0], markersize=4, mew=1, zorder=1.5)


def draw_curve(axes: Axes, curve: Curve, *, markers: int = 8) -> None:
    """The line with about so many markers, the band of its seeds, and a cross where it ended early."""
    style, gid = curve.style, run_mark(curve.number)
    if curve.low is not None and curve.high is not None:
        axes.fill_between(curve.progress, curve.low, curve.high, color=style.colour, alpha=0.2, linewidth=0, gid=gid)
    spacing = max(1, math.ceil(len(curve.val_ppl) / markers))
    axes.plot(
        curve.progress,
        curve.val_ppl,
        color=style.colour,
        linestyle=style.dashes,
        marker=style.marker,
        markevery=(int(curve.number) % spacing, spacing),
        gid=gid,
    )
    mark_end(axes, curve)


def mark_end(axes: Axes, curve: Curve) -> None:
    """A cross on the last validation perplexity of a run that ended early."""
    last = _early_end(curve)
    if last is not None:
        x, y = curve.progress[last], curve.val_ppl[last]
        axes.plot(x, y, "x", color=curve.style.colour, markersize=7, mew=2, gid=run_mark(curve.number))


def _early_end(curve: Curve) -> int | None:
    there = np.flatnonzero(np.isfinite(curve.val_ppl))
    return int(there[-1]) if curve.ended_early and len(there) else None


def number_mark(curve: Curve, scale: Scale) -> Mark:
    """The number at the last point that the axis shows; with an arrow where the line goes on above it."""
    finite = np.flatnonzero(np.isfinite(curve.val_ppl))
    last = finite[-1]
    if curve.val_ppl[last] <= scale.high:
        x, y = curve.progress[last], curve.val_ppl[last]
        return Mark(x=x, y=y, text=str(curve.number), colour=curve.style.colour, run=curve.number)
    shown = [index for index in finite if curve.val_ppl[index] <= scale.high]
    leaves = finite[np.searchsorted(finite, shown[-1]) + 1] if shown else finite[len(finite) // 2]
    return Mark(
        x=curve.progress[leaves], y=scale.high, text=f"{curve.number} ▲", colour=curve.style.colour, run=curve.number
    )


def pointer_line(curve: Curve) -> Line:
    """What the page shows of a curve under the pointer."""
    label = f"{curve.reference}, mean of {len(curve.runs)} seeds" if curve.runs else curve.reference
    return Line(label=label, x=curve.progress, y=curve.val_ppl, run=curve.number)


def shown_values(curves: Sequence[Curve]) -> list[Values]:
    """The validation perplexities of curves, with the edges of their bands."""
    return [np.concatenate(curve.drawn) for curve in curves]


# -- legend --------------------------------------------------------------------------------------------------------


def legend_columns(curves: Sequence[Curve], by: Factor = "arch") -> list[list[Line2D]]:
    """Legend entries in columns of equal length: one, with its title, for each value, or three if there is but one."""
    names = units.ARCHITECTURES if by == "arch" else units.OPTIMIZERS
    members: dict[str, list[Line2D]] = {title: [] for title in [*names.values(), units.UNKNOWN]}
    for curve in curves:
        members[names.get(getattr(curve, by), units.UNKNOWN)].append(legend_entry(curve))
    columns = [[_text(title), *entries] for title, entries in members.items() if entries]
    return even_columns(columns[0]) if len(columns) == 1 else _padded(columns)


def even_columns(entries: Sequence[Line2D]) -> list[list[Line2D]]:
    """Legend entries in up to three columns of equal length."""
    length = math.ceil(len(entries) / 3)
    return _padded([entries[start : start + length] for start in range(0, len(entries), length)])


def _padded(columns: Sequence[Sequence[Line2D]]) -> list[list[Line2D]]:
    longest = max(len(column) for column in columns)
    return [[*column, *[_text(" ")] * (longest - len(column))] for column in columns]


def _text(label: str) -> Line2D:
    return Line2D([], [], linestyle="", label=label)


def legend_entry(curve: Curve) -> Line2D:
    """Return the line that stands for a curve in a legend."""
    style = curve.style
    return Line2D(
        [],
        [],
        color=style.colour,
        linestyle=style.dashes,
        marker=style.marker,
        label=curve.label,
        gid=key_mark(curve.number),
    )


def legend_inches(columns: Sequence[Sequence[Line2D]]) -> float:
    """The height that a legend takes."""
    return 0.19 * len(columns[0])


def add_legend(figure: Figure, columns: Sequence[Sequence[Line2D]]) -> None:
    """The legend at the foot of the figure."""
    entries = [entry for column in columns for entry in column]
    legend = figure.legend(
        handles=entries,
        ncols=len(columns),
        loc="lower left",
        bbox_to_anchor=(0.065, 0.0),
        handlelength=3.4,
        fontsize=8,
        labelspacing=0.3,
        columnspacing=2.4,
    )
    titles = {*units.ARCHITECTURES.values(), *units.OPTIMIZERS.values(), units.UNKNOWN}
    for entry, line, text in zip(entries, legend.get_lines(), legend.get_texts(), strict=True):
        line.set_gid(entry.get_gid())
        text.set_gid(entry.get_gid())
        if entry.get_gid() is None and text.get_text() in titles:
            text.set_fontweight("bold")

"""The best perplexity of each optimizer with each architecture, as a map of colours with its numbers."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.blocks.figure import Chart
from analysis.blocks.texts import scope
from analysis.plots import look
from analysis.plots.axes import log_ticks
from analysis.study import units
from analysis.study.comparison import finished
from analysis.study.study import Study

COLOURS = "cividis"
"""Perceptually uniform, and nearly the same to the colour-blind (Nuñez, Anderton and Renslow, 2018)."""

BAR_STEPS = 48
"""Steps of the colour bar; from 50 on, matplotlib would draw it as an image, which no other part of the page is."""


def map_cells(study: Study) -> dict[tuple[str, str], Any]:
    """Return the cells that have a finished run, by optimizer and architecture as in print.

    Each has the lowest perplexity ``val_ppl``, the number ``run`` of its run, and how many runs finished, ``n``.
    """
    done = finished(study.runs).sort_values("number").sort_values("val_ppl", kind="stable")
    keys = [done["optimizer"].map(units.optimizer), done["arch"].map(units.architecture)]
    cells = done.groupby(keys).agg(val_ppl=("val_ppl", "first"), run=("number", "first"), n=("number", "size"))
    return dict(zip(cells.index, cells.itertuples(), strict=True))


@look.applied()
def heat_map(study: Study) -> Chart:
    """Optimizers by architectures; needs a finished run."""
    cells = map_cells(study)
    rows = units.names_of(units.OPTIMIZERS, study.runs["optimizer"])
    columns = units.names_of(units.ARCHITECTURES, study.runs["arch"])
    caption = (
        "Lowest validation perplexity of the finished runs, the number of that run, and how many runs finished (n): "
        "more runs have more chances to be low."
    )
    if len(cells) < len(rows) * len(columns):
        caption += f" {units.MISSING}: no finished run."
    caption += scope(study)
    return Chart(
        name="optimizer-architecture",
        title="Best validation perplexity of each optimizer with each architecture",
        caption=caption,
        figure=_draw(cells, rows, columns),
    )


def _draw(cells: dict[tuple[str, str], Any], rows: list[str], columns: list[str]) -> Figure:
    width = min(look.WIDTH_INCHES, 2.5 + 1.7 * len(columns))
    layout = ConstrainedLayoutEngine(rect=(0, 0, width / look.WIDTH_INCHES, 1))
    figure = Figure(figsize=(look.WIDTH_INCHES, 0.6 + 0.62 * len(rows)), layout=layout)
    axes = figure.add_subplot()
    values = [cell.val_ppl for cell in cells.values()]
    low, high = min(values), max(values)
    norm = LogNorm(low / 1.02, high * 1.02) if low == high else LogNorm(low, high)
    colours = ScalarMappable(norm, colormaps[COLOURS])
    centre: dict[str, Any] = {"ha": "center", "va": "center"}
    for (row, optimizer), (column, arch) in itertools.product(enumerate(rows), enumerate(columns)):
        cell = cells.get((optimizer, arch))
        box = Rectangle((column, row), 1, 1, facecolor="none", edgecolor=look.GRID, linewidth=1)
        axes.add_patch(box)
        if cell is None:
            axes.text(column + 0.5, row + 0.5, units.MISSING, color=look.MUTED, **centre)
            continue
        colour = to_hex(tuple(colours.to_rgba(np.array([cell.val_ppl]))[0]))
        box.set(facecolor=colour, edgecolor=look.PAPER, linewidth=1.5)
        style = {"color": look.ink_on(colour), **centre}
        axes.text(column + 0.5, row + 0.4, units.perplexity(cell.val_ppl), fontweight="bold", fontsize=10, **style)
        axes.text(column + 0.5, row + 0.74, f"run {cell.run}, n = {cell.n}", fontsize=7.5, **style)
    axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0), xlabel="Architecture", ylabel="Optimizer")
    axes.set_xticks([place + 0.5 for place in range(len(columns))], columns)
    axes.set_yticks([place + 0.5 for place in range(len(rows))], rows)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    if low < high:
        bar = figure.colorbar(ScalarMappable(norm, colormaps[COLOURS].resampled(BAR_STEPS)), ax=axes, aspect=15)
        assert bar.solids is not None, "a bar of colours, not of lines"
        bar.solids.set_edgecolor("face")  # else the page's background shines through between the steps
        ticks = log_ticks(low, high, 6)
        bar.ax.yaxis.set_major_locator(FixedLocator(ticks if len(ticks) > 1 else [low, high]))
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: units.rounded(value)))
        bar.ax.tick_params(labelsize=7.5)
        bar.set_label("Validation perplexity", fontsize=8)
        bar.outline.set_visible(False)
    return figure

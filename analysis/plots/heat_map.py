"""The best perplexity of each optimizer with each architecture, as a map of colours with its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.blocks.figure import Chart
from analysis.plots import look
from analysis.plots.axes import Scale, log_ticks
from analysis.study import units
from analysis.study.numbering import RunNumber
from analysis.study.settings import finished
from analysis.study.study import Study

COLOURS = "cividis"
"""Perceptually uniform, and nearly the same to the colour-blind (Nuñez, Anderton and Renslow, 2018)."""

BAR_STEPS = 48
"""Steps of the colour bar; from 50 on, matplotlib would draw it as an image, which no other part of the page is."""


@dataclass(frozen=True, kw_only=True)
class MapCell:
    """The finished runs of one optimizer with one architecture."""

    val_ppl: float
    """The lowest."""
    run: RunNumber
    """Number of the run that has it."""
    n: int


def map_cells(study: Study) -> dict[tuple[str, str], MapCell]:
    """The cells that have a finished run, by optimizer and architecture as in print."""
    cells: dict[tuple[str, str], MapCell] = {}
    columns = ["number", "arch", "optimizer", "val_ppl"]
    for run in finished(study.runs)[columns].sort_values("number").to_dict("records"):
        key = units.optimizer(run["optimizer"]), units.architecture(run["arch"])
        before = cells.get(key)
        if before is None or run["val_ppl"] < before.val_ppl:
            cells[key] = MapCell(val_ppl=run["val_ppl"], run=run["number"], n=before.n + 1 if before else 1)
        else:
            cells[key] = MapCell(val_ppl=before.val_ppl, run=before.run, n=before.n + 1)
    return cells


def heat_map(study: Study) -> Chart:
    """Optimizers by architectures; needs a finished run."""
    cells = map_cells(study)
    rows = _names(units.OPTIMIZERS, study.runs["optimizer"])
    columns = _names(units.ARCHITECTURES, study.runs["arch"])
    with look.applied():
        figure = _draw(cells, rows, columns)
    caption = (
        "Lowest validation perplexity of the finished runs, the number of that run, and how many runs finished (n): "
        "more runs have more chances to be low."
    )
    if len(cells) < len(rows) * len(columns):
        caption += f" {units.MISSING}: no finished run."
    return Chart(
        name="optimizer-architecture",
        title="Best validation perplexity of each optimizer with each architecture",
        caption=caption,
        figure=figure,
    )


def _names(known: dict[str, str], found: Any) -> list[str]:
    """Those of the study, in the report's order."""
    there = {known.get(key, units.UNKNOWN) for key in found}
    return [name for name in [*known.values(), units.UNKNOWN] if name in there]


def _draw(cells: dict[tuple[str, str], MapCell], rows: list[str], columns: list[str]) -> Figure:
    left, right, top, bottom, cell_height = 1.2, 1.3, 0.1, 0.5, 0.62
    cell_width = min(1.7, (look.WIDTH_INCHES - left - right) / len(columns))
    width, height = look.WIDTH_INCHES, top + bottom + cell_height * len(rows)
    figure = Figure(figsize=(width, height))
    box = (left / width, bottom / height, cell_width * len(columns) / width, cell_height * len(rows) / height)
    axes = figure.add_axes(box)
    values = [cell.val_ppl for cell in cells.values()]
    low, high = min(values), max(values)
    norm = LogNorm(low / 1.02, high * 1.02) if low == high else LogNorm(low, high)
    mappable = ScalarMappable(norm, colormaps[COLOURS])
    for row, optimizer in enumerate(rows):
        for column, arch in enumerate(columns):
            _draw_cell(axes, column, row, cells.get((optimizer, arch)), mappable)
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(rows), 0)
    axes.set_xticks([place + 0.5 for place in range(len(columns))], columns)
    axes.set_yticks([place + 0.5 for place in range(len(rows))], rows)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_ylabel("Optimizer")
    axes.set_xlabel("Architecture")
    if len(values) > 1 and low < high:
        bar_axes = figure.add_axes((box[0] + box[2] + 0.2 / width, box[1], 0.14 / width, box[3]))
        steps = colormaps[COLOURS].resampled(BAR_STEPS)
        bar = figure.colorbar(ScalarMappable(norm, steps), cax=bar_axes)
        assert bar.solids is not None, "a bar of colours, not of lines"
        bar.solids.set_edgecolor("face")  # else the page's background shines through between the steps
        ticks = log_ticks(Scale(low=low, high=high, logarithmic=True), 6)
        bar.ax.yaxis.set_major_locator(FixedLocator(ticks if len(ticks) > 1 else [low, high]))
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: units.rounded(value)))
        bar.ax.tick_params(labelsize=7.5)
        bar.set_label("Validation perplexity", fontsize=8)
        bar.outline.set_visible(False)
    return figure


def _draw_cell(axes: Axes, column: int, row: int, cell: MapCell | None, mappable: ScalarMappable) -> None:
    place: dict[str, Any] = {"ha": "center", "va": "center"}
    if cell is None:
        box = Rectangle((column, row), 1, 1, facecolor="none", edgecolor=look.GRID, linewidth=1)
        axes.add_patch(box)
        axes.text(column + 0.5, row + 0.5, units.MISSING, color=look.MUTED, **place)
        return
    colour = to_hex(tuple(mappable.to_rgba(np.array([cell.val_ppl]))[0]))
    axes.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, edgecolor=look.PAPER, linewidth=1.5))
    ink = look.ink_on(colour)
    axes.text(
        column + 0.5, row + 0.4, units.perplexity(cell.val_ppl), color=ink, fontweight="bold", fontsize=10, **place
    )
    axes.text(column + 0.5, row + 0.74, f"run {cell.run}, n = {cell.n}", color=ink, fontsize=7.5, **place)

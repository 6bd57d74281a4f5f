"""Each panel of a figure as a file of its own for a column of a paper: 3.3 inches wide, in type of 7 to 8 points."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.blocks.figure import Chart
from analysis.plots import look
from analysis.plots.axes import place_again
from analysis.plots.files import figure_bytes

WIDTH_INCHES, PANEL_INCHES = 3.3, 1.75
SMALL, TITLE = 7.0, 8.0
"""Sizes of type, in points."""


@look.applied()
def column_files(chart: Chart) -> list[tuple[str, bytes]]:
    """Return the name and content of a PDF for each panel. Call it last: the figure is taken apart."""
    panels = list(chart.figure.axes)
    names = [(_label(panels, place, "y"), _label(panels, place, "x")) for place in range(len(panels))]
    files = []
    for place, axes in enumerate(panels):
        lay_out(chart.figure, axes, *names[place])
        number = f"-{place + 1}" if len(panels) > 1 else ""
        files.append((f"{chart.name}{number}.pdf", figure_bytes(chart.figure, "pdf")))
    return files


def _label(panels: list[Axes], place: int, of: str) -> str:
    """Return the name of an axis; in a grid it is in the first column, or beneath the last row."""
    nearby = panels[place::-1] if of == "y" else panels[place:]
    found = (axes.get_ylabel() if of == "y" else axes.get_xlabel() for axes in nearby)
    return next((name for name in found if name), "")


def lay_out(figure: Figure, axes: Axes, y: str, x: str) -> None:
    """Show one panel alone at the width of a column, with its legend beneath."""
    for other in figure.axes:
        other.set_visible(other is axes)
    rows = _legend(figure)
    title = axes.get_title(loc="left")
    labels = max((len(label.get_text()) for label in axes.get_yticklabels()), default=0)
    has_names = labels > 8  # of rows, not numbers
    left = 0.05 + 0.058 * labels if has_names else 0.62
    top, below, right = 0.08 + 0.13 * (title.count("\n") + 1) * bool(title), 0.42 + 0.135 * (rows + x.count("; ")), 0.33
    inner = figure.get_figheight() * axes.get_position().height if has_names else PANEL_INCHES
    height = top + inner + below
    figure.set_size_inches(WIDTH_INCHES, height)
    axes.set_position((left / WIDTH_INCHES, below / height, 1 - (left + right) / WIDTH_INCHES, inner / height))
    axes.tick_params(labelsize=SMALL, labelleft=True)
    axes.set_xlabel(x.replace("; ", "\n"), fontsize=7.5)
    axes.set_ylabel(y, fontsize=7.5)
    axes.xaxis.set_label_coords(0.5, -0.2 / inner)
    axes.yaxis.set_label_coords(-0.47 / (WIDTH_INCHES - left - right), 0.5)
    if has_names:
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.xaxis.set_label_coords(1.0, -0.2 / inner)
        axes.xaxis.label.set_horizontalalignment("right")
    if title:
        axes.set_title(title, loc="left", fontsize=TITLE)
    place_again(axes)
    for text in axes.texts:
        text.set_fontsize(SMALL)


def _legend(figure: Figure) -> int:
    """Arrange the entries of the legend in as many columns as fit; return their rows."""
    rows = 0
    for legend in list(figure.legends):
        handles, names = legend.legend_handles, [text.get_text() for text in legend.get_texts()]
        legend.remove()
        if not names:
            continue
        widest = max(len(name) for name in names) * 0.55 * SMALL + 32
        columns = min(len(names), max(1, int(72 * WIDTH_INCHES / widest)))
        style = {"fontsize": SMALL, "handlelength": 2.2, "labelspacing": 0.3, "columnspacing": 1.0, "borderpad": 0.2}
        figure.legend([handle for handle in handles if handle], names, ncols=columns, loc="lower left", **style)
        rows += math.ceil(len(names) / columns)
    return rows

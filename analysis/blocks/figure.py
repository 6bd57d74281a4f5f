"""A figure of the report with its caption, and what a reader's pointer finds in it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.study.numbering import RunNumber
from analysis.study.values import Values

TALL = 1.2
"""A figure of more than this many times its width is tall."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure with its caption. ``name`` is the stem of its files and its anchor on the page."""

    name: str
    title: str
    """First words of the caption."""
    caption: str
    figure: Figure
    message: str = ""
    """What it shows, in a sentence, for who does not see it. Empty: its caption says it."""

    def __post_init__(self) -> None:
        """Make what drawing in each format would make again."""
        for axis in (axis for axes in self.figure.axes for axis in (axes.xaxis, axes.yaxis)):
            ticks = axis.get_major_ticks(len(axis.get_majorticklocs()))  # slow to make: once for all formats
            if not axis.get_label_text():  # else each drawing measures all tick labels to find the place of no text
                axis.set_label_coords(0, 0)
                for tick in ticks:
                    tick.label1.set_in_layout(False)

    @property
    def is_tall(self) -> bool:
        """Whether it needs a sheet of its own, because half of one would make its type too small."""
        width, height = self.figure.get_size_inches()
        return bool(height > TALL * width)

    @cached_property
    def panels(self) -> list["Panel"]:
        """The axes that have lines with labels."""
        panels = [Panel(axes, _labelled(axes.lines)) for axes in self.figure.axes]
        return [panel for panel in panels if panel.lines]


class Line(NamedTuple):
    """What a line with a label shows under the pointer."""

    run: str | None
    """Number of the run that it is drawn for; it hides with the run."""
    label: str
    x: Values
    y: Values


class Panel(NamedTuple):
    """Axes with values that the page shows under the pointer."""

    axes: Axes
    lines: list[Line]

    def pointer_data(self) -> dict[str, Any]:
        """The panel for the page's script: its place in the SVG (points from the top left), and its values."""
        figure = self.axes.get_figure(root=True)
        assert figure is not None, "axes of a figure"
        width, height = figure.get_size_inches() * 72
        box = self.axes.get_position()
        names = str(self.axes.get_label()).split("|")
        scales = {
            name: {"limits": _rounded(axis.get_view_interval()), "log": axis.get_scale() == "log", "name": title}
            for name, axis, title in zip("xy", (self.axes.xaxis, self.axes.yaxis), names, strict=True)
        }
        lines = [line._asdict() | {"x": _rounded(line.x), "y": _rounded(line.y)} for line in self.lines]
        edges = [box.x0 * width, (1 - box.y1) * height, box.x1 * width, (1 - box.y0) * height]
        return {"box": _rounded(edges, digits=6), **scales, "lines": lines}


def name_values(axes: Axes, x: str, y: str = "perplexity") -> None:
    """Name the values of axes, for the page to show them under the pointer; empty: the value is not shown."""
    axes.set_label(f"{x}|{y}")


def run_mark(run: RunNumber) -> str:
    """The ``gid`` of whatever is drawn for a run, by which the page hides it."""
    return f"run-{run}"


def key_mark(run: RunNumber) -> str:
    """The ``gid`` of a run's entry in a legend, on which a reader clicks to hide and show the run."""
    return f"key-{run}"


def _labelled(lines: Iterable[Line2D]) -> list[Line]:
    """The lines that have a label of their own."""
    found = []
    for artist in lines:
        label, (word, _, number) = str(artist.get_label()), (artist.get_gid() or "").partition("-")
        if not label or label.startswith("_"):
            continue
        x, y = (np.asarray(values, dtype=np.float64) for values in artist.get_data())
        found.append(Line(number if word == "run" else None, label, x, y))
    return found


def _rounded(values: Sequence[float] | Values, digits: int = 5) -> list[float | None]:
    """Values rounded to ``digits`` significant digits; values that are not finite become null."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in map(float, values)]

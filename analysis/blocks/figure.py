"""A figure of the report with its caption, and what a reader's pointer finds in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.study.numbering import RunNumber
from analysis.study.values import Values

LAYOUT_DPI = 160
"""As in the PNG; with fewer dots, hinting makes small type narrower than it is in print."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a panel, for the values that the page shows under the pointer."""

    label: str
    """What it is: number and name of a run, and where needed which of its values."""
    x: Values
    y: Values
    run: RunNumber | None = None
    """Number of the run whose line it is; the line hides with it."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A pair of axes with lines whose values the page can show."""

    axes: Axes
    lines: list[Line]
    x_name: str = "epoch"
    """Before the value on the horizontal axis; a value without a name is not shown."""
    y_name: str = "perplexity"

    def pointer_data(self, figure: Figure) -> dict[str, Any]:
        """The panel for the page's script: its place in the SVG (points from the top left), and its values."""
        axes = self.axes
        width, height = figure.get_size_inches() * 72
        box = axes.get_position()
        return {
            "box": _rounded([box.x0 * width, (1 - box.y1) * height, box.x1 * width, (1 - box.y0) * height], digits=6),
            "x": {"limits": _rounded(axes.get_xlim()), "log": axes.get_xscale() == "log", "name": self.x_name},
            "y": {"limits": _rounded(axes.get_ylim()), "log": axes.get_yscale() == "log", "name": self.y_name},
            "lines": [
                {"run": line.run, "label": line.label, "x": _rounded(line.x), "y": _rounded(line.y)}
                for line in self.lines
            ],
        }


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure with its caption. ``name`` is the stem of its files and its anchor on the page."""

    kind: ClassVar[str] = "chart"

    name: str
    title: str
    """First words of the caption."""
    caption: str
    figure: Figure
    panels: list[Panel] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Fix the layout, which the page needs to know and drawing in each format would work out again."""
        FigureCanvasAgg(self.figure)
        self.figure.set_dpi(LAYOUT_DPI)
        engine = self.figure.get_layout_engine()
        if engine is not None:
            engine.execute(self.figure)
            self.figure.set_layout_engine("none")
        for axis in (axis for axes in self.figure.axes for axis in (axes.xaxis, axes.yaxis)):
            ticks = axis.get_major_ticks(len(axis.get_majorticklocs()))  # slow to make: once for all formats
            if not axis.get_label_text():  # else each drawing measures all tick labels to find the place of no text
                axis.set_label_coords(0, 0)
                for tick in ticks:
                    tick.label1.set_in_layout(False)


def run_mark(run: RunNumber) -> str:
    """The ``gid`` of whatever is drawn for a run, by which the page hides it."""
    return f"run-{run}"


def key_mark(run: RunNumber) -> str:
    """The ``gid`` of a run's entry in a legend, on which a reader clicks to hide and show the run."""
    return f"key-{run}"


def _rounded(values: Sequence[float] | Values, digits: int = 5) -> list[float | None]:
    """Values rounded to ``digits`` significant digits; values that are not finite become null."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in map(float, values)]

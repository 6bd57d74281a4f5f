"""The trace of a run: its loss, or what else is recorded, at each training step."""

import math
from collections.abc import Collection
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from analysis.blocks.figure import Chart, name_values, run_mark
from analysis.plots import look
from analysis.plots.axes import CUT_FACTOR, fit, label_grid, panel_grid
from analysis.plots.curves import LABEL_LENGTH, MOST_LINES
from analysis.study import units
from analysis.study.numbering import RunNumber
from analysis.study.study import StudyFiles
from analysis.study.values import Values, read_or_warn, rows_of, steps_of
from seqlm.trace import Trace, read_trace

MOST_PARTS = 100
"""Most parts in which the steps of a run are drawn."""


@look.applied()
def steps_chart(study: StudyFiles, numbers: Collection[RunNumber]) -> Chart | None:
    """The training loss of the steps, a panel for each run with a trace; of more than ``MOST_LINES`` runs of some.

    ``None``: none of them has a trace.
    """
    runs = study.runs if len(study.runs) <= MOST_LINES else study.runs[study.runs["number"].isin(numbers)]

    def read(run: Any) -> Trace | None:
        trace = read_or_warn(lambda: read_trace(study.directory_of(run.id)), None, study.warnings)
        return trace if trace and trace.rows else None

    longest, traced = 0.0, []
    for run in rows_of(runs[["number", "id", "name", "arch", "optimizer"]]):  # all of them at once may be large
        if (trace := read(run)) is not None:
            longest = max(longest, len(trace.rows) / trace.steps)
            traced.append(run)
    if not traced:
        return None
    entries = [Line2D([], [], color=look.MUTED, label="mean"), Patch(color=look.MUTED, alpha=0.3, label="range")]
    figure, grid = panel_grid(len(traced), 1.1, entries)
    for axes, run in zip(grid, traced, strict=True):
        if (trace := read(run)) is None:
            continue  # it has vanished since
        losses = steps_of(trace)[:, 0]
        cut = CUT_FACTOR * float(np.min(losses, where=np.isfinite(losses), initial=math.inf))
        style = {"color": look.colour_of(run.arch), "gid": run_mark(run.number), "label": f"{run.number} {run.name}"}
        draw_steps(axes, np.arange(1.0, len(losses) + 1) / trace.steps, losses, cut, **style)
        short = units.short_name(run.name, LABEL_LENGTH - len(str(run.number)) - 2, run.arch, run.optimizer)
        axes.set_title(f"{run.number}  {short}", loc="left", fontsize=8)
        axes.set_xlim(0, longest * 1.015)
        name_values(axes, "epochs", "loss (nats)")
    label_grid(grid, "Loss (nats)", "Epochs")
    caption = f"Mean and range of the steps in each of {MOST_PARTS} parts of a run."
    return Chart(name="steps", title="Training loss within epochs", caption=caption, figure=figure)


def draw_steps(
    axes: Axes, epochs: Values, values: NDArray[np.floating[Any]], cut: float = math.inf, **style: Any
) -> Axes:
    """Draw the values of steps over ``epochs``: mean and range in each part of the steps with finite values.

    The vertical axis ends at ``cut``.
    """
    places = np.flatnonzero(np.isfinite(values))
    parts = np.array_split(places, min(len(places), MOST_PARTS) or 1)[: len(places)]
    x, mean = (np.array([column[part].mean(dtype=np.float64) for part in parts]) for column in (epochs, values))
    low, high = (np.array([end(values[part]) for part in parts]) for end in (np.min, np.max))
    band = {key: value for key, value in style.items() if key != "label"}
    axes.fill_between(x, low, high, alpha=0.3, linewidth=0, **band)
    axes.plot(x, mean, linewidth=1.1, **style)
    axes.set_xlabel("Epochs")
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    fit(axes, "y", [low, high], cut_at=cut, ticks=5)
    return axes

"""A small panel for each run, with its training and its validation perplexity; of many runs, for the best."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import look
from analysis.axes import SINGLE_CUT_FACTOR, Scale, label_perplexity, label_progress, scale_for
from analysis.captions import panels_caption, spoken
from analysis.chart import Chart, Line, Panel, run_mark
from analysis.curve import Curve, Progress, progress_name, time_unit
from analysis.lines import mark_end
from analysis.load import Study

WIDTH_INCHES = 7.6
COLUMNS = 3
MOST_PANELS = 48
"""With more runs than this, the best of each setting has a panel, and of the settings the best."""

TRAINING_DASHES = (0, (3, 1.5))


def panels_chart(study: Study, curves: Sequence[Curve], progress: Progress) -> Chart:
    """Training and validation perplexity of each run in a panel of its own."""
    shown = choose_panels(curves)
    rows = math.ceil(len(shown) / COLUMNS)
    height = 1.75 * rows + 0.85
    figure = Figure(figsize=(WIDTH_INCHES, height))
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
    figure.subplots_adjust(left=0.085, right=0.985, top=1 - 0.55 / height, bottom=0.5 / height, wspace=0.3, hspace=0.52)
    scales = []
    for axes, curve in zip(grid.flat, shown, strict=False):
        spans = shown if progress == "epochs" else [curve]
        scales.append(_draw_panel(axes, curve))
        label_progress(axes, progress, time_unit(study)[1], [other.progress for other in spans])
    for place, axes in enumerate(grid.flat):
        if place >= len(shown):
            axes.set_axis_off()
        if place % COLUMNS:
            axes.set_ylabel("")
        if place + COLUMNS < len(shown):
            axes.set_xlabel("")
    figure.legend(
        handles=[
            Line2D([], [], color=look.MUTED, linestyle="-", label="validation"),
            Line2D([], [], color=look.MUTED, linestyle=TRAINING_DASHES, linewidth=1.1, label="training"),
        ],
        ncols=2,
        loc="upper left",
        bbox_to_anchor=(0.065, 1.0),
        fontsize=8,
    )
    return Chart(
        name=f"runs-{progress}",
        title=f"Training and validation perplexity of {'each run' if len(shown) == len(curves) else 'the best runs'} "
        f"over {spoken(progress)}",
        caption=panels_caption(study, curves, shown, scales, progress),
        figure=figure,
        panels=[
            Panel(axes=axes, lines=_lines(curve), x_name=progress_name(study, progress))
            for axes, curve in zip(grid.flat, shown, strict=False)
        ],
    )


def choose_panels(curves: Sequence[Curve]) -> list[Curve]:
    """All runs; of more than ``MOST_PANELS`` the best of each setting, and of more settings the best, by number."""
    if len(curves) <= MOST_PANELS:
        return list(curves)
    best: dict[int, Curve] = {}
    for curve in sorted(curves, key=_by_best):
        best.setdefault(curve.setting, curve)
    return sorted(list(best.values())[:MOST_PANELS], key=lambda curve: curve.number)


def _by_best(curve: Curve) -> tuple[float, int]:
    return (curve.best if curve.is_validated else math.inf, curve.number)


def _lines(curve: Curve) -> list[Line]:
    return [
        Line(label=f"{curve.reference}, {what}", x=curve.progress, y=values, run=curve.number)
        for what, values in (("training", curve.train_ppl), ("validation", curve.val_ppl))
    ]


def _draw_panel(axes: Axes, curve: Curve) -> Scale:
    both = [curve.train_ppl, curve.val_ppl]
    best = curve.best if curve.is_validated else math.inf
    scale = scale_for(both, cut_at=max(SINGLE_CUT_FACTOR * best, float(np.nanmin(np.concatenate(both)))))
    gid = run_mark(curve.number)
    colour = curve.style.colour
    axes.plot(curve.progress, curve.train_ppl, color=colour, linestyle=TRAINING_DASHES, linewidth=1.1, gid=gid)
    lone = "o" if len(curve.progress) == 1 else ""
    axes.plot(curve.progress, curve.val_ppl, color=colour, marker=lone, gid=gid)
    mark_end(axes, curve)
    label_perplexity(axes, scale, "Perplexity", most_ticks=5)
    axes.set_title(curve.label, loc="left", fontweight="bold", fontsize=8)
    axes.tick_params(labelsize=7.5)
    axes.xaxis.label.set_fontsize(8)
    axes.yaxis.label.set_fontsize(8)
    return scale

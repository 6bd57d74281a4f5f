"""The learning curves of a study, as figures with their captions.

Two kinds: all runs on one pair of axes (validation only), and a small panel for each run (training and validation);
each over epochs and over wall-clock time.
"""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import look, units
from analysis.axes import Mark, Scale, label_perplexity, label_progress, place_numbers, scale_for, shared_cut
from analysis.captions import all_runs_caption, panels_caption, spoken
from analysis.chart import Chart, Line, Panel, key_mark, run_mark
from analysis.curve import Curve, Progress, curves_of, time_unit
from analysis.load import Study

WIDTH_INCHES = 7.6
PANEL_COLUMNS = 3
PANEL_CUT_FACTOR = 100.0
"""A run's own panel ends at this many times its best validation perplexity."""


def learning_curves(study: Study) -> list[Chart]:
    """Every figure that the study's epochs allow; none while no epoch has been finished."""
    charts = []
    kinds: tuple[Progress, ...] = ("epochs", "time")
    with look.applied():
        for draw in (all_runs_chart, panels_chart):
            for progress in kinds:
                curves = curves_of(study, progress)
                if any(np.isfinite(curve.val_ppl).any() for curve in curves):
                    charts.append(draw(study, curves, progress))
    return charts


# -- all runs together ---------------------------------------------------------------------------------------------


def all_runs_chart(study: Study, curves: list[Curve], progress: Progress) -> Chart:
    """Validation perplexity of every run: colour tells the architecture, dashes and marker the optimizer."""
    drawn = [curve for curve in curves if np.isfinite(curve.val_ppl).any()]
    values = [curve.val_ppl for curve in drawn]
    scale = scale_for(values, cut_at=shared_cut(values))
    legend = _legend_columns(drawn)
    plot_inches, below_inches = 3.9, 0.52 + 0.19 * len(legend[0])
    height = plot_inches + below_inches + 0.2
    figure = Figure(figsize=(WIDTH_INCHES, height))
    axes = figure.add_axes((0.085, below_inches / height, 0.86, plot_inches / height))
    for curve in drawn:
        _draw(axes, curve)
    label_progress(axes, progress, time_unit(study)[1], [curve.progress for curve in drawn])
    label_perplexity(axes, scale, "Validation perplexity", most_ticks=9)
    place_numbers(axes, [_number_mark(curve, scale) for curve in drawn])
    _add_legend(figure, legend)
    return Chart(
        name=f"validation-{progress}",
        title=f"Validation perplexity over {spoken(progress)}",
        caption=all_runs_caption(study, drawn, scale, progress),
        figure=figure,
        panels=[Panel(axes=axes, lines=[_line(curve) for curve in drawn], x_name=time_name(study, progress))],
    )


def _line(curve: Curve) -> Line:
    return Line(label=curve.reference, x=curve.progress, y=curve.val_ppl, run=curve.number)


def time_name(study: Study, progress: Progress) -> str:
    """What stands before a value of the horizontal axis under the pointer."""
    return "epoch" if progress == "epochs" else time_unit(study)[1]


def _draw(axes: Axes, curve: Curve) -> None:
    style = curve.style
    spacing = max(1, math.ceil(len(curve.val_ppl) / 8))
    axes.plot(
        curve.progress,
        curve.val_ppl,
        color=style.colour,
        linestyle=style.dashes,
        marker=style.marker,
        markevery=(curve.number % spacing, spacing),
        gid=run_mark(curve.number),
    )
    _mark_end(axes, curve)


def _mark_end(axes: Axes, curve: Curve) -> None:
    """A cross on the last validation perplexity of a run that ended early."""
    there = np.flatnonzero(np.isfinite(curve.val_ppl))
    if curve.ended_early and len(there):
        last = there[-1]
        axes.plot(
            curve.progress[last],
            curve.val_ppl[last],
            "x",
            color=curve.style.colour,
            markersize=7,
            mew=2,
            gid=run_mark(curve.number),
        )


def _number_mark(curve: Curve, scale: Scale) -> Mark:
    """The run's number at the last point that the axis shows; with an arrow where the line goes on above it."""
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


def _legend_columns(curves: list[Curve]) -> list[list[Line2D]]:
    """Legend entries in columns of equal length: one for each architecture, or three if there is but one."""
    columns = []
    for arch in dict.fromkeys([*units.ARCHITECTURES.values(), units.UNKNOWN]):
        members = [_legend_entry(curve) for curve in curves if curve.arch == arch]
        if members:
            columns.append([Line2D([], [], linestyle="", label=arch), *members])
    if len(columns) == 1:
        entries = columns[0]
        length = math.ceil(len(entries) / 3)
        columns = [entries[start : start + length] for start in range(0, len(entries), length)]
    longest = max(len(column) for column in columns)
    return [column + [Line2D([], [], linestyle="", label=" ")] * (longest - len(column)) for column in columns]


def _legend_entry(curve: Curve) -> Line2D:
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


def _add_legend(figure: Figure, columns: list[list[Line2D]]) -> None:
    legend = figure.legend(
        handles=[entry for column in columns for entry in column],
        ncols=len(columns),
        loc="lower left",
        bbox_to_anchor=(0.065, 0.0),
        handlelength=3.4,
        fontsize=8,
        labelspacing=0.3,
        columnspacing=2.4,
    )
    for entry, line, text in zip(
        (entry for column in columns for entry in column), legend.get_lines(), legend.get_texts(), strict=True
    ):
        line.set_gid(entry.get_gid())
        text.set_gid(entry.get_gid())
        if text.get_text() in units.ARCHITECTURES.values():
            text.set_fontweight("bold")


# -- a panel for each run ------------------------------------------------------------------------------------------


def panels_chart(study: Study, curves: list[Curve], progress: Progress) -> Chart:
    """Training and validation perplexity of each run in a panel of its own."""
    rows = math.ceil(len(curves) / PANEL_COLUMNS)
    height = 1.75 * rows + 0.85
    figure = Figure(figsize=(WIDTH_INCHES, height))
    grid = figure.subplots(rows, PANEL_COLUMNS, squeeze=False)
    figure.subplots_adjust(left=0.085, right=0.985, top=1 - 0.55 / height, bottom=0.5 / height, wspace=0.3, hspace=0.52)
    scales = []
    for axes, curve in zip(grid.flat, curves, strict=False):
        spans = curves if progress == "epochs" else [curve]
        scales.append(_draw_panel(axes, curve))
        label_progress(axes, progress, time_unit(study)[1], [other.progress for other in spans])
    for place, axes in enumerate(grid.flat):
        if place >= len(curves):
            axes.set_axis_off()
        if place % PANEL_COLUMNS:
            axes.set_ylabel("")
        if place + PANEL_COLUMNS < len(curves):
            axes.set_xlabel("")
    figure.legend(
        handles=[
            Line2D([], [], color=look.MUTED, linestyle="-", label="validation"),
            Line2D([], [], color=look.MUTED, linestyle=(0, (3, 1.5)), linewidth=1.1, label="training"),
        ],
        ncols=2,
        loc="upper left",
        bbox_to_anchor=(0.065, 1.0),
        fontsize=8,
    )
    return Chart(
        name=f"runs-{progress}",
        title=f"Training and validation perplexity of each run over {spoken(progress)}",
        caption=panels_caption(study, curves, scales, progress),
        figure=figure,
        panels=[
            Panel(axes=axes, lines=_panel_lines(curve), x_name=time_name(study, progress))
            for axes, curve in zip(grid.flat, curves, strict=False)
        ],
    )


def _panel_lines(curve: Curve) -> list[Line]:
    return [
        Line(label=f"{curve.reference}, {what}", x=curve.progress, y=values, run=curve.number)
        for what, values in (("training", curve.train_ppl), ("validation", curve.val_ppl))
    ]


def _draw_panel(axes: Axes, curve: Curve) -> Scale:
    both = [curve.train_ppl, curve.val_ppl]
    best = np.nanmin(curve.val_ppl) if np.isfinite(curve.val_ppl).any() else math.inf
    scale = scale_for(both, cut_at=max(PANEL_CUT_FACTOR * best, float(np.nanmin(np.concatenate(both)))))
    gid = run_mark(curve.number)
    axes.plot(
        curve.progress, curve.train_ppl, color=curve.style.colour, linestyle=(0, (3, 1.5)), linewidth=1.1, gid=gid
    )
    lone = "o" if len(curve.progress) == 1 else ""
    axes.plot(curve.progress, curve.val_ppl, color=curve.style.colour, marker=lone, gid=gid)
    _mark_end(axes, curve)
    label_perplexity(axes, scale, "Perplexity", most_ticks=5)
    axes.set_title(curve.label, loc="left", fontweight="bold", fontsize=8)
    axes.tick_params(labelsize=7.5)
    axes.xaxis.label.set_fontsize(8)
    axes.yaxis.label.set_fontsize(8)
    return scale

"""The learning curves of a study, as figures with their captions.

Validation perplexity of all runs, and of each optimizer and each architecture; training and validation of each run.
Each over epochs and over wall-clock time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.blocks.figure import Chart, Line, Panel, run_mark
from analysis.blocks.section import Block, Subheading
from analysis.plots import look
from analysis.plots.axes import (
    SINGLE_CUT_FACTOR,
    Progress,
    Scale,
    label_perplexity,
    label_progress,
    place_numbers,
    scale_for,
    shared_cut,
)
from analysis.plots.captions import all_runs_caption, group_caption, panels_caption, spoken
from analysis.plots.curves import Curve, curves_of, progress_name, setting_curves, time_unit
from analysis.plots.lines import (
    Choice,
    Factor,
    add_legend,
    choose,
    draw_crowd,
    draw_curve,
    legend_columns,
    legend_inches,
    mark_end,
    number_mark,
    pointer_line,
    shown_values,
)
from analysis.study import units
from analysis.study.numbering import RunNumber
from analysis.study.study import Study

KINDS: tuple[Progress, ...] = ("epochs", "time")


def curve_blocks(study: Study) -> list[Block]:
    """Every figure that the study's epochs allow, under their headings; none while no epoch has been finished."""
    with look.applied():
        curves = {kind: found for kind in KINDS if (found := _validated(curves_of(study, kind)))}
        settings = {kind: setting_curves(study, found) for kind, found in curves.items()}
        parts: dict[str, list[Chart]] = {
            "All runs": [all_runs_chart(study, found, kind) for kind, found in curves.items()],
            "By optimizer": group_charts(study, settings, "optimizer"),
            "By architecture": group_charts(study, settings, "arch"),
            "Each run": [panels_chart(study, curves_of(study, kind), kind) for kind in curves],
        }
    blocks: list[Block] = []
    for title, charts in parts.items():
        if charts:
            blocks += [Subheading(text=title), *charts]
    return blocks


def _validated(curves: Sequence[Curve]) -> list[Curve]:
    return [curve for curve in curves if curve.is_validated]


def all_runs_chart(study: Study, curves: Sequence[Curve], progress: Progress) -> Chart:
    """Validation perplexity of every run: colour tells the architecture, dashes and marker the optimizer."""
    choice = choose(curves)
    values = shown_values(curves)
    scale = scale_for(values, cut_at=shared_cut(values))
    legend = legend_columns(choice.named)
    plot_inches, below_inches = 3.9, 0.52 + legend_inches(legend)
    height = plot_inches + below_inches + 0.2
    figure = Figure(figsize=(look.WIDTH_INCHES, height))
    axes = figure.add_axes((0.085, below_inches / height, 0.86, plot_inches / height))
    draw_choice(axes, choice, scale, study, progress, most_ticks=9)
    add_legend(figure, legend)
    return Chart(
        name=f"validation-{progress}",
        title=f"Validation perplexity over {spoken(progress)}",
        caption=all_runs_caption(study, choice, scale),
        figure=figure,
        panels=[_pointer_panel(axes, choice, study, progress)],
    )


# -- groups of runs ------------------------------------------------------------------------------------------------


def group_charts(study: Study, curves: Mapping[Progress, Sequence[Curve]], by: Factor) -> list[Chart]:
    """A figure for each optimizer, or for each architecture, that has a curve."""
    titles = units.OPTIMIZERS if by == "optimizer" else units.ARCHITECTURES
    charts = []
    for key, title in titles.items():
        members = {kind: [c for c in found if getattr(c, by) == key] for kind, found in curves.items()}
        members = {kind: found for kind, found in members.items() if found}
        if members:
            word = "optimizer" if by == "optimizer" else "architecture"
            runs = study.runs[study.runs[by] == key]
            charts.append(_group_chart(study, runs, members, f"{word}-{key.replace('_', '-')}", title, by))
    return charts


def named_group_charts(study: Study) -> dict[str, Chart]:
    """A figure for each group of ``[report] groups`` that has a curve, by the group's title."""
    charts = {}
    with look.applied():
        curves = {kind: _validated(curves_of(study, kind)) for kind in KINDS} if study.groups else {}
        for title, ids in study.groups.items():
            runs = study.runs[study.runs["id"].isin(ids)]
            numbers = set(runs["number"])
            members = {
                kind: setting_curves(study, group)
                for kind, found in curves.items()
                if (group := [curve for curve in found if curve.number in numbers])
            }
            if members:
                charts[title] = _group_chart(study, runs, members, f"curves-{study.group_name(title)}", title)
    return charts


def _group_chart(
    study: Study,
    runs: pd.DataFrame,
    curves: Mapping[Progress, Sequence[Curve]],
    name: str,
    title: str,
    by: Factor | None = None,
) -> Chart:
    """The curves over epochs on the left and over time on the right, on one vertical axis."""
    chosen = choose(next(iter(curves.values())))
    choices = {kind: chosen.among(found) for kind, found in curves.items()}
    values = shown_values(chosen.all)
    scale = scale_for(values, cut_at=shared_cut(values))
    legend = legend_columns(chosen.named, "optimizer" if by == "arch" else "arch")
    plot_inches, below_inches = 2.75, 0.52 + legend_inches(legend)
    height = plot_inches + below_inches + 0.2
    figure = Figure(figsize=(look.WIDTH_INCHES, height))
    panels = []
    for place, (kind, choice) in enumerate(choices.items()):
        left = 0.085 + place * 0.465
        axes = figure.add_axes((left, below_inches / height, 0.39, plot_inches / height))
        draw_choice(axes, choice, scale, study, kind, most_ticks=8, label=not place)
        panels.append(_pointer_panel(axes, choice, study, kind))
    add_legend(figure, legend)
    return Chart(
        name=name,
        title=f"{title}: validation perplexity over {' and '.join(map(spoken, choices))}",
        caption=group_caption(runs, chosen, scale, by),
        figure=figure,
        panels=panels,
    )


# -- one pair of axes ----------------------------------------------------------------------------------------------


def draw_choice(
    axes: Axes, choice: Choice, scale: Scale, study: Study, progress: Progress, *, most_ticks: int, label: bool = True
) -> None:
    """Draw validation curves with their axes and numbers. ``label``: whether the vertical axis has its name."""
    draw_crowd(axes, choice.crowd)
    for curve in choice.named:
        draw_curve(axes, curve)
    label_progress(axes, progress, time_unit(study)[1], [curve.progress for curve in choice.all])
    label_perplexity(axes, scale, "Validation perplexity" if label else "", most_ticks=most_ticks)
    if not label:
        axes.tick_params(labelleft=False)
    place_numbers(axes, [number_mark(curve, scale) for curve in choice.named])


def _pointer_panel(axes: Axes, choice: Choice, study: Study, progress: Progress) -> Panel:
    return Panel(axes=axes, lines=[pointer_line(c) for c in choice.named], x_name=progress_name(study, progress))


# -- a panel for each run ------------------------------------------------------------------------------------------

COLUMNS = 3
MOST_PANELS = 48
"""With more runs than this, the best of each setting has a panel, and of the settings the best."""

TRAINING_DASHES = (0, (3, 1.5))


def panels_chart(study: Study, curves: Sequence[Curve], progress: Progress) -> Chart:
    """Training and validation perplexity of each run in a panel of its own."""
    shown = choose_panels(curves)
    rows = math.ceil(len(shown) / COLUMNS)
    height = 1.75 * rows + 0.85
    figure = Figure(figsize=(look.WIDTH_INCHES, height))
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
        caption=panels_caption(study, curves, shown, scales),
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
    best: dict[RunNumber, Curve] = {}
    for curve in sorted(curves, key=_by_best):
        best.setdefault(curve.setting, curve)
    return sorted(list(best.values())[:MOST_PANELS], key=lambda curve: curve.number)


def _by_best(curve: Curve) -> tuple[float, RunNumber]:
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

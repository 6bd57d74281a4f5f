"""The learning curves of a study, as figures with their captions.

Validation perplexity of all runs, and of each optimizer and each architecture; training and validation of each run.
Each over epochs and over wall-clock time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import look, units
from analysis.axes import Scale, label_perplexity, label_progress, place_numbers, scale_for, shared_cut
from analysis.captions import all_runs_caption, group_caption, spoken
from analysis.chart import Chart, Panel
from analysis.curve import Curve, Progress, curves_of, progress_name, setting_curves, time_unit
from analysis.lines import (
    Choice,
    Factor,
    add_legend,
    choose,
    draw_crowd,
    draw_curve,
    legend_columns,
    legend_inches,
    number_mark,
    pointer_line,
    shown_values,
)
from analysis.load import Study
from analysis.run_panels import panels_chart
from analysis.section import Block, Subheading

WIDTH_INCHES = 7.6
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
    figure = Figure(figsize=(WIDTH_INCHES, height))
    axes = figure.add_axes((0.085, below_inches / height, 0.86, plot_inches / height))
    _draw(axes, choice, scale, study, progress, most_ticks=9)
    add_legend(figure, legend)
    return Chart(
        name=f"validation-{progress}",
        title=f"Validation perplexity over {spoken(progress)}",
        caption=all_runs_caption(study, choice, scale, progress),
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
            charts.append(_group_chart(study, members, by, key, title))
    return charts


def _group_chart(study: Study, curves: Mapping[Progress, Sequence[Curve]], by: Factor, key: str, title: str) -> Chart:
    """The curves over epochs on the left and over time on the right, on one vertical axis."""
    chosen = choose(next(iter(curves.values())))
    choices = {kind: chosen.among(found) for kind, found in curves.items()}
    values = shown_values(chosen.all)
    scale = scale_for(values, cut_at=shared_cut(values))
    legend = legend_columns(chosen.named, "arch" if by == "optimizer" else "optimizer")
    plot_inches, below_inches = 2.75, 0.52 + legend_inches(legend)
    height = plot_inches + below_inches + 0.2
    figure = Figure(figsize=(WIDTH_INCHES, height))
    panels = []
    for place, (kind, choice) in enumerate(choices.items()):
        left = 0.085 + place * 0.465
        axes = figure.add_axes((left, below_inches / height, 0.39, plot_inches / height))
        _draw(axes, choice, scale, study, kind, most_ticks=8, label=not place)
        panels.append(_pointer_panel(axes, choice, study, kind))
    add_legend(figure, legend)
    word = "optimizer" if by == "optimizer" else "architecture"
    return Chart(
        name=f"{word}-{key.replace('_', '-')}",
        title=f"{title}: validation perplexity over {' and '.join(map(spoken, choices))}",
        caption=group_caption(study, choices, scale, by, key),
        figure=figure,
        panels=panels,
    )


# -- one pair of axes ----------------------------------------------------------------------------------------------


def _draw(
    axes: Axes, choice: Choice, scale: Scale, study: Study, progress: Progress, *, most_ticks: int, label: bool = True
) -> None:
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

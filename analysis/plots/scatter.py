"""Settings as points: perplexity against time, and the spread of each architecture."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from analysis.blocks.figure import Chart, Line, Panel, run_mark
from analysis.blocks.words import first_few
from analysis.plots import look
from analysis.plots.axes import LOG_FROM, Mark, Scale, label_perplexity, place_numbers, scale_for, shared_cut
from analysis.plots.curves import unit_for
from analysis.plots.look import kind_legend
from analysis.study import units
from analysis.study.settings import Setting

MOST_NUMBERS = 40
"""Of more points, only those on the front carry their numbers, and all are smaller."""

FEW = 3
"""Up to so many points of a column stand above one another."""

GOLDEN = 0.618034
"""Its multiples, less their whole part, are as far apart as those of any number."""


def time_chart(settings: Sequence[Setting], front: Sequence[Setting]) -> Chart:
    """Best validation perplexity against the time to it, with the Pareto front. Each has a finite time."""
    with look.applied():
        figure, panel = _draw_times(settings, front)
    numbered = "numbers: runs" if len(settings) <= MOST_NUMBERS else "numbers: runs of the front"
    logarithmic = [
        name
        for name, is_log in (
            ("horizontal", panel.axes.get_xscale() == "log"),
            ("vertical", panel.axes.get_yscale() == "log"),
        )
        if is_log
    ]
    caption = f"Colour: architecture; marker: optimizer; {numbered}. Grey line: the Pareto front."
    if len(logarithmic) == 2:
        caption += " Both axes logarithmic."
    elif logarithmic:
        caption += f" {logarithmic[0].capitalize()} axis logarithmic."
    caption += cut_sentence(settings)
    return Chart(
        name="time-and-perplexity",
        title="Best validation perplexity against the time to it",
        caption=caption,
        figure=figure,
        panels=[panel],
    )


def _draw_times(settings: Sequence[Setting], front: Sequence[Setting]) -> tuple[Figure, Panel]:
    figure = Figure(figsize=(look.WIDTH_INCHES, 4.3))
    axes = figure.add_axes((0.09, 0.2, 0.86, 0.76))
    panel = draw_times(axes, settings, front)
    add_legend(figure, settings, [front_handle()] if len(front) > 1 else [])
    return figure, panel


def front_handle() -> Line2D:
    """Return the legend entry of the Pareto front."""
    return Line2D([], [], color=look.MUTED, linewidth=1.1, linestyle=(0, (4, 2)), label="Pareto front")


def draw_times(axes: Axes, settings: Sequence[Setting], front: Sequence[Setting]) -> Panel:
    """Draw perplexity against the time to it, and the front as a step line. Each setting has a finite time."""
    seconds, unit = unit_for(max(setting.seconds_to_best for setting in settings))
    x = np.array([setting.seconds_to_best / seconds for setting in settings])
    y = np.array([setting.val_ppl for setting in settings])
    scale = perplexity_scale(settings)
    corners = [(setting.seconds_to_best / seconds, setting.val_ppl) for setting in front]
    if len(corners) > 1:
        axes.step(
            *zip(*corners, strict=True), where="post", color=look.MUTED, linewidth=1.1, linestyle=(0, (4, 2)), zorder=2
        )
    for left, setting in zip(x, settings, strict=True):
        _point(axes, left, setting, scale, len(settings))
    _label_time(axes, x, unit)
    label_perplexity(axes, scale, "Best validation perplexity", most_ticks=9)
    numbered = settings if len(settings) <= MOST_NUMBERS else front
    place_numbers(
        axes,
        [_mark(setting.seconds_to_best / seconds, setting, scale) for setting in numbered],
    )
    lines = [
        Line(label=setting.reference, x=x[place : place + 1], y=y[place : place + 1], run=setting.only_run)
        for place, setting in enumerate(settings)
    ]
    return Panel(axes=axes, lines=lines, x_name=unit)


def _label_time(axes: Axes, values: Any, unit: str) -> None:
    low, high = float(values.min()), float(values.max())
    axes.set_xlabel(f"Wall-clock time to the best epoch ({unit})")
    if low > 0 and high > LOG_FROM * low:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.15, high * 1.25)
        steps = (1, 2, 3, 5) if high < 30 * low else (1, 3) if high < 300 * low else (1,)
        axes.xaxis.set_major_locator(LogLocator(subs=steps))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        room = 0.06 * (high - low) or 0.05 * high or 1.0
        axes.set_xlim(max(0.0, low - room), high + 1.3 * room)
        axes.xaxis.set_major_locator(MaxNLocator(8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


# -- the spread of architectures -----------------------------------------------------------------------------------


def spread_chart(groups: Sequence[tuple[str, Sequence[Setting]]]) -> Chart:
    """Best validation perplexity of every setting, a column for each architecture: label beneath it, settings."""
    with look.applied():
        figure, logarithmic = _draw_spread(groups)
    caption = "Numbers: runs; marker: optimizer; black line: median; grey box: interquartile range."
    if logarithmic:
        caption += " Vertical axis logarithmic."
    caption += cut_sentence([setting for _, members in groups for setting in members])
    return Chart(name="reliability", title="Spread over settings for each architecture", caption=caption, figure=figure)


def _draw_spread(groups: Sequence[tuple[str, Sequence[Setting]]]) -> tuple[Figure, bool]:
    figure = Figure(figsize=(look.WIDTH_INCHES, 4.0))
    axes = figure.add_axes((0.09, 0.235, 0.86, 0.73))
    everything = [setting for _, members in groups for setting in members]
    scale = perplexity_scale(everything)
    label_perplexity(axes, scale, "Best validation perplexity", most_ticks=9)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.xaxis.set_major_locator(FixedLocator(list(range(len(groups)))))
    axes.set_xticklabels([label for label, _ in groups])
    axes.tick_params(axis="x", length=0, labelcolor=look.INK)
    axes.grid(axis="x", visible=False)
    marks: list[Mark] = []
    for column, (_, members) in enumerate(groups):
        values = [setting.val_ppl for setting in members]
        if len(values) > 2:
            low, high = np.percentile(values, [25, 75])
            axes.fill_between(
                [column - 0.3, column + 0.3], low, high, color=look.GRID, alpha=0.7, linewidth=0, zorder=1
            )
        if len(values) > 1:
            middle = statistics.median(values)
            above = 3.5 if len(everything) > MOST_NUMBERS else 2
            axes.plot([column - 0.3, column + 0.3], [middle, middle], color=look.INK, linewidth=1.3, zorder=above)
        for setting, offset in zip(members, swarm(values), strict=True):
            _point(axes, column + offset, setting, scale, len(everything))
            marks.append(_mark(column + offset, setting, scale))
    if len(marks) <= MOST_NUMBERS:
        place_numbers(axes, marks)
    add_legend(figure, everything, [], architectures=False)
    return figure, scale.logarithmic


def swarm(values: Sequence[float]) -> list[float]:
    """Sideways offsets, up to 0.24, that keep points alike in value apart: spread by their rank."""
    order = sorted(range(len(values)), key=lambda place: values[place])
    offsets = [0.0] * len(values)
    for rank, place in enumerate(order if len(values) > FEW else []):
        offsets[place] = 0.48 * (rank * GOLDEN % 1.0) - 0.24
    return offsets


# -- shared --------------------------------------------------------------------------------------------------------


def number_of(setting: Setting) -> str:
    """The number of the run; of several seeds that of the first."""
    return str(setting.runs[0])


def perplexity_scale(settings: Sequence[Setting]) -> Scale:
    """The vertical axis, cut where a few would flatten the rest, with room for numbers at its ends."""
    values = [np.array([setting.val_ppl]) for setting in settings]
    scale = scale_for(values, cut_at=shared_cut(values))
    return dataclasses.replace(scale, low=scale.low / 1.06) if scale.logarithmic else scale


def cut_sentence(settings: Sequence[Setting]) -> str:
    """Names those that lie above the axis."""
    scale = perplexity_scale(settings)
    above = [f"{c.reference} ({units.rounded(c.val_ppl)})" for c in settings if c.val_ppl > scale.high]
    if not above:
        return ""
    return f" The vertical axis ends at {units.rounded(scale.high)}; above it (↑): {first_few(above, 2)}."


def _mark(x: float, setting: Setting, scale: Scale) -> Mark:
    above = " ↑" if setting.val_ppl > scale.high else ""
    return Mark(
        x=x,
        y=min(setting.val_ppl, scale.high),
        text=f"{number_of(setting)}{above}",
        colour=look.colour_of(setting.arch),
        run=setting.only_run,
    )


def _point(axes: Axes, x: float, setting: Setting, scale: Scale, of: int) -> None:
    """One of so many points."""
    marker = look.marker_of(setting.optimizer)
    gid = None if setting.only_run is None else run_mark(setting.only_run)
    axes.plot(
        [x],
        [min(setting.val_ppl, scale.high)],
        clip_on=False,
        color=look.colour_of(setting.arch),
        marker=marker,
        markersize=6.5 if of <= MOST_NUMBERS else 4.5,
        markeredgecolor=look.PAPER,
        markeredgewidth=0.8,
        linestyle="",
        gid=gid,
        zorder=4.5,  # above the numbers, which must not hide a point
    )


def add_legend(
    figure: Figure, settings: Sequence[Setting], more: Sequence[Line2D], *, architectures: bool = True
) -> None:
    """Architectures by colour and optimizers by marker, those that there are."""
    archs = {setting.arch for setting in settings} if architectures else set()
    kind_legend(figure, archs, {setting.optimizer for setting in settings}, more, left=0.06)

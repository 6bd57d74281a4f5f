"""Settings as points: perplexity against time, the spread of each architecture, and the frontier of a search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.blocks.figure import Chart, Line, Panel, run_mark
from analysis.blocks.texts import first_few
from analysis.plots import look
from analysis.plots.axes import Mark, Scale, panels_with_legend, place_numbers, scale_for, shared_cut
from analysis.plots.curves import unit_for
from analysis.study import units
from analysis.study.comparison import finished
from analysis.study.settings import Setting
from analysis.study.study import Study

MOST_NUMBERS = 40
"""Of more points, only those on the front carry their numbers, and all are smaller."""

FEW = 3
"""Largest number of points of a column that are drawn above one another."""

GOLDEN = 0.618034
"""Its multiples, less their whole part, are as far apart as those of any number."""


@look.applied()
def time_chart(settings: Sequence[Setting], front: Sequence[Setting], of: str = "") -> Chart:
    """Best validation perplexity against the time to it, with the Pareto front. Each has a finite time.

    ``of``: what the numbers are of (see :func:`analysis.blocks.texts.scope`).
    """
    entries = look.kind_handles({s.arch for s in settings}, {s.optimizer for s in settings})
    figure, (axes,) = panels_with_legend(3.8, [*entries, *([front_handle()] if len(front) > 1 else [])])
    panel = draw_times(axes, settings, front)
    numbered = "numbers: runs" if len(settings) <= MOST_NUMBERS else "numbers: runs of the front"
    scales = {"Horizontal": axes.get_xscale(), "Vertical": axes.get_yscale()}
    logarithmic = [name for name, scale in scales.items() if scale == "log"]
    caption = f"Colour: architecture; marker: optimizer; {numbered}. Grey line: the Pareto front."
    if logarithmic:
        caption += " Both axes logarithmic." if len(logarithmic) == 2 else f" {logarithmic[0]} axis logarithmic."
    return Chart(
        name="time-and-perplexity",
        title="Best validation perplexity against the time to it",
        caption=caption + of + cut_sentence(settings),
        figure=figure,
        panels=[panel],
    )


FRONT: dict[str, Any] = {"color": look.MUTED, "linewidth": 1.1, "linestyle": (0, (4, 2)), "label": "Pareto front"}


def front_handle() -> Line2D:
    """Return the legend entry of the Pareto front."""
    return Line2D([], [], **FRONT)


def draw_times(axes: Axes, settings: Sequence[Setting], front: Sequence[Setting]) -> Panel:
    """Draw perplexity against the time to it, and the front as a step line. Each setting has a finite time."""
    seconds, unit = unit_for(max(setting.seconds_to_best for setting in settings))
    x = np.array([setting.seconds_to_best / seconds for setting in settings])
    scale = perplexity_scale(settings)
    if len(front) > 1:
        corners = [(setting.seconds_to_best / seconds, setting.val_ppl) for setting in front]
        axes.step(*zip(*corners, strict=True), where="post", zorder=2, **FRONT)
    marks = [_point(axes, place, setting, scale, len(settings)) for place, setting in zip(x, settings, strict=True)]
    axes.set_xlabel(f"Wall-clock time to the best epoch ({unit})")
    axes.set_ylabel("Best validation perplexity")
    scale_for([x]).widened(0.03).applied_to(axes, "x", 9)
    scale.applied_to(axes, "y", 9)
    numbered = {setting.number for setting in (settings if len(settings) <= MOST_NUMBERS else front)}
    place_numbers(axes, [mark for mark, setting in zip(marks, settings, strict=True) if setting.number in numbered])
    lines = [
        Line(label=setting.reference, x=x[place : place + 1], y=np.array([setting.val_ppl]), run=setting.only_run)
        for place, setting in enumerate(settings)
    ]
    return Panel(axes=axes, lines=lines, x_name=unit)


# -- the spread of architectures -----------------------------------------------------------------------------------


@look.applied()
def spread_chart(groups: Sequence[tuple[str, Sequence[Setting]]], of: str = "") -> Chart:
    """Best validation perplexity of every setting, a column for each architecture: label beneath it, settings."""
    everything = [setting for _, members in groups for setting in members]
    figure, (axes,) = panels_with_legend(3.6, look.kind_handles(set(), {setting.optimizer for setting in everything}))
    scale = perplexity_scale(everything)
    marks: list[Mark] = []
    for column, (_, members) in enumerate(groups):
        values = [setting.val_ppl for setting in members]
        sides = [column - 0.3, column + 0.3]
        if len(values) > 2:
            axes.fill_between(sides, *np.percentile(values, [25, 75]), color=look.GRID, alpha=0.7, lw=0, zorder=1)
        if len(values) > 1:
            above = 3.5 if len(everything) > MOST_NUMBERS else 2
            axes.plot(sides, [np.median(values)] * 2, color=look.INK, linewidth=1.3, zorder=above)
        for setting, offset in zip(members, swarm(values), strict=True):
            marks.append(_point(axes, column + offset, setting, scale, len(everything)))
    axes.set_ylabel("Best validation perplexity")
    scale.applied_to(axes, "y", 9)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set_xticks(range(len(groups)), [label for label, _ in groups])
    axes.tick_params(axis="x", length=0, labelcolor=look.INK)
    axes.grid(axis="x", visible=False)
    if len(marks) <= MOST_NUMBERS:
        place_numbers(axes, marks)
    caption = "Numbers: runs; marker: optimizer; black line: median; grey box: interquartile range."
    if scale.logarithmic:
        caption += " Vertical axis logarithmic."
    return Chart(
        name="reliability",
        title="Spread over settings for each architecture",
        caption=caption + of + cut_sentence(everything),
        figure=figure,
    )


def swarm(values: Sequence[float]) -> list[float]:
    """Sideways offsets, up to 0.24, that keep points alike in value apart: spread by their rank."""
    order = sorted(range(len(values)), key=lambda place: values[place])
    offsets = [0.0] * len(values)
    for rank, place in enumerate(order if len(values) > FEW else []):
        offsets[place] = 0.48 * (rank * GOLDEN % 1.0) - 0.24
    return offsets


# -- the frontier of a search ---------------------------------------------------------------------------------------

STOPPED: dict[str, Any] = {"marker": "x", "markersize": 5, "markeredgewidth": 1.2, "linestyle": ""}
"""Of the last epoch of a run that was stopped."""


@look.applied()
def frontier_chart(study: Study, epochs: pd.DataFrame, hours: str) -> Chart:
    """Draw a line for each architecture. ``epochs`` and ``hours``: see :func:`analysis.sections.search.spent_hours`."""
    done = set(finished(study.runs)["id"])
    found = epochs[np.isfinite(epochs["val_ppl"])]
    archs = [arch for arch in look.architecture_colours() if (found["arch"] == arch).any()]
    stopped = found[found["state"] == "stopped"].drop_duplicates("id", keep="last")
    bests = found[found["id"].isin(done)].sort_values("val_ppl", kind="stable").drop_duplicates("id")
    handles = look.kind_handles(set(archs), set(bests["optimizer"]))
    crosses = [Line2D([], [], color=look.MUTED, label="stopped", **STOPPED)] if len(stopped) else []
    figure, (axes,) = panels_with_legend(3.8, [*handles, *crosses])
    ends = [np.array([value]) for value in [*stopped["val_ppl"], *bests["val_ppl"]]]
    values = [*ends, *(found.loc[found["arch"] == arch, "best"].to_numpy(float) for arch in archs)]
    scale = scale_for(values, cut_at=shared_cut(values)).widened(0.02)
    lines = []
    for arch in archs:
        own = found[found["arch"] == arch]
        x, y = np.append(own["hours"], found["hours"].max()), np.append(own["best"], own["best"].min())
        axes.step(x, y, where="post", color=look.colour_of(arch), linewidth=1.4, zorder=2)
        lines.append(Line(label=units.architecture(arch), x=x, y=y))
    marks = []
    for rows, style in ((stopped, STOPPED), (bests, {"markersize": 6.0, "markeredgecolor": look.PAPER})):
        for run in rows.to_dict("records"):
            number, x, y = run["number"], run["hours"], run["val_ppl"]
            height, colour = min(y, scale.high), look.colour_of(run["arch"])
            kind = {"marker": look.marker_of(run["optimizer"]), **style}
            axes.plot([x], [height], color=colour, gid=run_mark(number), zorder=3, clip_on=False, **kind)
            lines.append(Line(label=f"{number} {run['name']}", x=np.array([x]), y=np.array([y]), run=number))
            if style is not STOPPED:
                marks.append(Mark(x=x, y=height, text=str(number), colour=colour, run=number))
    axes.set_xlabel(f"{hours[0].upper()}{hours[1:]} spent by all runs")
    axes.set_ylabel("Best validation perplexity so far")
    axes.set_xlim(0, float(found["hours"].max()) * 1.015)
    scale.applied_to(axes, "y", 9)
    place_numbers(axes, marks)
    caption = (
        "Line: lowest by then of each architecture. Points with numbers: best epochs of finished runs, when they "
        "ended. Hours of finished epochs."
    )
    left_out = int(study.runs["epochs_done"].sum()) - len(epochs)
    if left_out:
        caption += f" Left out, without a recorded time: {units.count(left_out, 'epoch')}."
    return Chart(
        name="search-frontier",
        title=f"Best validation perplexity against {hours}",
        caption=caption,
        figure=figure,
        panels=[Panel(axes=axes, lines=lines, x_name=hours)],
    )


# -- shared --------------------------------------------------------------------------------------------------------


def perplexity_scale(settings: Sequence[Setting]) -> Scale:
    """The vertical axis, cut where a few would flatten the rest, with room for numbers at its ends."""
    values = [np.array([setting.val_ppl]) for setting in settings]
    return scale_for(values, cut_at=shared_cut(values)).widened(0.02)


def cut_sentence(settings: Sequence[Setting]) -> str:
    """Names those that lie above the axis."""
    scale = perplexity_scale(settings)
    above = [f"{c.reference} ({units.rounded(c.val_ppl)})" for c in settings if c.val_ppl > scale.high]
    if not above:
        return ""
    return f" The vertical axis ends at {units.rounded(scale.high)}; above it (↑): {first_few(above, 2)}."


def _point(axes: Axes, x: float, setting: Setting, scale: Scale, of: int) -> Mark:
    """Draw one of ``of`` points, cut at the top of the axis; return its number, of several seeds the first's."""
    y, colour = min(setting.val_ppl, scale.high), look.colour_of(setting.arch)
    axes.plot(
        [x],
        [y],
        clip_on=False,
        in_layout=False,
        color=colour,
        marker=look.marker_of(setting.optimizer),
        markersize=6.5 if of <= MOST_NUMBERS else 4.5,
        markeredgecolor=look.PAPER,
        markeredgewidth=0.8,
        linestyle="",
        gid=None if setting.only_run is None else run_mark(setting.only_run),
        zorder=4.5,  # above the numbers, which must not hide a point
    )
    above = " ↑" if setting.val_ppl > scale.high else ""
    return Mark(x=x, y=y, text=f"{setting.runs[0]}{above}", colour=colour, run=setting.only_run)

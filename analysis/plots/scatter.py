"""Settings as points: perplexity against time, and the frontier of a search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.blocks.figure import Chart, name_values, run_mark
from analysis.blocks.texts import first_few
from analysis.plots import look
from analysis.plots.axes import Mark, fit, panels_with_legend, place_numbers, shared_cut
from analysis.plots.curves import unit_for
from analysis.study import units
from analysis.study.comparison import finished
from analysis.study.settings import Setting
from analysis.study.study import Study

MOST_NUMBERS = 40
"""Of more points, only those on the front carry their numbers, and all are smaller."""

ROOM = 0.08
"""Of the vertical axis at each end, for whole markers."""

FRONT: dict[str, Any] = {"color": look.MUTED, "linewidth": 1.1, "linestyle": (0, (4, 2)), "label": "Pareto front"}


@look.applied()
def time_chart(settings: Sequence[Setting], front: Sequence[Setting], of: str = "") -> Chart:
    """Best validation perplexity against the time to it, with the Pareto front. Each has a finite time.

    ``of``: what the numbers are of (see :func:`analysis.blocks.texts.scope`).
    """
    figure, (axes,) = panels_with_legend(3.8, time_handles(settings, front))
    draw_times(axes, settings, front)
    numbered = "numbers: runs" if len(settings) <= MOST_NUMBERS else "numbers: runs of the front"
    caption = f"Colour: architecture; marker: optimizer; {numbered}. Grey line: the Pareto front."
    return Chart(
        name="time-and-perplexity",
        title="Best validation perplexity against the time to it",
        caption=caption + of + _cut_sentence(axes, settings),
        figure=figure,
    )


def time_handles(settings: Sequence[Setting], front: Sequence[Setting]) -> list[Line2D]:
    """Return the legend entries of :func:`draw_times`."""
    entries = look.kind_handles({s.arch for s in settings}, {s.optimizer for s in settings})
    return [*entries, *([Line2D([], [], **FRONT)] if len(front) > 1 else [])]


def draw_times(axes: Axes, settings: Sequence[Setting], front: Sequence[Setting]) -> Axes:
    """Draw perplexity against the time to it, and the front as a step line. Each setting has a finite time."""
    seconds, unit = unit_for(max(setting.seconds_to_best for setting in settings))
    x = [setting.seconds_to_best / seconds for setting in settings]
    values = [np.array([setting.val_ppl]) for setting in settings]
    fit(axes, "y", values, cut_at=shared_cut(values), room=ROOM)
    fit(axes, "x", x, room=0.09)
    if len(front) > 1:
        corners = [(setting.seconds_to_best / seconds, setting.val_ppl) for setting in front]
        axes.step(*zip(*corners, strict=True), where="post", zorder=2, **FRONT | {"label": "_"})
    marks = _points(axes, x, settings)
    axes.set_xlabel(f"Wall-clock time to the best epoch ({unit})")
    axes.set_ylabel("Best validation perplexity")
    numbered = {setting.number for setting in (settings if len(settings) <= MOST_NUMBERS else front)}
    place_numbers(axes, [mark for mark, setting in zip(marks, settings, strict=True) if setting.number in numbered])
    name_values(axes, unit)
    return axes


# -- the frontier of a search ---------------------------------------------------------------------------------------

STOPPED: dict[str, Any] = {"marker": "x", "markersize": 5, "markeredgewidth": 1.2, "linestyle": ""}
"""Of the last epoch of a run that was stopped."""


@look.applied()
def frontier_chart(study: Study, epochs: pd.DataFrame, hours: str) -> Chart:
    """Draw a line for each architecture. ``epochs`` and ``hours``: see :func:`analysis.sections.search.spent_hours`."""
    done = set(finished(study.runs)["id"])
    found = epochs[np.isfinite(epochs["val_ppl"])]
    stopped = found[found["state"] == "stopped"].drop_duplicates("id", keep="last")
    bests = found[found["id"].isin(done)].sort_values("val_ppl", kind="stable").drop_duplicates("id")
    handles = look.kind_handles(set(found["arch"]), set(bests["optimizer"]))
    crosses = [Line2D([], [], color=look.MUTED, label="stopped", **STOPPED)] if len(stopped) else []
    figure, (axes,) = panels_with_legend(3.8, [*handles, *crosses])
    lines = {arch: found[found["arch"] == arch] for arch in look.architecture_colours() if arch in set(found["arch"])}
    ends = [np.array([value]) for value in [*stopped["val_ppl"], *bests["val_ppl"]]]
    values = [*ends, *(own["best"].to_numpy(float) for own in lines.values())]
    fit(axes, "y", values, cut_at=shared_cut(values), room=ROOM)
    for arch, own in lines.items():
        x, y = np.append(own["hours"], found["hours"].max()), np.append(own["best"], own["best"].min())
        label, colour = units.architecture(arch), look.colour_of(arch)
        axes.step(x, y, where="post", color=colour, linewidth=1.4, zorder=2, label=label)
    marks = []
    for rows, style in ((stopped, STOPPED), (bests, {"markersize": 6.0, "markeredgecolor": look.PAPER})):
        for run in rows.to_dict("records"):
            mark = Mark(run["hours"], run["val_ppl"], str(run["number"]), look.colour_of(run["arch"]), run["number"])
            kind = {"marker": look.marker_of(run["optimizer"]), "label": f"{run['number']} {run['name']}", **style}
            _draw_point(axes, mark, **kind)
            marks += [mark] if style is not STOPPED else []
    axes.set_xlabel(f"{hours[0].upper()}{hours[1:]} spent by all runs")
    axes.set_ylabel("Best validation perplexity so far")
    axes.set_xlim(0, float(found["hours"].max()) * 1.015)
    place_numbers(axes, [mark._replace(y=min(mark.y, axes.get_ylim()[1])) for mark in marks])
    name_values(axes, hours)
    caption = (
        "Line: lowest by then of each architecture. Points with numbers: best epochs of finished runs, when they "
        "ended. Hours of finished epochs."
    )
    left_out = int(study.runs["epochs_done"].sum()) - len(epochs)
    if left_out:
        caption += f" Left out, without a recorded time: {units.count(left_out, 'epoch')}."
    return Chart(
        name="search-frontier", title=f"Best validation perplexity against {hours}", caption=caption, figure=figure
    )


# -- shared --------------------------------------------------------------------------------------------------------


def _cut_sentence(axes: Axes, settings: Sequence[Setting]) -> str:
    """Names those that lie above the axis."""
    top = axes.get_ylim()[1]
    above = [f"{c.reference} ({units.perplexity(c.val_ppl)})" for c in settings if c.val_ppl > top]
    return f" The vertical axis ends at {units.perplexity(top)}; above it (↑): {first_few(above, 2)}." if above else ""


def _points(axes: Axes, x: Sequence[float], settings: Sequence[Setting]) -> list[Mark]:
    """Draw a point for each setting; return their numbers, of seeds the first's."""
    size = 6.5 if len(settings) <= MOST_NUMBERS else 4.5
    marks = []
    for place, setting in zip(x, settings, strict=True):
        run, colour = setting.only_run, look.colour_of(setting.arch)
        mark = Mark(place, setting.val_ppl, str(setting.runs[0]), colour, run)
        marker = look.marker_of(setting.optimizer)
        _draw_point(
            axes, mark, marker=marker, markersize=size, markeredgecolor=look.PAPER, label=setting.reference, zorder=4.5
        )
        top = axes.get_ylim()[1]
        marks.append(mark if mark.y <= top else mark._replace(y=top, text=f"{mark.text} ↑"))
    return marks


def _draw_point(axes: Axes, mark: Mark, *, zorder: float = 3.0, **style: Any) -> None:
    """Draw a point; one above the axis at its top, without a value for the page's pointer."""
    y = min(mark.y, axes.get_ylim()[1])
    style |= {"label": "_"} if y < mark.y else {}
    gid = None if mark.run is None else run_mark(mark.run)
    place: dict[str, Any] = {"gid": gid, "zorder": zorder, "clip_on": False, "in_layout": False}
    axes.plot([mark.x], [y], color=mark.colour, **place, **style)

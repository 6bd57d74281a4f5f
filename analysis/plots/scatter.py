"""Settings as points: perplexity against time, and the frontier of a search."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.blocks.figure import Chart, name_values
from analysis.blocks.sentences import caption, scope
from analysis.plots import look
from analysis.plots.axes import (
    MOST_MARKED,
    MOST_NUMBERS,
    Mark,
    draw_mark,
    draw_points,
    fit,
    panels_with_legend,
    place_numbers,
    shared_cut,
    signs_of,
    unit_for,
)
from analysis.study import units
from analysis.study.comparison import finished
from analysis.study.numbering import RunNumber
from analysis.study.settings import Setting, by_perplexity
from analysis.study.study import StudyFiles

FEW_POINTS = 40
"""More points are smaller."""

ROOM = 0.08
"""Of the vertical axis at each end, for whole markers."""

FRONT: dict[str, Any] = {"color": look.MUTED, "linewidth": 1.1, "linestyle": (0, (4, 2)), "label": "Pareto front"}


@look.applied()
def time_chart(settings: Sequence[Setting], of: str = "") -> Chart:
    """Best validation perplexity against the time to it. Each has a finite time.

    ``of``: what the numbers are of (see :func:`analysis.blocks.sentences.scope`).
    """
    figure, (axes,) = panels_with_legend(3.8, time_handles(settings))
    draw_times(axes, settings)
    text = f"{caption('times', **signs_of(figure))}{of}"
    title = "Best validation perplexity against the time to it"
    return Chart(name="time-and-perplexity", title=title, caption=text, figure=figure)


def time_handles(settings: Sequence[Setting]) -> list[Line2D]:
    """Return the legend entries of :func:`draw_times`."""
    return look.kind_handles({s.arch for s in settings}, {s.optimizer for s in settings})


def draw_times(axes: Axes, settings: Sequence[Setting]) -> Axes:
    """Draw perplexity against the time to it. Each setting has a finite time."""
    seconds, unit = unit_for(max(setting.seconds_to_best for setting in settings))
    x = [setting.seconds_to_best / seconds for setting in settings]
    values = [np.array([setting.val_ppl]) for setting in settings]
    fit(axes, "y", values, cut_at=shared_cut(values), log=True, room=ROOM)
    fit(axes, "x", x, room=0.09)
    axes.set_xlabel(f"Wall-clock time to the best epoch ({unit})")
    axes.set_ylabel("Best validation perplexity")
    _draw_settings(axes, settings, x, [])
    name_values(axes, unit)
    return axes


def _draw_settings(axes: Axes, settings: Sequence[Setting], x: Sequence[float], front: Sequence[Setting]) -> None:
    """Draw a point for each setting, at its place ``x``; those of the front and the best have numbers."""
    ranked = [*front, *(one for one in by_perplexity(settings) if one not in front)][:MOST_NUMBERS]
    marks: dict[RunNumber, Mark] = {}
    alike: dict[tuple[Any, Any], list[tuple[float, float]]] = defaultdict(list)
    for place, one in zip(x, settings, strict=True):
        if len(settings) > MOST_MARKED and one not in ranked:
            alike[one.arch, one.optimizer].append((place, min(one.val_ppl, axes.get_ylim()[1])))
            continue
        mark = Mark(place, one.val_ppl, str(one.runs[0]), look.colour_of(one.arch), one.only_run)
        size = 6.5 if len(settings) <= FEW_POINTS else 4.5
        style = {"markersize": size, "label": one.reference, "zorder": 4.5}
        marks[one.number] = draw_mark(axes, mark, one.arch, one.optimizer, **style)
    for kind, points in sorted(alike.items(), key=lambda item: str(item[0])):
        draw_points(axes, points, *kind, clip_on=False, in_layout=False)
    place_numbers(axes, [marks[one.number] for one in ranked])


# -- the frontier of a search ---------------------------------------------------------------------------------------

STOPPED: dict[str, Any] = {"marker": "x", "markersize": 5, "markeredgewidth": 1.2}
"""Of the last epoch of a run that was stopped."""


@look.applied()
def frontier_chart(study: StudyFiles, epochs: pd.DataFrame, hours: str) -> Chart:
    """Draw a line for each architecture. ``epochs`` and ``hours``: see :func:`analysis.sections.search.spent_hours`."""
    done = set(finished(study.runs)["id"])
    found = epochs[np.isfinite(epochs["val_ppl"])]
    stopped = found[found["state"] == "stopped"].drop_duplicates("id", keep="last")
    bests = found[found["id"].isin(done)].sort_values("val_ppl", kind="stable").drop_duplicates("id")
    handles = look.kind_handles(set(found["arch"]), set(bests["optimizer"]))
    crosses = [Line2D([], [], color=look.MUTED, label="stopped", linestyle="", **STOPPED)] if len(stopped) else []
    figure, (axes,) = panels_with_legend(3.8, [*handles, *crosses])
    lines = {arch: found[found["arch"] == arch] for arch in look.architecture_colours() if arch in set(found["arch"])}
    ends = [np.array([value]) for value in [*stopped["val_ppl"], *bests["val_ppl"]]]
    values = [*ends, *(own["best"].to_numpy(float) for own in lines.values())]
    fit(axes, "y", values, cut_at=shared_cut(values), log=True, room=ROOM)
    for arch, own in lines.items():
        x, y = np.append(own["hours"], found["hours"].max()), np.append(own["best"], own["best"].min())
        label, colour = units.architecture(arch), look.colour_of(arch)
        axes.step(x, y, where="post", color=colour, linewidth=1.4, zorder=2, label=label)
    marks = []
    for rows, style in ((stopped, STOPPED), (bests, {"markersize": 6.0})):
        for run in rows.to_dict("records"):
            mark = Mark(run["hours"], run["val_ppl"], str(run["number"]), look.colour_of(run["arch"]), run["number"])
            label = f"{run['number']} {run['name']}"
            shown = draw_mark(axes, mark, run["arch"], run["optimizer"], label=label, **style)
            marks += [shown] if style is not STOPPED else []
    axes.set_xlabel(f"{hours[0].upper()}{hours[1:]} spent by all runs")
    axes.set_ylabel("Best validation perplexity so far")
    axes.set_xlim(0, float(found["hours"].max()) * 1.015)
    place_numbers(axes, marks)
    name_values(axes, hours)
    left_out = int(study.runs["epochs_done"].sum()) - len(epochs)
    text = caption("frontier", left_out=left_out, points=len(bests), **signs_of(figure))
    title = f"Best validation perplexity against {hours}"
    return Chart(name="search-frontier", title=title, caption=text, figure=figure)


@look.applied()
def parameters_chart(study: StudyFiles) -> Chart | None:
    """Draw the best validation perplexity of each setting against its parameters, with the lowest of at most as many.

    ``None``: all settings with a finished run have equally many. ``study`` is one at equal epochs.
    """
    sizes = dict(zip(study.runs["number"], study.runs["parameters"], strict=True))
    settings = [one for one in study.settings if units.is_number(sizes[one.runs[0]])]
    counts = [float(sizes[one.runs[0]]) for one in settings]
    if len(set(counts)) < 2:
        return None
    front: list[tuple[float, Setting]] = []
    for count, one in sorted(zip(counts, settings, strict=True), key=lambda pair: (pair[0], pair[1].val_ppl)):
        if not front or one.val_ppl < front[-1][1].val_ppl:
            front.append((count, one))
    unit, name = (1e6, "millions") if max(counts) >= 1e6 else (1e3, "thousands")
    x = [count / unit for count in counts]
    of_front = [one for _, one in front]
    front_handle = [Line2D([], [], **FRONT)] if len(front) > 1 else []
    figure, (axes,) = panels_with_legend(3.8, [*time_handles(settings), *front_handle])
    values = [np.array([one.val_ppl]) for one in settings]
    fit(axes, "y", values, cut_at=shared_cut(values), log=True, room=ROOM)
    fit(axes, "x", x, room=0.09)
    if len(front) > 1:
        corners = [(count / unit, one.val_ppl) for count, one in front]
        axes.step(*zip(*corners, strict=True), where="post", zorder=2, **FRONT | {"label": "_"})
    axes.set_xlabel(f"Parameters ({name})")
    axes.set_ylabel("Best validation perplexity")
    _draw_settings(axes, settings, x, of_front)
    name_values(axes, name)
    text = f"{caption('parameters', front=len(front) > 1, **signs_of(figure))}{scope(study)}"
    title = "Best validation perplexity against parameters"
    return Chart(name="search-parameters", title=title, caption=text, figure=figure)

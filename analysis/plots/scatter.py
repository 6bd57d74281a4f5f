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
    ABOVE,
    MOST_CUT_OFF,
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
from analysis.study.settings import Setting, best_settings, by_perplexity
from analysis.study.study import StudyFiles

FEW_POINTS = 40
"""More points are smaller."""

ROOM = 0.08
"""Of the vertical axis at each end, for whole markers."""

FRONT: dict[str, Any] = {"color": look.MUTED, "linewidth": 1.1, "linestyle": (0, (4, 2)), "label": "lowest so far"}


@look.applied()
def costs_chart(study: StudyFiles) -> Chart | None:
    """The best validation perplexity of each setting against the time to it, and against parameters where they differ.

    ``None``: fewer than two settings have a time, and all have equally many parameters. ``study`` is on one text, at
    equal epochs.
    """
    sizes = dict(zip(study.runs["number"], study.runs["parameters"], strict=True))
    timed = [one for one in study.settings if units.is_number(one.seconds_to_best)]
    sized = [one for one in study.settings if units.is_number(sizes[one.runs[0]])]
    counts = [float(sizes[one.runs[0]]) for one in sized]
    parts = [*(["time"] if len(timed) > 1 else []), *(["parameters"] if len(set(counts)) > 1 else [])]
    if not parts:
        return None
    settings = [one for one in study.settings if one in timed or one in sized]
    front = [Line2D([], [], **FRONT)]
    figure, panels = panels_with_legend(3.2, [*time_handles(settings), *front], panels=len(parts), share=True)
    for axes, part in zip(panels, parts, strict=True):
        if part == "time":
            draw_times(axes, timed, settings)
        else:
            unit, name = (1e6, "millions") if max(counts) >= 1e6 else (1e3, "thousands")
            axes.set_xlabel(f"Parameters ({name})")
            _draw_settings(axes, sized, [count / unit for count in counts], settings)
            name_values(axes, name)
        axes.set_ylabel("" if axes is not panels[0] else "Best validation perplexity")
    text = f"{caption('costs', **signs_of(figure))}{scope(study)}"
    against = {"time": "the time to it", "parameters": "parameters"}
    title = f"Best validation perplexity against {' and '.join(against[part] for part in parts)}"
    return Chart(name="time-and-perplexity", title=title, message=lowest(settings), caption=text, figure=figure)


def time_handles(settings: Sequence[Setting]) -> list[Line2D]:
    """Return the legend entries of :func:`draw_times`."""
    return look.kind_handles({s.arch for s in settings}, {s.optimizer for s in settings})


def draw_times(axes: Axes, settings: Sequence[Setting], all_settings: Sequence[Setting] = ()) -> Axes:
    """Draw perplexity against the time to it. Each setting has a finite time. The axis fits ``all_settings``."""
    seconds, unit = unit_for(max(setting.seconds_to_best for setting in settings))
    axes.set_xlabel(f"Wall-clock time to the best epoch ({unit})")
    axes.set_ylabel("Best validation perplexity")
    _draw_settings(axes, settings, [one.seconds_to_best / seconds for one in settings], all_settings or settings)
    name_values(axes, unit)
    return axes


def lowest(settings: Sequence[Setting]) -> str:
    """Return a sentence: the lowest perplexity of each architecture."""
    best = [f"{units.architecture(s.arch)} {units.perplexity(s.val_ppl)}" for s in best_settings(settings)]
    return f"Lowest validation perplexity: {units.listing(best)}."


def _draw_settings(
    axes: Axes, settings: Sequence[Setting], x: Sequence[float], all_settings: Sequence[Setting]
) -> None:
    """Draw a point for each setting at its place ``x``, and a line through those with the lowest perplexity so far.

    Those of the line and the best have numbers, and some above the axis.
    """
    values = [np.array([one.val_ppl]) for one in all_settings]
    fit(axes, "y", values, cut_at=shared_cut(values), log=True, room=ROOM)
    fit(axes, "x", x, room=0.09)
    front: list[tuple[float, Setting]] = []
    for place, one in sorted(zip(x, settings, strict=True), key=lambda pair: (pair[0], pair[1].val_ppl)):
        if not front or one.val_ppl < front[-1][1].val_ppl:
            front.append((place, one))
    corners = [*((place, one.val_ppl) for place, one in front), (max(x), front[-1][1].val_ppl)]
    axes.step(*zip(*corners, strict=True), where="post", zorder=2, **FRONT | {"label": "_"})
    of_front = [one for _, one in front]
    order = [*of_front, *(one for one in by_perplexity(settings) if one not in of_front)]
    above = [one for one in order if one.val_ppl > axes.get_ylim()[1]]
    ranked = [*order[:MOST_NUMBERS], *above[:MOST_CUT_OFF]]
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


# -- every run by architecture --------------------------------------------------------------------------------------


@look.applied()
def spread_chart(study: StudyFiles) -> Chart | None:
    """Every finished run as a dot by its architecture: its perplexity, and the gap of validation and training loss.

    ``None``: fewer than two have finished. ``study`` is one at equal epochs on one text.
    """
    done = finished(study.runs)
    if len(done) < 2:
        return None
    archs = units.in_order(units.ARCHITECTURES, done["arch"])
    kinds = units.in_order(units.OPTIMIZERS, done["optimizer"])
    step = 0.7 / len(kinds)
    best: dict[tuple[Any, Any], Setting] = {}
    for setting in by_perplexity(study.settings):
        best.setdefault((setting.arch, setting.optimizer), setting)
    figure, (left, right) = panels_with_legend(2.8, time_handles(study.settings), panels=2)
    for axes, key, name in ((left, "val_ppl", "Best validation perplexity"), (right, "gap", "Gap to training (nats)")):
        values = [np.array([value]) for value in done[key]]
        is_ppl = key == "val_ppl"
        fit(
            axes,
            "y",
            [*values, [] if is_ppl else [0.0]],
            cut_at=shared_cut(values) if is_ppl else np.inf,
            log=is_ppl,
            room=ROOM,
        )
        axes.set(xlim=(-0.5, len(archs) - 0.5), ylabel=name)
        axes.set_xticks(range(len(archs)), [units.shortened(units.architecture(arch), 14) for arch in archs])
        axes.grid(visible=False, axis="x")
        top, others = axes.get_ylim()[1], defaultdict[Any, list[tuple[float, float]]](list)
        marks = []
        for number, run_name, arch, optimizer, value in done[["number", "name", "arch", "optimizer", key]].to_numpy():
            place = archs.index(arch) + step * (kinds.index(optimizer) - (len(kinds) - 1) / 2)
            if not np.isfinite(value):
                continue
            if number not in best[arch, optimizer].runs:
                others[optimizer].append((place, min(value, top)))
                if value > top:
                    marks.append(Mark(place, top, f"{number} {ABOVE}", look.MUTED, number))
                continue
            mark = Mark(place, value, str(number), look.colour_of(arch), number)
            marks.append(draw_mark(axes, mark, arch, optimizer, label=f"{number} {run_name}", markersize=6))
        for optimizer, points in others.items():
            grey = {"color": look.CROWD[0], "markersize": 3.5, "zorder": 2, "clip_on": False}
            draw_points(axes, points, None, optimizer, **grey)
        if is_ppl:
            place_numbers(axes, sorted(marks, key=lambda mark: mark.y))
        else:
            axes.axhline(0.0, color=look.MUTED, linewidth=1.0, zorder=1)
        name_values(axes, "", "perplexity" if is_ppl else "nats")
    has_grey = len(done) > sum(len(one.runs) for one in best.values())
    text = f"{caption('spread', grey=has_grey, **signs_of(figure))}{scope(study)}"
    title = "Every finished run by architecture: perplexity, and gap of validation and training"
    return Chart(name="seeds", title=title, message=lowest(study.settings), caption=text, figure=figure)


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

"""Slices: the best validation perplexity over the values of each hyperparameter, a small panel for each.

Learning rates of different optimizers do not compare, so each optimizer has a panel of its own.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from analysis.blocks.figure import Chart, name_values
from analysis.blocks.sentences import caption, scope
from analysis.plots import look
from analysis.plots.axes import (
    MOST_MARKED,
    Mark,
    draw_mark,
    fit,
    label_grid,
    panel_grid,
    place_numbers,
    shared_cut,
    signs_of,
)
from analysis.study import units
from analysis.study.pairs import CHOICES, chains, is_numeric, printed, sorted_values, tuned_keys
from analysis.study.settings import Setting, best_of, by_perplexity
from analysis.study.study import StudyFiles
from seqlm.config import varying_keys

MOST_SLICES = 12
FEW_VALUES = 8
"""Up to this many numbers within a decade are drawn side by side, evenly spaced; more are drawn on a scale."""


@look.applied()
def slices_chart(study: StudyFiles, *, of_search: bool = False) -> Chart | None:
    """A panel for each key that varies in settings alike in all others, of an optimizer's keys one for each optimizer.

    ``of_search``: also if no two settings are alike, as in a random search. ``None``: there is no such key.
    """
    settings = study.settings
    panels: list[tuple[str, str, list[Setting]]] = []
    for key in slice_keys(settings):
        kinds = units.in_order(units.OPTIMIZERS, (one.optimizer for one in settings)) if key in tuned_keys() else [None]
        for kind in kinds:
            members = [one for one in settings if kind is None or one.optimizer == kind]
            name = f"{key} ({units.optimizer(kind)})" if len(kinds) > 1 else key
            panels += [(key, name, members)] if chains(members, key) or (of_search and _varies(members, key)) else []
    shown, left_out = panels[:MOST_SLICES], [name for _, name, _ in panels[MOST_SLICES:]]
    if not shown:
        return None
    figure, grid = panel_grid(len(shown), 1.35, kind_handles(settings))
    for axes, (key, name, members) in zip(grid, shown, strict=True):
        draw_slice(axes, key, members, settings).set_xlabel(name, fontsize=8)
    label_grid(grid, "Validation perplexity")
    joined = any(isinstance(found, LineCollection) for axes in grid for found in axes.collections)
    text = caption("slices", joined=joined, left_out=left_out, of=scope(study), **signs_of(figure))
    return Chart(
        name="slices", title="Best validation perplexity over each hyperparameter", caption=text, figure=figure
    )


def _varies(settings: Sequence[Setting], key: str) -> bool:
    return len({one.config[key] for one in settings if key in one.config}) > 1


def slice_keys(settings: Sequence[Setting]) -> list[str]:
    """The keys that vary between settings, but for architecture, optimizer and schedule."""
    return [key for key in varying_keys(setting.config for setting in settings) if key not in CHOICES]


def kind_handles(settings: Sequence[Setting]) -> list[Any]:
    """Return the legend entries of :func:`draw_slice`."""
    return look.kind_handles({setting.arch for setting in settings}, {setting.optimizer for setting in settings})


def draw_slice(axes: Axes, key: str, settings: Sequence[Setting], all_settings: Sequence[Setting] = ()) -> Axes:
    """Draw one panel: the best setting of each architecture in colour, with those alike in all other keys; others grey.

    The vertical axis has the range of ``all_settings``, those of all panels.
    """
    values = [np.array([setting.val_ppl]) for setting in all_settings or settings]
    fit(axes, "y", values, cut_at=shared_cut(values), log=True, room=0.1, ticks=5)
    top = axes.get_ylim()[1]
    axes.set_ylabel("Validation perplexity", fontsize=8)
    there = [setting for setting in settings if key in setting.config]
    place = _places(axes, key, there)
    of_archs = [best_of(one for one in there if one.arch == arch) for arch in dict.fromkeys(s.arch for s in there)]
    best = {setting.number for setting in of_archs}
    lines = chains(there, key)
    strong = {one.number for chain in lines if best & {one.number for one in chain} for one in chain} | best
    pieces: dict[str, list[list[tuple[float, float]]]] = defaultdict(list)
    for chain in lines:
        colour = look.colour_of(chain[0].arch) if chain[0].number in strong else look.CROWD[0]
        pieces[colour].append([(place(setting), setting.val_ppl) for setting in chain])
    for colour, found in pieces.items():
        width, above_grey = (0.5, 1.5) if colour == look.CROWD[0] else (1.3, 2.2)
        axes.add_collection(LineCollection(found, colors=colour, linewidths=width, zorder=above_grey), autolim=False)
    grey = [one for one in there if one.number not in strong]
    if len(settings) > MOST_MARKED and grey:
        points = [(place(one), min(one.val_ppl, top)) for one in grey]
        axes.plot(*zip(*points, strict=True), "o", color=look.CROWD[0], markersize=2.5, clip_on=False, zorder=1.6)
        there = [one for one in there if one.number in strong]
    above: list[Mark] = []
    for setting in reversed(by_perplexity(there)):
        is_strong = setting.number in strong
        colour = look.colour_of(setting.arch) if is_strong else look.CROWD[0]
        mark = Mark(place(setting), setting.val_ppl, str(setting.runs[0]), colour, setting.only_run)
        style: dict[str, Any] = {"color": colour, "markersize": 6.5 if setting.number in best else 4.0}
        style |= {"label": f"{setting.reference}, {key} {printed(key, setting.config[key])}"}
        style |= {} if is_strong else {"zorder": 1.6}
        drawn = draw_mark(axes, mark, setting.arch, setting.optimizer, **style)
        above += [drawn] if setting.val_ppl > top else []
    place_numbers(axes, above)
    name_values(axes, "")
    return axes


def _places(axes: Axes, key: str, settings: Sequence[Setting]) -> Callable[[Setting], float]:
    """Set up the horizontal axis; return the place of a setting on it.

    Architectures are side by side at a value that has no place on a scale, so that they do not cover one another.
    """
    axes.set_xlabel(key, fontsize=8)
    values = sorted_values(key, (setting.config[key] for setting in settings))
    numeric = all(map(is_numeric, values))
    is_log = numeric and values[0] > 0 and values[-1] > 10 * values[0]
    if numeric and (is_log or len(values) > FEW_VALUES):
        fit(axes, "x", values, log=is_log, room=0.1, ticks=4)
        return lambda setting: float(setting.config[key])
    step = math.ceil(len(values) / FEW_VALUES)
    names = [units.shortened(printed(key, value), 12) for value in values[::step]]
    crowded: dict[str, Any] = {"rotation": 20, "ha": "right"} if sum(map(len, names)) > 26 else {}
    axes.set_xticks(range(0, len(values), step), names, **crowded)
    axes.set_xlim(-0.5, len(values) - 0.5)
    place = {value: number for number, value in enumerate(values)}
    middle = (len(units.ARCHITECTURES) - 1) / 2
    return lambda one: place[one.config[key]] + 0.1 * (units.rank(units.ARCHITECTURES, one.arch) - middle)

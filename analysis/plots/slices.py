"""Slices: the best validation perplexity over the values of each hyperparameter, a small panel for each."""

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
    draw_points,
    fit,
    label_grid,
    panel_grid,
    place_numbers,
    shared_cut,
    signs_of,
)
from analysis.study import units
from analysis.study.pairs import CHOICES, chains, is_numeric, printed, sorted_values
from analysis.study.settings import Setting
from analysis.study.study import StudyFiles
from seqlm.config import varying_keys

MOST_SLICES = 12
FEW_VALUES = 8
"""Up to this many numbers within a decade are drawn side by side, evenly spaced; more are drawn on a scale."""


@look.applied()
def slices_chart(study: StudyFiles) -> Chart | None:
    """A panel for each key that varies; none where none does."""
    settings = study.settings
    keys = slice_keys(settings)
    if not keys:
        return None
    figure, grid = panel_grid(len(keys[:MOST_SLICES]), 1.35, kind_handles(settings))
    for axes, key in zip(grid, keys, strict=False):
        draw_slice(axes, key, settings)
    label_grid(grid, "Validation perplexity")
    joined = any(isinstance(found, LineCollection) for axes in grid for found in axes.collections)
    text = caption("slices", left_out=keys[MOST_SLICES:], of=scope(study), joined=joined, **signs_of(figure))
    return Chart(
        name="slices", title="Best validation perplexity over each hyperparameter", caption=text, figure=figure
    )


def slice_keys(settings: Sequence[Setting]) -> list[str]:
    """The keys that vary between settings, but for architecture, optimizer and schedule."""
    return [key for key in varying_keys(setting.config for setting in settings) if key not in CHOICES]


def kind_handles(settings: Sequence[Setting]) -> list[Any]:
    """Return the legend entries of :func:`draw_slice`."""
    return look.kind_handles({setting.arch for setting in settings}, {setting.optimizer for setting in settings})


def draw_slice(axes: Axes, key: str, settings: Sequence[Setting]) -> Axes:
    """Draw one panel, with the range of all settings on the vertical axis, also of those without the key."""
    values = [np.array([setting.val_ppl]) for setting in settings]
    fit(axes, "y", values, cut_at=shared_cut(values), log=True, room=0.1, ticks=5)
    top = axes.get_ylim()[1]
    axes.set_ylabel("Validation perplexity", fontsize=8)
    there = [setting for setting in settings if key in setting.config]
    place = _places(axes, key, there)
    pieces: dict[str, list[list[tuple[float, float]]]] = defaultdict(list)
    for chain in chains(there, key):
        pieces[look.colour_of(chain[0].arch)].append([(place(setting), setting.val_ppl) for setting in chain])
    for colour, lines in pieces.items():
        width = 0.8 if len(lines) < 100 else 0.3
        axes.add_collection(LineCollection(lines, colors=colour, linewidths=width, alpha=0.55), autolim=False)
    groups: dict[tuple[Any, Any], list[tuple[float, float]]] = defaultdict(list)
    above: list[Mark] = []
    for setting in there:
        if len(settings) > MOST_MARKED:
            groups[setting.arch, setting.optimizer].append((place(setting), min(setting.val_ppl, top)))
            continue
        colour = look.colour_of(setting.arch)
        mark = Mark(place(setting), setting.val_ppl, str(setting.runs[0]), colour, setting.only_run)
        label = f"{setting.reference}, {key} {printed(key, setting.config[key])}"
        drawn = draw_mark(axes, mark, setting.arch, setting.optimizer, label=label)
        above += [drawn] if setting.val_ppl > top else []
    for (arch, optimizer), points in sorted(groups.items(), key=lambda item: str(item[0])):
        draw_points(axes, points, arch, optimizer, clip_on=False)
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
        fit(axes, "x", values, log=is_log, room=0.1, ticks=5)
        return lambda setting: float(setting.config[key])
    step = math.ceil(len(values) / FEW_VALUES)
    names = [units.shortened(printed(key, value), 12) for value in values[::step]]
    crowded: dict[str, Any] = {"rotation": 20, "ha": "right"} if sum(map(len, names)) > 26 else {}
    axes.set_xticks(range(0, len(values), step), names, **crowded)
    axes.set_xlim(-0.5, len(values) - 0.5)
    place = {value: number for number, value in enumerate(values)}
    middle = (len(units.ARCHITECTURES) - 1) / 2
    return lambda one: place[one.config[key]] + 0.1 * (units.rank(units.ARCHITECTURES, one.arch) - middle)

"""Slices: the best validation perplexity over the values of each hyperparameter, a small panel for each."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from analysis.blocks.figure import Chart, name_values, run_mark
from analysis.blocks.texts import first_few, scope
from analysis.plots import look
from analysis.plots.axes import fit, label_grid, panel_grid
from analysis.study import units
from analysis.study.comparison import finished
from analysis.study.pairs import CHOICES, chains_of, is_numeric, printed, sorted_values
from analysis.study.settings import Setting, config_of
from analysis.study.study import Study
from seqlm.config import varying_keys

MOST_SLICES = 12
MOST_MARKED_RUNS = 300
"""With more runs the points are drawn together, so that the page cannot hide single ones, and only the lowest, the
middle and the highest of those alike in value, architecture and optimizer."""


@look.applied()
def slices_chart(study: Study, *, order: Sequence[str]) -> Chart | None:
    """A panel for each key that varies; none where none does."""
    slices = slices_of(study, order)
    if not slices:
        return None
    shown = slices[:MOST_SLICES]
    runs = runs_by_number(study)
    chains = chains_of(study.runs)
    figure, grid = panel_grid(len(shown), 2.05, top_inches=0.4)
    for axes, part in zip(grid, shown, strict=True):
        draw_slice(axes, part, chains.get(part.key, []), runs)
    label_grid(grid, "Validation perplexity")
    archs, optimizers = ({run[key] for run in runs.values()} for key in ("arch", "optimizer"))
    look.add_legend(figure, look.kind_handles(archs, optimizers), top=True)
    tagged = len(runs) <= MOST_MARKED_RUNS
    sentences = ["Colour: architecture; marker: optimizer."]
    if not tagged:
        sentences.append("Of runs alike in these, the lowest, the middle and the highest.")
    sentences.append(
        "Lines join runs that agree in every other key."
        if any(chains.get(part.key) for part in shown)
        else "No two runs agree in all keys but one, so no points are joined."
    )
    if any(part.is_categorical for part in shown):
        sentences.append("At a named value the architectures are side by side, left and right of the tick.")
    if left_out := [part.key for part in slices[MOST_SLICES:]]:
        sentences.append(f"Left out, of the smallest effects: {first_few(left_out, 2)}.")
    return Chart(
        name="slices",
        title="Best validation perplexity over each hyperparameter",
        caption=" ".join(sentences) + scope(study),
        figure=figure,
    )


# -- points and lines ----------------------------------------------------------------------------------------------


def runs_by_number(study: Study) -> dict[int, dict[Any, Any]]:
    """Return what a slice shows of each finished run."""
    columns = ["number", "name", "arch", "optimizer", "val_ppl"]
    return {run["number"]: run for run in finished(study.runs)[columns].to_dict("records")}


def draw_slice(
    axes: Axes, part: Slice, chains: Sequence[Sequence[Setting]], runs: Mapping[int, Mapping[Any, Any]]
) -> Axes:
    """Draw one panel. ``runs``: the rows of all finished runs by number, whose range the vertical axis has."""
    tagged = len(runs) <= MOST_MARKED_RUNS
    fit(axes, "y", [run["val_ppl"] for run in runs.values()], room=0.1, ticks=6)
    axes.set_ylabel("Validation perplexity", fontsize=8)
    _label_values(axes, part)
    _draw_chains(axes, part, chains, tagged=tagged)
    groups: dict[tuple[Any, Any], list[tuple[float, float]]] = defaultdict(list)
    for number, value in part.values.items():
        run = runs[number]
        x, y = part.places[value] + part.shift(run["arch"]), float(run["val_ppl"])
        groups[run["arch"], run["optimizer"]].append((x, y))
        if tagged:
            label = f"{number} {run['name']}, {part.key} {printed(part.key, value)}"
            _draw_points(axes, [(x, y)], run["arch"], run["optimizer"], gid=run_mark(number), label=label)
    if not tagged:
        for (arch, optimizer), points in sorted(groups.items(), key=lambda item: str(item[0])):
            _draw_points(axes, extremes(points), arch, optimizer)
    name_values(axes, "")
    return axes


def _label_values(axes: Axes, part: Slice) -> None:
    axes.set_xlabel(part.key, fontsize=8)
    places = list(part.places.values())
    if not part.is_categorical:
        fit(axes, "x", places, log=part.is_log, room=0.1, ticks=5)
        return
    step = math.ceil(len(places) / FEW_VALUES)
    names = [units.shortened(printed(part.key, value), 12) for value in list(part.places)[::step]]
    crowded: dict[str, Any] = {"rotation": 20, "ha": "right"} if sum(map(len, names)) > 26 else {}
    axes.set_xticks(places[::step], names, **crowded)
    axes.set_xlim(-0.5, len(places) - 0.5)


def _draw_points(axes: Axes, points: Sequence[tuple[float, float]], arch: Any, optimizer: Any, **tags: Any) -> None:
    axes.plot(
        *zip(*points, strict=True),
        color=look.colour_of(arch),
        marker=look.marker_of(optimizer),
        markersize=4.5,
        linestyle="",
        markeredgecolor=look.PAPER,
        markeredgewidth=0.4,
        **tags,
    )


def extremes(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of the points over each value the lowest, the middle and the highest.

    >>> extremes([(1, 9), (1, 5), (1, 6), (1, 7), (1, 8), (2, 3)])
    [(1, 5), (1, 7), (1, 9), (2, 3)]
    """
    over: dict[float, list[float]] = defaultdict(list)
    for x, y in points:
        over[x].append(y)
    kept = []
    for x, heights in sorted(over.items()):
        heights.sort()
        kept += [(x, y) for y in sorted({heights[0], heights[len(heights) // 2], heights[-1]})]
    return kept


def _draw_chains(axes: Axes, part: Slice, chains: Sequence[Sequence[Setting]], *, tagged: bool) -> None:
    """A line through each group. Each half of a line's piece belongs to the run at its end, and hides with it."""
    together: dict[str, list[list[tuple[float, float]]]] = defaultdict(list)
    for chain in chains:
        colour, shift = look.colour_of(chain[0].arch), part.shift(chain[0].arch)
        points = [(part.places[end.config[part.key]] + shift, end.val_ppl, end.runs) for end in chain]
        if not tagged or any(len(members) > 1 for _, _, members in points):
            together[colour].append([(x, y) for x, y, _ in points])
            continue
        for (x1, y1, first), (x2, y2, second) in itertools.pairwise(points):
            middle = _middle(axes.get_xscale(), x1, x2), _middle(axes.get_yscale(), y1, y2)
            for x, y, members in ((x1, y1, first), (x2, y2, second)):
                axes.plot(*zip((x, y), middle, strict=True), color=colour, gid=run_mark(members[0]), **_LINE)
    for colour, pieces in together.items():
        width = 0.8 if len(pieces) < 100 else 0.3
        axes.add_collection(LineCollection(pieces, colors=colour, linewidths=width, alpha=0.55), autolim=False)


_LINE: dict[str, Any] = {"linestyle": "-", "linewidth": 0.8, "alpha": 0.55, "solid_capstyle": "butt"}


def _middle(scale: str, a: float, b: float) -> float:
    """The middle as it is drawn."""
    return math.sqrt(a * b) if scale == "log" else (a + b) / 2


# -- slices --------------------------------------------------------------------------------------------------------

FEW_VALUES = 8
"""Up to this many numbers within a decade are drawn side by side, evenly spaced; more are drawn on a scale."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One panel: where each value lies on the horizontal axis."""

    key: str
    values: Mapping[int, Any]
    """Of each run that has the key, by its number."""
    places: Mapping[Any, float]
    """The place of each value on the axis, in order; categories are counted from 0."""
    is_log: bool
    is_categorical: bool

    def shift(self, arch: Any) -> float:
        """How far beside their place the points of an architecture lie, so that they do not cover one another."""
        ranks = len(units.ARCHITECTURES)
        return 0.1 * (units.rank(units.ARCHITECTURES, arch) - (ranks - 1) / 2) if self.is_categorical else 0.0


def slices_of(study: Study, order: Sequence[str]) -> list[Slice]:
    """The keys that vary but for architecture and optimizer, those of ``order`` first."""
    configs = {run["number"]: config_of(run) for run in finished(study.runs).to_dict("records")}
    varying = varying_keys(configs.values())
    keys = [*(key for key in order if key in varying), *(key for key in varying if key not in order)]
    slices = []
    for key in [key for key in keys if key not in CHOICES]:
        values = {number: config[key] for number, config in configs.items() if key in config}
        ordered = sorted_values(key, values.values())
        numeric = all(map(is_numeric, ordered))
        is_log = numeric and ordered[0] > 0 and ordered[-1] > 10 * ordered[0]
        is_categorical = not is_log and (not numeric or len(ordered) <= FEW_VALUES)
        places = {value: float(n if is_categorical else value) for n, value in enumerate(ordered)}
        slices.append(Slice(key=key, values=values, places=places, is_log=is_log, is_categorical=is_categorical))
    return slices

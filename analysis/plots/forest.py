"""Effects as a forest plot: a row for each change of a hyperparameter, with a dot at the mean change of the loss."""

import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.collections import LineCollection
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis.blocks.figure import Chart, name_values
from analysis.blocks.sentences import caption
from analysis.plots import look
from analysis.plots.axes import CUT_FACTOR, panels_with_legend, tick_text

MOST_ROWS = 40
"""Of more changes the first are drawn; the table has all."""

ROW_INCHES, LABEL_INCHES = 0.19, 2.4
"""Height of a row, and width of the labels on its left."""

LEAST_CUT_NATS = 1.0
"""No change up to this is beyond the axis."""

ROOM = 0.08
"""Of the horizontal axis at each end."""


@look.applied()
def forest_chart(changes: Sequence[dict[str, Any]], of: str = "") -> Chart | None:
    """Return a figure of changes (see :func:`analysis.study.pairs.changes_of`), by key; ``None`` if there are none.

    ``of``: what they are of (see :func:`analysis.blocks.sentences.scope`).
    """
    shown = changes[:MOST_ROWS]
    if not shown:
        return None
    labels: list[str] = []
    heights: list[int] = []
    for place, change in enumerate(shown):
        if not place or change["key"] != shown[place - 1]["key"]:
            labels.append(change["key"])
        heights.append(-len(labels))
        kind = "" if change["optimizer"] is None else f" ({change['name']})"
        labels.append(f"{change['texts'][0]} → {change['texts'][1]}{kind}")
    figure, (axes,) = panels_with_legend(ROW_INCHES * (len(labels) + 0.5), [], left=LABEL_INCHES)
    means = [change["mean_change_nats"] for change in shown]
    ranges = [(change["lowest_change_nats"], change["highest_change_nats"]) for change in shown]
    cut = max(CUT_FACTOR * statistics.median(map(abs, means)), LEAST_CUT_NATS)
    ends = [end for pair in ranges for end in pair if abs(end) <= cut]
    ends += [max(-cut, min(mean, cut)) for mean in means]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    space = ROOM * (high - low) or 0.1
    low, high = low - space, high + space
    axes.axvline(0.0, color=look.MUTED, linewidth=1.0, zorder=1)
    bars = [[(start, height), (end, height)] for (start, end), height in zip(ranges, heights, strict=True)]
    axes.add_collection(LineCollection(bars, colors=look.MUTED, linewidths=1.4, zorder=2), autolim=False)
    beyond = False
    for change, mean, pair, height in zip(shown, means, ranges, heights, strict=True):
        at = max(low, min(mean, high))
        marker = "o" if change["optimizer"] is None else look.marker_of(change["optimizer"])
        label = f"{change['key']}, {change['texts'][0]} to {change['texts'][1]}" if at == mean else "_"
        axes.plot([at], [height], marker, color=look.INK, markersize=4.5, label=label, clip_on=False, zorder=3)
        for edge, is_beyond in ((low, min(pair) < low), (high, max(pair) > high)):
            if is_beyond:  # a bar, or with it the dot
                beyond = True
                side = 1 if edge == high else -1
                beside: dict[str, Any] = {"xytext": (5 * side, 0), "textcoords": "offset points", "va": "center"}
                sign, ha = ("→", "left") if side > 0 else ("←", "right")
                axes.annotate(sign, (edge, height), ha=ha, annotation_clip=False, color=look.MUTED, **beside)
    axes.set_yticks([-place for place in range(len(labels))], labels, fontsize=8)
    keys = {change["key"] for change in shown}
    for tick, label in zip(axes.get_yticklabels(), labels, strict=True):
        tick.set_color(look.INK if label in keys else look.MUTED)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", pad=14 if beyond else 4)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(tick_text))
    axes.set(xlim=(low, high), ylim=(0.5 - len(labels), 0.5))
    axes.set_xlabel("Change of the validation loss (nats); below 0: the second value is better")
    name_values(axes, "nats", "")
    text = caption("forest", beyond=beyond, more=len(changes) - len(shown), of=of)
    title = "Effect of changing one hyperparameter"
    return Chart(name="effects-forest", title=title, caption=text, figure=figure)

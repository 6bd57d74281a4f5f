"""Reproduced perplexities as differences from the published ones, in a figure."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis.blocks.figure import Chart, run_mark
from analysis.plots import look
from analysis.plots.axes import panels_with_legend, scale_for
from analysis.study import units
from analysis.study.published import Comparison

DRAWN_FROM, MOST_DRAWN = 3, 60
"""Fewest finished runs for the chart, and most runs that it shows: those that differ most."""

LINEAR_UP_TO = 50.0
"""Differences above this percentage are drawn as ratios on a logarithmic axis."""


@look.applied()
def published_chart(compared: list[Comparison]) -> Chart:
    """A line for each done run: where the published value would be, where ours is, and the replications' range."""
    drawn = set(sorted(range(len(compared)), key=lambda i: -abs(compared[i].nats))[:MOST_DRAWN])
    shown = [c for place, c in enumerate(compared) if place in drawn]
    ratios = [np.array([c.reproduced, *(c.replications or ())]) / c.published for c in shown]
    everything = np.concatenate(ratios)
    logarithmic = bool((abs(everything[everything > 0] - 1) * 100 > LINEAR_UP_TO).any())
    if not logarithmic:
        ratios = [100 * (ratio - 1) for ratio in ratios]
    entries = look.kind_handles({c.run["arch"] for c in shown}, {c.run["optimizer"] for c in shown})
    grey: dict[str, Any] = {"color": look.MUTED, "alpha": 0.45, "linewidth": 7}
    if any(c.replications for c in shown):
        entries.append(Line2D([], [], label="replications", **grey))
    figure, (axes,) = panels_with_legend(0.24 * len(shown) + 0.35, entries)
    axes.axvline(1.0 if logarithmic else 0.0, color=look.INK, linewidth=1.0, zorder=1.5)
    for row, (c, (ours, *ends)) in enumerate(zip(shown, ratios, strict=True)):
        gid = run_mark(c.run["number"])
        if ends:
            axes.plot(ends, [row, row], solid_capstyle="butt", gid=gid, zorder=2, **grey)
        style: dict[str, Any] = {"color": look.colour_of(c.run["arch"]), "marker": look.marker_of(c.run["optimizer"])}
        axes.plot([ours], [row], markersize=6.5, markeredgecolor=look.PAPER, gid=gid, zorder=3, **style)
    axes.set_yticks(range(len(shown)), [units.shortened(c.reference, 32) for c in shown])
    axes.tick_params(axis="y", length=0, labelcolor=look.INK)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    if logarithmic:
        scale_for([everything[everything > 0], np.ones(1)], logarithmic=True).applied_to(axes, "x", 9)
        axes.set_xlabel("Reproduced / published validation perplexity")
        unit = "a multiple of the published one, logarithmic axis"
    else:
        axes.margins(x=0.06)
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
        axes.set_xlabel("Difference from the published validation perplexity (%)")
        unit = "in per cent of the published one"
    caption = (
        f"Validation perplexity of each done run, {unit}; on the vertical line both are equal. Colour: architecture; "
        "marker: optimizer. Grey bar: replications."
    )
    if len(shown) < len(compared):
        caption += f" The {len(shown)} of {len(compared)} runs that differ most."
    return Chart(
        name="reproduced", title="Reproduced against published validation perplexity", caption=caption, figure=figure
    )

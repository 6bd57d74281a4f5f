"""The figure of what has been published of runs, held against what the runs have reached."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis.blocks.figure import Chart, run_mark
from analysis.plots import look
from analysis.plots.axes import fit, panels_with_legend
from analysis.study import units
from analysis.study.values import rows_of

DRAWN_FROM, MOST_DRAWN = 3, 60
"""Fewest finished runs for the chart, and most runs that it shows: those that differ most."""

LINEAR_UP_TO = 50.0
"""Differences above this percentage are drawn as ratios on a logarithmic axis."""


@look.applied()
def published_chart(compared: pd.DataFrame) -> Chart:
    """A line for each run: where the published value would be, where ours is, and the replications' range.

    ``compared``: runs with ``published_val_ppl``, what they have reached of it (``val_ppl``) and the difference in
    ``percent``.
    """
    sizes = compared["percent"].abs().sort_values(ascending=False, kind="stable")
    shown = compared[compared.index.isin(sizes.index[:MOST_DRAWN])]
    columns = ["val_ppl", "replications_low", "replications_high"]
    ratios = shown[columns].div(shown["published_val_ppl"], axis=0).to_numpy(float)
    positive = ratios[ratios > 0]
    logarithmic = bool((abs(positive - 1) * 100 > LINEAR_UP_TO).any())
    if not logarithmic:
        ratios = 100 * (ratios - 1)
    entries = look.kind_handles(set(shown["arch"]), set(shown["optimizer"]))
    grey: dict[str, Any] = {"color": look.MUTED, "alpha": 0.45, "linewidth": 7}
    if shown["replications_low"].notna().any():
        entries.append(Line2D([], [], label="replications", **grey))
    labels = [f"{r.number} {units.short_name(r.name, 29, r.arch, r.optimizer)}" for r in rows_of(shown)]
    left = 0.2 + 0.077 * max(map(len, labels))
    figure, (axes,) = panels_with_legend(0.24 * len(shown) + 0.35, entries, left=left)
    axes.axvline(1.0 if logarithmic else 0.0, color=look.INK, linewidth=1.0, zorder=1.5)
    for row, (run, (ours, *ends)) in enumerate(zip(rows_of(shown), ratios, strict=True)):
        gid = run_mark(run.number)
        if np.isfinite(ends).all():
            axes.plot(sorted(ends), [row, row], solid_capstyle="butt", gid=gid, zorder=2, **grey)
        style: dict[str, Any] = {"color": look.colour_of(run.arch), "marker": look.marker_of(run.optimizer)}
        axes.plot([ours], [row], markersize=6.5, markeredgecolor=look.PAPER, gid=gid, zorder=3, **style)
    axes.set_yticks(range(len(shown)), labels)
    axes.tick_params(axis="y", length=0, labelcolor=look.INK)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    if logarithmic:
        fit(axes, "x", [positive, 1.0], log=True)
        axes.set_xlabel("Reproduced / published validation perplexity")
        unit = "a multiple of the published one, logarithmic axis"
    else:
        axes.margins(x=0.06)
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
        axes.set_xlabel("Difference from the published validation perplexity (%)")
        unit = "in per cent of the published one"
    caption = (
        f"Validation perplexity of each run that has gone as far, {unit}; on the vertical line both are equal. "
        "Colour: architecture; marker: optimizer. Grey bar: replications."
    )
    if len(shown) < len(compared):
        caption += f" The {len(shown)} of {len(compared)} runs that differ most."
    return Chart(
        name="reproduced", title="Reproduced against published validation perplexity", caption=caption, figure=figure
    )

"""The frontier of a search: the best validation perplexity so far against the hours that the study has spent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from analysis.blocks.figure import Chart, Line, Panel, run_mark
from analysis.plots import look
from analysis.plots.axes import Mark, panels_with_legend, place_numbers, scale_for, shared_cut
from analysis.study import units
from analysis.study.comparison import finished
from analysis.study.study import Study

STOPPED: dict[str, Any] = {"marker": "x", "markersize": 5, "markeredgewidth": 1.2, "linestyle": ""}
"""Of the last epoch of a run that was stopped."""


@look.applied()
def frontier_chart(study: Study, epochs: pd.DataFrame, hours: str) -> Chart:
    """Draw a line for each architecture. ``epochs`` and ``hours`` as :func:`analysis.study.search.spent_hours` has them."""
    done = set(finished(study.runs)["id"])
    found = epochs[np.isfinite(epochs["val_ppl"])]
    archs = [arch for arch in look.ARCHITECTURE_COLOURS if (found["arch"] == arch).any()]
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
            colour, gid = look.colour_of(run["arch"]), run_mark(run["number"])
            kind = {"marker": look.marker_of(run["optimizer"]), **style}
            y = min(float(run["val_ppl"]), scale.high)
            axes.plot([run["hours"]], [y], color=colour, gid=gid, zorder=3, clip_on=False, **kind)
            lines.append(
                Line(
                    label=f"{run['number']} {run['name']}",
                    x=np.array([run["hours"]]),
                    y=np.array([run["val_ppl"]]),
                    run=run["number"],
                )
            )
            if style is not STOPPED:
                marks.append(Mark(x=run["hours"], y=y, text=str(run["number"]), colour=colour, run=run["number"]))
    axes.set_xlabel(f"{hours[0].upper()}{hours[1:]} spent by all runs")
    axes.set_ylabel("Best validation perplexity so far")
    axes.set_xlim(0, float(found["hours"].max()) * 1.015)
    scale.applied_to(axes, "y", 9)
    place_numbers(axes, marks)
    caption = (
        "Line: lowest by then of each architecture. Points with numbers: best epochs of finished runs, when they ended. "
        "Hours of finished epochs."
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

"""Reproduced perplexities as differences from the published ones, in a figure."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis.blocks.figure import Chart, run_mark
from analysis.plots import look
from analysis.plots.look import kind_legend
from analysis.study import units
from analysis.study.published import Comparison

DRAWN_FROM, MOST_DRAWN = 3, 60
"""The chart needs so many finished runs, and shows at most so many: those that differ most."""

LINEAR_UP_TO = 50.0
"""Differences beyond so many per cent are drawn as ratios on a logarithmic axis."""


def published_chart(compared: list[Comparison]) -> Chart:
    """A line for each done run: where the published value would be, where ours is, and the replications' range."""
    drawn = set(sorted(range(len(compared)), key=lambda i: -abs(compared[i].nats))[:MOST_DRAWN])
    shown = [c for place, c in enumerate(compared) if place in drawn]
    with look.applied():
        figure, logarithmic = _draw(shown)
    scale = "a multiple of the published one, logarithmic axis" if logarithmic else "in per cent of the published one"
    caption = (
        f"Validation perplexity of each done run, {scale}; on the vertical line both are equal. Colour: architecture; "
        "marker: optimizer. Grey bar: replications."
    )
    if len(shown) < len(compared):
        caption += f" The {len(shown)} of {len(compared)} runs that differ most."
    return Chart(
        name="reproduced", title="Reproduced against published validation perplexity", caption=caption, figure=figure
    )


def _draw(shown: list[Comparison]) -> tuple[Figure, bool]:
    spans = [value for c in shown for value in (c.reproduced, *(c.replications or ())) if value > 0]
    published = [c.published for c in shown for _ in (c.reproduced, *(c.replications or ()))]
    logarithmic = any(abs(value / base - 1) * 100 > LINEAR_UP_TO for value, base in zip(spans, published, strict=True))
    height = 0.24 * len(shown) + 1.25
    figure = Figure(figsize=(look.WIDTH_INCHES, height))
    axes = figure.add_axes((0.3, 0.95 / height, 0.66, 1 - 1.1 / height))

    def place(value: float, base: float) -> float:
        return value / base if logarithmic else 100 * (value / base - 1)

    axes.axvline(1.0 if logarithmic else 0.0, color=look.INK, linewidth=1.0, zorder=1.5)
    for row, c in enumerate(shown):
        gid = run_mark(c.run["number"])
        if c.replications is not None:
            ends = [place(value, c.published) for value in c.replications]
            axes.plot(
                ends, [row, row], color=look.MUTED, alpha=0.45, linewidth=7, solid_capstyle="butt", gid=gid, zorder=2
            )
        ours = place(c.reproduced, c.published)
        colour = look.colour_of(c.run["arch"])
        marker = look.marker_of(c.run["optimizer"])
        axes.plot(
            [ours], [row], color=colour, marker=marker, markersize=6.5, markeredgecolor=look.PAPER, gid=gid, zorder=3
        )
    names = [units.shortened(c.reference, 32) for c in shown]
    axes.set_yticks(range(len(shown)), names)
    axes.tick_params(axis="y", length=0, labelcolor=look.INK)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.margins(x=0.06)
    axes.grid(axis="y", visible=False)
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.set_xlabel("Reproduced / published validation perplexity")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
        axes.set_xlabel("Difference from the published validation perplexity (%)")
    _add_legend(figure, shown)
    return figure, logarithmic


def _add_legend(figure: Figure, shown: list[Comparison]) -> None:
    more = [Line2D([], [], color=look.MUTED, alpha=0.45, linewidth=7, label="replications")]
    archs, optimizers = ({c.run[key] for c in shown} for key in ("arch", "optimizer"))
    kind_legend(figure, archs, optimizers, more if any(c.replications for c in shown) else [], left=0.02)

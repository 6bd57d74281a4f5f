"""What has been published of a run, held against what the run has reached: the comparison and its figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis.blocks.figure import Chart, run_mark
from analysis.plots import look
from analysis.plots.axes import panels_with_legend, scale_for
from analysis.study import units
from analysis.study.values import as_number

WITHIN, BELOW, ABOVE, NO_REPLICATIONS = (
    "within the replications' spread",
    "below it",
    "above it",
    "no replications published",
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One run with what has been published of it."""

    run: dict[str, Any]
    """Its row of the runs table, as it was after the first ``published_epochs`` (see :meth:`Study.after`)."""

    @property
    def is_comparable(self) -> bool:
        """Whether the run has a result and has gone as many epochs as the published one."""
        return self.run["state"] == "done" and not self._is_short

    @property
    def _is_short(self) -> bool:
        """Whether the run has gone fewer epochs than the published one; nothing is if those are not recorded."""
        return as_number(self.run["epochs_done"]) < as_number(self.run["published_epochs"])

    @property
    def published(self) -> float:
        return float(self.run["published_val_ppl"])

    @property
    def reproduced(self) -> float:
        """Validation perplexity of the best epoch; NaN if the run is not comparable."""
        return float(self.run["val_ppl"]) if self.is_comparable else math.nan

    @property
    def train_reproduced(self) -> float:
        """Training perplexity of the last epoch, as published ones are; NaN if the run is not comparable."""
        return float(self.run["final_train_ppl"]) if self.is_comparable else math.nan

    @property
    def best_epoch(self) -> int | None:
        """The epoch of ``reproduced``, counted from 1."""
        epoch = self.run["best_epoch"]
        return int(epoch) + 1 if units.is_number(self.reproduced) and units.is_number(epoch) else None

    @property
    def difference(self) -> float:
        """Of validation perplexities: reproduced less published."""
        return self.reproduced - self.published

    @property
    def percent(self) -> float:
        return 100 * (self._ratio - 1)

    @property
    def nats(self) -> float:
        """Of validation losses per predicted token."""
        return math.log(self._ratio)

    @property
    def _ratio(self) -> float:
        """Reproduced by published; NaN where it makes no sense."""
        return self.reproduced / self.published if self.published > 0 and self.reproduced > 0 else math.nan

    @property
    def replications(self) -> tuple[float, float] | None:
        low, high = self.run["replications_low"], self.run["replications_high"]
        return (min(low, high), max(low, high)) if units.is_number(low) and units.is_number(high) else None

    @property
    def verdict(self) -> str:
        if self.run["state"] == "done" and self._is_short:
            return f"{units.epochs(self.run['epochs_done'], self.run['published_epochs'])} epochs"
        if not units.is_number(self.reproduced):
            return units.state_of(self.run["state"], self.run["failure_kind"])
        if self.replications is None:
            return NO_REPLICATIONS
        low, high = self.replications
        return BELOW if self.reproduced < low else ABOVE if self.reproduced > high else WITHIN

    @property
    def reference(self) -> str:
        return f"{self.run['number']} {self.run['name']}"


# -- figure --------------------------------------------------------------------------------------------------------

DRAWN_FROM, MOST_DRAWN = 3, 60
"""Fewest finished runs for the chart, and most runs that it shows: those that differ most."""

LINEAR_UP_TO = 50.0
"""Differences above this percentage are drawn as ratios on a logarithmic axis."""


def _label(run: Mapping[str, Any]) -> str:
    return f"{run['number']} {units.short_name(run['name'], 29, run['arch'], run['optimizer'])}"


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
    axes.set_yticks(range(len(shown)), [_label(c.run) for c in shown])
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
        f"Validation perplexity of each run that has gone as far, {unit}; on the vertical line both are equal. "
        "Colour: architecture; marker: optimizer. Grey bar: replications."
    )
    if len(shown) < len(compared):
        caption += f" The {len(shown)} of {len(compared)} runs that differ most."
    return Chart(
        name="reproduced", title="Reproduced against published validation perplexity", caption=caption, figure=figure
    )

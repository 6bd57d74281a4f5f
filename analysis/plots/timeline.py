"""The timeline of a study's jobs: what ran where, from when to when."""

import itertools
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from analysis.blocks.figure import Chart
from analysis.plots import look
from analysis.plots.axes import panels_with_legend, unit_for
from analysis.study import units
from analysis.study.study import StudyFiles
from seqlm.reading import moment

MOST_LANES = 40
HATCH = "/////"


class Bar(NamedTuple):
    """An attempt on one of its places; times in seconds since 1970."""

    arch: str | None
    outcome: str
    start: float
    end: float


Lanes: TypeAlias = Mapping[str, list[Bar]]
"""GPU or host -> its attempts, by their start; those that overlap on one are in lanes of their own."""


def lanes_of(study: StudyFiles) -> Lanes:
    """Return the first lanes of the attempts whose start and end are known."""
    facts = study.attempts.join(study.runs.set_index("id")["arch"], on="id")
    facts["start"], facts["end"] = facts["started_at"].map(moment), facts["ended_at"].map(moment)
    facts = facts.dropna(subset=["start", "end"]).sort_values(["start", "end"], kind="stable")
    lanes: dict[str, list[Bar]] = {}
    for places, *values in facts[["places", *Bar._fields]].itertuples(index=False, name=None):
        bar = Bar(*values)
        for place in (places or "unknown place").split(" + "):
            names = itertools.chain([place], (f"{place} ({number})" for number in itertools.count(2)))
            name = next(name for name in names if name not in lanes or lanes[name][-1].end <= bar.start)
            lanes.setdefault(name, []).append(bar)
    return dict(sorted(lanes.items())[:MOST_LANES])


@look.applied()
def timeline_chart(study: StudyFiles) -> Chart | None:
    """A bar for each attempt; none where no attempt has both its times."""
    lanes = lanes_of(study)
    if not lanes:
        return None
    left = 0.2 + 0.066 * max(map(len, lanes))
    figure, (axes,) = panels_with_legend(max(0.24 * len(lanes), 0.3), handles(lanes), left=left)
    draw_lanes(axes, lanes)
    caption = "Bars: attempts; lanes: GPUs or hosts" + (f", the first {MOST_LANES}" if len(lanes) == MOST_LANES else "")
    return Chart(name="timeline", title="What ran where", caption=f"{caption}; colour: architecture.", figure=figure)


def draw_lanes(axes: Axes, lanes: Lanes) -> Axes:
    """Draw the lanes over the time since the first start. What did not end well is hatched."""
    origin = min(bars[0].start for bars in lanes.values())
    seconds, unit = unit_for(max(bar.end for bars in lanes.values() for bar in bars) - origin)
    for place, bars in enumerate(lanes.values(), start=1):
        for hatch in (None, HATCH):
            drawn = [bar for bar in bars if (bar.outcome == "done") == (hatch is None)]
            spans = [((bar.start - origin) / seconds, (bar.end - bar.start) / seconds) for bar in drawn]
            colours = [look.colour_of(bar.arch) for bar in drawn]
            axes.broken_barh(spans, (place - 0.4, 0.8), facecolors=colours, edgecolor=look.PAPER, lw=0.5, hatch=hatch)
    axes.set(ylim=(len(lanes) + 0.5, 0.5), xlabel=f"Time since the first start ({unit})")
    axes.set_xlim(left=0)
    axes.set_yticks(range(1, len(lanes) + 1), list(lanes), fontsize=7.5)
    axes.grid(visible=False, axis="y")
    return axes


def handles(lanes: Lanes) -> list[Patch]:
    """Return the legend entries of the architectures, and of hatching if any attempt has it."""
    bars = [bar for bars in lanes.values() for bar in bars]
    archs = units.in_order(units.ARCHITECTURES, (bar.arch for bar in bars))
    found = [Patch(facecolor=look.colour_of(arch), label=units.architecture(arch)) for arch in archs]
    if any(bar.outcome != "done" for bar in bars):
        found.append(Patch(facecolor=look.MUTED, edgecolor=look.PAPER, lw=0, hatch=HATCH, label="did not end well"))
    return found

"""The timeline of a study's jobs: what ran where, from when to when."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from analysis.blocks.figure import Chart, name_values, run_mark
from analysis.plots import look
from analysis.plots.axes import panels_with_legend
from analysis.plots.curves import unit_for
from analysis.study import units
from analysis.study.attempts import PLACE_JOINT
from analysis.study.numbering import RunNumber
from analysis.study.study import Study
from seqlm.reading import moment

MOST_LANES = 40
LABEL_LENGTH = 24

HATCHES = {"failed": "/////", "cancelled": "/////", "interrupted": "|||||", "rung": "....."}
KEYS = {"failed": "failed or cancelled", "interrupted": "interrupted", "rung": "left at a rung"}


class Bar(NamedTuple):
    """An attempt on one of its places; times in seconds since 1970."""

    run: RunNumber
    attempt: int
    outcome: str
    arch: str | None
    name: str
    start: float
    end: float


class Lane(NamedTuple):
    """A GPU, or a part of a machine on which one attempt ran at a time."""

    label: str
    bars: list[Bar]


def lanes_of(study: Study) -> list[Lane]:
    """Every attempt whose start and end are known, in the lanes of its places.

    Attempts of one place that overlap (processors, or shares of a GPU) are packed into as few lanes as hold them,
    each attempt into the first that is free.
    """
    facts = study.attempts.join(study.runs.set_index("id")[["arch", "name"]], on="id")
    facts["start"], facts["end"] = facts["started_at"].map(moment), facts["ended_at"].map(moment)
    facts = facts.dropna(subset=["start", "end"])
    places: dict[str, list[Bar]] = defaultdict(list)
    bars = facts[["number", "attempt", "outcome", "arch", "name", "start", "end"]].itertuples(index=False, name=None)
    for joined, bar in zip(facts["places"].fillna("unknown place"), map(Bar._make, bars), strict=True):
        for place in joined.split(PLACE_JOINT):
            places[place].append(bar)
    lanes: list[Lane] = []
    for place in sorted(places, key=_natural):
        packed = pack(places[place])
        labels = [place] if len(packed) == 1 else [f"{place} ({number})" for number in range(1, len(packed) + 1)]
        lanes += map(Lane, labels, packed)
    return lanes


def pack(bars: Iterable[Bar]) -> list[list[Bar]]:
    """Bars in lanes in which none overlap: each, by its start, into the first lane that is free."""
    lanes: list[list[Bar]] = []
    for bar in sorted(bars, key=lambda bar: (bar.start, bar.end, bar.run, bar.attempt)):
        free = next((lane for lane in lanes if lane[-1].end <= bar.start), None)
        if free is None:
            lanes.append([bar])
        else:
            free.append(bar)
    return lanes


def utilisation(lanes: Sequence[Lane]) -> float:
    """Share of the lanes' time, from the first start to the last end, in which an attempt ran; NaN for no time."""
    bars = [bar for lane in lanes for bar in lane.bars]
    span = max(bar.end for bar in bars) - min(bar.start for bar in bars)
    return math.fsum(bar.end - bar.start for bar in bars) / (span * len(lanes)) if span else math.nan


# -- the figure ----------------------------------------------------------------------------------------------------


@look.applied()
def timeline_chart(study: Study) -> Chart | None:
    """A bar for each attempt, in lanes; none where no attempt has both its times."""
    lanes = lanes_of(study)
    if not lanes:
        return None
    shown = lanes[:MOST_LANES]
    left = 0.2 + 0.066 * max(len(_shortened(lane.label)) for lane in shown)
    figure, (axes,) = panels_with_legend(max(0.24 * len(shown), 0.3), bar_handles(shown), left=left)
    draw_lanes(axes, lanes)
    return Chart(name="timeline", title="What ran where", caption=_caption(study, lanes, shown), figure=figure)


def draw_lanes(axes: Axes, lanes: Sequence[Lane]) -> Axes:
    """Draw the first ``MOST_LANES`` lanes over the time since the first start."""
    shown = lanes[:MOST_LANES]
    origin = min(bar.start for lane in lanes for bar in lane.bars)
    last = max(bar.end for lane in lanes for bar in lane.bars) - origin
    seconds, unit = unit_for(last)
    span = (last or 1.0) / seconds * 1.01
    axes.set(xlim=(0, span), ylim=(len(shown) + 0.5, 0.5), xlabel=f"Time since the first start ({unit})")
    names = [_shortened(lane.label) for lane in shown]
    axes.set_yticks(range(1, len(shown) + 1), names, fontsize=7.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    points = axes.get_window_extent().width * 72 / axes.figure.dpi / span
    for place, lane in enumerate(shown, start=1):
        for bar in lane.bars:
            start, end = (bar.start - origin) / seconds, (bar.end - origin) / seconds
            _draw_bar(axes, bar, place, start, end, room=(end - start) * points)
    name_values(axes, unit, "")
    return axes


def _draw_bar(axes: Axes, bar: Bar, place: int, start: float, end: float, *, room: float) -> None:
    """Draw a bar, and the run's number in it if ``room`` (points) is enough."""
    colour, hatch, gid = look.colour_of(bar.arch), HATCHES.get(bar.outcome), run_mark(bar.run)
    label = f"{bar.run} {bar.name}, attempt {bar.attempt}, {bar.outcome}, {units.duration(bar.end - bar.start)}"
    edge: dict[str, Any] = {"facecolor": colour, "edgecolor": look.PAPER, "linewidth": 0.5}
    # Not `add_patch`, and not in the layout: both would measure each of a thousand bars, for limits that are set
    box = Rectangle((start, place - 0.4), end - start, 0.8, hatch=hatch, gid=gid, in_layout=False, label=label, **edge)
    axes.add_artist(box)
    if room >= 5.2 * len(str(bar.run)) + 5:
        axes.text(
            (start + end) / 2,
            place,
            str(bar.run),
            ha="center",
            va="center_baseline",
            fontsize=7.5,
            color=look.ink_on(colour),
            bbox={"boxstyle": "round,pad=0.15", "facecolor": colour, "edgecolor": "none"} if hatch else None,
            gid=gid,
            in_layout=False,
        )


def bar_handles(lanes: Sequence[Lane]) -> list[Patch]:
    """Return the legend entries of the architectures and outcomes that the lanes hold."""
    bars = [bar for lane in lanes for bar in lane.bars]
    archs = units.in_order(units.ARCHITECTURES, (bar.arch for bar in bars))
    hatches = {HATCHES[bar.outcome] for bar in bars if bar.outcome in HATCHES}
    return [Patch(facecolor=look.colour_of(arch), label=units.architecture(arch)) for arch in archs] + [
        Patch(facecolor=look.MUTED, edgecolor=look.PAPER, linewidth=0, hatch=HATCHES[outcome], label=label)
        for outcome, label in KEYS.items()
        if HATCHES[outcome] in hatches
    ]


def _caption(study: Study, lanes: list[Lane], shown: list[Lane]) -> str:
    bars = {(bar.run, bar.attempt) for lane in lanes for bar in lane.bars}
    missing = int((study.attempts["outcome"] != "not started").sum()) - len(bars)
    share = utilisation(lanes)
    sentences = ["Bars: attempts; lanes: GPUs or hosts; colour: architecture."]
    if units.is_number(share):
        busy = "The lane was" if len(lanes) == 1 else f"The {len(lanes)} lanes were"
        sentences.append(f"{busy} busy {100 * share:.0f} % of the time.")
    if len(shown) < len(lanes):
        sentences.append(f"Shown are the first {len(shown)} of {len(lanes)} lanes.")
    if missing:
        sentences.append(f"Not shown: {units.count(missing, 'attempt')} without a recorded start or end.")
    return " ".join(sentences)


def _shortened(label: str) -> str:
    return label if len(label) <= LABEL_LENGTH else f"{label[: LABEL_LENGTH // 2]}…{label[1 - LABEL_LENGTH // 2 :]}"


def _natural(text: str) -> list[tuple[int, str]]:
    """Sorts ``node9`` before ``node10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]

"""Figures and their axes: size and layout, limits and ticks, and the numbers of runs beside their points."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cbook import STEP_LOOKUP_MAP
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import ArrayLike

from analysis.blocks.figure import run_mark
from analysis.plots import look
from analysis.study import units
from analysis.study.numbering import RunNumber
from analysis.study.values import Values

CUT_FACTOR = 10.0
"""An axis that several runs share ends at this many times the median of their best perplexities."""

LOG_FROM = 3.0
"""The scale is logarithmic where the highest value is more than this many times the lowest."""

TICKS = ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
"""Ticks of a logarithmic axis within a decade, from many to few."""

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

FEWEST_TICKS = 3
"""A logarithmic axis with fewer ticks of ``TICKS`` has evenly spaced ones."""

PANEL_COLUMNS = 3
"""Columns of a grid of panels."""

# -- figures -------------------------------------------------------------------------------------------------------


def panels_with_legend(
    row_inches: float,
    entries: Sequence[Artist],
    columns: int | None = None,
    *,
    rows: int = 1,
    panels: int = 1,
    share: bool = False,
    title_lines: int = 0,
    left: float = 0.72,
) -> tuple[Figure, list[Axes]]:
    """Return a new figure: in each of ``rows`` panels side by side, and beneath them a legend of ``columns``.

    ``columns=None``: the legend is one line. ``share``: the panels of a row have one vertical axis. ``left``: inches
    for the labels of that axis. Room for numbers is on the right of each panel. Margins are fixed, so that axes have
    their place before anything is drawn.
    """
    top, below, right = 0.17 + 0.13 * title_lines if title_lines else 0.1, 0.46, 0.36
    legend = 0.1 + 0.15 * (math.ceil(len(entries) / columns) if columns else 1)
    height, gap = (row_inches + top + below) * rows + legend, right if share else right + left
    width = (look.WIDTH_INCHES - left - right - gap * (panels - 1)) / panels
    figure = Figure(figsize=(look.WIDTH_INCHES, height))
    grid = figure.subplots(rows, panels, squeeze=False, sharey="row" if share else False)
    figure.subplots_adjust(
        left=left / look.WIDTH_INCHES,
        right=1 - right / look.WIDTH_INCHES,
        top=1 - top / height,
        bottom=(below + legend) / height,
        wspace=gap / width,
        hspace=(top + below) / row_inches,
    )
    look.add_legend(figure, entries, columns)
    return figure, list(grid.flat)


def panel_grid(
    count: int, panel_inches: float, entries: Sequence[Artist], title_lines: int = 1
) -> tuple[Figure, list[Axes]]:
    """Return a new figure of ``count`` small panels in rows, and beneath them a legend."""
    columns = min(PANEL_COLUMNS, count)
    rows = math.ceil(count / columns)
    figure, panels = panels_with_legend(
        panel_inches, entries, rows=rows, panels=columns, title_lines=title_lines, left=0.66
    )
    for axes in panels[count:]:
        axes.remove()
    for axes in panels:
        axes.tick_params(labelsize=7.5)
    return figure, panels[:count]


def label_grid(panels: Sequence[Axes], y: str, x: str | None = None) -> None:
    """Name the vertical axes in the first column, and the horizontal ones that have no panel below.

    ``None``: keep the names of the horizontal ones.
    """
    for place, axes in enumerate(panels):
        axes.set_ylabel("" if place % PANEL_COLUMNS else y, fontsize=8)
        if x is not None:
            axes.set_xlabel(x if place + PANEL_COLUMNS >= len(panels) else "", fontsize=8)


# -- scales --------------------------------------------------------------------------------------------------------


def fit(
    axes: Axes,
    name: Literal["x", "y"],
    values: Iterable[ArrayLike],
    *,
    cut_at: float = math.inf,
    log: bool | None = None,
    room: float = 0.06,
    ticks: int = 6,
) -> None:
    """Set the scale of an axis, limits around all finite values up to ``cut_at``, and at most ``ticks`` round ticks.

    ``log`` overrides the choice by ``LOG_FROM``; ``None``: no override. ``room`` at both ends is a share of the length.
    """
    found = np.concatenate([np.ravel(np.asarray(value, dtype=np.float64)) for value in values])
    kept = found[np.isfinite(found) & (found <= cut_at)]
    low, high = (float(kept.min()), float(kept.max())) if len(kept) else (0.1, 1.0)
    axis = axes.xaxis if name == "x" else axes.yaxis
    if log or (log is None and low > 0 and high > LOG_FROM * low):
        factor = max(high / low, 1.2) ** room
        low, high = low / factor, high * factor
        axes.set(**{f"{name}scale": "log"})
        axis.set_major_locator(FixedLocator(log_ticks(low, high, ticks)))
        axis.set_minor_locator(NullLocator())
    else:
        space = room * (high - low) or 0.05 * high or 1.0
        low, high = low - space, high + space
        axis.set_major_locator(MaxNLocator(ticks - 1, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(tick_text))
    axes.set(**{f"{name}lim": (low, high)})


def shared_cut(lines: Iterable[Values]) -> float:
    """Where to end an axis that several runs share, so that one that explodes does not flatten all the others."""
    lowest = [float(np.nanmin(line)) for line in lines if np.isfinite(line).any()]
    return CUT_FACTOR * float(np.median(lowest)) if len(lowest) > 1 else math.inf


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """At most ``most`` round values of a logarithmic axis; evenly spaced ones if it is short."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for steps in TICKS:
        found = [step * 10.0**decade for decade in decades for step in steps]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) <= most:
            break
    if len(found) < FEWEST_TICKS:
        even = MaxNLocator(most - 1, steps=[1, 2, 5, 10]).tick_values(low, high)
        found = [float(tick) for tick in even if low <= tick <= high]
    return found[:: math.ceil(len(found) / most) or 1]


def tick_text(value: float, _: object = None) -> str:
    """Return the number at a tick, such as ``1,500``, ``0.002``, ``2×10⁻⁵`` or ``−0.5``."""
    if value and not 1e-4 <= abs(value) < 1e6:
        digits, _, power = f"{value:.3e}".partition("e")
        head = f"{float(digits):g}".replace("-", units.MINUS)
        return f"{'' if head == '1' else f'{head}×'}10{str(int(power)).translate(SUPERSCRIPTS)}"
    return f"{value:,.6g}".replace("-", units.MINUS)


class Unit(NamedTuple):
    """A unit of time."""

    seconds: float
    name: str


def unit_for(longest: float) -> Unit:
    """The largest unit of time of which ``longest`` seconds are more than 2."""
    known = (Unit(3600.0, "hours"), Unit(60.0, "minutes"))
    fitting = (unit for unit in known if units.is_number(longest) and longest > 2 * unit.seconds)
    return next(fitting, Unit(1.0, "seconds"))


# -- points --------------------------------------------------------------------------------------------------------

MOST_MARKED = 300
"""With more settings, those alike in architecture and optimizer are drawn together, so that the page cannot hide single
ones."""


def draw_points(
    axes: Axes, points: Sequence[tuple[float, float]], arch: str | None, optimizer: str | None, **style: Any
) -> None:
    """Draw points in the colour of an architecture, with the marker of an optimizer."""
    own = {"color": look.colour_of(arch), "marker": look.marker_of(optimizer), "linestyle": "", "markersize": 4.5}
    edge = {} if style.get("marker") == "x" else {"markeredgecolor": look.PAPER, "markeredgewidth": 0.5}
    axes.plot(*zip(*points, strict=True), **{**own, **edge, **style})


# -- numbers -------------------------------------------------------------------------------------------------------


class Mark(NamedTuple):
    """The number of a run beside a point of its line."""

    x: float
    y: float
    text: str
    colour: str
    run: RunNumber | None = None
    """Number of the run, with which the mark hides."""


MARK_POINTS = 9.5
"""Height of a number."""

MOST_NUMBERS = 8
"""At most this many numbers stand in a pair of axes."""

MOST_CUT_OFF = 3
"""So many of them are kept for runs above the axis."""

FARTHEST_MOVED = 40
"""A number moves at most this many points out of the way of lines."""

BESIDE = 4.0
"""A number begins so many points beside its point, where its own mark has ended."""

SWEEPS = 100
"""Numbers are pushed apart this often before those that still meet are stacked."""

ABOVE = "↑"
"""After the number of a run whose value lies above the axis, or whose line leaves it."""

LEADER: dict[str, Any] = {
    **{"arrowstyle": "-", "linewidth": 0.6, "relpos": (0, 0.5)},
    **{"patchA": None, "shrinkA": 0, "shrinkB": 0},  # to shorten it by a patch or a distance is slow
}
"""From the left of a number to its point."""


PLACED: "WeakKeyDictionary[Axes, tuple[list[Mark], list[Annotation]]]" = WeakKeyDictionary()
"""The numbers of axes, and what is written of them."""


def place_numbers(axes: Axes, marks: Iterable[Mark]) -> None:
    """Write the numbers of the first ``MOST_NUMBERS`` marks right of their points, the best first.

    ``MOST_CUT_OFF`` of those above the axis are among them, since their points are drawn at its end. Numbers that would
    cover one another or a line move up and down, and stay between the ends of the vertical axis. Limits and size of the
    axes are those that they have now.
    """
    axes.autoscale_view()
    figure = axes.get_figure(root=True)
    assert figure is not None, "axes belong to a figure"
    marks = list(marks)
    PLACED[axes] = (marks, [])
    to_points = 72 / figure.dpi
    edge = figure.get_size_inches()[0] * 72
    low, high = axes.bbox.y0 * to_points + MARK_POINTS / 2, axes.bbox.y1 * to_points - MARK_POINTS / 2
    fitting = int(max(high - low, 0) / MARK_POINTS) + 1
    cut_off = [mark for mark in marks if mark.text.endswith(ABOVE)][:MOST_CUT_OFF]
    chosen = list(dict.fromkeys([*cut_off, *marks]))[: min(MOST_NUMBERS, fitting)]
    points, spans, texts = [], [], []
    for mark in chosen:
        left, height = axes.transData.transform((mark.x, mark.y)) * to_points
        width = 5.5 * len(mark.text) + 6
        is_right = left + width <= edge
        points.append(float(height))
        spans.append((left, left + width) if is_right else (left - width, left))
        texts.append(tuple(end + (BESIDE if is_right else -BESIDE) for end in spans[-1]))
    heights = clear_of_lines(spread(points, spans, low, high), texts, obstacles(axes) * to_points, low, high)
    for mark, point, height, (left, _) in zip(chosen, points, heights, spans, strict=True):
        is_moved = abs(height - point) > 0.6 * MARK_POINTS
        is_right = left >= axes.transData.transform((mark.x, mark.y))[0] * to_points - 0.01
        gid = None if mark.run is None else run_mark(mark.run)
        written = axes.annotate(
            mark.text,
            (mark.x, mark.y),
            xytext=((11 if is_moved else 5) * (1 if is_right else -1), height - point),
            textcoords="offset points",
            ha="left" if is_right else "right",
            va="center",
            fontsize=7.5,
            color=look.ink_of(mark.colour),
            annotation_clip=False,
            arrowprops=LEADER | {"color": mark.colour, "relpos": (0 if is_right else 1, 0.5)} if is_moved else None,
            zorder=4,
            gid=gid,
        )
        written.set_in_layout(False)
        PLACED[axes][1].append(written)
        if written.arrow_patch is not None:
            written.arrow_patch.set_gid(gid)


def place_again(axes: Axes) -> None:
    """Write the numbers of axes once more, whose size has changed."""
    marks, written = PLACED.pop(axes, ([], []))
    for text in written:
        text.remove()
    place_numbers(axes, marks)


def spread(points: Sequence[float], spans: Sequence[tuple[float, float]], low: float, high: float) -> list[float]:
    """Return heights from ``low`` to ``high`` near ``points``, ``MARK_POINTS`` apart if the ``spans`` overlap.

    There must be room for all of them on top of one another.
    """
    order = sorted(range(len(points)), key=lambda place: (points[place], place))
    heights = [min(max(point, low), high) for point in points]
    meeting = [
        (below, above)
        for place, above in enumerate(order)
        for below in order[:place]
        if spans[below][0] < spans[above][1] and spans[above][0] < spans[below][1]
    ]
    for _ in range(SWEEPS):
        for below, above in meeting:
            lack = MARK_POINTS - (heights[above] - heights[below])
            if lack > 0:
                heights[below] = max(heights[below] - lack / 2, low)
                heights[above] = min(heights[above] + lack / 2, high)
    for below, above in meeting:
        heights[above] = max(heights[above], heights[below] + MARK_POINTS)
    for above in reversed(order):
        heights[above] = min(heights[above], high)
        for below in (below for below, other in meeting if other == above):
            heights[below] = min(heights[below], heights[above] - MARK_POINTS)
    return heights


def obstacles(axes: Axes) -> Values:
    """Return points in pixels, (points, 2): close together along each line, and each mark, but for the grey crowd."""
    found = [np.empty((0, 2))]
    for line in axes.lines:
        if line.get_color() == look.CROWD[0]:
            continue
        xy = np.column_stack(STEP_LOOKUP_MAP[line.get_drawstyle()](*np.asarray(line.get_xydata(), dtype=np.float64).T))
        corners = line.get_transform().transform(xy)
        corners = corners[np.isfinite(corners).all(axis=1)]
        if line.get_linestyle() != "None" and len(corners) > 1:
            shares = np.linspace(0, 1, 40)[:, None, None]
            corners = (corners[:-1] + shares * (corners[1:] - corners[:-1])).reshape(-1, 2)
        found.append(corners)
    return np.concatenate(found)


def clear_of_lines(
    heights: Sequence[float], spans: Sequence[tuple[float, float]], points: Values, low: float, high: float
) -> list[float]:
    """Return heights from ``low`` to ``high``, each the nearest at which a number meets no line and no other number.

    ``points`` are those of the lines. A number that has no such place within ``FARTHEST_MOVED`` stays.
    """
    placed = list(heights)
    for place, (left, right) in enumerate(spans):
        inside = points[(points[:, 0] > left) & (points[:, 0] < right), 1]
        others = [placed[other] for other, (a, b) in enumerate(spans) if other != place and a < right and left < b]
        steps = sorted(np.arange(-FARTHEST_MOVED, FARTHEST_MOVED + 1), key=lambda step: (abs(step), step))
        for height in (heights[place] + float(step) for step in steps):
            is_free = not (np.abs(inside - height) < 0.5 * MARK_POINTS).any()
            is_free &= all(abs(height - other) > 0.99 * MARK_POINTS for other in others)  # spread to a hair's breadth
            if is_free and low - 0.01 <= height <= high + 0.01:
                placed[place] = height
                break
    return placed


def draw_mark(axes: Axes, mark: Mark, arch: str | None, optimizer: str | None, **style: Any) -> Mark:
    """Draw a point and return its number. One above the axis is at its top, without a value for the page's pointer."""
    top = axes.get_ylim()[1]
    if mark.y > top:
        mark = mark._replace(y=top, text=f"{mark.text} {ABOVE}")
        style["label"] = "_"
    gid = None if mark.run is None else run_mark(mark.run)
    style = {"gid": gid, "zorder": 3.0, "clip_on": False, "in_layout": False, **style}
    draw_points(axes, [(mark.x, mark.y)], arch, optimizer, **style)
    return mark


def signs_of(figure: Figure) -> dict[str, bool]:
    """Return which of the signs that a caption explains are to be seen in a figure."""
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    crosses = [(axes.get_ylim()[1], line) for axes in figure.axes for line in axes.lines if line.get_marker() == "x"]
    bands = [found for axes in figure.axes for found in axes.collections if isinstance(found, PolyCollection)]
    return {
        "arrows": any(ABOVE in text for text in texts),
        "crosses": any((np.asarray(line.get_ydata(), dtype=np.float64) <= top).any() for top, line in crosses),
        "bands": bool(bands),
    }

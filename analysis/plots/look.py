"""How the figures look: colours, line styles, type, and the legend of architectures and optimizers.

Legible for the colour-blind, in grey print and on dark pages.
"""

import functools
import warnings
from collections.abc import Hashable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib.style
from matplotlib.artist import Artist
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.blocks.figure import key_mark
from analysis.plots.palette import SHADES, UNKNOWN_COLOUR, colours_of, shade
from analysis.study import units
from analysis.study.numbering import RunNumber

WIDTH_INCHES = 7.6
"""Width of every figure."""

INK, MUTED, GRID, PAPER = "#1c2126", "#5c6670", "#dfe3e7", "#fefefe"
"""Text, lesser text, grid and background; the page replaces these four by its own in the light and the dark."""

DASHES: tuple[Any, ...] = (
    *("-", (0, (5, 2)), (0, (1.2, 1.4)), "-.", (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (2, 2)), (0, (6, 1, 2, 1))),
)
MARKERS = "os^DvPX*"


OPTIMIZER_STYLES = {
    name: (DASHES[place % 8], MARKERS[(place + place // 8) % 8]) for place, name in enumerate(units.OPTIMIZERS)
}
"""Optimizer -> its dashes and marker. No two of the first 64 share both."""

CONTRAST = 4.5
"""Least contrast of text with the paper (WCAG 2.2, level AA)."""

CROWD = ("#c3c9ce", "#49525a")
"""Lines of a crowd from which no single one is to stand out: on white paper, and on a dark page."""

RC_PARAMS: dict[str, Any] = {
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so that every machine draws the same bytes
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a run may be called $x$
    "axes.edgecolor": MUTED,
    "axes.facecolor": PAPER,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "axes.titley": 1.0,  # otherwise each drawing measures all tick labels to find the place of the title
    "figure.facecolor": PAPER,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "pdf.fonttype": 42,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",
    "svg.hashsalt": "seqlm",
    "xtick.bottom": False,  # no mark at a tick, which its line of the grid shows
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.left": False,
    "ytick.labelcolor": INK,
}


@contextmanager
def applied() -> Iterator[None]:
    """Draw in this look whatever the user's own matplotlib settings are; also a decorator."""
    with matplotlib.style.context(["default", RC_PARAMS]), warnings.catch_warnings():
        # A run may be named in a script that the font lacks; the SVG shows it all the same.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


@dataclass(frozen=True, kw_only=True)
class LineStyle:
    """How the curve of one run is drawn."""

    colour: str
    dashes: Any
    marker: str

    @property
    def line(self) -> dict[str, Any]:
        """Colour and dashes as keywords of matplotlib."""
        return {"color": self.colour, "linestyle": self.dashes}


def architecture_colours() -> dict[str, str]:
    """Return the colour of each architecture; of more own models than the palette has colours, one for the rest."""
    return colours_of([*units.ARCHITECTURES])


def colour_of(arch: str | None) -> str:
    """Return the colour of an architecture, or of an unknown one."""
    return architecture_colours().get(arch or "", UNKNOWN_COLOUR)


def marker_of(optimizer: str | None) -> str:
    """Return the marker of an optimizer, or of an unknown one."""
    return OPTIMIZER_STYLES.get(optimizer or "", ("-", "."))[1]


def line_style(arch: str | None, optimizer: str | None, place: int) -> LineStyle:
    """The style of the setting at ``place`` among those of an architecture with an optimizer."""
    dashes = OPTIMIZER_STYLES.get(optimizer or "", ("-", "."))[0]
    colour = shade(colour_of(arch), SHADES[place % len(SHADES)][0])
    return LineStyle(colour=colour, dashes=dashes, marker=marker_of(optimizer))


def line_colours() -> dict[str, str]:
    """Every colour that a line can have, with the colour that takes its place on a dark page."""
    bases = [*architecture_colours().values(), UNKNOWN_COLOUR]
    found = {shade(base, light): shade(base, dark) for base in bases for light, dark in SHADES}
    return {CROWD[0]: CROWD[1]} | {ink_of(colour): dark for colour, dark in found.items()} | found


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours by WCAG 2.2: 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@functools.cache
def ink_of(colour: str) -> str:
    """Return the colour for text, as dark as it must be for ``CONTRAST``; of the grey of a crowd the lesser text's."""
    if colour == CROWD[0]:
        return MUTED
    dark = (shade(to_hex(colour), -step / 20) for step in range(20))
    return next((found for found in dark if contrast(found, PAPER) >= CONTRAST), INK)


# -- legend --------------------------------------------------------------------------------------------------------


def kind_handles(archs: AbstractSet[Hashable], optimizers: AbstractSet[Hashable]) -> list[Line2D]:
    """Return legend entries: a dot for each architecture, then a marker for each optimizer, in the report's order."""
    colours = [
        Line2D([], [], linestyle="", marker="o", color=colour, markersize=6, label=units.architecture(arch))
        for arch, colour in architecture_colours().items()
        if arch in archs
    ]
    markers = [
        Line2D([], [], linestyle="", marker=marker, color=MUTED, markersize=6, label=units.optimizer(key))
        for key, (_, marker) in OPTIMIZER_STYLES.items()
        if key in optimizers
    ]
    return [*colours, *markers]


def run_entry(number: RunNumber, label: str, style: LineStyle, *, marker: bool = True) -> Line2D:
    """Return a legend entry on which a reader clicks to hide and show a run."""
    return Line2D([], [], marker=style.marker if marker else "", label=label, gid=key_mark(number), **style.line)


def add_legend(figure: Figure, entries: Sequence[Artist], columns: int | None = None) -> None:
    """Draw a legend beneath the axes, in ``columns``. ``None``: in one line.

    The parts of an entry have its ``gid``.
    """
    legend = figure.legend(
        handles=list(entries),
        ncols=columns or len(entries),
        loc="outside lower left",
        fontsize=8,
        handlelength=3.4 if columns else 2.0,
        labelspacing=0.3,
    )
    for entry, handle, text in zip(entries, legend.legend_handles, legend.get_texts(), strict=True):
        assert handle is not None, "matplotlib draws lines and patches"
        handle.set_gid(entry.get_gid())
        text.set_gid(entry.get_gid())

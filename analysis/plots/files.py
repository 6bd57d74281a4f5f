"""Figures as bytes: the same figure always gives the same ones, and an SVG that can stand inside a page."""

from __future__ import annotations

import io
import multiprocessing
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

from fontTools import subset  # type: ignore[import-untyped]  # it comes with matplotlib
from fontTools.ttLib import TTFont  # type: ignore[import-untyped]
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from analysis.plots import look

NO_DATES: dict[str, dict[str, None]] = {
    "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "ModDate": None},
}
"""Metadata that would change from one writing, or one version, to the next."""

FORMATS = tuple(NO_DATES)
CANVASES = {"svg": FigureCanvasSVG, "png": FigureCanvasAgg, "pdf": FigureCanvasPdf}
PNG_DPI = 160

PAGE_COLOURS = {
    look.INK: "var(--ink)",
    look.MUTED: "var(--muted)",
    look.GRID: "var(--rule)",
    look.PAPER: "var(--paper)",
}


@contextmanager
def drawing(
    figures: Mapping[str, Figure], wanted: Sequence[tuple[str, str]], processes: int = 1
) -> Iterator[Iterator[bytes]]:
    """Draw while the block runs. Yields the contents of the files of ``wanted``: names of figures and ``FORMATS``.

    With more than one process, forks of this one draw: they have the figures without copying them. If the system kills
    one because memory is short, this process draws the rest. A process with threads is not forked, nor any on macOS,
    where the fork may hang or crash.
    """
    if processes > 1 and sys.platform == "linux" and threading.active_count() == 1:
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(processes, mp_context=context, initializer=_keep, initargs=(figures,)) as pool:
            yield _drawn(figures, wanted, pool.map(_draw_kept, wanted))
    else:
        yield _drawn(figures, wanted, iter(()))


def _drawn(
    figures: Mapping[str, Figure], wanted: Sequence[tuple[str, str]], by_others: Iterator[bytes]
) -> Iterator[bytes]:
    """Yield the contents from other processes, then those of files that they have not drawn."""
    left = iter(wanted)
    with suppress(BrokenProcessPool):
        for content in by_others:
            next(left)
            yield content
    for name, kind in left:
        yield figure_bytes(figures[name], kind)


_kept: dict[str, Figure] = {}
"""The figures of a process that draws."""


def _keep(figures: Mapping[str, Figure]) -> None:
    _kept.update(figures)


def _draw_kept(wanted: tuple[str, str]) -> bytes:
    name, kind = wanted
    return figure_bytes(_kept[name], kind)


def figure_bytes(figure: Figure, file_format: str) -> bytes:
    """The content of a figure's file in one of ``FORMATS``.

    The layout is fixed already, so the canvas draws directly: ``savefig`` would draw once more to work it out.
    """
    buffer = io.BytesIO()
    with look.applied(), _quick_subsets():
        canvas = CANVASES[file_format](figure)
        figure.set_dpi(PNG_DPI)
        getattr(canvas, f"print_{file_format}")(buffer, metadata=NO_DATES[file_format])
    return buffer.getvalue()


# -- fonts in a PDF ------------------------------------------------------------------------------------------------

LAYOUT_TABLES = ["GDEF", "GPOS", "GSUB", "kern"]
"""Of a font, for laying out text: a PDF places each glyph itself, and no viewer reads them."""

COMMON = frozenset([*range(0x20, 0x250), *map(ord, "·–—‘’“”…↑▲−≈⁰⁴⁵⁶⁷⁸⁹⁻")])
"""Characters that most figures do with."""


@contextmanager
def _quick_subsets() -> Iterator[None]:
    """Reduce the fonts in a PDF by ``_Subsetter``: otherwise it takes a fifth of the time of all figures."""
    subset.Subsetter = _Subsetter
    try:
        yield
    finally:
        subset.Subsetter = _WholeSubsetter


_WholeSubsetter: Any = subset.Subsetter


class _Subsetter(subset.Subsetter):  # type: ignore[misc]
    """Reduces a font to the glyphs of a figure: a font of common characters, if it has them, else the whole one."""

    glyph_ids_requested: set[int]
    glyph_index_map: dict[int, int]

    def subset(self, font: TTFont) -> None:
        self.options.drop_tables += LAYOUT_TABLES
        wanted = self.glyph_ids_requested
        content, places = _common_font(font.reader.file.name)
        if wanted <= places.keys() and self.unicodes_requested <= COMMON:
            font.reader.close()
            font.reader = TTFont(io.BytesIO(content)).reader
            self.glyph_ids_requested = {places[glyph] for glyph in wanted}
        else:
            places = {glyph: glyph for glyph in wanted}
        super().subset(font)
        self.glyph_index_map = {glyph: self.glyph_index_map[places[glyph]] for glyph in wanted}


@cache
def _common_font(path: str) -> tuple[bytes, dict[int, int]]:
    """Return a font reduced to ``COMMON``, and the glyph there of each of its glyphs in the whole font."""
    options = subset.Options(glyph_names=True, recommended_glyphs=True)
    options.drop_tables += [*LAYOUT_TABLES, "FFTM"]
    reducing = _WholeSubsetter(options)
    with subset.load_font(path, options) as font:
        reducing.populate(unicodes=COMMON)
        reducing.subset(font)
        content = io.BytesIO()
        font.save(content, reorderTables=False)
    return content.getvalue(), reducing.glyph_index_map


def inline_svg(svg: bytes, prefix: str) -> str:
    """An SVG file as an element of an HTML page: its ids made unique, in the page's font and colours.

    What is drawn for a run becomes ``data-run``, its entry in a legend ``data-key``, with the run's number.
    """
    text = svg.decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href=", "href=")
    text = re.sub(r'\bid="(run|key)-(\d+[a-z]*)"', r'data-\1="\2"', text)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', text)
    text = re.sub(r"""'DejaVu Sans'""", "var(--sans)", text)
    for colour, variable in (PAGE_COLOURS | {c: f"var(--line-{c[1:]})" for c in look.line_colours()}).items():
        text = text.replace(colour, variable)
    return re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", text, count=1).strip()

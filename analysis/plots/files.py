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

from fontTools.subset import Options  # type: ignore[import-untyped]  # it comes with matplotlib
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
    with look.applied(), _fonts_without_layout():
        canvas = CANVASES[file_format](figure)
        figure.set_dpi(PNG_DPI)
        getattr(canvas, f"print_{file_format}")(buffer, metadata=NO_DATES[file_format])
    return buffer.getvalue()


@contextmanager
def _fonts_without_layout() -> Iterator[None]:
    """Leave out of the fonts in a PDF the tables for laying out text.

    A PDF places each glyph itself and no viewer reads them, but reducing them to the glyphs of a figure takes fontTools
    four fifths of its time: half of what a whole report takes.
    """
    default = Options._drop_tables_default
    Options._drop_tables_default = [*default, "GDEF", "GPOS", "GSUB", "kern"]
    try:
        yield
    finally:
        Options._drop_tables_default = default


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

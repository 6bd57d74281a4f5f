"""Figures as bytes: the same figure always gives the same ones, and an SVG that can stand inside a page."""

from __future__ import annotations

import io
import re
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

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

SMALL = "Seqlm Sans"
"""Western letters and the signs of figures of DejaVu Sans, whose licence asks for another name.

Other characters come from DejaVu Sans. With all its letters, matplotlib needs 0.3 s longer for each PDF, to which it
adds the characters that are used. ``python -m tests.analysis.small_font`` writes the file.
"""
fontManager.addfont(Path(__file__).with_name("seqlm-sans.ttf"))

PAGE_COLOURS = {
    look.INK: "var(--ink)",
    look.MUTED: "var(--muted)",
    look.GRID: "var(--rule)",
    look.PAPER: "var(--paper)",
}


def figure_bytes(figure: Figure, file_format: str) -> bytes:
    """The content of a figure's file in one of ``FORMATS``.

    The canvas draws directly: ``savefig`` would draw once more to work out a layout, which is fixed.
    """
    buffer = io.BytesIO()
    fonts = [*([SMALL] if file_format == "pdf" else []), *look.RC_PARAMS["font.sans-serif"]]
    with look.applied(), matplotlib.rc_context({"font.sans-serif": fonts}):
        canvas = CANVASES[file_format](figure)
        figure.set_dpi(PNG_DPI)
        faster = {"pil_kwargs": {"compress_level": 3}} if file_format == "png" else {}  # by a third, for 4 % more bytes
        getattr(canvas, f"print_{file_format}")(buffer, metadata=NO_DATES[file_format], **faster)
    return buffer.getvalue()


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
    text = text.replace("'DejaVu Sans', sans-serif", "var(--sans)")
    for colour, variable in (PAGE_COLOURS | {c: f"var(--line-{c[1:]})" for c in look.line_colours()}).items():
        text = text.replace(colour, variable)
    return re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", text, count=1).strip()

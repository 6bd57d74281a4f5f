"""Figures as bytes: the same figure always gives the same ones, and an SVG that can stand inside a page."""

import atexit
import contextlib
import functools
import io
import re
import shutil
import tempfile
from collections.abc import Iterator
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
    with look.applied(), _small_font() if file_format == "pdf" else contextlib.nullcontext():
        canvas = CANVASES[file_format](figure)
        figure.set_dpi(PNG_DPI)
        faster = {"pil_kwargs": {"compress_level": 3}} if file_format == "png" else {}  # by a third, for 4 % more bytes
        getattr(canvas, f"print_{file_format}")(buffer, metadata=NO_DATES[file_format], **faster)
    return buffer.getvalue()


SMALL = "Seqlm Sans"
LETTERS = [*range(0x20, 0x100), *range(0x2010, 0x2040), *range(0x2070, 0x2090), *range(0x2190, 0x2194), 0x2212, 0x2248]
"""Western letters, and the signs of figures. Others come from the font itself."""


@contextlib.contextmanager
def _small_font() -> Iterator[None]:
    """Draw with those letters of the font alone while the block runs.

    Matplotlib reduces a font to the characters of each PDF, which takes 0.3 s longer with all letters of DejaVu Sans.
    """
    _make_small_font()
    with matplotlib.rc_context({"font.sans-serif": [SMALL, "DejaVu Sans"]}):
        yield


@functools.cache
def _make_small_font() -> None:
    """Make :data:`SMALL` from DejaVu Sans, in a folder that goes with this process."""
    from fontTools import subset  # comes with matplotlib

    folder = tempfile.mkdtemp(prefix="seqlm-font-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    options = subset.Options(layout_features=[], legacy_kern=True, name_IDs=["*"])  # kerning as the table that is fast
    options.drop_tables += ["FFTM", "GDEF", "GPOS", "GSUB", "MATH"]
    path = Path(folder, "small.ttf")
    with subset.load_font(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), options) as font:
        letters = subset.Subsetter(options)
        letters.populate(unicodes=LETTERS)
        letters.subset(font)
        for record in font["name"].names:
            record.string = str(record).replace("DejaVu Sans", SMALL).replace("DejaVuSans", SMALL.replace(" ", ""))
        subset.save_font(font, str(path), options)
    fontManager.addfont(path)


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

"""Configuration of the documentation site, which `make docs` builds with Sphinx. Nothing here uses a network."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from seqlm import __version__

project = "seqlm"
version = release = __version__
html_title = f"seqlm {__version__}"
language = "en"

extensions = ["myst_parser", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
nitpicky = True
suppress_warnings = ["myst.strikethrough"]

myst_enable_extensions = ["alert", "colon_fence", "deflist"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["seqlm.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_show_search_summary = False  # a browser refuses the summaries of pages that are opened as files
html_theme_options = {"navigation_with_keys": False}
highlight_language = "text"
pygments_style = "friendly"
pygments_dark_style = "github-dark"
copybutton_prompt_text = "$ "


html_extra_path = ["llms.txt"]


def setup(app: Sphinx) -> None:
    """Put each page next to its HTML as Markdown. Fail the build if a page would ask a network for anything."""
    app.connect("build-finished", _add_sources)
    app.connect("build-finished", _refuse_network)


def _add_sources(app: Sphinx, error: Exception | None) -> None:
    for page in app.env.found_docs if error is None else ():
        shutil.copyfile(app.env.doc2path(page), Path(app.outdir, page).with_suffix(".md"))


REMOTE = re.compile(
    r"""<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="(?:https?:)?//|(?:url\(|@import)\s*["']?https?:"""
)


def _refuse_network(app: Sphinx, error: Exception | None) -> None:
    files = [file for kind in ("*.html", "*.css") for file in Path(app.outdir).rglob(kind)] if error is None else []
    asking = [str(file) for file in files if REMOTE.search(file.read_text("utf-8"))]
    if asking:
        raise ExtensionError(f"pages load something from a network: {', '.join(asking)}")

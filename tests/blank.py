"""Reports whose figures are neither laid out nor drawn, which takes most of a small report's time.

In this process with the fixture ``blank_figures``, in a command with ``preexec_fn=blank.figures``, in the reports that
a command starts with ``preexec_fn=blank.reports``.
"""

from __future__ import annotations

import pkgutil
import subprocess
from typing import Any


def _fail(*_: object) -> None:
    raise AssertionError("drew a figure that should have been left blank")


FUNCTIONS = {
    "analysis.report.figure_bytes": lambda *_: b'<svg width="1" height="1"></svg>',
    "analysis.blocks.figure.Chart.__post_init__": lambda _: None,
    "matplotlib.figure.Figure.draw": _fail,
}
"""Dotted name -> its replacement."""


def figures() -> None:
    """Leave the figures blank for the rest of this process."""
    for name, function in FUNCTIONS.items():
        owner, _, attribute = name.rpartition(".")
        where = pkgutil.resolve_name(owner)
        getattr(where, attribute)
        setattr(where, attribute, function)


def reports() -> None:
    """Leave the figures blank in reports that this process starts with ``subprocess.run``."""
    run = subprocess.run

    def blank(argv: list[str], **options: Any) -> Any:
        return run(argv, **options, preexec_fn=figures if "report" in argv else None)

    subprocess.run = blank  # type: ignore[assignment]

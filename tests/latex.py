"""Whether LaTeX is here, needed with CI=true, and a table compiled inside a small article."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import commands

ARTICLE = r"""\documentclass{article}
\usepackage[T1]{fontenc}\usepackage{array,booktabs,longtable}
\begin{document}
\listoftables
%s
\end{document}
"""
"""The narrowest page of LaTeX's own classes, and nothing but what the tables say they need."""


def require_latex() -> None:
    """Skip where pdflatex is not installed; fail instead with CI=true."""
    if shutil.which("pdflatex") is not None:
        return
    if os.environ.get("CI"):
        pytest.fail("not installed: pdflatex (see .ci/install_programs)")
    pytest.skip("not installed: pdflatex")


def compile_latex(tex: str, folder: Path, *, engine: str = "pdflatex") -> str:
    """The log of the second pass over an article that holds ``tex``; fails where LaTeX does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.tex").write_text(tex, encoding="utf-8", errors="replace")
    (folder / "article.tex").write_text(ARTICLE % r"\input{table.tex}", encoding="utf-8")
    command = [engine, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "article.tex"]
    for _ in range(2):
        done = commands.run(command, cwd=folder, stdin=subprocess.DEVNULL, errors="replace")
        assert done.returncode == 0, done.stdout[-2000:]
    return (folder / "article.log").read_text(encoding="utf-8", errors="replace")


def points_too_wide(log: str) -> float:
    """By how many points the worst line runs out of its column or page."""
    return max((float(points) for points in re.findall(r"Overfull \\hbox \(([\d.]+)pt too wide\)", log)), default=0.0)

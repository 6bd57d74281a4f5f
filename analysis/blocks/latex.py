"""A table as LaTeX, by pandas' Styler: a longtable in small type, its columns in parts that fit the page.

Whatever a text holds, the result prints it and does nothing else. It compiles with pdfLaTeX, XeLaTeX and LuaLaTeX. A
character that pdfLaTeX lacks is printed as its number, such as ``[U+4E2D]``.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache

import pandas as pd

from analysis.blocks.table import Cell, Table

HEAD = r"""
% For \input. The preamble needs \usepackage{array,booktabs,longtable}, for pdfLaTeX also \usepackage[T1]{fontenc}.
% The page needs one column (in a paper of two: in an appendix after \onecolumn).
\begingroup\scriptsize\setlength{\tabcolsep}{2pt}\setlength{\LTcapwidth}{\linewidth}
"""

PAGE, GAP, LONGEST = 92.0, 2.6, 28
"""In characters: about the width of the narrowest page of LaTeX's own classes in this type, the room that a column has
besides its text, and the longest line of a cell."""


def latex_table(table: Table) -> str:
    """The table without its lines of code; columns that do not fit side by side follow in further parts."""
    widths = [
        max(
            [min(len(word), LONGEST) for word in re.split(r"[ .]", column.title)]
            + [min(len(row.cells[place].text), LONGEST) for row in table.rows]
        )
        for place, column in enumerate(table.columns)
    ]
    parts = _parts(widths, next((n + 1 for n, column in enumerate(table.columns[:3]) if not column.numeric), 1))
    tex = []
    for number, part in enumerate(parts, start=1):
        title, of = latex_text(table.title), f"part {number} of {len(parts)}"
        full = rf"{title}. {latex_text(table.caption)}{f' P{of[1:]}.' if len(parts) > 1 else ''}"
        head = " & ".join(latex_text(table.columns[place].title) for place in part)
        lines = [" & ".join(_cell(row.cells[place]) for place in part) for row in table.rows]
        sides = {place: "left" if table.columns[place].numeric else "right" for place in part}
        longtable = (
            pd.DataFrame({head: lines[:1]})
            .style.hide(axis="index")
            .to_latex(  # takes far longer for all lines, and more so for a cell of each
                environment="longtable",
                hrules=True,
                column_format="".join(
                    rf">{{\ragged{sides[place]}\arraybackslash}}p{{{0.45 * (widths[place] + 1.5):.2f}em}}"
                    for place in part
                ),
                caption=(full, title) if number == 1 else (f"{title}, {of}", ""),
                label=f"tab:{table.name}" if number == 1 else None,
            )
        )
        longtable = longtable.replace(r"\multicolumn{1}{r}", rf"\multicolumn{{{len(part)}}}{{r}}")
        start, end, rest = longtable.rpartition(r"\end{longtable}")
        tex.append("".join([start, *(f"{line} \\\\\n" for line in lines[1:]), end, rest]))
    return HEAD.lstrip() + "\\addtocounter{table}{-1}\n".join(tex) + "\\endgroup\n"  # longtable counts each part


def _parts(widths: Sequence[int], keys: int) -> list[list[int]]:
    """The columns of each part: the first ``keys``, which say what a row is, then as many others as fit."""
    parts: list[list[int]] = [list(range(keys))]
    for place in range(keys, len(widths)):
        if len(parts[-1]) > keys and sum(widths[n] + GAP for n in [*parts[-1], place]) > PAGE:
            parts.append(list(range(keys)))
        parts[-1].append(place)
    return parts


def _cell(cell: Cell) -> str:
    text = latex_text(cell.text)
    return rf"\textbf{{{text}}}" if cell.bold else text


# -- text ----------------------------------------------------------------------------------------------------------

BREAK = "\N{ZERO WIDTH SPACE}"
_BREAKS = re.compile(
    r"^(?=[\[*])"  # else an argument of the line end before
    r"|(?<=-)(?=-)|(?<=')(?=')|(?<=,)(?=,)|(?<=<)(?=<)|(?<=>)(?=>)"  # else one character of another kind
    r"|(?<=[_.:;=/,-])(?<!\d[.,])(?=[^\W_])|(?<=\])(?=\[)"  # names may be broken at their separators, numbers not
)
_LONG = re.compile(rf"[^\s{BREAK}]{{21,}}")
"""What has no such place and may be wider than a column, which is as wide as 12 capital Ws, 11 bold ones."""
_MATH = {"≈": r"\approx", "≤": r"\leq", "≥": r"\geq", "−": "-", "→": r"\rightarrow", "β": r"\beta", "γ": r"\gamma"}
_COMMANDS = {"\\": "textbackslash", "^": "textasciicircum", "~": "textasciitilde", "`": "textasciigrave"}
_LATEX = str.maketrans(
    {character: rf"\{character}" for character in "{}$&#%_"}
    | {character: rf"\{command}{{}}" for character, command in _COMMANDS.items()}
    | {character: rf"\ensuremath{{{command}}}" for character, command in _MATH.items()}
    | {BREAK: r"\allowbreak{}", "\N{NO-BREAK SPACE}": "~"}
)


@cache
def latex_text(text: str) -> str:
    """Text that LaTeX prints as it is, its lines broken at spaces and at the separators of names."""
    text = re.sub(r"\s+", " ", unicodedata.normalize("NFC", text))
    known = [character if _is_known(character) else f"[U+{ord(character):04X}]" for character in text]
    text = _BREAKS.sub(BREAK, "".join(known))
    return _LONG.sub(lambda long: re.sub(r".{11}(?=.)", rf"\g<0>{BREAK}", long[0]), text).translate(_LATEX)


def _is_known(character: str) -> bool:
    """Whether pdfLaTeX prints it: a character of Windows' Western code page, an accented letter, or of ``_MATH``."""
    if character in _MATH or (unicodedata.normalize("NFD", character)[0].isascii() and character <= "\u017e"):
        return character.isprintable()
    return bool(character.encode("cp1252", errors="ignore")) and character.isprintable()

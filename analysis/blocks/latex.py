"""A table as LaTeX that fits the page, however long it is and however many columns it has.

Every column has a width in points, worked out here from its texts, and everything in it can be broken into lines. So
the table is never wider than the narrowest page of LaTeX's own classes. What does not fit side by side even so stands
in a second part beneath the first, which repeats the columns that say what each row is.

Whatever a text holds, the result prints it and does nothing else: it compiles with pdfLaTeX, XeLaTeX and LuaLaTeX in
the encodings OT1, T1 and TU, with the fonts that every LaTeX has. A character that those fonts lack is printed as its
number, such as ``[U+4E2D]``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache

from analysis.blocks.table import Row, Table

PAGE_PT = 345.0
"""Width of the text on a page of ``article`` with type of 10 points; larger type and other classes have more."""

GAP_PT = 6.0
"""Between two columns."""

NARROW_PT = 64.0
"""No column is made narrower than this to save room, unless it needs no more."""

CODE_PT = 3.7
"""Width of a character of code: typewriter type of 7 points."""

BOLD = 1.17
"""How much wider bold type is."""

HEAD = r"""% For \input. The preamble needs: \usepackage{array,booktabs,longtable}
% For pdfLaTeX, XeLaTeX and LuaLaTeX, on pages of one column (a paper of two: in an appendix after \onecolumn).
\begingroup
\fontsize{8}{9.6}\selectfont\setlength{\tabcolsep}{3pt}\setlength{\LTcapwidth}{\linewidth}
"""


def latex_table(table: Table) -> str:
    """The table in type of 8 points: caption above, broken over pages, its heading on each."""
    parts = _parts([_natural(table, n) for n in range(len(table.columns))], _key_columns(table))
    texts = [_part(table, columns, number, len(parts)) for number, columns in enumerate(parts, start=1)]
    same_number = "\\addtocounter{table}{-1}\n"  # longtable counts each part as a table
    return HEAD + same_number.join(texts) + "\\endgroup\n"


def _part(table: Table, columns: list[int], number: int, parts: int) -> str:
    """The columns with these indices as one long table. The lines of code go to the first part."""
    widths = _fitted([_natural(table, n) for n in columns])
    whole = sum(widths) + GAP_PT * (len(widths) - 1)
    sides = [r"\raggedleft" if table.columns[n].numeric else r"\raggedright" for n in columns]
    cells = [rf">{{{side}\arraybackslash}}p{{{width:.1f}pt}}" for side, width in zip(sides, widths, strict=True)]
    headings = [cell.replace("}p{", "}b{") for cell in cells]  # titles of several lines stand on one base line
    headings[0], headings[-1] = f"@{{}}{headings[0]}", f"{headings[-1]}@{{}}"
    titles = [breakable_latex(table.columns[n].title, width) for n, width in zip(columns, widths, strict=True)]
    heading = [
        r"\toprule",
        _row([rf"\multicolumn{{1}}{{{spec}}}{{{title}}}" for spec, title in zip(headings, titles, strict=True)]),
        r"\midrule",
    ]
    lines = [
        rf"\begin{{longtable}}{{@{{}}{''.join(cells)}@{{}}}}",
        rf"{_caption(table, number, parts)}\\[4pt]",
        *(*heading, r"\endfirsthead"),
        rf"\multicolumn{{{len(columns)}}}{{@{{}}l@{{}}}}{{\tablename~\thetable{{}} (continued)}}\\[4pt]",
        *(*heading, r"\endhead"),
        *(r"\bottomrule", r"\endfoot"),
    ]
    for row in table.rows:
        texts = [_cell(row, n, width) for n, width in zip(columns, widths, strict=True)]
        if row.code and number == 1:
            code = code_latex(row.code, int(whole / CODE_PT) - 2)
            style = r"\fontsize{7}{8.4}\selectfont\ttfamily\raggedright\hangindent=1em\arraybackslash"
            lines.append(_row(texts) + "*")
            lines.append(rf"\multicolumn{{{len(columns)}}}{{@{{}}>{{{style}}}p{{{whole:.1f}pt}}@{{}}}}{{{code}}} \\")
            lines.append(r"\addlinespace[4pt]")
        else:
            lines.append(_row(texts))
    return "\n".join([*lines, r"\end{longtable}"]) + "\n"


def _caption(table: Table, number: int, parts: int) -> str:
    title = escape_latex(table.title)
    if number > 1:
        return rf"\caption[]{{{title}, part {number} of {parts}.}}"
    more = f" Part 1 of {parts}." if parts > 1 else ""
    text = breakable_latex(f"{table.caption}{more}", PAGE_PT / 2)
    return rf"\caption[{{{title}}}]{{{title}. {text}}}\label{{tab:{table.name}}}"


def _cell(row: Row, column: int, width_pt: float) -> str:
    cell = row.cells[column]
    text = breakable_latex(cell.text, width_pt / (BOLD if cell.bold else 1.0))
    return rf"\textbf{{{text}}}" if cell.bold else text


def _row(cells: list[str]) -> str:
    row = " & ".join(cells) + r" \\"
    return f"{{}}{row}" if row.startswith(("[", "*")) else row  # else an argument of the line end before


# -- widths --------------------------------------------------------------------------------------------------------


def _natural(table: Table, column: int) -> float:
    """The width in points at which no cell of a column is broken; its title may be, where a name may."""
    cells = [row.cells[column] for row in table.rows]
    widest = max((width_of(cell.text) * (BOLD if cell.bold else 1.0) for cell in cells), default=0.0)
    return max(widest, min(widest_piece(table.columns[column].title), NARROW_PT)) + 1.0


def _fitted(widths: list[float]) -> list[float]:
    """The widths, the widest ones cut to one measure until all fit the page side by side."""
    room = PAGE_PT - GAP_PT * (len(widths) - 1)
    cut = max(widths)
    while sum(min(width, cut) for width in widths) > room and cut > NARROW_PT:
        cut -= 1.0
    return [min(width, cut) for width in widths]


def _key_columns(table: Table) -> int:
    """How many of the first columns say what a row is: up to the first that holds text."""
    texts = [n for n, column in enumerate(table.columns[:3]) if not column.numeric]
    return texts[0] + 1 if texts else 1


def _parts(widths: list[float], keys: int) -> list[list[int]]:
    """The columns of each part: as few parts as can be, of about the same width."""
    narrowest = [min(width, NARROW_PT) + GAP_PT for width in widths]
    limit = PAGE_PT + GAP_PT
    parts = _filled(narrowest, keys, limit)
    while len(parts) > 1 and len(closer := _filled(narrowest, keys, limit - 5.0)) == len(parts):
        parts, limit = closer, limit - 5.0
    return parts


def _filled(widths: list[float], keys: int, limit: float) -> list[list[int]]:
    """Columns side by side up to a width, then the next part; each has at least one column of its own."""
    first = list(range(keys))
    parts = [list(first)]
    for column in range(keys, len(widths)):
        if len(parts[-1]) > keys and sum(widths[n] for n in [*parts[-1], column]) > limit:
            parts.append(list(first))
        parts[-1].append(column)
    return parts


# -- text ----------------------------------------------------------------------------------------------------------

BREAK = r"\allowbreak{}"

_TEXT = r"""
\ textbackslash  ^ textasciicircum  ~ textasciitilde  < textless  > textgreater  | textbar  – textendash  — textemdash
‘ textquoteleft  ’ textquoteright  “ textquotedblleft  ” textquotedblright  … dots  • textbullet  · textperiodcentered
ß ss  æ ae  Æ AE  œ oe  Œ OE  ø o  Ø O  ł l  Ł L  ı i
"""
_MATH = """
× times  ± pm  ≤ leq  ≥ geq  ≈ approx  → rightarrow  µ mu  α alpha  β beta  γ gamma  δ delta  ε epsilon  ζ zeta  η eta
θ theta  ι iota  κ kappa  λ lambda  μ mu  ν nu  ξ xi  π pi  ρ rho  σ sigma  τ tau  υ upsilon  φ phi  χ chi  ψ psi
ω omega
"""
"""Characters with the commands that print them, in text and in formulas."""


def _pairs(table: str) -> Iterator[tuple[str, str]]:
    words = iter(table.split())
    return zip(words, words, strict=True)


_SYMBOLS = {
    **{character: rf"\{character}" for character in "{}$&#%_"},
    **{character: rf"\{command}{{}}" for character, command in _pairs(_TEXT)},
    **{character: rf"\ensuremath{{\{command}}}" for character, command in _pairs(_MATH)},
    "−": r"\ensuremath{-}",
    "\N{NO-BREAK SPACE}": "~",
    '"': r"\texttt{\symbol{34}}",
    "`": r"{\fontencoding{OT1}\fontfamily{cmtt}\selectfont\symbol{18}}",
}

_ACCENTS = dict(
    zip("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327\u0323", "`'^~=u.\"rHvcd", strict=True)
)
"""Combining accents, from grave to dot below, with their commands."""

_SEPARATORS = "-_=./:,;@+|&?"
_BREAKS = re.compile(rf"(?<= )|(?<=[{_SEPARATORS}])(?=[^{_SEPARATORS} ])(?!(?<=\d[.,])\d)")
"""A line may be broken after a space or a separator, but not within a number at its point or comma."""
_WHITE_SPACE = re.compile(r"[ \t\n\r]+")
_LIGATURES = re.compile(r"([-',])(?=\1)")
"""Two hyphens, quotes or commas would become one character of another kind."""


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it is, its lines broken at spaces alone."""
    return _join(map(_latex, _characters(text)))


def breakable_latex(text: str, width_pt: float) -> str:
    """The same, and lines may also be broken within names: after hyphens, dots and the like, as in ``a_b.c``.

    What is wider than ``width_pt`` (points, at 8 points' type) without any such place may be broken anywhere.
    """
    lines = []
    for piece in _pieces(_characters(text)):
        escaped = map(_latex, piece)
        lines.append(BREAK.join(escaped) if sum(map(_width, piece)) > width_pt else _join(escaped))
    return BREAK.join(lines).replace(f" {BREAK}", " ")


def code_latex(text: str, columns: int) -> str:
    r"""A line of code for ``\texttt``: what is copied from the printed page is the code.

    Broken like ``breakable_latex``; ``columns`` is how many characters a line holds.
    """
    lines = []
    for piece in _pieces(_characters(text)):
        escaped = [_code(character) for character in piece]
        printed = sum(len(text) if text.startswith("[U+") else 1 for text in escaped)
        lines.append((BREAK if printed > columns else "").join(escaped))
    return BREAK.join(lines).replace(f" {BREAK}", " ")


def width_of(text: str) -> float:
    """About how wide a text is in points, rather more than less: Computer Modern at 8 points."""
    return sum(map(_width, _characters(text)))


def widest_piece(text: str) -> float:
    """The width in points of the widest part of a text that is not broken unless it must be."""
    return max((width_of(piece.rstrip()) for piece in _pieces(_characters(text))), default=0.0)


# -- characters ----------------------------------------------------------------------------------------------------


def _characters(text: str) -> str:
    """One character for each that is seen, where Unicode has it; every white space is a plain one."""
    return _WHITE_SPACE.sub(" ", unicodedata.normalize("NFC", text))


def _pieces(text: str) -> list[str]:
    return [piece for piece in _BREAKS.split(text) if piece]


def _join(escaped: Iterable[str]) -> str:
    return _LIGATURES.sub(r"\1{}", "".join(escaped))


@cache
def _latex(character: str) -> str:
    if character in _SYMBOLS:
        return _SYMBOLS[character]
    if " " <= character <= "~":
        return character
    letter, accent = unicodedata.normalize("NFD", character)[:1], unicodedata.normalize("NFD", character)[1:]
    if letter.isascii() and letter.isalpha() and accent in _ACCENTS:
        return rf"\{_ACCENTS[accent]}{{{letter}}}"
    return f"[U+{ord(character):04X}]"


def _code(character: str) -> str:
    if character == "'":  # upright: position 13 of the typewriter face that every LaTeX has
        return r"{\fontencoding{OT1}\fontfamily{cmtt}\selectfont\symbol{13}}"
    if character > "~" and character in _SYMBOLS:
        return rf"\textrm{{{_latex(character)}}}"  # typewriter type in OT1 has others in place of dashes and quotes
    if character == "`" or character > "~" or character < " ":
        return _latex(character)
    return character if character.isalnum() or character in " -.,:;=/+*()[]@!?" else rf"\symbol{{{ord(character)}}}"


@cache
def _width(character: str) -> float:
    if character.isdigit():
        return 4.3
    if character in ".,":
        return 2.5
    if character in " fijlrst:;'|!()[]-I":
        return 3.4
    if character in "mwMW%@&":
        return 8.7
    if not (character.isascii() and character.isprintable()) and _latex(character).startswith("[U+"):
        return width_of(_latex(character))
    return 6.6 if character.isupper() else 4.8

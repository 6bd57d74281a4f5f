"""A table as LaTeX that fits the page, however long it is and however many columns it has.

Every column has a width in points, worked out here from its texts, and everything in it can be broken into lines. So
the table is never wider than the narrowest page of LaTeX's own classes. What does not fit side by side even so stands
in a second part beneath the first, which repeats the columns that say what each row is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.latex_text import breakable_latex, code_latex, escape_latex, widest_piece, width_of

if TYPE_CHECKING:
    from analysis.table_text import Row, Table

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

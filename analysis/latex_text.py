"""Text from anywhere as LaTeX that prints it and does nothing else.

Whatever the text holds, the result compiles with pdfLaTeX, XeLaTeX and LuaLaTeX in the encodings OT1, T1 and TU, with
the fonts that every LaTeX has. A character that those fonts lack is printed as its number, such as ``[U+4E2D]``.
"""

from __future__ import annotations

import re
import unicodedata

BREAK = r"\allowbreak{}"

_SYMBOLS = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\texttt{\symbol{34}}",
    "`": r"{\fontencoding{OT1}\fontfamily{cmtt}\selectfont\symbol{18}}",
    "\N{NO-BREAK SPACE}": "~",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "‘": r"\textquoteleft{}",
    "’": r"\textquoteright{}",
    "“": r"\textquotedblleft{}",
    "”": r"\textquotedblright{}",
    "…": r"\dots{}",
    "•": r"\textbullet{}",
    "·": r"\textperiodcentered{}",
    "×": r"\ensuremath{\times}",
    "±": r"\ensuremath{\pm}",
    "−": r"\ensuremath{-}",
    "≤": r"\ensuremath{\leq}",
    "≥": r"\ensuremath{\geq}",
    "→": r"\ensuremath{\rightarrow}",
    "µ": r"\ensuremath{\mu}",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "œ": r"\oe{}",
    "Œ": r"\OE{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "ı": r"\i{}",
}

_ACCENTS = {
    "\N{COMBINING GRAVE ACCENT}": "`",
    "\N{COMBINING ACUTE ACCENT}": "'",
    "\N{COMBINING CIRCUMFLEX ACCENT}": "^",
    "\N{COMBINING TILDE}": "~",
    "\N{COMBINING MACRON}": "=",
    "\N{COMBINING BREVE}": "u",
    "\N{COMBINING DOT ABOVE}": ".",
    "\N{COMBINING DIAERESIS}": '"',
    "\N{COMBINING RING ABOVE}": "r",
    "\N{COMBINING DOUBLE ACUTE ACCENT}": "H",
    "\N{COMBINING CARON}": "v",
    "\N{COMBINING CEDILLA}": "c",
    "\N{COMBINING DOT BELOW}": "d",
}

_GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi"
_SYMBOLS |= {
    unicodedata.lookup(f"GREEK SMALL LETTER {'LAMDA' if name == 'lambda' else name}"): rf"\ensuremath{{\{name}}}"
    for name in (*_GREEK.split(), "omega")
}

_SEPARATORS = "-_=./:,;@+|&?"
"""A line may be broken after these."""


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it is, its lines broken at spaces alone."""
    return _join([_latex(character) for character in _characters(text)])


def breakable_latex(text: str, width_pt: float) -> str:
    """The same, and lines may also be broken within names: after hyphens, dots and the like, as in ``a_b.c``.

    What is wider than ``width_pt`` (points, at 8 points' type) without any such place may be broken anywhere.
    """
    lines = []
    for piece in _pieces(_characters(text)):
        escaped = [_latex(character) for character in piece]
        lines.append(BREAK.join(escaped) if width_of(piece) > width_pt else _join(escaped))
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
    return sum(_width(character) for character in _characters(text))


def widest_piece(text: str) -> float:
    """The width in points of the widest part of a text that is not broken unless it must be."""
    return max((width_of(piece.rstrip()) for piece in _pieces(_characters(text))), default=0.0)


# -- characters ----------------------------------------------------------------------------------------------------


def _characters(text: str) -> str:
    """One character for each that is seen, where Unicode has it; every white space is a plain one."""
    return re.sub(r"[ \t\n\r]+", " ", unicodedata.normalize("NFC", text))


def _pieces(text: str) -> list[str]:
    """Cut after spaces and separators, but never a number at its point or comma."""
    pieces = [""]
    for place, character in enumerate(text):
        pieces[-1] += character
        before, after = text[max(place - 1, 0) : place], text[place + 1 : place + 2]
        within_number = character in ".," and before.isdigit() and after.isdigit()
        followed = after not in ("", " ", *_SEPARATORS)
        if character == " " or (character in _SEPARATORS and followed and not within_number):
            pieces.append("")
    return [piece for piece in pieces if piece]


def _join(escaped: list[str]) -> str:
    """Two hyphens, quotes or commas would become one character of another kind."""
    return re.sub(r"([-',])(?=\1)", r"\1{}", "".join(escaped))


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
        return (
            rf"\textrm{{{_latex(character)}}}"  # typewriter type in OT1 has others in the places of dashes and quotes
        )
    if character == "`" or character > "~" or character < " ":
        return _latex(character)
    return character if character.isalnum() or character in " -.,:;=/+*()[]@!?" else rf"\symbol{{{ord(character)}}}"


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

"""Tokens as a person reads them: words with the gaps between them, characters joined, each ``<eos>`` a line's end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

EOS = "<eos>"

CLINGS = {"n't", "'s", "'m", "'d", "'re", "'ve", "'ll", "'", "''", "”", "’", "%", ")", "]", "}", "-rrb-"}
"""Tokens that stand close to the one before them. The first seven are the Penn Treebank's way with contractions."""
MARKS = set(".,;:!?…")
HOLDS = {"``", "“", "‘", "(", "[", "{", "$", "#", "-lrb-"}
"""Tokens that the next one stands close to."""

SHOWN = {"``": "“", "''": "”", "-lrb-": "(", "-rrb-": ")"}
"""The Penn Treebank's names of signs, and the signs."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A token in a text."""

    token: str
    text: str
    """How it is shown; empty for a line's end."""
    gap: str
    """What stands between it and the piece before: nothing, a space or a line's end."""


def pieces(tokens: Sequence[str], level: str) -> list[Piece]:
    r"""The tokens with what stands between them.

    >>> "".join(piece.gap + piece.text for piece in pieces(["it", "is", "n't", "<eos>", "no"], "word"))
    "it isn't\nno"
    """
    found: list[Piece] = []
    before = ""
    for token in tokens:
        gap = ""
        if before == EOS:
            gap = "\n"
        elif level == "word" and before and token != EOS and before not in HOLDS and not _clings(token):
            gap = " "
        text = "" if token == EOS else SHOWN.get(token, token) if level == "word" else token
        found.append(Piece(token=token, text=text, gap=gap))
        before = token
    return found


def plain_text(tokens: Sequence[str], level: str) -> str:
    """The whole as one text."""
    return "".join(piece.gap + piece.text for piece in pieces(tokens, level))


def raw_text(tokens: Iterable[str]) -> str:
    """The tokens as they are, a space between any two; one that is itself blank shows as ``␣``."""
    return " ".join(token if token.strip() else "␣" for token in tokens)


def _clings(token: str) -> bool:
    return token in CLINGS or (token != "" and set(token) <= MARKS)

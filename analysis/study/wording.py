"""Tokens as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence

EOS = "<eos>"

CLINGS = {"n't", "'s", "'m", "'d", "'re", "'ve", "'ll", "'", "''", "”", "’", "%", ")", "]", "}", "-rrb-"}
"""Tokens that stand close to the one before them. The first seven are the Penn Treebank's way with contractions."""
MARKS = set(".,;:!?…")
HOLDS = {"``", "“", "‘", "(", "[", "{", "$", "#", "-lrb-"}
"""Tokens that the next one stands close to."""

SHOWN = {"``": "“", "''": "”", "-lrb-": "(", "-rrb-": ")"}
"""The Penn Treebank's names of signs, and the signs."""


def pieces(tokens: Sequence[str], level: str) -> list[tuple[str, str]]:
    r"""Return what stands before each token (nothing, a space or a line's end), and how the token is shown.

    >>> pieces(["it", "is", "n't", "<eos>", "no"], "word")
    [('', 'it'), (' ', 'is'), ('', "n't"), ('', ''), ('\n', 'no')]
    """
    found = []
    before = ""
    for token in tokens:
        clings = token == EOS or token in CLINGS or (token != "" and set(token) <= MARKS)
        is_apart = level == "word" and before != "" and before not in HOLDS and not clings
        gap = "\n" if before == EOS else " " if is_apart else ""
        text = "" if token == EOS else SHOWN.get(token, token) if level == "word" else token
        found.append((gap, text))
        before = token
    return found


def plain_text(tokens: Sequence[str], level: str) -> str:
    """The whole as one text."""
    return "".join(gap + text for gap, text in pieces(tokens, level))

"""Markdown that the pages of the reference have in common."""

import re
from collections.abc import Iterable, Sequence


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; a ``|`` in a cell is escaped."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def folded(summary: str, text: str) -> str:
    """Return Markdown that a reader opens with a click. It must not have headings."""
    return f"<details>\n<summary>{summary}</summary>\n\n{text}\n\n</details>"


def prose(doc: str) -> str:
    """Return text of a docstring on one line, with its code and references as Markdown."""
    text = " ".join(doc.split())
    return re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text.replace("``", "`"))

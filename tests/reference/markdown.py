"""Markdown that the pages of the reference have in common."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; a ``|`` in a cell is escaped."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def prose(doc: str) -> str:
    """Return text of a docstring on one line, with its code and references as Markdown."""
    text = " ".join(doc.split())
    return re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text.replace("``", "`"))


Meanings = Mapping[str, str | tuple[str, str]]
"""Path of a field of a JSON document -> its meaning, or its type and meaning if no sample shows its type.

``runs[].name`` is the field ``name`` of each object in the list ``runs``. A field whose parts are not described is
described as a whole.
"""


def fields_table(meanings: Meanings, *samples: Any) -> str:
    """Return the table of a document's fields, with the types that the samples show.

    Raises:
        ValueError: a sample has a field that is not described or of another type, or no sample has one that is.
    """
    seen: dict[str, set[str]] = {}
    for sample in samples:
        _collect(sample, "", meanings, seen)
    if unknown := seen.keys() - meanings.keys():
        raise ValueError(f"fields without a description: {', '.join(sorted(unknown))}")
    rows = []
    for path, meaning in meanings.items():
        kinds = seen.get(path, set())
        if isinstance(meaning, tuple):
            kind, text = meaning
            if kinds - set(kind.split(" or ")):
                raise ValueError(f"{path}: described as {kind}, and a sample has {', '.join(sorted(kinds))}")
        elif kinds - {"null"}:
            kind, text = " or ".join(sorted(kinds, key=lambda name: (name == "null", name))), meaning
        else:
            raise ValueError(f"no sample has the field {path}; give its type")
        rows.append([f"`{path}`", kind, text])
    return table(["field", "type", "meaning"], rows)


def _collect(value: Any, path: str, meanings: Meanings, seen: dict[str, set[str]]) -> None:
    """Add to ``seen`` the type of each field below ``path`` that is not described by its parts alone."""
    below: list[tuple[str, Any]] = []
    if isinstance(value, dict) and (not path or any(key.startswith(f"{path}.") for key in meanings)):
        below = [(f"{path}.{name}" if path else name, inner) for name, inner in value.items()]
    elif isinstance(value, list) and any(key.startswith(f"{path}[].") for key in meanings):
        below = [(f"{path}[].{name}", inner) for each in value for name, inner in each.items()]
    if path in meanings or not below:
        seen.setdefault(path, set()).add(_kind(value))
    for name, inner in below:
        _collect(inner, name, meanings, seen)


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "text"
        case list():
            return "list"
    return "object"

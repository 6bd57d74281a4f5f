"""How the tables of a manifest are declared and checked.

A table is a frozen dataclass, such as :class:`jobs.manifests.policy.Policy`. The annotation of a field holds its type,
its bounds (``annotated_types``) and the classes below. From these :func:`model_of` builds a pydantic model, which
checks the table and gives its JSON Schema (:mod:`jobs.manifests.json_schema`).

pydantic takes about 70 ms to import, so it is imported when a table is read. The dataclasses are used without it, by
workers and by commands that read no manifest.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Predicate

from jobs.manifests.reader import one_line, show
from seqlm.errors import nearest, nearest_key

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass(frozen=True)
class Valid:
    """What a file may give. The ``None`` of a type ``X | None`` is a default only: no file may give it."""

    words: str
    """The words that follow "expected" in messages."""
    written: Any = None
    """The type of a value as files write it. ``None``: the type of the field."""
    check: Callable[[str, Any], Iterable[str]] = lambda name, value: ()
    """A check beyond type and bounds: (full name of the key, value) -> a line for each problem."""


@dataclass(frozen=True)
class Matches:
    """A text in which the regular expression is found. Its syntax is common to Rust, Python and ECMAScript."""

    pattern: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        return {**handler(source), "pattern": self.pattern}


Line = Annotated[str, Matches(r"^[^\n\r]*[^\s][^\n\r]*$"), Predicate(str.isprintable)]
"""A text of one line, not blank."""
Word = Annotated[str, Matches(r"^[^\s]+$"), Predicate(str.isprintable)]
"""A text without spaces, not empty."""


class Problems:
    """Lines about problems of a file, to be shown together: in the order of ``add``, each once."""

    def __init__(self) -> None:
        self._lines: dict[str, None] = {}

    @property
    def lines(self) -> list[str]:
        return list(self._lines)

    def about(self, where: str) -> bool:
        """Whether there is a line about one place."""
        return any(line.startswith(f"{where}: ") for line in self._lines)

    def add(self, where: str, what: str) -> None:
        self._lines[one_line(f"{where}: {what}")] = None

    def unknown(self, where: str, key: str, valid: Iterable[str], listed: Iterable[str] = ()) -> None:
        """Add a line for a key, in full, that is not in ``valid``. ``listed``: what to show if it has no section."""
        valid = list(valid)
        section, _, last = key.rpartition(".")
        tops = dict.fromkeys(name.partition(".")[0] for name in valid if "." in name)
        if last == "seeds" and last not in valid:
            hint = '; "seeds" belongs at the top of the file, above the first [table], or in an entry'
        elif last == "count" and last not in valid:
            hint = '; "count" belongs in a [[sample]]'
        elif key.partition(".")[0] == "published" and "published" not in tops:
            hint = "; published results belong in a [[run]]"
        elif section == "resources" and "resources" not in tops:
            hint = "; resources belong in [resources] or in an entry"
        else:
            hint = nearest_key(key, valid)
        siblings = sorted(name.rpartition(".")[2] for name in valid if section and name.rpartition(".")[0] == section)
        options = siblings or listed or dict.fromkeys(name.partition(".")[0] for name in valid)
        valid_in = f"valid in {section}" if siblings else "valid"
        self.add(where, f'unknown key "{key}"{hint} ({valid_in}: {", ".join(options)})')


def as_table(value: Any, where: str, problems: Problems) -> Mapping[str, Any]:
    """Return a value that is a table; else add a line, and return an empty table."""
    if isinstance(value, Mapping):
        return value
    problems.add(where, f"expected a table, got {show(value)}")
    return {}


def read_table(
    kind: type, table: Any, where: str, problems: Problems, *, prefix: str = "", others: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the valid keys of a table with their values as written; add a line to ``problems`` for each other key.

    ``prefix`` precedes the keys in messages, such as ``backend.ray.``. ``others`` are keys of other tables, in full,
    that a wrong key may be meant for. ``NO_KEYS`` of ``kind``, if it has that attribute, are lines about names that
    look like its keys, with ``{name}`` for the key in full and ``{prefix}``. A key of ``OLD_NAMES`` counts as the one
    that it maps to.
    """
    from pydantic import ValidationError

    if not isinstance(table, Mapping):
        problems.add(where, f"{prefix[:-1]}: expected a table, got {show(table)}")
        return {}
    old_names: Mapping[str, str] = getattr(kind, "OLD_NAMES", {})
    no_keys: Mapping[str, str] = getattr(kind, "NO_KEYS", {})
    for old, name in old_names.items():
        if old in table and name in table:
            problems.add(where, f"{prefix}{old}: earlier name of {prefix}{name}, expected one of both, got both")
    table = {old_names.get(key, key): value for key, value in table.items()}
    errors: dict[str, str] = {}
    try:
        model_of(kind).model_validate(table)
    except ValidationError as error:
        for found in error.errors(include_url=False, include_input=False, include_context=False):
            errors.setdefault(str(found["loc"][0]), found["type"])
    values = {}
    for key in dict.fromkeys([*table, *errors]):
        name, hint = f"{prefix}{key}", hints_of(kind).get(key)
        if hint is None and key in no_keys:
            problems.add(where, no_keys[key].format(name=name, prefix=prefix))
        elif hint is None:
            problems.unknown(where, name, [*full_keys(kind, prefix), *others])
        elif lines := list(_lines(hint, name, errors.get(key), table.get(key))):
            for line in lines:
                problems.add(where, line)
        else:
            values[key] = table[key]
    return values


def _lines(hint: Any, name: str, error: str | None, value: Any) -> Iterator[str]:
    """Yield what is wrong with the value of a field: ``error`` is pydantic's type of error, if it found one."""
    valid = next(item for item in hint.__metadata__ if isinstance(item, Valid))
    if error == "missing":
        yield f"{name}: missing, expected {valid.words}"
    elif error is not None:
        choices = typing.get_args(hint.__origin__) if typing.get_origin(hint.__origin__) is Literal else ()
        nearest_one = nearest(value, choices) if isinstance(value, str) else ""
        yield f"{name}: expected {valid.words}, got {show(value)}{nearest_one}"
    else:
        yield from valid.check(name, value)


# -- models ----------------------------------------------------------------------------------------------------------


@functools.cache
def model_of(kind: type) -> type[BaseModel]:
    """The frozen, strict pydantic model of a dataclass. Whole numbers are accepted for numbers."""
    from pydantic import ConfigDict, Field, create_model

    fields: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        given = {"default": field.default, "default_factory": field.default_factory}
        options: dict[str, Any] = {name: value for name, value in given.items() if value is not dataclasses.MISSING}
        hint = hints_of(kind)[field.name]
        if valid := next((item for item in getattr(hint, "__metadata__", ()) if isinstance(item, Valid)), None):
            kinds = typing.get_args(hint.__origin__)
            hint = valid.written or (kinds[0] if type(None) in kinds else hint)
        fields[field.name] = (hint, Field(**options))
    config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())
    return create_model(kind.__name__, __config__=config, **fields)


def full_keys(kind: type, prefix: str = "") -> tuple[str, ...]:
    """The keys of a table in their order, after a prefix such as ``policy.``."""
    return tuple(f"{prefix}{field.name}" for field in dataclasses.fields(kind))


@functools.cache
def hints_of(kind: type) -> dict[str, Any]:
    """The annotation of each field, with its metadata."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}

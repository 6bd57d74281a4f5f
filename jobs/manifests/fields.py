"""How the tables of a manifest are declared and checked.

A table is a frozen dataclass, such as :class:`jobs.manifests.policy.Policy`. The annotation of a field holds its type,
its bounds (``annotated_types``) and the classes below; the docstring below the field describes it. From these
:func:`model_of` builds a pydantic model, which checks the table and gives its JSON Schema.

pydantic takes about 70 ms to import, so it is imported when a table is read. The dataclasses are used without it, by
workers and by commands that read no manifest.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Predicate

from jobs.manifests.reader import one_line, show
from seqlm.errors import nearest

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass(frozen=True)
class Valid:
    """The words that follow "expected" in messages. ``None`` is then a default only: no file may give it."""

    words: str


@dataclass(frozen=True)
class Written:
    """The type of a value as files write it, if that is not the type of the field."""

    type: Any


@dataclass(frozen=True)
class Check:
    """A check beyond type and bounds: (full name of the key, value) -> a line for each problem."""

    lines: Callable[[str, Any], Iterator[str]]


@dataclass(frozen=True)
class Matches:
    """A text in which the regular expression is found. Its syntax is common to Rust, Python and ECMAScript."""

    pattern: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        return {**handler(source), "pattern": self.pattern}


def _is_printable(value: Any) -> bool:
    return not isinstance(value, str) or value.isprintable()


Line = Annotated[str, Matches(r"^[^\n\r]*[^\s][^\n\r]*$"), Predicate(_is_printable)]
"""A text of one line, not blank."""
Word = Annotated[str, Matches(r"^[^\s]+$"), Predicate(_is_printable)]
"""A text without spaces, not empty."""


# -- problems --------------------------------------------------------------------------------------------------------


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

    def unknown(self, where: str, key: str, valid: Iterable[str], listed: Sequence[str] | None = None) -> None:
        """Add a line for a key, in full, that is not in ``valid``. ``listed``: what to show if it has no section."""
        valid = list(valid)
        section, _, last = key.rpartition(".")
        same_last = [name for name in valid if name.rpartition(".")[2] == last]
        hint = f'; did you mean "{same_last[0]}"?' if len(same_last) == 1 else nearest(key, valid)
        if section == "resources" and not any(name.startswith("resources.") for name in valid):
            hint = "; resources belong in [resources] or in an entry"
        if key.partition(".")[0] == "published" and not any(name.startswith("published.") for name in valid):
            hint = "; published results belong in a [[run]]"
        if last == "seeds" and last not in valid:
            hint = '; "seeds" belongs at the top of the file, above the first [table], or in an entry'
        siblings = [name.rpartition(".")[2] for name in valid if name.rpartition(".")[0] == section] if section else []
        if siblings:
            options = f"in {section}: {', '.join(sorted(siblings))}"
        else:
            options = ", ".join(listed or dict.fromkeys(name.partition(".")[0] for name in valid))
        self.add(where, f'unknown key "{key}"{hint} (valid{" " if siblings else ": "}{options})')


# -- reading ---------------------------------------------------------------------------------------------------------


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
    for old, name in old_names.items():
        if old in table and name in table:
            problems.add(where, f"{prefix}{old}: earlier name of {prefix}{name}, expected one of both, got both")
    table = {old_names.get(key, key): value for key, value in table.items()}
    names = field_names(kind)
    no_keys: Mapping[str, str] = getattr(kind, "NO_KEYS", {})
    wrong: dict[str, str] = {}
    try:
        model_of(kind).model_validate(table)
    except ValidationError as error:
        for found in error.errors(include_url=False, include_input=False, include_context=False):
            wrong.setdefault(str(found["loc"][0]), found["type"])
    values = {}
    for key in dict.fromkeys([*table, *wrong]):
        name = f"{prefix}{key}"
        if key in names:
            lines = _lines(kind, key, name, wrong.get(key), table)
            if not lines:
                values[key] = table[key]
        elif key in no_keys:
            lines = [no_keys[key].format(name=name, prefix=prefix)]
        else:
            lines = []
            problems.unknown(where, name, [*full_keys(kind, prefix), *others])
        for line in lines:
            problems.add(where, line)
    return values


def _lines(kind: type, key: str, name: str, error: str | None, table: Mapping[str, Any]) -> list[str]:
    hint = hints_of(kind)[key]
    words = next(item.words for item in hint.__metadata__ if isinstance(item, Valid))
    if error == "missing":
        return [f"{name}: missing, expected {words}"]
    value = table[key]
    if error is not None:
        choices = typing.get_args(hint.__origin__) if typing.get_origin(hint.__origin__) is Literal else ()
        nearest_one = nearest(value, choices) if isinstance(value, str) else ""
        return [f"{name}: expected {words}, got {show(value)}{nearest_one}"]
    checks = [item for item in hint.__metadata__ if isinstance(item, Check)]
    return [line for check in checks for line in check.lines(name, value)]


# -- models ----------------------------------------------------------------------------------------------------------


@functools.cache
def model_of(kind: type) -> type[BaseModel]:
    """The frozen, strict pydantic model of a dataclass. Whole numbers are accepted for numbers."""
    from pydantic import ConfigDict, Field, create_model

    described = descriptions(kind)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        options: dict[str, Any] = {"description": described.get(field.name)}
        if field.default is not dataclasses.MISSING:
            options["default"] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            options["default_factory"] = field.default_factory
        fields[field.name] = (_as_written(hints_of(kind)[field.name]), Field(**options))
    config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())
    return create_model(kind.__name__, __config__=config, **fields)


def field_names(kind: type) -> tuple[str, ...]:
    """The keys of a table, in their order."""
    return tuple(field.name for field in dataclasses.fields(kind))


def full_keys(kind: type, prefix: str) -> tuple[str, ...]:
    """The keys of a table in full, after a prefix such as ``policy.``."""
    return tuple(f"{prefix}{name}" for name in field_names(kind))


@functools.cache
def hints_of(kind: type) -> dict[str, Any]:
    """The annotation of each field, with its metadata."""
    return typing.get_type_hints(kind, include_extras=True)


def _as_written(hint: Any) -> Any:
    """The type that pydantic is to check: :class:`Written` if given; without ``None`` if there is a :class:`Valid`."""
    metadata = hint.__metadata__ if typing.get_origin(hint) is Annotated else ()
    for item in metadata:
        if isinstance(item, Written):
            return item.type
    if not any(isinstance(item, Valid) for item in metadata):
        return hint
    base = hint.__origin__
    if typing.get_origin(base) in (typing.Union, types.UnionType):
        base = typing.Union[tuple(arg for arg in typing.get_args(base) if arg is not type(None))]  # noqa: UP007
    for item in metadata:
        if not isinstance(item, Valid | Check):
            base = Annotated[base, item]
    return base


@functools.cache
def descriptions(kind: type) -> dict[str, str]:
    """The docstring below each field of a dataclass and its bases, in one line."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        source = inspect.getsourcefile(sys.modules[base.__module__]) if dataclasses.is_dataclass(base) else None
        if source is None:
            continue
        tree = _parsed(Path(source))
        (definition,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == base.__name__]
        for node, after in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr):
                found[node.target.id] = " ".join(ast.literal_eval(after.value).split())
    return found


@functools.cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))

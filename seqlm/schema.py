"""Frozen dataclasses that are read from plain data, strictly: unknown keys, types, ranges and missing keys.

The configuration of a run and its resources are declared in this way. Annotations hold type and range; the docstring
below a field describes it. The JSON Schema and the key tables of manifests are made from the same annotations
(:mod:`jobs.manifests.json_schema`). Imports the standard library only, since every worker reads a configuration.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NoReturn, TypeAlias, TypeVar

from seqlm.errors import ConfigError, nearest, nearest_key

TableT = TypeVar("TableT", bound="Table")


@dataclass(frozen=True)
class Bound:
    """The range of a number, as metadata in a field's annotation. The JSON Schema of manifests has it too."""

    words: str
    """The words that follow "expected" in messages."""
    above: float | None = None
    """The number must be above this. ``None``: no such limit; likewise below."""
    least: float | None = None
    """Smallest valid number."""
    most: float | None = None
    """Largest valid number."""
    below: float | None = None
    """The number must be below this."""

    def holds(self, value: float) -> bool:
        """Whether a number is finite and within the range."""
        return (
            (isinstance(value, int) or math.isfinite(value))
            and (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        found = {
            "exclusiveMinimum": self.above,
            "minimum": self.least,
            "maximum": self.most,
            "exclusiveMaximum": self.below,
        }
        return {**handler(schema), **{key: value for key, value in found.items() if value is not None}}


Count = Annotated[int, Bound("a positive whole number", least=1)]
Positive = Annotated[float, Bound("a positive finite number", above=0)]
Probability = Annotated[float, Bound("a number above 0 and at most 1", above=0, most=1)]


Value: TypeAlias = bool | int | float | str
"""What an argument may be, alone or in a list."""


class Arguments(dict[str, Any]):
    """The arguments of a call as plain data: name -> a value, or a tuple of values. Cannot be changed, and has a hash.

    Lists become tuples, so that the table is equal to itself after a way through JSON.
    """

    WORDS: ClassVar[str] = "a table of arguments"
    VALUES: ClassVar[str] = "a number, a text, true or false, or a list of them"

    def __init__(self, items: Any = ()) -> None:
        plain = {key: tuple(value) if isinstance(value, list) else value for key, value in dict(items).items()}
        super().__init__(plain)

    def __hash__(self) -> int:  # type: ignore[override] # a table that cannot change
        return hash(frozenset(self.items()))

    def __eq__(self, other: object) -> bool:
        """1, 1.0 and true are three values: a call may tell them apart, and so does the fingerprint."""
        if isinstance(other, Arguments):
            return sorted(map(repr, self.items())) == sorted(map(repr, other.items()))
        return super().__eq__(other)

    def _refuse(self, *arguments: Any, **named: Any) -> NoReturn:
        raise TypeError("the arguments of a configuration cannot be changed")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> Any:
        return type(self), (dict(self),)

    @classmethod
    def problems(cls, key: str, value: Any) -> Iterator[str]:
        """Yield a line for each part of a value that is not valid for the field ``key``."""
        if not isinstance(value, Mapping):
            yield f"{key}: expected {cls.WORDS}, got {show(value)}"
            return
        for name, argument in value.items():
            if not name.isidentifier():
                yield f"{key}.{name}: expected the name of an argument, got {show(name)}"
            elif not all(_is_value(item) for item in (argument if isinstance(argument, list | tuple) else [argument])):
                yield f"{key}.{name}: expected {cls.VALUES}, got {show(argument)}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Callable[[Any], Any]) -> Any:
        return handler(dict[str, Value | list[Value]])


class Names(tuple[str, ...]):
    """A list of names that cannot be changed."""

    WORDS: ClassVar[str] = "a list of names"

    @classmethod
    def problems(cls, key: str, value: Any) -> Iterator[str]:
        """Yield a line if a value is not valid for the field ``key``."""
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
            yield f"{key}: expected {cls.WORDS}, got {show(value)}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Callable[[Any], Any]) -> Any:
        return handler(list[str])


def _is_value(value: Any) -> bool:
    return isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))


@dataclass(frozen=True, kw_only=True)
class Field:
    """What the annotation of a field says."""

    kind: Any
    """``int``, ``float``, ``str``, ``bool``, a ``Literal``, :class:`Arguments` or :class:`Names`."""
    optional: bool
    """Whether ``None`` is valid."""
    required: bool
    bound: Bound | None

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a ``Literal``; none for any other kind."""
        return typing.get_args(self.kind) if typing.get_origin(self.kind) is Literal else ()

    @property
    def words(self) -> str:
        """The kind in the words that follow "expected" in messages."""
        if self.has_parts:
            return str(self.kind.WORDS)
        return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}.get(
            self.kind, f"one of {listing(self.choices)}"
        )

    @property
    def has_parts(self) -> bool:
        """Whether values are tables or lists, which say themselves what is wrong with them."""
        return isinstance(self.kind, type) and issubclass(self.kind, Arguments | Names)

    def problem(self, value: Any) -> str | None:
        """Return what was expected if a value has another kind, ignoring the range. Whole numbers are numbers too."""
        if (value is None and self.optional) or type(value) is self.kind:
            return None
        if self.choices:
            return None if isinstance(value, str) and value in self.choices else wrong_choice(value, self.choices)
        if self.kind is float and type(value) is int:
            digits = f"a whole number of {len(str(value))} digits"
            return None if _converts(value, float) else f"expected a number, got {digits}"
        quoted = isinstance(value, str) and self.kind in (int, float) and _converts(value, self.kind)
        return f"expected {self.words}, got {show(value)}{'; remove the quotes' if quoted else ''}"


def _converts(value: Any, kind: Callable[[Any], Any]) -> bool:
    try:
        kind(value)
    except (ValueError, OverflowError):
        return False
    return True


def fields_of(kind: type) -> dict[str, Field]:
    """Return the fields of a dataclass by name."""
    return _fields_of(kind)


@functools.cache
def _fields_of(kind: type) -> dict[str, Field]:
    hints = typing.get_type_hints(kind, include_extras=True)
    found = {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if optional := typing.get_origin(hint) in (typing.Union, types.UnionType):
            hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
        found[field.name] = Field(
            kind=hint.__origin__ if typing.get_origin(hint) is Annotated else hint,
            optional=optional,
            required=field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
            bound=next((item for item in getattr(hint, "__metadata__", ()) if isinstance(item, Bound)), None),
        )
    return found


class Table:
    """Base of the dataclasses: the ranges of their fields are checked whenever one is made.

    Raises:
        ConfigError: one line for each value out of its range, and for each broken condition.
    """

    NAME: ClassVar[str] = ""
    """Name of the table, which precedes keys in messages."""

    def __post_init__(self) -> None:
        problems = [
            f"{self.key(name)}: expected {field.bound.words}, got {value}"
            for name, field in fields_of(type(self)).items()
            if field.bound and (value := getattr(self, name)) is not None and not field.bound.holds(value)
        ]
        problems += self._conditions()
        if problems:
            raise ConfigError(problems)

    def _conditions(self) -> Iterator[str]:
        """Yield a line for each broken condition beyond the range of one field. Other fields may be out of range."""
        return iter(())

    @classmethod
    def key(cls, name: str) -> str:
        """Return the dotted name of a field, such as ``optim.lr``."""
        return f"{cls.NAME}.{name}" if cls.NAME else name


class Section(Table):
    """A table of the configuration. ``1`` becomes ``1.0`` in fields that are numbers: both are one run."""

    LABELS: ClassVar[Mapping[str, str]] = {}
    """Name in print of each choice of the key that selects this table, and of each kind within one that reports keep
    apart. Empty: no key does."""

    def __post_init__(self) -> None:
        for name, field in fields_of(type(self)).items():
            value = getattr(self, name)
            if (field.kind is float and value is not None) or field.has_parts:
                object.__setattr__(self, name, field.kind(value))
        super().__post_init__()

    def values(self) -> dict[str, Any]:
        """Return the keys that apply with their values."""
        return dict(vars(self))


def read(kind: type[TableT], raw: Mapping[str, Any], unknown: Callable[[str], str] | None = None) -> TableT:
    """Make a table from plain data.

    ``unknown`` returns the line for a key that is no field. ``None``: a line with the nearest field.

    Raises:
        ConfigError: one line for each unknown key, wrong type, missing key and impossible value.
    """
    fields = fields_of(kind)
    problems: list[str] = []
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in fields:
            line = unknown(key) if unknown else unknown_key(kind.key(key), map(kind.key, fields), fields)
            problems.append(line)
        elif fields[key].has_parts:
            wrong = list(fields[key].kind.problems(kind.key(key), value))
            problems += wrong
            if not wrong:
                values[key] = value
        elif problem := fields[key].problem(value):
            problems.append(f"{kind.key(key)}: {problem}")
        else:
            values[key] = value
    required = [name for name, field in fields.items() if field.required]
    problems += [f"{kind.key(name)}: missing, expected {fields[name].words}" for name in required if name not in raw]
    if all(name in values for name in required):
        try:
            made = kind(**values)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return made


def unknown_key(key: str, valid: Iterable[str], siblings: Iterable[str]) -> str:
    """Return the line for an unknown dotted key, with the nearest of ``valid`` and the keys of its own table."""
    listed = ", ".join(sorted(siblings))
    return f'unknown key "{key}"{nearest_key(key, valid)} (valid in {key.partition(".")[0]}: {listed})'


def wrong_choice(value: Any, choices: Iterable[str]) -> str:
    """Return what was expected in place of a value that is none of the choices."""
    choices = list(choices)
    return f"expected one of {listing(choices)}, got {show(value)}{nearest(str(value), choices)}"


def show(value: Any) -> str:
    """Return a value as JSON."""
    return json.dumps(value, default=str, ensure_ascii=False)


def listing(choices: Iterable[str]) -> str:
    """Return choices in quotes with commas between them."""
    return ", ".join(f'"{choice}"' for choice in choices)

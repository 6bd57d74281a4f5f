"""Plain data against types: tables as frozen dataclasses that check themselves, with one line for each mistake.

The configuration of a run, its resources and every table of a manifest are declared in this way. The annotation of a
field holds its type and what is valid (:class:`Valid`), the docstring below describes it; pydantic makes the JSON
Schema of manifests from the same declarations (:mod:`jobs.manifests.json_schema`). Imports the standard library only,
since each worker and each `status` reads configurations.
"""

import dataclasses
import functools
import itertools
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NoReturn, TypeAlias, TypeVar

from seqlm.errors import ConfigError, nearest, nearest_key, printable

TableT = TypeVar("TableT", bound="Table")


@dataclass(frozen=True)
class Valid:
    """What is valid beyond a type, as metadata in an annotation. ``None`` means no limit."""

    words: str = ""
    """The words that follow "expected" in messages. Empty: those of the type."""
    above: float | None = None
    """Excluded lower bound."""
    least: float | None = None
    """Smallest number; of a text, list or table its shortest length. Likewise ``most``."""
    most: float | None = None
    below: float | None = None
    pattern: str | None = None
    """Regular expression that a text has, with printable characters only. Its syntax is that of ECMAScript, too."""
    ascending: bool = False
    """Whether each item of a list is above the one before."""
    check: Callable[[str, Any], Iterable[str]] | None = None
    """A check beyond: (key in full, value) -> a line for each problem."""

    def holds(self, value: Any) -> bool:
        """Whether a value of the type is within the bounds and has the pattern."""
        size = value if isinstance(value, int | float) else len(value)
        return (
            (self.above is None or size > self.above)
            and (self.least is None or size >= self.least)
            and (self.most is None or size <= self.most)
            and (self.below is None or size < self.below)
            and (not self.ascending or all(one < other for one, other in itertools.pairwise(value)))
            and (self.pattern is None or (value.isprintable() and re.search(self.pattern, value) is not None))
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        found = handler(schema)
        what = {"string": "Length", "array": "Items", "object": "Properties"}.get(found.get("type"), "imum")
        bounds = {f"min{what}": self.least, f"max{what}": self.most, "pattern": self.pattern}
        bounds |= {"exclusiveMinimum": self.above, "exclusiveMaximum": self.below}
        return {**found, **{key: value for key, value in bounds.items() if value is not None}}


Count = Annotated[int, Valid("a positive whole number", least=1)]
NotNegative = Annotated[int, Valid("a whole number, 0 or more", least=0)]
Positive = Annotated[float, Valid("a positive finite number", above=0)]
Probability = Annotated[float, Valid("a number above 0 and at most 1", above=0, most=1)]
Line = Annotated[str, Valid("a text of one line", pattern=r"^[^\n\r]*[^\s][^\n\r]*$")]
Word = Annotated[str, Valid("a text without spaces", pattern=r"^[^\s]+$")]


class Arguments(dict[str, Any]):
    """The arguments of a call as plain data: name -> a value, or a tuple of values. Cannot be changed, and has a hash.

    Lists become tuples, so that the table is equal to itself after a way through JSON.
    """

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
    def __get_pydantic_core_schema__(cls, source: Any, handler: Callable[[Any], Any]) -> Any:
        return handler(dict[str, Value | list[Value]])


Value: TypeAlias = bool | int | float | str


def check_arguments(key: str, value: Any) -> Iterator[str]:
    """Yield a line for each argument that has no valid name or value."""
    for name, argument in value.items():
        if not name.isidentifier():
            yield f"{key}.{name}: expected the name of an argument, got {show(name)}"
        elif not fits(Value | list[Value], argument):
            what = "a number, a text, true or false, or a list of them"
            yield f"{key}.{name}: expected {what}, got {show(argument)}"


# -- values ----------------------------------------------------------------------------------------------------------


def fits(kind: Any, value: Any) -> bool:
    """Whether plain data is of a type. Whole numbers are numbers too, lists are tuples, and no number is infinite."""
    return bool(test_of(kind)(value))


@functools.cache
def test_of(kind: Any) -> Callable[[Any], bool]:
    """Return the test whether plain data is of a type (:func:`fits`), for callers that test many values."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return lambda value: True
    if kind is float:
        return lambda value: type(value) in (int, float) and abs(value) <= sys.float_info.max
    if origin is Annotated:
        test, valid = test_of(inner[0]), [item for item in inner[1:] if isinstance(item, Valid)]
        return lambda value: test(value) and all(item.holds(value) for item in valid)
    if origin is Literal:
        return lambda value: isinstance(value, str) and value in inner
    if origin in (typing.Union, types.UnionType):
        tests = [test_of(one) for one in inner if one is not type(None)]
        if len(tests) == 1 and len(inner) == 2:
            (only,) = tests
            return lambda value: value is None or only(value)
        allows_none = type(None) in inner
        return lambda value: (allows_none and value is None) or any(test(value) for test in tests)
    if origin is tuple and Ellipsis not in inner:
        items = [test_of(one) for one in inner]
        return lambda value: (
            isinstance(value, list | tuple)
            and len(value) == len(items)
            and all(test(item) for test, item in zip(items, value, strict=True))
        )
    if origin in (list, tuple):
        item = test_of(inner[0])
        return lambda value: isinstance(value, list | tuple) and all(map(item, value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        name, item = map(test_of, inner)
        return lambda value: isinstance(value, Mapping) and all(name(k) and item(v) for k, v in value.items())
    if issubclass(kind, Mapping):
        return lambda value: isinstance(value, Mapping)
    if issubclass(kind, Table):
        return lambda value: isinstance(value, kind)
    return lambda value: type(value) is kind


# -- fields and tables -----------------------------------------------------------------------------------------------


_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Field:
    """What the annotation of a field says."""

    kind: Any
    """Its type without ``Annotated`` and without ``None``, which stands for a key that is not given."""
    test: Callable[[Any], bool]
    default: Any
    """``MISSING`` if it is required, or made by a factory."""
    required: bool
    words: str
    check: Callable[[str, Any], Iterable[str]] | None

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a ``Literal``; none for any other kind."""
        return typing.get_args(self.kind) if typing.get_origin(self.kind) is Literal else ()

    @property
    def table(self) -> Any:
        """The table that the values of this field are. ``None``: they are none."""
        return self.kind if isinstance(self.kind, type) and issubclass(self.kind, Table) else None

    def problems(self, key: str, value: Any) -> Iterable[str]:
        """Return a line for each problem with a value."""
        if self.table is not None and isinstance(value, Mapping):
            try:
                read(self.table, value, prefix=f"{key}.")
            except ConfigError as error:
                return error.problems
            return ()
        if self.test(value):
            return self.check(key, value) if self.check and value is not None else ()
        quoted = isinstance(value, str) and self.kind in (int, float) and _NUMBER.fullmatch(value)
        hint = "; remove the quotes" if quoted else nearest(str(value), self.choices)
        return [f"{key}: expected {self.words}, got {show(value)}{hint}"]


def fields_of(kind: type) -> Mapping[str, Field]:
    """Return the fields of a dataclass by name."""
    return _fields_of(kind)


@functools.cache
def _fields_of(kind: type) -> Mapping[str, Field]:
    hints = typing.get_type_hints(kind, include_extras=True)
    found = {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        written = [one for one in kinds if one is not type(None)]
        bare, *items = typing.get_args(written[0]) if typing.get_origin(written[0]) is Annotated else written[:1]
        valid = next((item for item in reversed(items) if isinstance(item, Valid)), Valid())
        found[field.name] = Field(
            kind=bare,
            test=test_of(hint),
            default=field.default,
            required=field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
            words=words_of(hint),
            check=valid.check,
        )
    return found


def words_of(hint: Any) -> str:
    """Return a type in the words that follow "expected" in messages."""
    if typing.get_origin(hint) is Annotated:
        bare, *items = typing.get_args(hint)
        return next((item.words for item in reversed(items) if isinstance(item, Valid) and item.words), words_of(bare))
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        return f"one of {listing(choices)}" if len(choices) > 1 else listing(choices)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return ", or ".join(words_of(one) for one in typing.get_args(hint) if one is not type(None))
    plain = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    plain |= dict.fromkeys((list, tuple), "a list")
    return plain.get(typing.get_origin(hint) or hint, "a table")


class Table:
    """Base of the dataclasses: their values are checked whenever one is made.

    Raises:
        ConfigError: one line for each value that is not valid, and for each broken condition.
    """

    NAME: ClassVar[str] = ""
    """Name of the table, which precedes keys in messages."""
    NO_KEYS: ClassVar[Mapping[str, str]] = {}
    """Name that looks like a key -> the line about it, with ``{name}`` for the key in full."""
    __pydantic_config__: ClassVar[Any] = {"use_attribute_docstrings": True}

    def __post_init__(self) -> None:
        problems: list[str] = []
        for name, field in fields_of(type(self)).items():
            value = getattr(self, name)
            lines = [] if value is field.default else [*field.problems(self.key(name), value)]
            problems += lines
            if not lines and (kept := self.kept(field, value)) is not value:
                object.__setattr__(self, name, kept)
        problems += self._conditions()
        if problems:
            raise ConfigError(problems)

    def _conditions(self) -> Iterator[str]:
        """Yield a line for each broken condition between fields."""
        return iter(())

    @classmethod
    def kept(cls, field: Field, value: Any) -> Any:
        """Return a valid value as the table keeps it: a list as a tuple, plain data of a table as this table."""
        if field.table is not None and isinstance(value, Mapping):
            return read(field.table, value)
        return tuple(value) if isinstance(value, list) else value

    @classmethod
    def key(cls, name: str) -> str:
        """Return the dotted name of a field, such as ``optim.lr``."""
        return f"{cls.NAME}.{name}" if cls.NAME else name

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @classmethod
    def full_keys(cls) -> tuple[str, ...]:
        """Return the dotted names of the fields, in their order."""
        return tuple(map(cls.key, fields_of(cls)))


class Section(Table):
    """A table of the configuration. ``1`` becomes ``1.0`` in fields that are numbers: both are one run."""

    LABELS: ClassVar[Mapping[str, str]] = {}
    """Name in print of each choice of the key that selects this table, and of each kind within one that reports keep
    apart. Empty: no key does."""

    @classmethod
    def kept(cls, field: Field, value: Any) -> Any:
        """Return a valid value as the table keeps it."""
        converts = field.kind in (float, Arguments) and value is not None
        return field.kind(value) if converts else super().kept(field, value)

    def values(self) -> dict[str, Any]:
        """Return the keys that apply with their values."""
        return dict(vars(self))


def read(
    kind: type[TableT],
    raw: Any,
    *,
    prefix: str | None = None,
    unknown: Callable[[str], str] | None = None,
) -> TableT:
    """Make a table from plain data.

    ``prefix`` precedes keys in messages; without it, the table's name and a dot. ``unknown`` returns the line for a key
    that is no field; without it, a line with the nearest field.

    Raises:
        ConfigError: one line for each unknown key, missing key, wrong value and broken condition.
    """
    prefix = kind.key("") if prefix is None else prefix
    if not isinstance(raw, Mapping):
        raise ConfigError([f"{prefix[:-1]}: expected a table, got {show(raw)}"])
    fields = fields_of(kind)
    problems: list[str] = []
    wrong: set[str] = set()
    for key, value in raw.items():
        name, before = f"{prefix}{key}", len(problems)
        if key in fields:
            problems += fields[key].problems(name, value)
        elif key in kind.NO_KEYS:
            problems.append(kind.NO_KEYS[key].format(name=name))
        else:
            problems.append(unknown(key) if unknown else unknown_key(name, [f"{prefix}{field}" for field in fields]))
        wrong |= {key} if len(problems) > before else set()
    required = [name for name, field in fields.items() if field.required]
    missing = [name for name in required if name not in raw]
    problems += [f"{prefix}{name}: missing, expected {fields[name].words}" for name in missing]
    if missing or wrong.intersection(required):
        raise ConfigError(problems)
    try:
        made = kind(**{key: kind.kept(fields[key], value) for key, value in raw.items() if key not in wrong})
    except ConfigError as error:  # of the conditions; one on a value that is wrong itself says nothing new
        about_wrong = re.compile("|".join(rf"\b{re.escape(kind.key(key))}\b" for key in wrong) or "(?!)")
        problems += [line for line in error.problems if not about_wrong.search(line)]
    if problems:
        raise ConfigError(problems)
    return made


# -- messages --------------------------------------------------------------------------------------------------------


def unknown_key(key: str, valid: Iterable[str], hint: str = "") -> str:
    """Return the line for an unknown dotted key, with the nearest of ``valid`` and the keys of its own section.

    ``hint`` says what the key is meant for, in place of the nearest one.
    """
    valid = list(valid)
    section = key.rpartition(".")[0]
    siblings = sorted({name.rpartition(".")[2] for name in valid if section and name.rpartition(".")[0] == section})
    options = siblings or dict.fromkeys(name.partition(".")[0] for name in valid)
    where = f"valid in {section}" if siblings else "valid"
    return f'unknown key "{key}"{hint or nearest_key(key, valid)} ({where}: {", ".join(options)})'


def show(value: Any) -> str:
    """Return a value as JSON in one line of at most 100 characters."""
    is_number = isinstance(value, float)  # NaN and infinity as TOML has them
    text = str(value) if is_number else one_line(json.dumps(value, default=str, ensure_ascii=False))
    return text if len(text) <= 100 else f"{text[:97]}..."


def one_line(text: str) -> str:
    """Return a text with line breaks and control characters escaped."""
    return printable(text).replace("\t", "\\t")


def listing(choices: Iterable[str]) -> str:
    """Return choices in quotes with commas between them."""
    return ", ".join(f'"{choice}"' for choice in choices)

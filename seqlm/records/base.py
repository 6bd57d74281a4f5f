"""Read and write the JSON files of a study as frozen dataclasses. Standard library alone.

A field's annotation is its type, as in :mod:`seqlm.schema`; a value of another type is damage, which is one line. A
field can be another record, a :class:`seqlm.schema.Table`, or a list or table of them. Lists become tuples. A key that
is no field is ignored, so a later version can add fields. A field that the file lacks has its default; one without a
default is required.
"""

import contextlib
import functools
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeAlias

from seqlm.errors import ConfigError, DamagedFileError, FileError, printable
from seqlm.files import Guard, json_text, read_json, unguarded, write_once, write_text
from seqlm.schema import Table, fields_of, read, show, test_of, words_of

Tell: TypeAlias = Callable[[str], None]
"""Called with a line about a file that cannot be read or is damaged."""
Make: TypeAlias = Callable[[str, Any], Any]
"""Makes a value of a field from the dotted name of the field and plain data. Raises :class:`WrongFieldError`."""


class WrongFieldError(ValueError):
    """A field has another type than its record declares: what was expected, and what was found, in one line."""


@dataclass(frozen=True, eq=False, repr=False)
class Record:
    """Base of the records. Each subclass is a frozen, keyword-only dataclass.

    The methods below serve all of them, since ``dataclass`` takes three times as long to make a class with its own, and
    every command imports the records.
    """

    FILE: ClassVar[str] = ""
    """Name of the file. Empty: the record is a part of others."""
    OPTIONAL: ClassVar[frozenset[str]] = frozenset()
    """Fields that are left out of the file if they are ``None``."""

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    @classmethod
    def read(cls, folder: Path, tell: Tell | None = None) -> Self | None:
        """Return the record in the file ``FILE`` of a folder. Arguments, result and errors as of :meth:`read_file`."""
        return cls.read_file(folder / cls.FILE, tell)

    @classmethod
    def read_file(cls, path: Path, tell: Tell | None = None) -> Self | None:
        """Return the record in a file. ``None``: there is no file.

        ``tell`` is called with the line of an error instead of raising it, and ``None`` is returned.

        Raises:
            DamagedFileError: the file is no JSON object, or a field has another type.
            FileError: the file cannot be read.
        """
        try:
            raw = read_json(path)
            return None if raw is None else cls.from_plain(raw, path)
        except FileError as error:
            if tell is None:
                raise
            tell(str(error))
            return None

    @classmethod
    def read_parts(cls, path: Path, tell: Tell, *, only: Collection[str] | None = None) -> Self:
        """Return the record in a file, of which each field is read on its own. Each field needs a default.

        A field that is damaged has its default, and is one line for ``tell``. If there is no file, or it cannot be read
        at all, all fields have their defaults. Likewise those that are not in ``only``. ``None``: all are read.
        """
        try:
            raw = read_json(path) or {}
        except FileError as error:
            tell(str(error))
            raw = {}
        found = made(cls, "", {})
        for field in fields(cls):
            if field.name in raw and (only is None or field.name in only):
                try:
                    part = made(cls, "", {field.name: raw[field.name]})
                except WrongFieldError as error:
                    tell(f"{path} is damaged ({error}); {field.name} is as if it were not given")
                else:
                    vars(found)[field.name] = getattr(part, field.name)
        return found

    @classmethod
    def from_plain(cls, raw: Mapping[str, Any], path: Path) -> Self:
        """Return the record that plain data of the file ``path`` describes.

        Raises:
            DamagedFileError: a field has another type.
        """
        try:
            return made(cls, "", raw)
        except WrongFieldError as error:
            raise DamagedFileError(f"{path} is damaged ({error}); move it away") from None

    def write(self, folder: Path, *, once: bool = False, sync: bool = True, guard: Guard = unguarded) -> bool:
        """Write the record to the file ``FILE`` of a folder. Arguments, result and errors as of :meth:`write_file`."""
        return self.write_file(folder / self.FILE, once=once, sync=sync, guard=guard)

    def write_file(self, path: Path, *, once: bool = False, sync: bool = True, guard: Guard = unguarded) -> bool:
        """Write the record to a file in one step. Return whether this call has written it.

        ``once``: a file that exists stays as it is. ``sync`` and ``guard``: as in :func:`seqlm.files.replacing`. A file
        that is written once is flushed to disk in any case.

        Raises:
            FileError: the file cannot be written.
            LeaseLostError: ``guard`` says that the run belongs to another worker by now.
        """
        if once:
            return write_once(path, self.to_text().encode(), guard=guard)
        write_text(path, self.to_text(), sync=sync, guard=guard)
        return True

    def to_text(self) -> str:
        """Return the text of the file."""
        return json_text(self.to_plain())

    def to_plain(self) -> dict[str, Any]:
        """Return the fields as plain data, as the file has them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: _plain(value) for key, value in values.items() if value is not None or key not in self.OPTIONAL}


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_plain()
    if isinstance(value, Table):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


# -- from plain data -------------------------------------------------------------------------------------------------


RecordT = typing.TypeVar("RecordT", bound=Record)


def made(kind: type[RecordT], key: str, raw: Mapping[str, Any]) -> RecordT:
    """Return a record from plain data, which has the dotted name ``key`` in messages.

    Raises:
        WrongFieldError: a field has another type.
    """
    plain_kind: type = kind  # a type variable is no key of a cache for mypy
    record = object.__new__(kind)  # several times as fast as the call: `status` reads thousands
    values = record.__dict__
    for name, test, make, words, default in _fields(plain_kind):
        if name not in raw:
            if default is MISSING:
                raise WrongFieldError(f"{key}{name}: missing, expected {words}")
            values[name] = default
            continue
        value = raw[name]
        if not test(value):
            raise WrongFieldError(f"{key}{name}: expected {words}, got {show(value)}")
        values[name] = value if make is None else make(f"{key}{name}", value)
    return record


@functools.cache
def _fields(kind: type) -> list[tuple[str, Callable[[Any], bool], Make | None, str, Any]]:
    """Return for each field: name, test of plain data, what makes its value of that, type in words, and default.

    ``None`` in place of what makes the value: the data is the value. ``MISSING`` in place of the default: the field is
    required.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    found = []
    for field in fields(kind):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        plain = _plain_hint(hints[field.name])
        made_of = _make_of(hints[field.name])
        found.append((field.name, test_of(plain), made_of, words_of(plain), default))
    return found


def _plain_hint(hint: Any) -> Any:
    """Return the type of the plain data from which a value of a type is made: of records and tables, any table."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return Annotated[(_plain_hint(inner[0]), *inner[1:])]
    if origin in (typing.Union, types.UnionType):
        return functools.reduce(lambda one, other: one | other, map(_plain_hint, inner))
    if isinstance(hint, type) and issubclass(hint, Record | Table):
        return dict
    if origin is not None and origin is not typing.Literal:
        return origin[tuple(item if item is Ellipsis else _plain_hint(item) for item in inner)]
    return hint


@functools.cache
def _make_of(hint: Any) -> Make | None:
    """Return what makes a value of a type from plain data that has passed the test. ``None``: the data is the value."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _make_of(inner[0])
    if isinstance(hint, type) and issubclass(hint, Record):
        return lambda key, value: made(hint, f"{key}.", value)
    if isinstance(hint, type) and issubclass(hint, Table):
        return lambda key, value: _table(hint, f"{key}.", value)
    if origin in (typing.Union, types.UnionType):
        makes = [make for kind in inner if (make := _make_of(kind)) is not None]
        assert len(makes) <= 1, f"{hint}: at most one kind of a union can be a record, a table or a list"
        return functools.partial(_made_if_inside, makes[0]) if makes else None
    if origin is tuple:
        return functools.partial(_tuple_of, _make_of(inner[0]))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        make = _make_of(inner[1])
        return None if make is None else functools.partial(_mapping_of, make)
    return None


def _tuple_of(make: Make | None, key: str, values: list[Any]) -> tuple[Any, ...]:
    if make is None:
        return tuple(values)
    return tuple(make(f"{key}[{place}]", value) for place, value in enumerate(values))


def _mapping_of(make: Make, key: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: make(f"{key}.{printable(name)[:40]}", value) for name, value in values.items()}


def _made_if_inside(make: Make, key: str, value: Any) -> Any:
    """Return what ``make`` makes of a table or list; any other value, of another kind of the union, as it is."""
    return make(key, value) if isinstance(value, dict | list) else value


def _table(kind: type[Table], key: str, raw: Mapping[str, Any]) -> Table:
    known = {name: raw[name] for name in fields_of(kind) if name in raw}
    with contextlib.suppress(ConfigError, TypeError):  # `read` has the line about it
        plain_kind: type = kind
        return _known_table(plain_kind, tuple(known), *known.values())  # type: ignore[no-any-return]
    try:
        return read(kind, known, prefix=key)
    except ConfigError as error:
        raise WrongFieldError(error.problems[0]) from None


@functools.lru_cache(maxsize=64, typed=True)
def _known_table(kind: type, names: tuple[str, ...], *values: Any) -> Any:
    """Return a table from its values. Most runs of a study have equal resources, which are checked once."""
    return kind(**dict(zip(names, values, strict=True)))

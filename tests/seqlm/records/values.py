"""Hypothesis strategies for records, from the types of their fields."""

import importlib
import pkgutil
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Annotated, Any

from hypothesis import strategies as st

import seqlm.records
from seqlm.reading import LARGEST_NUMBER, LARGEST_WHOLE
from seqlm.records.base import Record
from seqlm.schema import Table, Valid, test_of

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
WHOLE = st.integers(-LARGEST_WHOLE, LARGEST_WHOLE)
NUMBERS = st.integers(-1000, 1000) | st.floats(-LARGEST_NUMBER, LARGEST_NUMBER).map(lambda number: round(number, 3))
JSON = st.recursive(
    st.none() | st.booleans() | WHOLE | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def classes() -> Iterator[type[Record]]:
    """Yield every record that is a file."""
    for module in pkgutil.iter_modules(seqlm.records.__path__):
        for item in vars(importlib.import_module(f"seqlm.records.{module.name}")).values():
            if isinstance(item, type) and issubclass(item, Record) and item.FILE:
                yield item


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Return the values of a type."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return JSON
    if origin is Annotated:
        return _bounded(inner[0], [item for item in inner[1:] if isinstance(item, Valid)]).filter(test_of(hint))
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(values, inner))
    if origin is typing.Literal:
        return st.sampled_from(inner)
    if origin is tuple and Ellipsis not in inner:
        return st.tuples(*map(values, inner))
    if origin is tuple:
        return st.lists(values(inner[0]), max_size=3).map(tuple)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return st.dictionaries(values(inner[0]), values(inner[1]), max_size=3)
    if issubclass(hint, Record):
        return records(hint)
    if issubclass(hint, Table):
        return tables(hint)
    plain = {int: WHOLE, float: NUMBERS, str: TEXTS, bool: st.booleans(), type(None): st.none(), dict: st.just({})}
    return plain[hint]


def _bounded(hint: Any, bounds: list[Valid]) -> st.SearchStrategy[Any]:
    """Return values of a type, most of which are within its bounds."""
    least = [bound.least for bound in bounds if bound.least is not None]
    most = [bound.most for bound in bounds if bound.most is not None]
    pattern = next((bound.pattern for bound in bounds if bound.pattern is not None), None)
    if hint is int:
        return st.integers(int(max([-LARGEST_WHOLE, *least])), int(min([LARGEST_WHOLE, *most])))
    if hint is str and pattern is not None:
        return st.from_regex(pattern, fullmatch=True)
    if typing.get_origin(hint) is tuple and least:
        return st.lists(values(typing.get_args(hint)[0]), min_size=int(max(least)), max_size=3).map(tuple)
    return values(hint)


def records(kind: type[Record]) -> st.SearchStrategy[Any]:
    """Return the records of a class, in each field a value of its type."""
    hints = typing.get_type_hints(kind, include_extras=True)
    strategies = {field.name: values(hints[field.name]) for field in fields(kind)}
    # Other numbers are no perplexities, and are read as None.
    perplexities = st.none() | st.integers(1, 1000)
    return st.builds(kind, **strategies | {name: perplexities for name in strategies if name.endswith("_ppl")})


def tables(kind: type[Table]) -> st.SearchStrategy[Any]:
    """Return the tables of a class that hold two of its conditions: all defaults, or the smallest whole numbers."""
    counts = {field.name: 2 for field in fields(kind) if field.type is int or field.name == "ranks"}
    assert all(field.default is not MISSING for field in fields(kind))
    return st.sampled_from([kind(), kind(**counts)])

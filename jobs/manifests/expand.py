"""Expand the entries of a manifest to single runs with their names. Lists multiply (grid) or advance together (zip).

Pure functions of plain data. Keys are dotted (``optim.lr``), as everywhere in a manifest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from jobs.manifests.claims import Published
from jobs.manifests.reader import show

EntryKind: TypeAlias = Literal["run", "grid", "zip"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One ``[[run]]``, ``[[grid]]`` or ``[[zip]]`` of a manifest."""

    kind: EntryKind
    number: int
    """Place among the entries of its kind, from 1."""
    name: str | None
    values: Mapping[str, Any]
    """Dotted key -> value, or a list of values in a grid or zip."""
    seeds: Sequence[Any] | None = None
    """A copy of every run for each seed. ``None``: the entry has no ``seeds``."""
    published: Published | None = None
    """Published results; only a ``[[run]]`` has them."""

    @property
    def position(self) -> str:
        return f"{self.kind} {self.number}"

    @property
    def label(self) -> str:
        """The entry in error messages: by its name if it has one, else by its number."""
        return f'{self.kind} "{self.name}"' if self.name else self.position

    @property
    def lists(self) -> dict[str, list[Any]]:
        """The keys whose values multiply or advance together. A ``[[run]]`` has none."""
        if self.kind == "run":
            return {}
        return {key: value for key, value in self.values.items() if isinstance(value, list)}


@dataclass(frozen=True, kw_only=True)
class Combination:
    """One run of an entry: a single value for each key, before defaults."""

    entry: Entry
    values: Mapping[str, Any]
    varying: tuple[str, ...]
    """Keys that distinguish the runs of the entry, in the order of the entry."""


def problems_of(entry: Entry) -> list[str]:
    """Return a line for each problem with the lists of an entry."""
    problems = [f"{key}: expected at least one value, got an empty list" for key, v in entry.lists.items() if not v]
    if entry.kind == "zip" and len({len(values) for values in entry.lists.values()}) > 1:
        lengths = ", ".join(f"{key} has {len(values)}" for key, values in entry.lists.items())
        problems.append(f"expected lists of one length, got {lengths}")
    if entry.kind == "grid":
        problems += [
            f"{key}: expected one value, got {show(values)} (the same run on other resources is the same run)"
            for key, values in entry.lists.items()
            if key.startswith("resources.")
        ]
    return problems


def number_of_runs(entry: Entry, seeds: Sequence[Any] | None) -> int:
    """Return the number of runs of the entry, without expanding it."""
    lengths = [len(values) or 1 for values in entry.lists.values()]
    combined = math.prod(lengths) if entry.kind == "grid" else max(lengths, default=1)
    return combined * len(_seeds_for(entry, seeds) or [None])


def combinations(entry: Entry, seeds: Sequence[Any] | None) -> list[Combination]:
    """Return the runs of one entry. In a grid the last list varies fastest; seeds vary faster still.

    ``seeds`` are those of the whole manifest; ``seeds`` or ``seed`` of the entry override them. An entry with problems
    is expanded too, so that its values can be checked: empty lists are left out, short ones repeat.
    """
    lists = {key: values for key, values in entry.lists.items() if values}
    rows: list[tuple[Any, ...]] = [()]
    if lists and entry.kind == "grid":
        rows = list(itertools.product(*lists.values()))
    elif lists:
        longest = max(map(len, lists.values()))
        rows = [tuple(values[i % len(values)] for values in lists.values()) for i in range(longest)]
    varying = [key for key, values in lists.items() if any(value != values[0] for value in values)]
    scalars = {key: value for key, value in entry.values.items() if key not in entry.lists}
    made = [{**scalars, **dict(zip(lists, row, strict=True))} for row in rows]
    copies = _seeds_for(entry, seeds)
    if copies:
        made = [{**values, "seed": seed} for values in made for seed in copies]
        varying += ["seed"] if any(seed != copies[0] for seed in copies) else []
    return [Combination(entry=entry, values=values, varying=tuple(varying)) for values in made]


def _seeds_for(entry: Entry, seeds: Sequence[Any] | None) -> Sequence[Any] | None:
    if entry.seeds is not None:
        return entry.seeds
    return None if "seed" in entry.values else seeds


def run_name(combination: Combination, values: Mapping[str, Any]) -> str:
    """Return the entry's name, or ``{arch}-{optimizer}``, with a suffix for each key that varies in the entry.

    ``values`` are those of the run with defaults and ``--set``.
    """
    given = combination.entry.name
    parts = [given] if given else [str(values.get("model.arch", "?")), str(values.get("optim.optimizer", "?"))]
    for key in combination.varying:
        if key.startswith("resources.") or (not given and key in ("model.arch", "optim.optimizer")):
            continue
        value = values.get(key, combination.values[key])
        parts.append(value if isinstance(value, str) else _short(key) + _number(value))
    return "-".join(parts)


def _short(key: str) -> str:
    """Return a key's short form in names: ``hidden`` for ``model.hidden_size``, ``layers`` for ``model.num_layers``."""
    return key.rpartition(".")[2].removeprefix("num_").removesuffix("_size")


def _number(value: Any) -> str:
    """Return the shortest unique form of a number: ``1e-5``, ``0.0001``, ``10``."""
    if not isinstance(value, float):
        return str(value)
    digits, e, exponent = repr(value).partition("e")
    return digits.removesuffix(".0") + (f"e{int(exponent)}" if e else "")

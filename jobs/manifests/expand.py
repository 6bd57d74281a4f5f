"""Expand the entries of a manifest to single runs with their names, and to the configurations of these.

Lists multiply (grid) or advance together (zip). The settings that a sample has drawn are lists that advance together.

Pure functions of plain data. Keys are dotted (``optim.lr``), as everywhere in a manifest.
"""

import functools
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from jobs.manifests.claims import Published
from jobs.manifests.draws import Distribution
from seqlm.architectures import CLASS_SEPARATOR
from seqlm.config import LIST_KEYS, RunConfig, applicable_keys, base_key, nested, valid_keys
from seqlm.optimizers import foreign_keys
from seqlm.schema import show

Values: TypeAlias = Mapping[str, Any]
"""Dotted key -> value."""
_LINK = re.compile(r"=\s*([a-z_]\w*(?:\.\w+)*)\s*")
SECTIONS = (*RunConfig.SECTIONS, "resources")
IN_DEFAULT_NAME = ("model.arch", "model.source", "optim.optimizer")
"""Keys that the name of a run without a name has already."""

EntryKind: TypeAlias = Literal["run", "grid", "zip", "sample"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One ``[[run]]``, ``[[grid]]``, ``[[zip]]`` or ``[[sample]]`` of a manifest."""

    kind: EntryKind
    number: int
    """Place among the entries of its kind, from 1."""
    name: str | None
    values: Mapping[str, Any]
    """Dotted key -> value, or a list of values in a grid, zip or sample."""
    seeds: Sequence[Any] = ()
    """A copy of every run for each seed, from the entry or from the top of the file. Empty: one copy."""
    published: Published | None = None
    """Published results; only a ``[[run]]`` has them."""
    space: Mapping[str, Distribution] = field(default_factory=dict)
    """Dotted key -> its distribution. Only a ``[[sample]]`` has them; its ``values`` hold what was drawn."""
    sample_seed: int = 0
    """Seed of the draws of a ``[[sample]]``."""

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
        return {key: value for key, value in self.values.items() if has_several(key, value)}

    @functools.cached_property
    def varying(self) -> list[str]:
        """Keys that distinguish the runs of the entry, in the order of the entry.

        A key that a sample draws is one of them even if all draws are equal: more draws leave the names as they are.
        """
        several = {**self.lists, "seed": self.seeds} if self.seeds else self.lists
        drawn = {key for key, distribution in self.space.items() if distribution.size != 1}
        return [k for k, values in several.items() if k in drawn or any(value != values[0] for value in values)]


def _class_name(source: Any) -> str:
    """Return the class of ``lstm.py:LSTM``; any other text as it is."""
    return str(source).rpartition(CLASS_SEPARATOR)[2]


def has_several(key: str, value: Any) -> bool:
    """Whether a key of a grid, zip or sample has a list of values. One value of some keys is a list itself."""
    return isinstance(value, list) and (key not in LIST_KEYS or all(isinstance(item, list) for item in value))


def problems_of(entry: Entry) -> list[str]:
    """Return a line for each problem with the lists of an entry."""
    if entry.kind == "sample":
        return []  # its lists are drawn
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


def number_of_runs(entry: Entry) -> int:
    """Return the number of runs of the entry, without expanding it."""
    lengths = [len(values) or 1 for values in entry.lists.values()]
    combined = math.prod(lengths) if entry.kind == "grid" else max(lengths, default=1)
    return combined * (len(entry.seeds) or 1)


def expand(entry: Entry) -> Iterator[dict[str, Any]]:
    """Yield the values of each run of an entry, by dotted key, before defaults.

    In a grid the last list varies fastest; seeds vary faster still. An entry with problems is expanded too, so that its
    values can be checked: empty lists are left out, short ones repeat.
    """
    lists = {key: values for key, values in entry.lists.items() if values}
    longest = max(map(len, lists.values()), default=1)
    rows: Iterable[tuple[Any, ...]] = itertools.product(*lists.values())
    if entry.kind != "grid":
        rows = (tuple(values[i % len(values)] for values in lists.values()) for i in range(longest))
    scalars = {key: value for key, value in entry.values.items() if key not in entry.lists}
    for row in rows:
        values = {**scalars, **dict(zip(lists, row, strict=True))}
        if entry.seeds:
            yield from ({**values, "seed": seed} for seed in entry.seeds)
        else:
            yield values


def run_name(entry: Entry, values: Mapping[str, Any]) -> str:
    """Return the entry's name, or ``{arch}-{optimizer}``, with a suffix for each key that varies in the entry.

    ``values`` are those of the run with defaults and ``--set``. A suffix is a text, or a number in its shortest unique
    form after the short form of its key: ``hidden512``, ``lr1e-5``.
    """
    architecture = values.get("model.source", values.get("model.arch", "?"))
    parts = [entry.name or f"{_class_name(architecture)}-{values.get('optim.optimizer', '?')}"]
    for key in entry.varying:
        if key.startswith("resources.") or (not entry.name and key in IN_DEFAULT_NAME):
            continue
        value = values.get(key)  # --set leaves out what does not apply to the run
        if isinstance(value, str):
            parts.append(_class_name(value) if key == "model.source" else value)
        elif key in values:
            number = str(value)
            if isinstance(value, float):
                digits, e, exponent = number.partition("e")
                number = digits.removesuffix(".0") + (f"e{int(exponent)}" if e else "")
            parts.append(key.rpartition(".")[2].removeprefix("num_").removesuffix("_size") + number)
    return "-".join(parts)


# -- configurations --------------------------------------------------------------------------------------------------


def applying(values: dict[str, Any], own: Values, setting: Values) -> dict[str, Any]:
    """Return the values without what does not apply to the run's architecture, optimizer or schedule.

    A link, such as ``"=model.hidden_size"``, is replaced by the value of that key. Keys of the entry itself, ``own``,
    stay unless they are in ``setting``, so that :class:`RunConfig` reports them.
    """
    values = {key: linked(key, values) for key in values}
    fitting = _applicable("model", "arch", text_of(values.get("model.arch")))
    fitting |= _applicable("optim", "optimizer", text_of(values.get("optim.optimizer")))
    foreign = [key for key in values if key.startswith(("model.", "optim.")) and base_key(key) not in fitting]
    for key in foreign:
        if key not in own or key in setting:
            del values[key]
    shared = {key: value for key, value in values.items() if key not in own or key in setting}
    optimizer = text_of(values.get("optim.optimizer"))
    for name in foreign_keys(optimizer, nested_tables(own)[0]["optim"], nested_tables(shared)[0]["optim"]):
        del values[(key := f"optim.{name}")]
        if key in own:
            values[key] = own[key]
    return values


def link_of(value: Any) -> str | None:
    """Return the key that a value is linked to. ``None``: it is no link.

    >>> link_of("=model.hidden_size")
    'model.hidden_size'
    """
    found = _LINK.fullmatch(value) if isinstance(value, str) else None
    return found[1] if found and base_key(found[1]) in valid_keys() else None


def linked(key: str, values: Values) -> Any:
    """Return the value of a key, or of the key that it is linked to. A link to a key without a value stays one."""
    value, seen = values[key], {key}
    while (target := link_of(value)) is not None and target in values and target not in seen:
        seen.add(target)
        value = values[target]
    return value


@functools.cache
def _applicable(section: str, selector: str, choice: str | None) -> frozenset[str]:
    return frozenset(f"{section}.{key}" for key in applicable_keys(section, {selector: choice}))


def text_of(value: Any) -> str | None:
    """Return a value if it is a text, else ``None``."""
    return value if isinstance(value, str) else None


def config_of(own: Values, defaults: Values) -> RunConfig:
    """Return the configuration of a run with the values ``own`` in its entry, in a manifest with these defaults.

    Raises:
        ConfigError: one line for each problem.
    """
    return RunConfig.from_dict(nested_tables(applying({**defaults, **own}, own, {}))[0])


def nested_tables(values: Values) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return dotted keys as the nested tables of a configuration, and the table of resources."""
    tables = {**dict.fromkeys(SECTIONS), **nested(values)}
    tables = {key: {} if value is None and key in SECTIONS else value for key, value in tables.items()}
    return tables, tables.pop("resources")

"""Settings that agree in everything but one hyperparameter: what a change of that one alone has done.

Settings are hashed by their configuration without the key in question, so the work grows with runs times keys and
not with the square of the runs.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.study import units
from analysis.study.settings import Setting, finished, settings_of
from analysis.study.study import HYPERPARAMETERS

CHOICES = {"model.arch": units.ARCHITECTURES, "optim.optimizer": units.OPTIMIZERS}
"""Keys whose value decides which other keys of their section there are, with the report's order of their values."""

MOST_VALUES = 20
"""Up to so many values of a key, each is compared with each other; of more, each with the next larger one only."""


@dataclass(frozen=True, kw_only=True)
class SettingPair:
    """Two settings with finished runs that differ in one key alone; several seeds of a setting count as their mean."""

    key: str
    """Such as ``optim.lr``."""
    a: Setting
    """The one with the lower value; of architectures and optimizers, the one that the report names first."""
    b: Setting
    a_value: Any
    b_value: Any

    @property
    def difference_nats(self) -> float:
        """Validation loss of ``b`` less that of ``a``, in nats per predicted token: below 0 where ``b`` is better."""
        return math.log(self.b.val_ppl.centre) - math.log(self.a.val_ppl.centre)


def single_key_pairs(runs: pd.DataFrame) -> list[SettingPair]:
    """Every pair of settings that agree in all keys but one, the seed aside, by key in the order of the configuration.

    A change of architecture or optimizer also changes which keys there are; then the keys that both have must agree.
    Where such keys of its own give one side more than ``MOST_VALUES`` settings to choose from, nothing is compared.
    """
    members = _members(runs)
    keys = [key for key in HYPERPARAMETERS if key != "seed" and len({m.values[key] for m in members}) > 1]
    pairs: list[SettingPair] = []
    for key in keys:
        there = [member for member in members if key in member.config]
        found = _choice_pairs(there, key, keys) if key in CHOICES else _value_pairs(there, key, keys)
        pairs += [
            SettingPair(key=key, a=a.setting, b=b.setting, a_value=a.config[key], b_value=b.config[key])
            for a, b in found
        ]
    return pairs


# -- settings with their configurations ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Member:
    setting: Setting
    config: Mapping[str, Any]
    """The keys that apply, with their values."""
    values: Mapping[str, Hashable]
    """Every key; ``(False, None)`` where it does not apply, which is not the same as a value of none."""


def _members(runs: pd.DataFrame) -> list[_Member]:
    """The finished settings whose configuration can be read."""
    by_setting: dict[int, dict[Any, Any]] = {}
    done = finished(runs)
    for setting, row in zip(done["setting"], done[HYPERPARAMETERS].to_dict("records"), strict=True):
        by_setting.setdefault(int(setting), row)
    members = []
    for setting in settings_of(runs):
        config = {key: value for key, value in by_setting[setting.number].items() if applies(value)}
        if config:
            values = {key: (key in config, config.get(key)) for key in HYPERPARAMETERS}
            members.append(_Member(setting=setting, config=config, values=values))
    return members


def _alike(members: Iterable[_Member], keys: Sequence[str]) -> Iterator[list[_Member]]:
    """Members in groups that agree in ``keys``."""
    groups: dict[tuple[Hashable, ...], list[_Member]] = defaultdict(list)
    for member in members:
        groups[tuple(member.values[key] for key in keys)].append(member)
    yield from groups.values()


# -- pairs ---------------------------------------------------------------------------------------------------------


def _value_pairs(members: Sequence[_Member], key: str, keys: Sequence[str]) -> Iterator[tuple[_Member, _Member]]:
    for group in _alike(members, [other for other in keys if other != key]):
        ordered = sorted(group, key=lambda member: _order(member.config[key]))
        yield from itertools.combinations(ordered, 2) if len(ordered) <= MOST_VALUES else itertools.pairwise(ordered)


def _choice_pairs(members: Sequence[_Member], key: str, keys: Sequence[str]) -> Iterator[tuple[_Member, _Member]]:
    chosen: dict[Any, list[_Member]] = defaultdict(list)
    for member in members:
        chosen[member.config[key]].append(member)
    known = {value: {name for member in group for name in member.config} for value, group in chosen.items()}
    for first, second in itertools.combinations(sorted(chosen, key=lambda v: (units.rank(CHOICES[key], v), str(v))), 2):
        shared = [other for other in keys if other != key and other in known[first] & known[second]]
        for group in _alike([*chosen[first], *chosen[second]], shared):
            sides = [[m for m in group if m.config[key] == value] for value in (first, second)]
            if max(map(len, sides)) <= MOST_VALUES:
                yield from itertools.product(*sides)


def _order(value: Any) -> tuple[bool, float, str]:
    """Numbers by size, then whatever is none by its name."""
    number = isinstance(value, int | float)
    return not number, float(value) if number else 0.0, str(value)


# -- values of keys ------------------------------------------------------------------------------------------------


def varying_keys(done: pd.DataFrame) -> dict[str, dict[int, Any]]:
    """Keys but the seed with more than one value, in the order of the configuration.

    For each the value of every run of ``done`` that has the key, by number.
    """
    found = {}
    for key in HYPERPARAMETERS:
        values = {int(n): v for n, v in zip(done["number"], done[key], strict=True) if applies(v)}
        if key != "seed" and len(set(values.values())) > 1:
            found[key] = values
    return found


def applies(value: Any) -> bool:
    """Whether a run has the key at all; none is a value, NaN is not."""
    return not (isinstance(value, float) and math.isnan(value))


def is_numeric(value: Any) -> bool:
    """Whether a value has a place on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def sorted_values(key: str, values: Iterable[Any]) -> list[Any]:
    """Each value once: numbers by size, architectures and optimizers in the report's order, others by name."""

    def place(value: Any) -> tuple[int, float, str]:
        if key in CHOICES:
            return units.rank(CHOICES[key], value), 0.0, str(value)
        return (0, float(value), "") if is_numeric(value) else (1, 0.0, str(value))

    return sorted(set(values), key=place)


def printed(key: str, value: Any) -> str:
    """A value as tables and axes show it."""
    return CHOICES[key].get(value, units.UNKNOWN) if key in CHOICES else units.plain_value(value)

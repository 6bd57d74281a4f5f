"""Settings that agree in everything but one hyperparameter: what a change of that one alone has done.

Settings are hashed by their configuration without the key in question, so the work grows with runs times keys and
not with the square of the runs.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pandas as pd

from analysis.study import units
from analysis.study.columns import SETTING_KEYS
from analysis.study.settings import Setting, settings_of
from seqlm.optimizers import own_keys

T = TypeVar("T")

_config = operator.attrgetter("config")

CHOICES = {
    "model.arch": units.ARCHITECTURES,
    "optim.optimizer": units.OPTIMIZERS,
    "optim.schedule": units.SCHEDULES,
}
"""Keys whose value decides which other keys of their section there are, with the report's order of their values."""

FOLLOWS = ("model.sha256",)
"""Keys that differ whenever the architecture does: the digest of an own model's files."""

MOST_VALUES = 20
"""Up to this many values of a key, each is compared with each other; of more, each with the next larger one only."""


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
        return math.log(self.b.val_ppl) - math.log(self.a.val_ppl)


def single_key_pairs(runs: pd.DataFrame) -> list[SettingPair]:
    """Every pair of settings that agree in all keys but one, the seed aside, by key in the order of the configuration.

    A change of architecture, optimizer or schedule also changes which keys there are; then the keys that both have must
    agree, except those that belong to an optimizer itself. Where such keys of its own give one side more than
    ``MOST_VALUES`` settings to choose from, nothing is compared.
    """
    settings = settings_of(runs)
    keys = _differing_keys(settings)
    pairs: list[SettingPair] = []
    for key in keys:
        found = _choice_pairs(settings, key, keys) if key in CHOICES else _value_pairs(settings, key, keys)
        pairs += [SettingPair(key=key, a=a, b=b, a_value=a.config[key], b_value=b.config[key]) for a, b in found]
    return pairs


def chains_of(runs: pd.DataFrame) -> dict[str, list[list[Setting]]]:
    """For each key but architecture and optimizer, the settings that agree in all others, two or more, by value."""
    settings = settings_of(runs)
    keys = _differing_keys(settings)
    return {key: _chains(settings, key, keys) for key in keys if key not in CHOICES}


def alike(members: Iterable[T], keys: Sequence[str], config_of: Callable[[T], Mapping[str, Any]]) -> list[list[T]]:
    """Members in groups that agree in ``keys``: each is missing in all of a group, or has one value."""
    groups: dict[tuple[Hashable, ...], list[T]] = defaultdict(list)
    for member in members:
        config = config_of(member)
        groups[tuple((key in config, config.get(key)) for key in keys)].append(member)
    return list(groups.values())


def _differing_keys(settings: Sequence[Setting]) -> list[str]:
    """Return the keys that differ between settings, or are missing in some."""
    return [key for key in SETTING_KEYS if len(alike(settings, [key], _config)) > 1]


def _chains(settings: Iterable[Setting], key: str, keys: Sequence[str]) -> list[list[Setting]]:
    there = [setting for setting in settings if key in setting.config]
    groups = alike(there, [other for other in keys if other != key], _config)
    return [sorted(group, key=lambda setting: _order(key, setting.config[key])) for group in groups if len(group) > 1]


def _value_pairs(settings: Iterable[Setting], key: str, keys: Sequence[str]) -> Iterator[tuple[Setting, Setting]]:
    for chain in _chains(settings, key, keys):
        yield from itertools.combinations(chain, 2) if len(chain) <= MOST_VALUES else itertools.pairwise(chain)


def _choice_pairs(settings: Iterable[Setting], key: str, keys: Sequence[str]) -> Iterator[tuple[Setting, Setting]]:
    chosen: dict[Any, list[Setting]] = defaultdict(list)
    for setting in settings:
        chosen[setting.config[key]].append(setting)  # every configuration has the keys of CHOICES
    known = {value: {name for setting in group for name in setting.config} for value, group in chosen.items()}
    for first, second in itertools.combinations(sorted(chosen, key=lambda value: _order(key, value)), 2):
        shared = [other for other in keys if other not in (key, *FOLLOWS) and other in known[first] & known[second]]
        if key == "optim.optimizer":
            own = {f"optim.{name}" for value in (first, second) for name in own_keys(value)}
            shared = [other for other in shared if other not in own]
        for group in alike([*chosen[first], *chosen[second]], shared, _config):
            sides = [[setting for setting in group if setting.config[key] == value] for value in (first, second)]
            if max(map(len, sides)) <= MOST_VALUES:
                yield from itertools.product(*sides)


# -- values of keys ------------------------------------------------------------------------------------------------


def is_numeric(value: Any) -> bool:
    """Whether a value has a place on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def sorted_values(key: str, values: Iterable[Any]) -> list[Any]:
    """Each value once: numbers by size, architectures and optimizers in the report's order, others by name."""
    return sorted(set(values), key=lambda value: _order(key, value))


def _order(key: str, value: Any) -> tuple[int, float, str]:
    if key in CHOICES:
        return units.rank(CHOICES[key], value), 0.0, str(value)
    return (0, float(value), "") if is_numeric(value) else (1, 0.0, str(value))


def printed(key: str, value: Any) -> str:
    """A value as tables and axes show it."""
    return CHOICES[key].get(value, units.UNKNOWN) if key in CHOICES else units.plain_value(value)

"""Settings that agree in everything but one hyperparameter: what a change of that one alone has done.

Settings are hashed by their configuration without the key in question, so the work grows with settings times keys and
not with the square of the settings.

Architectures and optimizers have learning rates of their own, so they are compared tuned: each by the best of its
settings that agree in all but the keys of the optimizer.
"""

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.study import units
from analysis.study.columns import SETTING_KEYS
from analysis.study.settings import Setting, best_of

ARCHITECTURE, OPTIMIZER = "model.arch", "optim.optimizer"

CHOICES = {ARCHITECTURE: units.ARCHITECTURES, OPTIMIZER: units.OPTIMIZERS, "optim.schedule": units.SCHEDULES}
"""Keys whose value decides which other keys of their section there are, with the report's order of their values."""

FOLLOWS = ("model.sha256",)
"""Keys that differ whenever the architecture does: the digest of a user's own model's files."""

ABSENT = "\0"
"""Stands for the value of a key that does not apply."""

MOST_VALUES = 20
"""Up to this many values of a key, each is compared with each other; of more, each with the next larger one only."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two settings that differ in one key alone, but for what is tuned; seeds of a setting count as their mean."""

    key: str
    """Such as ``optim.lr``."""
    a: Setting
    """The one with the lower value; of architectures and optimizers, the one that the report names first."""
    b: Setting
    a_tried: int = 1
    """Settings of which ``a`` is the best."""
    b_tried: int = 1

    @property
    def values(self) -> tuple[Any, Any]:
        """The values of the key."""
        return value_of(self.a, self.key), value_of(self.b, self.key)

    @property
    def optimizer(self) -> str | None:
        """The optimizer of both; ``None`` if they differ."""
        return self.a.optimizer if self.a.optimizer == self.b.optimizer else None

    @property
    def difference_nats(self) -> float:
        """Validation loss of ``b`` less that of ``a``, in nats per predicted token: below 0 if ``b`` is better."""
        return math.log(self.b.val_ppl) - math.log(self.a.val_ppl)


def value_of(setting: Setting, key: str) -> Any:
    """The value of a key, ``ABSENT`` if it does not apply; SGD with momentum is an optimizer of its own."""
    return setting.optimizer if key == OPTIMIZER else setting.config.get(key, ABSENT)


def pairs_of(settings: Sequence[Setting]) -> list[Pair]:
    """Every pair of settings that differ in one key, by key in the order of the configuration.

    A change of architecture, optimizer or schedule also changes which keys there are; then the keys that both have must
    agree.
    """
    keys = differing_keys(settings)
    pairs: list[Pair] = []
    for key in keys:
        if key in CHOICES:
            pairs += _pairs_of_choices(settings, key, keys)
        else:
            pairs += [Pair(key=key, a=a, b=b) for chain in chains(settings, key, keys) for a, b in _met(chain)]
    return pairs


def chains(settings: Iterable[Setting], key: str, keys: Sequence[str] = SETTING_KEYS) -> list[list[Setting]]:
    """The settings that agree in all of ``keys`` but one, two or more, by its value."""
    there = [setting for setting in settings if key in setting.config]
    groups = grouped_by(there, [other for other in keys if other != key])
    return [sorted(group, key=lambda setting: _order(key, setting.config[key])) for group in groups if len(group) > 1]


def grouped_by(settings: Iterable[Setting], keys: Sequence[str]) -> list[list[Setting]]:
    """Settings in groups that agree in ``keys``: each is missing in all of a group, or has one value."""
    groups: dict[tuple[Hashable, ...], list[Setting]] = defaultdict(list)
    for setting in settings:
        groups[tuple(value_of(setting, key) for key in keys)].append(setting)
    return list(groups.values())


def differing_keys(settings: Sequence[Setting], keys: Sequence[str] = SETTING_KEYS) -> list[str]:
    """Return the keys that differ between settings, or are missing in some."""
    return [key for key in keys if len({value_of(setting, key) for setting in settings}) > 1]


def _met(chain: Sequence[Setting]) -> Iterable[tuple[Setting, Setting]]:
    return itertools.combinations(chain, 2) if len(chain) <= MOST_VALUES else itertools.pairwise(chain)


def _pairs_of_choices(settings: Iterable[Setting], key: str, keys: Sequence[str]) -> Iterator[Pair]:
    chosen = {value_of(group[0], key): group for group in grouped_by(settings, [key])}
    known = {value: {name for setting in group for name in setting.config} for value, group in chosen.items()}
    is_tuned = key in (ARCHITECTURE, OPTIMIZER)
    left_out = (key, *FOLLOWS, *(tuned_keys() if is_tuned else ()))
    for sides in itertools.combinations(sorted(chosen, key=lambda value: _order(key, value)), 2):
        both = known[sides[0]] & known[sides[1]]
        shared = [other for other in keys if other in both and other not in left_out]
        for group in grouped_by([one for value in sides for one in chosen[value]], shared):
            first, second = ([one for one in group if value_of(one, key) == value] for value in sides)
            if is_tuned and first and second:
                yield Pair(key=key, a=best_of(first), b=best_of(second), a_tried=len(first), b_tried=len(second))
            elif max(len(first), len(second)) <= MOST_VALUES:
                yield from (Pair(key=key, a=a, b=b) for a, b in itertools.product(first, second))


def tuned_keys() -> list[str]:
    """The keys of an optimizer, such as its learning rate, but not which optimizer it is."""
    return [key for key in SETTING_KEYS if key.startswith("optim.") and key != OPTIMIZER]


# -- changes -------------------------------------------------------------------------------------------------------


def changes_of(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Return a row for each change between values of a key: loss with the higher value less loss with the lower one.

    A key has a change from each value to the next, and from its lowest to its highest, if there are such pairs; of
    architectures, optimizers and schedules every two are compared. A change that pairs of several optimizers show also
    has a row for each ``optimizer``. Keys of more than ``MOST_VALUES`` values have no row.
    """
    rows: list[dict[str, Any]] = []
    for key in dict.fromkeys(pair.key for pair in pairs):
        own = [pair for pair in pairs if pair.key == key]
        values = sorted_values(key, [value for pair in own for value in pair.values])
        found: dict[tuple[int, int], list[Pair]] = defaultdict(list)
        for pair in own:
            low, high = map(values.index, pair.values) if len(values) <= MOST_VALUES else (0, 0)
            found[low, high].append(pair)
        steps = [ends for ends in found if ends[1] - ends[0] in (1, len(values) - 1)]
        if key in CHOICES or not steps:  # without steps, only values apart from one another have been paired
            steps = list(found)
        for ends in sorted(steps if len(values) <= MOST_VALUES else [], key=lambda ends: (ends[1] - ends[0] > 1, ends)):
            optimizers = sorted({pair.optimizer for pair in found[ends]}, key=lambda o: units.rank(units.OPTIMIZERS, o))
            rows += [
                _change(key, [values[end] for end in ends], found[ends], optimizer)
                for optimizer in ([None, *optimizers] if len(optimizers) > 1 else [None])
            ]
    return rows


def _change(key: str, ends: Sequence[Any], pairs: Sequence[Pair], optimizer: str | None) -> dict[str, Any]:
    members = [pair for pair in pairs if optimizer in (None, pair.optimizer)]
    nats = [pair.difference_nats for pair in members]
    kinds = {pair.optimizer for pair in members}
    return {
        "key": key,
        "optimizer": optimizer,
        "name": units.optimizer(*kinds) if len(kinds) == 1 and key != OPTIMIZER else "all",
        "lower": ends[0],
        "higher": ends[1],
        "texts": [printed(key, end) for end in ends],
        "pairs": len(members),
        "mean_change_nats": statistics.fmean(nats),
        "lowest_change_nats": min(nats),
        "highest_change_nats": max(nats),
    }


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
    if value == ABSENT:
        return units.MISSING
    return CHOICES[key].get(value, units.UNKNOWN) if key in CHOICES else units.plain_value(value)

"""Which hyperparameter matters most: the mean size of the difference in validation loss over pairs that differ in it.

Every part of the report takes its answer from here.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.blocks.table import Column, Table, number
from analysis.blocks.texts import first_few
from analysis.study import units
from analysis.study.pairs import CHOICES, SettingPair, is_numeric, printed


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One hyperparameter over its pairs."""

    key: str
    pairs: list[SettingPair]

    @property
    def mean_nats(self) -> float:
        """Mean size of the difference in validation loss, in nats per predicted token."""
        return statistics.fmean(abs(pair.difference_nats) for pair in self.pairs)

    @property
    def direction(self) -> str:
        """Which value is better, of numbers the larger or the smaller one, and in how many pairs."""
        n = len(self.pairs)
        numeric = all(is_numeric(value) for pair in self.pairs for value in (pair.a_value, pair.b_value))
        met, won = Counter[str](), Counter[str]()
        for pair in self.pairs:
            named = printed(self.key, pair.a_value), printed(self.key, pair.b_value)
            values = ("smaller", "larger") if numeric else named
            met.update(values)
            if pair.difference_nats:
                won[values[pair.difference_nats < 0]] += 1
        if numeric:
            better = max(("larger", "smaller"), key=lambda side: won[side])
            return f"the {better} value is better in {won[better]} of {n}"
        ranked = sorted(met, key=lambda name: (-won[name] / met[name], -won[name], name))
        return "better in its pairs: " + first_few([f"{name} in {won[name]} of {met[name]}" for name in ranked], 4)


def effects_of(pairs: Sequence[SettingPair]) -> list[Effect]:
    """One for each key that has a pair, the largest mean difference first."""
    groups: dict[str, list[SettingPair]] = defaultdict(list)
    for pair in pairs:
        groups[pair.key].append(pair)
    effects = [Effect(key=key, pairs=members) for key, members in groups.items()]
    return sorted(effects, key=lambda effect: -effect.mean_nats)


def effect_sentence(effects: Sequence[Effect]) -> str:
    """Name the largest effect; if that is a choice of architecture or optimizer, also the largest of the others."""
    if not effects:
        return (
            "No two settings with finished runs differ in one hyperparameter alone, so the effect of a single one is "
            "unknown. A grid over one hyperparameter would show it."
        )
    largest = effects[0]
    text = (
        f"The hyperparameter with the largest effect is {largest.key}: changed alone, it changes the validation loss "
        f"by {_size(largest)}; {largest.direction}."
    )
    others = [effect for effect in effects if effect.key not in CHOICES]
    if largest.key in CHOICES and others:
        text += (
            f" Apart from architecture and optimizer it is {others[0].key}: {_size(others[0])}; {others[0].direction}."
        )
    return text


def _size(effect: Effect) -> str:
    number = len(effect.pairs)
    alone = "in its one pair, which says nothing about other settings"
    return f"{effect.mean_nats:.3f} nats {alone if number == 1 else f'on average over {number} pairs'}"


def effects_table(effects: Sequence[Effect], of: str) -> Table:
    """A row for each key. ``of``: what they are of (see :func:`analysis.blocks.texts.scope`)."""
    return Table(
        name="discussion-5-effects",
        title="Changes of one hyperparameter",
        caption="Mean difference: mean size of the difference in validation loss between settings that agree in all "
        f"other keys (0.1 nats: about 10 % of perplexity). The values tried differ from key to key.{of}",
        columns=[
            Column("key", "Hyperparameter", of=lambda effect: effect.key),
            number("pairs", "Pairs", of=lambda effect: len(effect.pairs)),
            number("mean_nats", "Mean difference (nats)", units.decimals(".3f"), lambda effect: effect.mean_nats),
            Column("direction", "Direction", of=lambda effect: effect.direction),
        ],
        records=effects,
    )

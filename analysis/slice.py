"""One hyperparameter's slice: where its values lie on an axis, and which settings differ in it alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from analysis import units
from analysis.load import Study
from analysis.pairs import CHOICES, SettingPair
from analysis.seeds import Setting, finished
from analysis.varying import is_numeric, sorted_values, varying_keys

FEW_VALUES = 8
"""So many numbers that lie within a decade stand side by side, evenly spaced; more lie on a scale."""

Chain: TypeAlias = list[tuple[Any, Setting]]
"""Settings that agree in everything but one key, with their values of the key."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One panel: where each value lies on the horizontal axis."""

    key: str
    values: Mapping[int, Any]
    """Of each run that has the key, by its number."""
    ordered: list[Any]
    """The values once each, sorted."""

    @property
    def is_log(self) -> bool:
        return self._is_numeric and self.ordered[0] > 0 and self.ordered[-1] > 10 * self.ordered[0]

    @property
    def is_categorical(self) -> bool:
        return not self.is_log and (not self._is_numeric or len(self.ordered) <= FEW_VALUES)

    @property
    def _is_numeric(self) -> bool:
        return all(is_numeric(value) for value in self.ordered)

    def places(self) -> dict[Any, float]:
        """The place of each value on the axis; categories are counted from 0."""
        return {value: float(n if self.is_categorical else value) for n, value in enumerate(self.ordered)}

    def shift(self, arch: Any) -> float:
        """How far beside their place the points of an architecture lie, so that they do not cover one another."""
        ranks = len(units.ARCHITECTURES)
        return 0.1 * (units.rank(units.ARCHITECTURES, arch) - (ranks - 1) / 2) if self.is_categorical else 0.0


def slices_of(study: Study, order: Sequence[str]) -> list[Slice]:
    """The keys that vary but for architecture and optimizer, those of ``order`` first."""
    varying = varying_keys(finished(study.runs))
    keys = [*(key for key in order if key in varying), *(key for key in varying if key not in order)]
    return [
        Slice(key=key, values=varying[key], ordered=sorted_values(key, varying[key].values()))
        for key in keys
        if key not in CHOICES
    ]


def chains_of(pairs: Sequence[SettingPair]) -> dict[str, list[Chain]]:
    """For each key the groups of settings that agree in everything else."""
    chains: dict[str, list[Chain]] = defaultdict(list)
    known: dict[tuple[str, int], dict[int, tuple[Any, Setting]]] = {}
    for pair in pairs:
        ends = {pair.a.number: (pair.a_value, pair.a), pair.b.number: (pair.b_value, pair.b)}
        there = [known[pair.key, number] for number in ends if (pair.key, number) in known]
        group = there[0] if there else {}
        for other in there[1:]:
            if other is not group:
                group |= other
        group |= ends
        known |= {(pair.key, number): group for number in group}
    seen: set[int] = set()
    for (key, _), group in known.items():
        if id(group) not in seen:
            seen.add(id(group))
            chains[key].append(list(group.values()))
    return chains

"""Things measured in turns, A B C A B C, so that a slow phase of the machine hits all of them."""

from __future__ import annotations

import operator
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Turn: TypeAlias = Callable[[], float]
"""Does something once and returns what it measured."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The median of some values, and how far they lie apart."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median=statistics.median(values), least=min(values), most=max(values))


@dataclass(frozen=True)
class Rounds:
    """What each turn measured in each counted round."""

    values: Mapping[str, Sequence[float]]

    @property
    def count(self) -> int:
        return len(next(iter(self.values.values())))

    def spread(self, name: str) -> Spread:
        """Over the rounds."""
        return Spread.of(self.values[name])

    def combined(self, function: Callable[..., float], *names: str) -> Spread:
        """Of ``function`` over what the turns called ``names`` measured, taken within each round."""
        return Spread.of([function(*row) for row in zip(*(self.values[name] for name in names), strict=True)])

    def ratio(self, numerator: str, denominator: str) -> Spread:
        """Of one turn to another within each round, which both spent on the same state of the machine."""
        return self.combined(operator.truediv, numerator, denominator)


def interleave(
    turns: Mapping[str, Turn],
    *,
    seconds: float,
    least_rounds: int,
    warmup_rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    on_round: Callable[[int, float], None] = lambda number, elapsed: None,
) -> Rounds:
    """Rounds of one turn each, until ``seconds`` have passed and there are ``least_rounds``.

    Args:
        turns: by name, in the order in which they go.
        seconds: time for the counted rounds together; the round in which it runs out is finished.
        least_rounds: fewest counted rounds, however long they take.
        warmup_rounds: rounds before them, neither counted nor on the clock.
        clock: seconds from any start.
        on_round: called after each round with its number, counted from 1 and warm-up from 1 - ``warmup_rounds``,
            and the seconds so far.
    """
    for number in range(1 - warmup_rounds, 1):
        for turn in turns.values():
            turn()
        on_round(number, 0.0)
    values: dict[str, list[float]] = {name: [] for name in turns}
    start, elapsed, number = clock(), 0.0, 0
    while number < least_rounds or elapsed < seconds:
        for name, turn in turns.items():
            values[name].append(turn())
        number, elapsed = number + 1, clock() - start
        on_round(number, elapsed)
    return Rounds(values)

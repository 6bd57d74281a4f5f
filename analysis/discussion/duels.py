"""Optimizers where all else is alike: pairs of runs that agree in everything but the optimizer."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from analysis.blocks.table import Column, Table, number
from analysis.blocks.words import median
from analysis.discussion.minima import expected_minimum
from analysis.study import units
from analysis.study.columns import HYPERPARAMETERS
from analysis.study.pairs import alike
from analysis.study.settings import config_of, finished
from analysis.study.study import Study

OTHER_KEYS = [key for key in HYPERPARAMETERS if not key.startswith("optim.")]
"""What a pair agrees in: model, data, training and seed."""


Runs: TypeAlias = list[Mapping[Any, Any]]
"""Rows of the runs table, the lowest perplexity first."""


@dataclass(frozen=True, kw_only=True)
class Duel:
    """Two optimizers where all else is alike."""

    first: str
    second: str
    """Names in print."""
    differences_nats: list[float]
    """Validation loss of the second minus that of the first, of each pair."""
    equal_count_differences_nats: list[float]
    """The same at equal numbers of runs: expected lowest losses of as many runs as the optimizer with fewer has."""
    unequal: int
    """Number of pairs in which the two have unequal numbers of runs to choose the best from."""
    time_ratios: list[float]
    """Time to within 5 % of the own best: the second's by the first's."""

    @property
    def first_wins(self) -> int:
        return sum(difference > 0 for difference in self.differences_nats)

    @property
    def second_wins(self) -> int:
        return sum(difference < 0 for difference in self.differences_nats)


def duels_of(study: Study) -> list[Duel]:
    """Return every two optimizers that have finished runs alike in everything else; of several runs the best counts."""
    runs: list[dict[Any, Any]] = finished(study.runs).to_dict("records")
    found: dict[tuple[Any, Any], list[tuple[Runs, Runs]]] = defaultdict(list)
    for group in alike(runs, OTHER_KEYS, config_of):
        sides: dict[Any, Runs] = defaultdict(list)
        for run in sorted(group, key=lambda run: (run["val_ppl"], run["number"])):
            sides[run["optimizer"]].append(run)
        for first, second in itertools.combinations(sorted(sides, key=_place), 2):
            found[first, second].append((sides[first], sides[second]))
    return [
        Duel(
            first=units.optimizer(first),
            second=units.optimizer(second),
            differences_nats=[math.log(b[0]["val_ppl"]) - math.log(a[0]["val_ppl"]) for a, b in pairs],
            equal_count_differences_nats=[_equal_count_difference(a, b) for a, b in pairs],
            unequal=sum(len(a) != len(b) for a, b in pairs),
            time_ratios=[
                b[0]["seconds_to_5pct"] / a[0]["seconds_to_5pct"]
                for a, b in pairs
                if a[0]["seconds_to_5pct"] > 0 and units.is_number(b[0]["seconds_to_5pct"])
            ],
        )
        for (first, second), pairs in sorted(found.items(), key=lambda item: tuple(map(_place, item[0])))
    ]


def _equal_count_difference(first: Runs, second: Runs) -> float:
    fewer = min(len(first), len(second))
    of_first, of_second = (
        expected_minimum([math.log(run["val_ppl"]) for run in runs], fewer) for runs in (first, second)
    )
    return of_second - of_first


def _place(optimizer: Any) -> tuple[int, str]:
    return units.rank(units.OPTIMIZERS, optimizer), str(optimizer)


def duel_sentences(duels: Sequence[Duel]) -> str:
    """Who wins how many pairs."""
    number = sum(len(duel.differences_nats) for duel in duels)
    opening = (
        f"All else alike (model, data, training and seed), there {'is' if number == 1 else 'are'} "
        f"{units.count(number, 'pair')} of runs:"
    )
    return " ".join([f"{opening} {'; '.join(map(_duel_phrase, duels))}.", *_unequal_sentence(duels)])


def _unequal_sentence(duels: Sequence[Duel]) -> list[str]:
    """Say where the best of unequal numbers of runs are compared, and what that comes to at equal numbers."""
    unequal = [duel for duel in duels if duel.unequal]
    if not unequal:
        return []
    number = sum(duel.unequal for duel in unequal)
    parts = [
        f"{duel.second} against {duel.first} {statistics.median(duel.equal_count_differences_nats):+.3f} nats"
        for duel in unequal
    ]
    return [
        f"In {units.count(number, 'pair')} one optimizer has more runs to choose the best from (such as more learning "
        f"rates), which favours it. Expected median difference at equal numbers of runs: {', '.join(parts)}."
    ]


def _duel_phrase(duel: Duel) -> str:
    number = len(duel.differences_nats)
    if duel.first_wins == duel.second_wins == 0:
        return f"{duel.first} and {duel.second} are equal in {number} of {number}"
    if duel.first_wins == duel.second_wins:
        return (
            f"{duel.first} and {duel.second} each have the lower validation perplexity in {duel.first_wins} of {number}"
        )
    winner, loser, wins = duel.first, duel.second, duel.first_wins
    if duel.second_wins > duel.first_wins:
        winner, loser, wins = duel.second, duel.first, duel.second_wins
    size = abs(statistics.median(duel.differences_nats))
    middle = "by" if number == 1 else "median difference"
    return f"{winner} has a lower validation perplexity than {loser} in {wins} of {number} ({middle} {size:.3f} nats)"


def _median_difference(duel: Duel) -> float:
    return statistics.median(duel.differences_nats)


def _equal_counts(duel: Duel) -> float:
    return statistics.median(duel.equal_count_differences_nats)


def duel_table(duels: Sequence[Duel]) -> Table:
    """A row for each two optimizers."""
    columns = [
        Column("first", "First", of=lambda duel: duel.first),
        Column("second", "Second", of=lambda duel: duel.second),
        number("pairs", "Pairs", of=lambda duel: len(duel.differences_nats)),
        number("first_wins", "First lower", of=lambda duel: duel.first_wins),
        number("second_wins", "Second lower", of=lambda duel: duel.second_wins),
        number("median_difference_nats", "Median difference (nats)", units.decimals("+.3f"), _median_difference),
        number("equal_counts_nats", "Equal counts (nats)", units.decimals("+.3f"), _equal_counts),
        number("median_time_ratio", "Time ratio", units.decimals(".2f"), lambda duel: median(duel.time_ratios)),
    ]
    caption = (
        "Of several runs, such as learning rates, the best counts. Difference: loss of the second minus the first; "
        "equal counts: expected at equal numbers of runs. Time ratio: second / first, time to 5 %."
    )
    return Table(
        name="discussion-2-pairs",
        title="Optimizers where all else is alike",
        caption=caption,
        columns=columns,
        records=duels,
    )

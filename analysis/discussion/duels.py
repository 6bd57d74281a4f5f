"""Optimizers where all else is alike: pairs of runs that agree in everything but the optimizer."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.blocks.table import Column, Table, number
from analysis.blocks.words import median
from analysis.study import units
from analysis.study.pairs import alike
from analysis.study.settings import config_of, finished
from analysis.study.study import HYPERPARAMETERS, Study

OTHER_KEYS = [key for key in HYPERPARAMETERS if not key.startswith("optim.")]
"""What a pair agrees in: model, data, training and seed."""


@dataclass(frozen=True, kw_only=True)
class Duel:
    """Two optimizers where all else is alike."""

    first: str
    second: str
    """Names in print."""
    differences_nats: list[float]
    """Validation loss of the second less that of the first, of each pair."""
    time_ratios: list[float]
    """Time to within 5 % of the own best: the second's by the first's."""

    @property
    def first_wins(self) -> int:
        return sum(difference > 0 for difference in self.differences_nats)

    @property
    def second_wins(self) -> int:
        return sum(difference < 0 for difference in self.differences_nats)


def duels_of(study: Study) -> list[Duel]:
    """Every two optimizers that have finished runs alike in everything else; of several such runs the best counts."""
    runs: list[dict[Any, Any]] = finished(study.runs).to_dict("records")
    found: dict[tuple[Any, Any], list[tuple[Mapping[Any, Any], Mapping[Any, Any]]]] = defaultdict(list)
    for group in alike(runs, OTHER_KEYS, config_of):
        worst_first = sorted(group, key=lambda run: (run["val_ppl"], run["number"]), reverse=True)
        best = {run["optimizer"]: run for run in worst_first}
        for first, second in itertools.combinations(sorted(best, key=_place), 2):
            found[first, second].append((best[first], best[second]))
    return [
        Duel(
            first=units.optimizer(first),
            second=units.optimizer(second),
            differences_nats=[math.log(b["val_ppl"]) - math.log(a["val_ppl"]) for a, b in pairs],
            time_ratios=[
                b["seconds_to_5pct"] / a["seconds_to_5pct"]
                for a, b in pairs
                if a["seconds_to_5pct"] > 0 and units.is_number(b["seconds_to_5pct"])
            ],
        )
        for (first, second), pairs in sorted(found.items(), key=lambda item: tuple(map(_place, item[0])))
    ]


def _place(optimizer: Any) -> tuple[int, str]:
    return units.rank(units.OPTIMIZERS, optimizer), str(optimizer)


def duel_sentences(duels: Sequence[Duel]) -> str:
    """Who wins how many pairs."""
    number = sum(len(duel.differences_nats) for duel in duels)
    opening = (
        f"All else alike (model, data, training and seed), there {'is' if number == 1 else 'are'} "
        f"{units.count(number, 'pair')} of runs:"
    )
    return f"{opening} {'; '.join(map(_duel_phrase, duels))}."


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


def duel_table(duels: Sequence[Duel]) -> Table:
    """A row for each two optimizers."""
    columns = [
        Column("first", "First", of=lambda duel: duel.first),
        Column("second", "Second", of=lambda duel: duel.second),
        number("pairs", "Pairs", of=lambda duel: len(duel.differences_nats)),
        number("first_wins", "First lower", of=lambda duel: duel.first_wins),
        number("second_wins", "Second lower", of=lambda duel: duel.second_wins),
        number("median_difference_nats", "Median difference (nats)", units.decimals("+.3f"), _median_difference),
        number("median_time_ratio", "Time ratio", units.decimals(".2f"), lambda duel: median(duel.time_ratios)),
    ]
    caption = (
        "Pairs of finished runs that agree in model, data, training and seed. Where an optimizer has several runs "
        "there (such as several learning rates), the one with the lowest validation perplexity counts. Lower: pairs "
        "in which that optimizer has the lower validation perplexity. Median difference: validation loss of the "
        "second less that of the first, in nats per predicted token. Time ratio: median of the second's time to "
        "within 5 % of its own best, divided by the first's."
    )
    return Table(
        name="discussion-2-pairs",
        title="Optimizers where all else is alike",
        caption=caption,
        columns=columns,
        records=duels,
    )

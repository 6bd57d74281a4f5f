"""What a search is expected to take: how many runs go on from each rung, and which share of its epochs each run trains.

The rule is that of :mod:`seqlm.search`. Every order in which runs come to a rung is taken to be equally likely.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jobs.plan.planned import PlannedRun
from seqlm.config import RunConfig, varying_keys
from seqlm.search import ALWAYS_WITHIN, Search, places


def expected_to_pass(search: Search, before: int, number: int) -> float:
    """Return how many of ``number`` runs are expected to go on from a rung that ``before`` others have reached.

    The n-th run at a rung has each place from 1 to n with the same probability.
    """
    total = 0.0
    for reached in range(before + 1, before + number + 1):
        total += 1.0 if reached < search.min_runs else places(reached, search.keep) / reached
    return total


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What a search is expected to do with the runs of a launch."""

    reach: Mapping[int, float]
    """Rung -> number of runs that are expected to reach it."""
    go_on: Mapping[int, float]
    """Rung -> number of runs that are expected to go on from it."""
    shares: Mapping[str, float]
    """Run id -> expected share of the epochs that are left of it, for each run that is to start or to go on."""

    def shortened(self, planned: Iterable[PlannedRun]) -> list[PlannedRun]:
        """Return the runs with the estimated time of the epochs that each is expected to train."""
        return [self._shortened(item) for item in planned]

    def _shortened(self, item: PlannedRun) -> PlannedRun:
        share, estimate = self.shares.get(item.run.id, 1.0), item.estimate
        if estimate is None or estimate.seconds is None:
            return item
        return replace(item, estimate=replace(estimate, seconds=estimate.seconds * share))

    def to_dict(self) -> list[dict[str, Any]]:
        """Return a record for each rung, as ``plan --json`` has it."""
        return [{"epochs": rung, "reach": number, "go_on": self.go_on[rung]} for rung, number in self.reach.items()]


def expectation(search: Search, planned: Sequence[PlannedRun]) -> Expectation:
    """Return what the search is expected to do with the runs of a launch that are to start or to go on.

    Runs that have passed a rung count there as having reached it. A final seed is trained if its first seed comes to
    its end.
    """
    groups: defaultdict[tuple[Any, ...], list[PlannedRun]] = defaultdict(list)
    for item in planned:
        if item.spec.first_seed is None:
            groups[_group(search, item.spec.config)].append(item)
    reach, go_on = dict.fromkeys(search.rungs, 0.0), dict.fromkeys(search.rungs, 0.0)
    alive: dict[str, float] = {}
    epochs: dict[str, float] = {}
    for members in groups.values():
        todo = [item for item in members if item.action != "skip"]
        alive |= {item.run.id: 1.0 for item in todo}
        epochs |= {item.run.id: 0.0 for item in todo}
        at = {item.run.id: item.epochs_done for item in todo}
        for rung in search.rungs:
            there = sum(item.observation.epochs_done >= rung for item in members)
            coming = [item for item in todo if item.epochs_done < rung < item.spec.config.train.epochs]
            for item in coming:
                epochs[item.run.id] += alive[item.run.id] * (rung - at[item.run.id])
                at[item.run.id] = rung
            number = sum(alive[item.run.id] for item in coming)
            whole = max(1, round(number))
            share = expected_to_pass(search, there, whole) / whole
            reach[rung] += number
            go_on[rung] += number * share
            alive |= {item.run.id: alive[item.run.id] * share for item in coming}
        for item in todo:
            epochs[item.run.id] += alive[item.run.id] * (item.spec.config.train.epochs - at[item.run.id])
    shares = {}
    for item in planned:
        left = item.spec.config.train.epochs - item.epochs_done
        if item.action == "skip":
            continue
        if item.spec.first_seed is None:
            shares[item.run.id] = epochs[item.run.id] / left if left > 0 else 1.0
        else:
            shares[item.run.id] = alive.get(item.after.id, 1.0) if item.after else 1.0
    return Expectation(reach=reach, go_on=go_on, shares=shares)


def keys_within(search: Search, configs: Iterable[Mapping[str, Any]]) -> Collection[str]:
    """Return the keys in which runs have to be equal to be compared, without those of the text that do not vary."""
    varying = varying_keys(configs)
    return dict.fromkeys([*search.within, *(key for key in ALWAYS_WITHIN if key in varying)])


def _group(search: Search, config: RunConfig) -> tuple[Any, ...]:
    return tuple(search.group_of(config.by_key()).values())

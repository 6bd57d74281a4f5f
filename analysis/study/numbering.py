"""The number of each run: its place in the plan, with a letter for each further run of the same entry.

A run belongs to the entry with its fingerprint. Otherwise the run is a variant, launched with ``--set`` or before the
manifest was edited, and belongs to the entry with its name. The first run of an entry has no letter: the planned run,
else the first variant that replicates it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import total_ordering
from typing import Any, TypeAlias

from analysis.study import units
from analysis.study.record import PlannedEntry
from analysis.study.run import LoadedRun
from analysis.study.values import clean

REPLICABLE = frozenset({"train.precision", "seed"})
"""Keys that may differ between a run and the entry whose published results the run is compared with."""


@total_ordering
@dataclass(frozen=True)
class VariantNumber:
    """The number of a further run of an entry, printed ``3b``. It follows the integer 3."""

    place: int
    index: int
    """From 1; the first run of an entry has the integer ``place`` as its number."""

    def __str__(self) -> str:
        letters, rest = "", self.index + 1
        while rest:
            rest, letter = divmod(rest - 1, 26)
            letters = chr(ord("a") + letter) + letters
        return f"{self.place}{letters}"

    def __int__(self) -> int:
        return self.place

    def __lt__(self, other: object) -> bool:
        if isinstance(other, VariantNumber):
            return (self.place, self.index) < (other.place, other.index)
        return self.place < other if isinstance(other, int) else NotImplemented


RunNumber: TypeAlias = int | VariantNumber
"""The number of a run, unique in a report."""


def number_runs(
    runs: Sequence[LoadedRun], planned: Sequence[PlannedEntry], first: int
) -> tuple[list[PlannedEntry], dict[str, list[LoadedRun]], int]:
    """Give each run its number, what it varies, and the published results that it may be compared with.

    Numbers count from ``first`` + 1. A run of no entry has its place in the manifest if no entry and no run of another
    name is there. The other runs follow.

    Returns:
        The entries that no run belongs to; the runs of each entry, by the first digits of its fingerprint (of no entry,
        the run itself); the largest place.
    """
    entries = {entry.number: entry for entry in planned}
    claims = _claims(runs, entries)
    members: dict[str, list[LoadedRun]] = {}
    for place, found in claims.items():
        entry = entries.get(place, PlannedEntry(number=place))
        found.sort(key=lambda run: (str(run.provenance.launched_at), run.row["id"]))
        found.sort(key=lambda run: (run.digits != entry.digits, not _replicates(run.config, entry.config)))
        plan = entry.config or found[0].config
        for index, run in enumerate(found):
            run.row["number"] = VariantNumber(first + place, index) if index else first + place
            run.row["variant"] = _difference_text(plan, run.config) if run.config else None
            if run.row["variant"]:
                run.row["name"] += f", {run.row['variant']}"
            if entry.published and _replicates(run.config, plan):
                run.row |= entry.published
            members.setdefault(run.digits, [run])
        if entry.digits:
            members[entry.digits] = found
    size = max([*entries, *claims], default=0)
    nameless = {place: PlannedEntry(number=place) for place in range(1, max(claims, default=0))}
    absent = [
        dataclasses.replace(entry, number=first + place)
        for place, entry in sorted({**nameless, **entries}.items())
        if place not in claims
    ]
    return absent, members, size


def _claims(runs: Sequence[LoadedRun], entries: Mapping[int, PlannedEntry]) -> dict[int, list[LoadedRun]]:
    """Return the runs of each place."""
    by_digits = {entry.digits: place for place, entry in entries.items()}
    by_name = {entry.name: place for place, entry in sorted(entries.items(), reverse=True)}
    claims: dict[int, list[LoadedRun]] = {}
    others: list[LoadedRun] = []
    for run in runs:
        named = clean(run.provenance.entry or run.row["name"])
        place = by_digits.get(run.digits, by_name.get(named))
        if place is None and run.order is not None and run.order + 1 not in entries:
            there = claims.get(run.order + 1, [])
            place = run.order + 1 if all(run.row["name"] == other.row["name"] for other in there) else None
        if place is None:
            others.append(run)
        else:
            claims.setdefault(place, []).append(run)
    following = max([*entries, *claims], default=0) + 1
    return claims | {place: [run] for place, run in enumerate(others, start=following)}


# -- differences ---------------------------------------------------------------------------------------------------


def _differences(plan: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Return the keys of ``config`` with another value in ``plan``; how far a run is to go makes no other run.

    A corpus whose digest one of them lacks counts as the same.
    """
    same = {"train.epochs"}
    if None in (plan.get("data.sha256"), config.get("data.sha256")):
        same.add("data.sha256")
    return [key for key, value in config.items() if key not in same and plan.get(key, value) != value]


def _difference_text(plan: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """What a run varies, such as ``bf16, lr 0.1``; ``None`` if nothing."""
    return ", ".join(_written(key, config[key]) for key in _differences(plan, config)) or None


def _written(key: str, value: Any) -> str:
    match key:
        case "train.precision":
            return str(value)
        case "data.sha256":
            return "another text"
        case "model.sha256":
            return "another version of its file"
        case _:
            return f"{key.rpartition('.')[2].replace('_', ' ')} {units.plain_value(value)}"


def _replicates(config: Mapping[str, Any], plan: Mapping[str, Any]) -> bool:
    """Whether a run is the planned one but for what changes no result, and the seed."""
    return REPLICABLE.issuperset(_differences(plan, config))

"""``[[decide]]``: settings that a study compares, with one more seed of both after another until it is clear."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from jobs.manifests.claims import Conditions
from jobs.manifests.filters import facts_of_spec, select
from jobs.manifests.reader import Problems
from jobs.spec import RunSpec
from seqlm.comparisons import ERROR, MARGIN, Compared, Side, compared, setting_of
from seqlm.config import LARGEST_SEED
from seqlm.errors import UsageError
from seqlm.records.studies import MAX_RUNS
from seqlm.schema import Table, Valid, show

MOST_SEEDS = 1000
_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class Decide(Table):
    """One ``[[decide]]`` as written."""

    a: Conditions
    """Conditions as after `--only`, which choose one setting with all its seeds: `"arch=gru lr=0.01"`."""
    b: Conditions
    """Conditions on the runs of the other setting, on the same text and with as many epochs."""
    seeds: Annotated[int, Valid(f"a whole number from 5 to {MOST_SEEDS}", least=5, most=MOST_SEEDS)] = 20
    """Most seeds of each side: the lowest of `a` in the manifest, then the next whole numbers, one after another until
    the comparison is decided."""
    margin: Annotated[float, Valid("a number of nats, 0 or more", least=0)] = MARGIN
    """A smaller difference does not matter, in nats per token."""
    error: Annotated[float, Valid("a share above 0 and below 1", above=0, below=1)] = ERROR
    """Share of studies in which chance may lead to a false claim. All comparisons of the study share it, also those of
    `compare`."""


def chosen(
    runs: Sequence[_Item], text: str, facts: Callable[[_Item], Mapping[str, Any]], study_dir: Path | None = None
) -> list[_Item]:
    """Return the runs that meet conditions; ``facts`` and ``study_dir`` as for :func:`jobs.manifests.filters.select`.

    Raises:
        UsageError: a condition is wrong, or no run meets all.
    """
    found, why = select(runs, [text], [], facts, study_dir)
    if not found:
        raise UsageError((why or f"no run meets {show(text)}").replace("--only ", ""))
    return found


def further_seeds(
    specs: Sequence[RunSpec], decides: Mapping[int, Decide], where: str, problems: Problems
) -> list[tuple[int, int]]:
    """Return the runs that each ``[[decide]]`` needs besides, in turn: the place of a run, and its other seed.

    ``decides`` are those of the manifest by number. ``where`` names the manifest in messages.
    """
    wanted: list[tuple[int, int, int]] = []
    for number, decide in decides.items():
        try:
            sides = [chosen(specs, text, facts_of_spec) for text in (decide.a, decide.b)]
            a, b = ({one.name: replace(one.config, seed=0) for one in side} for side in sides)
            _compared(decide, (a, b), a | b)
        except UsageError as error:
            problems.add_unmatched(f"{where}: decide {number}", str(error))
        else:
            places = [specs.index(side[0]) for side in sides]
            wanted += [(turn, seed, place) for turn, seed in enumerate(_seeds(decide, specs)) for place in places]
    fingerprints, names = {spec.fingerprint for spec in specs}, {spec.name for spec in specs}
    found: list[tuple[int, int]] = []
    for _, seed, place in sorted(wanted, key=lambda one: one[0]):
        spec = seeded(specs[place], seed, len(specs))
        if spec.fingerprint not in fingerprints:
            fingerprints.add(spec.fingerprint)
            found.append((place, seed))
            if spec.name in names:
                what = f'a further seed is called "{spec.name}", as another run is; give that another name'
                problems.add(f"{where}: decide", what)
    if len(specs) + len(found) > MAX_RUNS:
        what = f"makes {len(specs) + len(found):,} runs, expected at most {MAX_RUNS:,} in a study"
        problems.add(f"{where}: decide", what)
    return found


def _seeds(decide: Decide, specs: Sequence[RunSpec]) -> range:
    """Return the seeds of a ``[[decide]]``: the lowest one of its side ``a`` in the manifest, and the next ones."""
    setting = setting_of(chosen(specs, decide.a, facts_of_spec)[0].config)
    first = min(spec.config.seed for spec in specs if setting_of(spec.config) == setting)
    return range(first, min(first + decide.seeds, LARGEST_SEED + 1))


def seeded(spec: RunSpec, seed: int, order: int) -> RunSpec:
    """Return a run with another seed, and named by it."""
    name = re.sub("-seed[0-9]+$", "", spec.name)
    return replace(spec, name=f"{name}-seed{seed}", config=replace(spec.config, seed=seed), order=order)


def in_turn(specs: Sequence[RunSpec], decides: Iterable[Decide]) -> list[RunSpec]:
    """Return the runs, those of each ``[[decide]]`` with the place of their seed as their turn in the queue."""
    turns: dict[str, int] = {}
    for decide in decides:
        ids = {spec.fingerprint: spec.fingerprint for spec in specs}
        for place, pair in enumerate(compared_in(decide, specs, ids).record.pairs):
            for fingerprint in (pair.a, pair.b):
                turns[fingerprint] = min(place, turns.get(fingerprint, place))
    return [replace(spec, turn=turns.get(spec.fingerprint, 0)) for spec in specs]


def compared_in(decide: Decide, specs: Sequence[RunSpec], ids: Mapping[str, str]) -> Compared:
    """Return the comparison of a ``[[decide]]`` of a manifest whose runs are ``specs``. ``ids``: fingerprint -> run id.

    Raises:
        UsageError: the runs do not compare.
    """
    seeds = _seeds(decide, specs)
    a, b = (
        {ids[spec.fingerprint]: spec.config for spec in chosen(specs, text, facts_of_spec)}
        for text in (decide.a, decide.b)
    )
    every = {ids[spec.fingerprint]: spec.config for spec in specs if spec.config.seed in seeds}
    return _compared(decide, (a, b), every)


def _compared(decide: Decide, sides: tuple[Side, Side], every: Side) -> Compared:
    return compared((decide.a, decide.b), sides, every, margin=decide.margin, error=decide.error)

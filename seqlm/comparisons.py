"""Compare two settings by runs with the same seeds, from the files of their study. Standard library alone.

    <study>/comparisons/<key>/comparison.json       which runs are compared (a ``[[decide]]``, or ``seqlm compare``)
    <study>/comparisons/<key>/verdict-9-of-2.json   what 9 seeds show in a study of 2 comparisons
    <run>/settled.json                              that all comparisons of the run were decided before its end

The key is that of the settings, whatever they are called, so a comparison counts once. The pairs that count are those
of the first seeds of which both runs have ended, without a gap: the order in which runs end cannot matter. A verdict is
a function of files, so a process that is killed between a decision and its file loses nothing.

Whatever reads or writes files raises ``FileError`` if that fails.
"""

import contextlib
import hashlib
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from seqlm.config import RunConfig, varying_keys
from seqlm.errors import DamagedFileError, FileError, UsageError
from seqlm.files import Guard, make_directory, unguarded
from seqlm.naming import listing
from seqlm.reading import finite, listed, timestamp
from seqlm.records.comparisons import Comparison, ComparisonVerdict, Pair
from seqlm.records.runs import Settled
from seqlm.requests import RUN_ID
from seqlm.rundir import RunDirectory
from seqlm.search import ALWAYS_WITHIN
from seqlm.sequential import Finding, fewest, finding

FOLDER = "comparisons"
MARGIN, ERROR = 0.02, 0.05
"""Defaults: nats that do not matter, and the share of studies with a false claim."""
MOST_NATS = math.log(sys.float_info.max)
Side: TypeAlias = Mapping[str, RunConfig]
"""The runs of a side: id -> configuration."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Two settings and their runs."""

    key: str
    """Name of its folder."""
    record: Comparison


# -- which runs --------------------------------------------------------------------------------------------------------


def setting_of(config: RunConfig) -> str:
    """Return what the seeds of one setting have in common."""
    return replace(config, seed=0).fingerprint()


def compared(
    names: tuple[str, str], chosen: tuple[Side, Side], every: Side, *, margin: float, error: float
) -> Compared:
    """Return the comparison of the settings of some runs of each side, which are called as ``names`` say.

    ``every`` run that counts: all seeds of a setting are compared, not only those of the chosen runs. So nobody can
    choose the seeds.

    Raises:
        UsageError: the runs of a side have several settings, or both sides one; the sides have no common seed, or
            unlike texts or epochs.
    """
    for text, runs in zip(names, chosen, strict=True):
        settings = [replace(config, seed=0).with_epochs(1).by_key() for config in runs.values()]
        if keys := list(varying_keys(settings)):
            found = listing(list(dict.fromkeys(f"{one.get(keys[0])}" for one in settings)))
            raise UsageError(f'expected one setting on a side, got runs of "{text}" with {keys[0]} {found}; add to it')
    first, second = (next(iter(runs.values())) for runs in chosen)
    keys_of_settings = [setting_of(one) for one in (first, second)]
    if keys_of_settings[0] == keys_of_settings[1]:
        run = next(iter(chosen[0]))
        raise UsageError(f'expected two settings, got one: the setting of {run} is also that of "{names[1]}"')
    for key in ALWAYS_WITHIN:
        # Without a key of eval, text is scored as in training.
        values = [one.get(key) or one.get(key.replace("eval.", "train.")) for one in (first.by_key(), second.by_key())]
        if values[0] != values[1]:
            raise UsageError(
                f"{key}: expected the same text and scoring on both sides, got {values[0]} and {values[1]}"
            )
    seeds: list[dict[int, str]] = [{}, {}]
    all_epochs: list[int] = []
    for run, config in every.items():
        if (setting := setting_of(config)) in keys_of_settings:
            seeds[keys_of_settings.index(setting)][config.seed] = run
            all_epochs.append(config.train.epochs)
    if len(epochs := sorted(set(all_epochs))) > 1:
        raise UsageError(f"train.epochs: expected as many of all seeds of both, got {listing(list(map(str, epochs)))}")
    pairs = [Pair(seed=seed, a=seeds[0][seed], b=seeds[1][seed]) for seed in sorted(seeds[0].keys() & seeds[1].keys())]
    if not pairs:
        have = [listing(list(map(str, sorted(one)))) for one in seeds]
        raise UsageError(f"seed: expected seeds that both sides have, got {have[0]} and {have[1]}")
    key = hashlib.sha256(json.dumps([*sorted(keys_of_settings), *epochs]).encode()).hexdigest()[:16]
    record = Comparison(a=names[0], b=names[1], pairs=tuple(pairs), epochs=epochs[0], margin=margin, error=error)
    return Compared(key=key, record=record)


def file_typed(study_dir: Path, typed: Compared, *, margin: float | None, error: float | None) -> Comparison:
    """File a comparison that was typed, so that it counts. Return what is compared, with its sides as typed.

    ``margin`` and ``error`` as typed. ``None``: not typed, so those of the manifest hold if it has the comparison.

    Raises:
        UsageError: the manifest has the comparison with another margin or error.
    """
    folder = study_dir / FOLDER / typed.key
    existing = _read(folder)
    if existing is None or existing.manifest is None:
        make_directory(folder)
        typed.record.write(folder)
        return typed.record
    for key, wanted in (("margin", margin), ("error", error)):
        if wanted is not None and wanted != (declared := getattr(existing, key)):
            raise UsageError(f"{existing.manifest} has this comparison with {key} = {declared:g}; change it there")
    return replace(typed.record, margin=existing.margin, error=existing.error)


def file_declared(study_dir: Path, manifest: str | None, declared: Sequence[Compared]) -> None:
    """File the comparisons of a manifest. Their runs stop once they are decided, those of earlier ones no more."""
    before = read_comparisons(study_dir)
    keys = {one.key for one in declared}
    for key, record in before.items():
        if record.manifest is not None and record.manifest == manifest and key not in keys:
            replace(record, manifest=None).write(study_dir / FOLDER / key)
    for one in declared:
        folder = study_dir / FOLDER / one.key
        make_directory(folder)
        replace(one.record, manifest=manifest).write(folder)


def read_comparisons(study_dir: Path) -> dict[str, Comparison]:
    """Return the comparisons of a study by key. One whose record is missing or damaged still counts, with no runs."""
    return {folder.name: _read(folder) or Comparison() for folder in listed(study_dir / FOLDER)}


def _read(folder: Path) -> Comparison | None:
    with contextlib.suppress(DamagedFileError):
        found = Comparison.read(folder)
        if found is not None and found.margin >= 0 and 0 < found.error < 1:
            return found if all(RUN_ID.fullmatch(run) for pair in found.pairs for run in (pair.a, pair.b)) else None
    return None


# -- what they show ----------------------------------------------------------------------------------------------------


def verdict_of(study_dir: Path, record: Comparison, comparisons: int) -> ComparisonVerdict:
    """Return what the runs of a comparison show by now, in a study of so many comparisons."""
    seeds: list[int] = []
    differences: list[float] = []
    left_out: list[str] = []
    waits_for: list[str] = []
    for pair in record.pairs:
        losses = {run: _best_loss(RunDirectory(study_dir / run), record.epochs) for run in (pair.a, pair.b)}
        without = [run for run, loss in losses.items() if loss is not None and not math.isfinite(loss)]
        a, b = losses[pair.a], losses[pair.b]
        if without:
            left_out += without
        elif a is None or b is None:
            waits_for = [run for run, loss in losses.items() if loss is None]
            break
        else:
            seeds.append(pair.seed)
            differences.append(a - b)
    found = finding(differences, error=record.error, comparisons=comparisons, margin=record.margin)
    alone = finding(differences, error=record.error, margin=record.margin)
    return ComparisonVerdict(
        a=record.a,
        b=record.b,
        outcome=found.outcome,
        alone=alone.outcome,
        text=_in_words(record, found, alone, comparisons),
        seeds=tuple(seeds),
        differences=tuple(differences),
        mean=finite(found.mean),
        low=finite(found.low),
        high=finite(found.high),
        decided_after=found.decided_after,
        comparisons=comparisons,
        error=record.error,
        margin=record.margin,
        epochs=record.epochs,
        left_out=tuple(left_out),
        waits_for=tuple(waits_for),
    )


def file_verdict(study_dir: Path, key: str, verdict: ComparisonVerdict) -> None:
    """Write a verdict with its evidence."""
    name = f"verdict-{len(verdict.seeds)}-of-{verdict.comparisons}.json"
    verdict.write_file(study_dir / FOLDER / key / name)


def _best_loss(run: RunDirectory, epochs: int) -> float | None:
    """Return the lowest validation loss of a run in its first epochs. NaN: it diverged. ``None``: it has not ended.

    A file that cannot be read counts as missing.
    """
    with contextlib.suppress(FileError):
        result = run.read_result()
        if result is not None and result.epochs == epochs:
            return _possible(result.best_val_loss)
        if result is not None and (result.epochs or 0) > epochs:
            losses = [_possible(one.get("val_loss")) for one in run.read_metrics()[0] if one["epoch"] < epochs]
            return min((loss for loss in losses if not math.isnan(loss)), default=math.nan)
        attempts = run.attempts()
        if attempts and run.end(attempts[-1]).kind == "diverged":
            return math.nan
    return None


def _possible(loss: Any) -> float:
    """Return a loss of a file. NaN: it is none, or its perplexity is no finite number."""
    number = finite(loss)
    return math.nan if number is None or not 0 <= number < MOST_NATS else number


def _in_words(record: Comparison, found: Finding, alone: Finding, comparisons: int) -> str:
    seeds = f"after {found.number} seed{'' if found.number == 1 else 's'}"
    what = f"undecided {seeds}"
    if found.outcome in ("lower", "higher"):
        low, high = sorted((abs(found.low), abs(found.high)))
        lower, higher = (record.a, record.b) if found.outcome == "lower" else (record.b, record.a)
        what = f"{lower} is lower than {higher} by {abs(found.mean):.4f} nats ({low:.4f} to {high:.4f}) {seeds}"
    elif found.outcome == "no difference":
        what = f"no difference above {record.margin:g} nats {seeds}: {found.low:.4f} to {found.high:.4f}"
    elif found.low > found.high:
        what += ": the intervals after different numbers of seeds exclude each other"
    elif math.isfinite(found.low):
        what += f": {found.low:.4f} to {found.high:.4f}"
    else:
        what += f"; {fewest(record.error / comparisons)} are the fewest that can decide"
    if alone.is_decided and not found.is_decided:
        what += f"; alone yes, among {comparisons} comparisons no"
    return what


# -- decisions of workers ----------------------------------------------------------------------------------------------


def is_compared(run: RunDirectory, epochs: int) -> bool:
    """Return whether a manifest compares a run after so many epochs, so that it stops once that is decided."""
    return bool(_declared_of(run, epochs, read_comparisons(run.path.parent)))


def _declared_of(run: RunDirectory, epochs: int, known: Mapping[str, Comparison]) -> dict[str, Comparison]:
    """Return the comparisons that a manifest makes of a run. A run that goes to another epoch is none of them."""
    return {
        key: one
        for key, one in known.items()
        if one.manifest is not None and one.epochs == epochs and any(run.id in (pair.a, pair.b) for pair in one.pairs)
    }


def decided_of(run: RunDirectory, epochs: int) -> dict[str, ComparisonVerdict]:
    """Return the verdicts of the comparisons of a run, by key, if all are decided by now. Else none."""
    known = read_comparisons(run.path.parent)
    own = _declared_of(run, epochs, known)
    verdicts = {key: verdict_of(run.path.parent, one, len(known)) for key, one in own.items()}
    return {} if any(one.outcome == "undecided" for one in verdicts.values()) else verdicts


def is_open_again(run: RunDirectory, before: int, epochs: int) -> bool:
    """Return whether a run that comparisons stopped is to go on to ``epochs``.

    It was to have another number of epochs ``before``, or it is undecided by now, since the study has more comparisons.
    """
    return run.why_settled() is not None and (before != epochs or not decided_of(run, epochs))


def settle(run: RunDirectory, epochs: int, attempt: int, *, guard: Guard = unguarded) -> str | None:
    """Return why a run of so many epochs stops: all comparisons that a manifest makes of it are decided.

    ``None``: it goes on. The decision is kept with its evidence. A run that was stopped goes on to its end if a later
    request says so, unless its comparisons have become other ones: a study of more comparisons is stricter.

    Raises:
        LeaseLostError: ``guard`` says that the run belongs to another worker by now.
    """
    if (reason := run.why_settled()) is not None:
        return reason
    verdicts = decided_of(run, epochs)
    earlier = None
    with contextlib.suppress(DamagedFileError):
        earlier = Settled.read(run.path)
    if not verdicts or (earlier is not None and _premises(earlier.verdicts) == _premises(verdicts.values())):
        return None
    for key, verdict in verdicts.items():
        with contextlib.suppress(FileError):  # the run has the evidence as well
            file_verdict(run.path.parent, key, verdict)
    reason = "decided: " + "; ".join(one.text for one in verdicts.values())
    settled = Settled(reason=reason, verdicts=tuple(verdicts.values()), attempt=attempt, at=timestamp())
    settled.write(run.path, guard=guard)
    return reason


def _premises(verdicts: Iterable[ComparisonVerdict]) -> set[tuple[Any, ...]]:
    return {(one.a, one.b, one.comparisons, one.error, one.margin, one.epochs) for one in verdicts}


def turns_of(study_dir: Path) -> dict[str, int]:
    """Return the place of the seed of each run that a manifest compares, by run id. Earlier seeds start first."""
    turns: dict[str, int] = {}
    for one in read_comparisons(study_dir).values():
        for place, pair in enumerate(one.pairs if one.manifest is not None else ()):
            for run in (pair.a, pair.b):
                turns[run] = min(place, turns.get(run, place))
    return turns

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
from collections.abc import Mapping, Sequence
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


def compared(a: str, b: str, runs_a: Side, runs_b: Side, *, margin: float, error: float) -> Compared:
    """Return the comparison of two sides, which are called ``a`` and ``b``.

    Raises:
        UsageError: a run is on both sides, a side is not one setting, the sides have no common seed, or the runs have
            unlike texts or epochs.
    """
    if both := [run for run in runs_a if run in runs_b]:
        raise UsageError(f"expected different runs on the two sides, got {both[0]} on both; add a condition to one")
    for text, runs in ((a, runs_a), (b, runs_b)):
        settings = [replace(config, seed=0).with_epochs(1).by_key() for config in runs.values()]
        if keys := list(varying_keys(settings)):
            found = listing(list(dict.fromkeys(f"{one.get(keys[0])}" for one in settings)))
            raise UsageError(f'expected one setting on a side, got runs of "{text}" with {keys[0]} {found}; add to it')
    first, second = (next(iter(runs.values())) for runs in (runs_a, runs_b))
    for key in ALWAYS_WITHIN:
        # Without a key of eval, text is scored as in training.
        values = [one.get(key) or one.get(key.replace("eval.", "train.")) for one in (first.by_key(), second.by_key())]
        if values[0] != values[1]:
            raise UsageError(
                f"{key}: expected the same text and scoring on both sides, got {values[0]} and {values[1]}"
            )
    epochs = dict.fromkeys(config.train.epochs for runs in (runs_a, runs_b) for config in runs.values())
    if len(epochs) > 1:
        raise UsageError(f"train.epochs: expected as many of all runs, got {listing(list(map(str, epochs)))}")
    seeds = [{config.seed: run for run, config in runs.items()} for runs in (runs_a, runs_b)]
    pairs = [Pair(seed=seed, a=seeds[0][seed], b=seeds[1][seed]) for seed in sorted(seeds[0].keys() & seeds[1].keys())]
    if not pairs:
        have = [listing(list(map(str, sorted(one)))) for one in seeds]
        raise UsageError(f"seed: expected seeds that both sides have, got {have[0]} and {have[1]}")
    settings_key = [*sorted(replace(one, seed=0).fingerprint() for one in (first, second)), *epochs]
    key = hashlib.sha256(json.dumps(settings_key).encode()).hexdigest()[:16]
    record = Comparison(a=a, b=b, pairs=tuple(pairs), epochs=next(iter(epochs)), margin=margin, error=error)
    return Compared(key=key, record=record)


def file_typed(study_dir: Path, typed: Compared) -> None:
    """File a comparison that was typed, so that it counts. That of a manifest stays as it is."""
    folder = study_dir / FOLDER / typed.key
    make_directory(folder)
    existing = _read(folder)
    if existing is None or existing.manifest is None:
        typed.record.write(folder)


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
        return found if found is not None and found.margin >= 0 and 0 < found.error < 1 else None
    return None


# -- what they show ----------------------------------------------------------------------------------------------------


def verdict_of(study_dir: Path, record: Comparison, comparisons: int) -> ComparisonVerdict:
    """Return what the runs of a comparison show by now, in a study of so many comparisons."""
    seeds: list[int] = []
    differences: list[float] = []
    left_out: list[str] = []
    for pair in record.pairs:
        losses = {run: _best_loss(RunDirectory(study_dir / run), record.epochs) for run in (pair.a, pair.b)}
        without = [run for run, loss in losses.items() if loss is not None and not math.isfinite(loss)]
        a, b = losses[pair.a], losses[pair.b]
        if without:
            left_out += without
        elif a is None or b is None:
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
    )


def file_verdict(study_dir: Path, key: str, verdict: ComparisonVerdict) -> None:
    """Write a verdict with its evidence."""
    name = f"verdict-{len(verdict.seeds)}-of-{verdict.comparisons}.json"
    verdict.write_file(study_dir / FOLDER / key / name)


def _best_loss(run: RunDirectory, epochs: int) -> float | None:
    """Return the lowest validation loss of a run in its first epochs. NaN: it diverged. ``None``: it has not ended."""
    with contextlib.suppress(DamagedFileError):
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


def is_compared(run: RunDirectory) -> bool:
    """Return whether a manifest compares a run, so that it stops once that is decided."""
    return bool(_declared_of(run, read_comparisons(run.path.parent)))


def _declared_of(run: RunDirectory, known: Mapping[str, Comparison]) -> dict[str, Comparison]:
    return {
        key: one
        for key, one in known.items()
        if one.manifest is not None and any(run.id in (pair.a, pair.b) for pair in one.pairs)
    }


def settle(run: RunDirectory, attempt: int, *, guard: Guard = unguarded) -> str | None:
    """Return why a run stops: all comparisons that a manifest makes of it are decided. ``None``: it goes on.

    The decision is made once, and kept with its evidence. A run that was stopped goes on if a later request says so.

    Raises:
        LeaseLostError: ``guard`` says that the run belongs to another worker by now.
    """
    with contextlib.suppress(DamagedFileError):
        if Settled.read(run.path) is not None:
            return run.why_settled()
    known = read_comparisons(run.path.parent)
    verdicts = {key: verdict_of(run.path.parent, one, len(known)) for key, one in _declared_of(run, known).items()}
    if not verdicts or any(one.outcome == "undecided" for one in verdicts.values()):
        return None
    for key, verdict in verdicts.items():
        with contextlib.suppress(FileError):  # the run has the evidence as well
            file_verdict(run.path.parent, key, verdict)
    reason = "decided: " + "; ".join(one.text for one in verdicts.values())
    settled = Settled(reason=reason, verdicts=tuple(verdicts.values()), attempt=attempt, at=timestamp())
    settled.write(run.path, guard=guard)
    return reason

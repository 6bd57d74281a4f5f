"""What to run next: longer, with another value, not yet, or again."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.blocks.effects import effect_sentence, effects_of, effects_table
from analysis.blocks.section import Block, Points
from analysis.blocks.table import Column, Table
from analysis.blocks.texts import first_few, on_one_text, scope
from analysis.study import units
from analysis.study.comparison import finished
from analysis.study.pairs import single_key_pairs
from analysis.study.study import Study
from analysis.study.values import rows_of

RETRIED_KINDS = ("oom", "node", "timeout", "preempted")
"""Failures that say nothing of the setting, only of the machine or of what it was given."""

NAMED, LISTED = 3, 20
"""Most runs that a sentence names, and most rows of a proposal in the table."""

LAST_SHARE, LEAST_EPOCHS = 0.1, 2
"""The end of a run: this share of its epochs, and at least this many."""

FALL_PER_EPOCH = 0.001
"""Still falling: by more than this share of the perplexity in each epoch of the end, as the geometric mean."""


def next_blocks(study: Study) -> list[Block]:
    """Proposals that the data support, and the numbers behind them."""
    runs = study.runs.sort_values("number")
    runs = runs.assign(reference=runs["number"].astype(str) + " " + runs["name"])
    done, falling = finished(runs), falling_runs(study)
    missing = combinations_never_run(study)
    again = runs[(runs["state"] == "failed") & runs["failure_kind"].isin(RETRIED_KINDS)]
    one = on_one_text(study).compared
    effects = effects_of(single_key_pairs(one.runs))
    sentences = [
        *(_falling_sentence(falling, len(done)) if len(done) else []),
        *([effect_sentence(effects)] if len(done) else []),
        f"Combinations without a finished run: {first_few([f'{what} ({why})' for what, why in missing], 9)}."
        if missing
        else "Every architecture of the study has a finished run with every optimizer of the study.",
        *_retry_sentence(again),
        *_unfinished_sentence(study, runs),
        *_stopped_sentence(runs),
    ]
    proposals = _proposals_table(falling.head(LISTED), missing[:LISTED], again.head(LISTED))
    return [
        Points(items=sentences),
        *([proposals] if proposals.rows else []),
        *([effects_table(effects, scope(one))] if effects else []),
    ]


def _proposals_table(longer: pd.DataFrame, not_yet: Sequence[tuple[str, str]], again: pd.DataFrame) -> Table:

    def fall(run: Any) -> str:
        return f"fell {100 * run.fall:.2f} % per epoch to {units.perplexity(run.val_ppl)} at epoch {run.epochs}"

    rows = [
        *(("more epochs", f"{run.number} {run.name}", fall(run), run.number) for run in rows_of(longer)),
        *(("not yet run", what, why, None) for what, why in not_yet),
        *(("again", run.reference, _failure(run), run.number) for run in rows_of(again)),
    ]
    return Table(
        name="discussion-5-next",
        title="What to run next",
        caption="More epochs: the best epoch is the last, and the perplexity fell by more than "
        f"{100 * FALL_PER_EPOCH:g} % per epoch at the end. Again: failures of the machine or of memory.",
        columns=[Column("proposal", "Proposal"), Column("what", "Run or combination"), Column("why", "Because")],
        records=pd.DataFrame(rows, columns=["proposal", "what", "why", "run"], dtype=object),
        run=lambda proposal: proposal["run"],
    )


# -- longer --------------------------------------------------------------------------------------------------------


def falling_runs(study: Study) -> pd.DataFrame:
    """Return the finished runs that fell by more than 0.1 % an epoch at their end (``fall``), the lowest first."""
    done = finished(study.runs)
    recorded = study.epochs.groupby("id")["val_ppl"].agg(list).to_dict()
    curves = [recorded.get(run_id, []) for run_id in done["id"]]
    falling = done.assign(fall=list(map(fall_per_epoch, curves)), epochs=list(map(len, curves)))
    return falling[falling["fall"] > FALL_PER_EPOCH].sort_values(["val_ppl", "number"])


def fall_per_epoch(perplexities: list[float]) -> float:
    """The share by which the end of a curve fell per epoch; 0 where its best epoch is not its last.

    >>> round(fall_per_epoch([120.0, 110.0, 99.0]), 3)
    0.1
    """
    last = max(LEAST_EPOCHS, math.ceil(LAST_SHARE * len(perplexities)))
    end = perplexities[-last:]
    if len(end) < LEAST_EPOCHS or not all(math.isfinite(value) and value > 0 for value in end):
        return 0.0
    if end[-1] > min(value for value in perplexities if math.isfinite(value)):
        return 0.0
    return 1 - math.pow(end[-1] / end[0], 1 / (len(end) - 1))


def _falling_sentence(falling: pd.DataFrame, done: int) -> list[str]:
    if falling.empty:
        return ["More epochs: no finished run was still improving at its last epoch."]
    named = [f"{run.number} {run.name} ({100 * run.fall:.2f} % per epoch)" for run in rows_of(falling)]
    was = "was" if len(falling) == 1 else "were"
    return [
        f"More epochs: {len(falling)} of {units.count(done, 'finished run')} {was} still improving at the last epoch: "
        f"{first_few(named, NAMED)}. How far they would improve is not extrapolated."
    ]


# -- not yet, or again ---------------------------------------------------------------------------------------------


def combinations_never_run(study: Study) -> list[tuple[str, str]]:
    """Of the architectures and optimizers that the study names, the combinations without a finished run, and why."""
    done = finished(study.runs)
    there = set(zip(done["arch"], done["optimizer"], strict=True))
    reasons: dict[tuple[Any, Any], list[str]] = defaultdict(list)
    for run in rows_of(study.runs):
        state = units.state_of(run.state, run.failure_kind)
        reasons[run.arch, run.optimizer].append(f"{run.number} {run.name}: {state}")
    for absent in study.absent:
        reasons[absent.arch, absent.optimizer].append(f"{absent.number} {absent.name}: absent")
    for excluded in study.excluded:
        reasons[excluded].append("excluded by the manifest")
    known = [key for key in reasons if isinstance(key[0], str) and isinstance(key[1], str)]
    archs, optimizers = (
        sorted({key[axis] for key in known}, key=lambda key: (units.rank(table, key), key))
        for axis, table in enumerate((units.ARCHITECTURES, units.OPTIMIZERS))
    )
    return [
        (
            f"{units.architecture(arch)} with {units.optimizer(optimizer)}",
            first_few(list(dict.fromkeys(reasons.get((arch, optimizer), ["in no run of the manifest"]))), 3),
        )
        for arch, optimizer in itertools.product(archs, optimizers)
        if (arch, optimizer) not in there
    ]


def _retry_sentence(again: pd.DataFrame) -> list[str]:
    kinds = {kind: list(again.loc[again["failure_kind"] == kind, "reference"]) for kind in RETRIED_KINDS}
    parts = [f"{kind}: {first_few(runs, NAMED)}" for kind, runs in kinds.items() if runs]
    if not parts:
        return []
    return [
        f"To be tried again, since the failure says nothing about the setting: {units.count(len(again), 'run')} "
        f"({'; '.join(parts)})."
    ]


def _failure(run: Any) -> str:
    message = run.failure_message
    text = f"{run.failure_kind}: {message}" if isinstance(message, str) and message else str(run.failure_kind)
    return units.shortened(text, 100)


def _stopped_sentence(runs: pd.DataFrame) -> list[str]:
    stopped = runs.loc[runs["state"] == "stopped", "reference"].to_list()
    if not stopped:
        return []
    return [
        f"Stopped by the search: {units.count(len(stopped), 'run')} ({first_few(stopped, NAMED)}). "
        "`retry --kind stopped` lets them go on."
    ]


def _unfinished_sentence(study: Study, runs: pd.DataFrame) -> list[str]:
    names = list(runs.loc[runs["state"].isin(["pending", "queued", "running", "cancelled"]), "reference"])
    names += [f"{run.number} {run.name}".strip() for run in study.absent]
    if not names:
        return []
    has = "has" if len(names) == 1 else "have"
    return [f"To be finished: {units.count(len(names), 'run')} {has} not ended ({first_few(names, NAMED)})."]

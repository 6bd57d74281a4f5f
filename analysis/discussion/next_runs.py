"""What to run next: longer, with another value, not yet, or again."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.blocks.effects import effect_sentence, effects_of, effects_table
from analysis.blocks.section import Block, Points, Prose
from analysis.blocks.table import Column, Table
from analysis.blocks.texts import on_one_text
from analysis.blocks.words import first_few
from analysis.study import units
from analysis.study.pairs import single_key_pairs
from analysis.study.settings import finished
from analysis.study.study import Study

RETRIED_KINDS = ("oom", "node", "timeout", "preempted")
"""Failures that say nothing of the setting, only of the machine or of what it was given."""

NAMED, LISTED = 3, 20
"""Most runs that a sentence names, and most rows of a proposal in the table."""


@dataclass(frozen=True, kw_only=True)
class Combination:
    """An architecture with an optimizer that has no finished run."""

    architecture: str
    optimizer: str
    reason: str

    @property
    def reference(self) -> str:
        return f"{self.architecture} with {self.optimizer}"


def next_blocks(study: Study) -> list[Block]:
    """Proposals that the data support, and the numbers behind them."""
    falling = falling_runs(study)
    combinations = combinations_never_run(study)
    retries = _failed(study, RETRIED_KINDS)
    effects = effects_of(single_key_pairs(on_one_text(study).runs))
    sentences = [
        _falling_sentence(study, falling),
        effect_sentence(effects) if not finished(study.runs).empty else "",
        _combination_sentence(combinations),
        _retry_sentence(retries),
        _unfinished_sentence(study),
    ]
    proposals = _proposals(falling, combinations, retries)
    blocks: list[Block] = [Points(items=kept)] if (kept := [text for text in sentences if text]) else []
    blocks += [_table(proposals)] if proposals else []
    blocks += [effects_table(effects)] if effects else []
    return blocks or [Prose(text="Nothing is left to do.")]


# -- longer --------------------------------------------------------------------------------------------------------


def _falling_sentence(study: Study, falling: Sequence[Falling]) -> str:
    done = len(finished(study.runs))
    if not done:
        return ""
    if not falling:
        return "More epochs: no finished run was still falling at its last epoch."
    named = first_few([f"{run.reference} ({100 * run.fall_per_epoch:.2f} % an epoch)" for run in falling], NAMED)
    was = "was" if len(falling) == 1 else "were"
    return (
        f"More epochs: {len(falling)} of {units.count(done, 'finished run')} {was} still falling at the last epoch, "
        f"{named}. How far they would fall is not extrapolated."
    )


# -- not yet -------------------------------------------------------------------------------------------------------


def combinations_never_run(study: Study) -> list[Combination]:
    """Of the architectures and optimizers that the study names, the combinations without a finished run, and why."""
    done = finished(study.runs)
    there = set(zip(done["arch"], done["optimizer"], strict=True))
    reasons: dict[tuple[Any, Any], list[str]] = defaultdict(list)
    for run in study.runs.to_dict("records"):
        reasons[run["arch"], run["optimizer"]].append(f"{run['number']} {run['name']}: {units.state_of(run)}")
    for absent in study.absent:
        reasons[absent.arch, absent.optimizer].append(f"{absent.number} {absent.name}: absent")
    for excluded in study.excluded:
        reasons[excluded.arch, excluded.optimizer].append("excluded by the manifest")
    known = [key for key in reasons if isinstance(key[0], str) and isinstance(key[1], str)]
    return [
        Combination(
            architecture=units.architecture(arch),
            optimizer=units.optimizer(optimizer),
            reason=first_few(list(dict.fromkeys(reasons[arch, optimizer])), 3)
            if (arch, optimizer) in reasons
            else "in no run of the manifest",
        )
        for arch in _in_order(units.ARCHITECTURES, (arch for arch, _ in known))
        for optimizer in _in_order(units.OPTIMIZERS, (optimizer for _, optimizer in known))
        if (arch, optimizer) not in there
    ]


def _in_order(table: dict[str, str], keys: Iterable[Any]) -> list[Any]:
    return sorted(dict.fromkeys(keys), key=lambda key: (units.rank(table, key), str(key)))


def _combination_sentence(combinations: Sequence[Combination]) -> str:
    if not combinations:
        return "Every architecture of the study has a finished run with every optimizer of the study."
    named = first_few([f"{c.reference} ({c.reason})" for c in combinations], 9)
    return f"Combinations without a finished run: {named}."


# -- again ---------------------------------------------------------------------------------------------------------


def _failed(study: Study, kinds: Sequence[str]) -> list[dict[Any, Any]]:
    runs = study.runs[(study.runs["state"] == "failed") & study.runs["failure_kind"].isin(kinds)]
    found: list[dict[Any, Any]] = runs.sort_values("number").to_dict("records")
    return found


def _retry_sentence(retries: Sequence[dict[Any, Any]]) -> str:
    if not retries:
        return ""
    kinds: dict[str, list[str]] = defaultdict(list)
    for run in retries:
        kinds[run["failure_kind"]].append(f"{run['number']} {run['name']}")
    parts = [f"{kind}: {first_few(kinds[kind], NAMED)}" for kind in RETRIED_KINDS if kind in kinds]
    return (
        f"To be tried again, since the failure says nothing of the setting: {units.count(len(retries), 'run')} "
        f"({'; '.join(parts)})."
    )


def _unfinished_sentence(study: Study) -> str:
    unfinished = study.runs[study.runs["state"].isin(["pending", "queued", "running", "cancelled"])]
    names = [f"{run['number']} {run['name']}" for run in unfinished.sort_values("number").to_dict("records")]
    names += [f"{run.number} {run.name}".strip() for run in study.absent]
    if not names:
        return ""
    has = "has" if len(names) == 1 else "have"
    return f"To be finished: {units.count(len(names), 'run')} {has} not ended ({first_few(names, NAMED)})."


@dataclass(frozen=True)
class Proposal:
    """A row of the table."""

    kind: str
    what: str
    why: str
    number: int | None = None
    """Of the run that it is about."""


# -- table ---------------------------------------------------------------------------------------------------------


def _proposals(
    falling: Sequence[Falling], combinations: Sequence[Combination], retries: Sequence[dict[Any, Any]]
) -> list[Proposal]:
    """At most ``LISTED`` of each kind."""
    longer = [
        Proposal(
            "more epochs",
            run.reference,
            f"fell {100 * run.fall_per_epoch:.2f} % an epoch to {units.perplexity(run.val_ppl)} at epoch {run.epochs}",
            run.number,
        )
        for run in falling[:LISTED]
    ]
    missing = [Proposal("not yet run", c.reference, c.reason) for c in combinations[:LISTED]]
    again = [Proposal("again", f"{r['number']} {r['name']}", _failure(r), r["number"]) for r in retries[:LISTED]]
    return [*longer, *missing, *again]


def _failure(run: dict[Any, Any]) -> str:
    message = run["failure_message"]
    text = f"{run['failure_kind']}: {message}" if isinstance(message, str) and message else str(run["failure_kind"])
    return units.shortened(text, 100)


def _table(proposals: Sequence[Proposal]) -> Table:
    columns = [
        Column("proposal", "Proposal", of=lambda proposal: proposal.kind),
        Column("what", "Run or combination", of=lambda proposal: proposal.what),
        Column("why", "Because", of=lambda proposal: proposal.why),
    ]
    caption = (
        "More epochs: the best epoch is the last, and the perplexity fell by more than "
        f"{100 * FALL_PER_EPOCH:g} % an epoch at the end. Again: failures of the machine or of memory."
    )
    return Table(
        name="discussion-5-next",
        title="What to run next",
        caption=caption,
        columns=columns,
        records=proposals,
        run=lambda proposal: proposal.number,
    )


# -- runs still falling --------------------------------------------------------------------------------------------

LAST_SHARE, LEAST_EPOCHS = 0.1, 2
"""The end of a run: this share of its epochs, and at least this many."""

FALL_PER_EPOCH = 0.001
"""Still falling: by more than this share of the perplexity in each epoch of the end, as the geometric mean."""


@dataclass(frozen=True, kw_only=True)
class Falling:
    """A finished run that was still getting better."""

    number: int
    name: str
    val_ppl: float
    epochs: int
    fall_per_epoch: float
    """Share of the perplexity by which it fell, the geometric mean over the last epochs."""

    @property
    def reference(self) -> str:
        return f"{self.number} {self.name}"


def falling_runs(study: Study) -> list[Falling]:
    """Finished runs whose best epoch is their last and that fell by more than 0.1 % an epoch, the lowest first."""
    found = []
    for run in finished(study.runs).to_dict("records"):
        values = study.epochs_of(run["id"])["val_ppl"].to_numpy(float)
        fall = fall_per_epoch([float(value) for value in values])
        if fall > FALL_PER_EPOCH:
            found.append(
                Falling(
                    number=run["number"],
                    name=run["name"],
                    val_ppl=run["val_ppl"],
                    epochs=len(values),
                    fall_per_epoch=fall,
                )
            )
    return sorted(found, key=lambda falling: (falling.val_ppl, falling.number))


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

"""Mechanisms that may stand behind results: each is measured, and its order compared with that of its outcome.

Agreement of two orders is no cause. Nothing here says "because".
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

from analysis.claims.answer import Answer, cannot
from analysis.claims.claim import Claim, Kind
from analysis.claims.facts import Facts, best_of_each
from analysis.claims.models import context_used, shrinks_by
from analysis.study import units
from analysis.study.examined import examined_runs
from analysis.study.settings import Setting, best_settings
from seqlm.errors import FileError
from seqlm.trace import read_trace

FEWEST = 3
"""Cases without which two orders say nothing."""
MOST_TRACED = 12
"""Runs whose steps are read, at most."""


class Case(NamedTuple):
    """One case of a mechanism: what is measured of it, and its outcome."""

    name: str
    measured: float
    outcome: float


class Mechanism(NamedTuple):
    """A mechanism: a measure, an outcome, and the sign that it predicts of their agreement."""

    name: str
    words: str
    """``{0}``: the measure's values, ``{1}``: those of the outcome."""
    sign: int
    write: tuple[Callable[[float], str], Callable[[float], str]]
    cases: Callable[[Facts], list[Case]]
    test: str
    """The runs that would test it."""


def curious(facts: Facts) -> Answer:
    """Say which mechanisms go with the results, and what would test them."""
    name, title = "curious", "What is curious, and what would explain it?"
    claims: list[Claim] = []
    points: list[str] = []
    for mechanism in MECHANISMS:
        cases = mechanism.cases(facts)
        if len(cases) < FEWEST:
            continue
        pairs = list(combinations(cases, 2))
        agreeing = sum(mechanism.sign * (a.measured - b.measured) * (a.outcome - b.outcome) > 0 for a, b in pairs)
        claims.append(
            Claim(
                question=name,
                kind=Kind.COUNT,
                measure="share",
                members=tuple(case.name for case in cases),
                values=tuple(case.measured for case in cases),
                given={
                    "mechanism": mechanism.name,
                    "outcomes": [case.outcome for case in cases],
                    "agreeing": agreeing,
                    "pairs": len(pairs),
                },
            )
        )
        write_measured, write_outcome = mechanism.write
        measured = ", ".join(f"{case.name} {write_measured(case.measured)}" for case in cases)
        outcomes = ", ".join(f"{case.name} {write_outcome(case.outcome)}" for case in cases)
        order = f"The order agrees in {agreeing} of {len(pairs)} pairs"
        told = "goes with it" if agreeing == len(pairs) else "is no measured cause"
        points.append(f"{mechanism.words.format(measured, outcomes)} {order}: it {told}. To test: {mechanism.test}.")
    if not points:
        return cannot(name, title, "no mechanism has three cases; steps, behaviour and several optimizers give them")
    return Answer(name=name, title=title, points=points, claims=claims)


# -- the mechanisms ----------------------------------------------------------------------------------------------------


def clipping(facts: Facts) -> list[Case]:
    """Share of steps of SGD that are clipped, and what the schedule of the rate changes."""
    best = best_of_each(facts.settings)
    found = []
    for arch in units.in_order(units.ARCHITECTURES, {arch for arch, _ in best})[:MOST_TRACED]:
        fixed, falling = best.get((arch, "sgd")), best.get((arch, "sgd_schedule"))
        if fixed is not None and falling is not None:
            share = clipped_share(facts, fixed)
            if share is not None:
                found.append(Case(units.architecture(arch), share, facts.difference(fixed, falling).nats))
    return found


def clipped_share(facts: Facts, setting: Setting) -> float | None:
    """Return the share of the steps of a setting's first run whose gradient is clipped; ``None``: not recorded."""
    limit = setting.config.get("train.clip_norm")
    row = facts.rows[setting.runs[0]]
    with contextlib.suppress(FileError):
        trace = read_trace(facts.study.directory_of(row["id"]))
        if trace is not None and isinstance(limit, int | float):
            norms = [norm for _, norm, _ in trace.rows if math.isfinite(norm)]
            return sum(norm > limit for norm in norms) / len(norms) if norms else None
    return None


def memory(facts: Facts) -> list[Case]:
    """The factor of the gradient per step back, and how many tokens of context lower the loss."""
    found = []
    for run in examined_runs(facts.study):
        if run.is_shown and run.gradients is not None and run.reaches_back and run.losses.blocks is not None:
            factor = shrinks_by(run.gradients.mean_of_norms)
            used = context_used(run.losses.zero_state[: run.behaviour.seq_len])
            if factor is not None and used is not None:
                found.append(Case(run.reference, factor, float(used)))
    return found


def size(facts: Facts) -> list[Case]:
    """Parameters of the lowest setting of each architecture, and its gap to the training loss without dropout."""
    found = []
    for setting in best_settings(facts.settings):
        parameters, gap = facts.mean(setting, "parameters"), facts.gap(setting)
        if math.isfinite(parameters) and math.isfinite(gap):
            found.append(Case(setting.reference, parameters, gap))
    return found if len({case.measured for case in found}) > 1 else []


MECHANISMS = (
    Mechanism(
        "clipping",
        "Steps of SGD that are clipped: {0}; change of the loss with the schedule (nats): {1}.",
        -1,
        (units.percent, units.signed),
        clipping,
        "SGD with clip_norm times 4, and the rate divided alike",
    ),
    Mechanism(
        "memory",
        "Factor of the gradient per step back: {0}; tokens of context that lower the loss: {1}.",
        1,
        (units.decimals(".2f"), units.whole),
        memory,
        "the same models with a longer seq_len",
    ),
    Mechanism(
        "size",
        "Parameters: {0}; gap to the training loss without dropout (nats): {1}.",
        1,
        (units.decimals(",.0f"), units.signed),
        size,
        "one architecture in several sizes",
    ),
)

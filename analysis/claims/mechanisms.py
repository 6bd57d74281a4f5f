"""Mechanisms that may stand behind results: each is measured, and its order compared with that of its outcome.

Agreement of two orders is no cause. Nothing here says "because".
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

from analysis.claims.answer import Answer, cannot
from analysis.claims.claim import Claim, Kind
from analysis.claims.facts import Facts, best_of_each
from analysis.claims.models import context_used, shrinks_by
from analysis.study import units
from analysis.study.comparison import OF_FREQUENCIES
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
    of: tuple[str, ...]
    """The settings or runs that both are measured of."""


class Mechanism(NamedTuple):
    """A mechanism: a measure, an outcome, and what it predicts of them."""

    name: str
    words: str
    """``{0}``: the measure's values, ``{1}``: those of the outcome."""
    agrees: Callable[[Sequence[Case]], list[bool]]
    """Returns whether the prediction holds, for each of the things that it is about."""
    write: tuple[Callable[[float], str], Callable[[float], str]]
    cases: Callable[[Facts], list[Case]]
    test: str
    """The runs that would test it."""


def curious(facts: Facts) -> Answer:
    """Say which mechanisms go with the results, and what would test them."""
    name, title = "curious", "What is curious, and what would explain it?"
    claims: list[Claim] = []
    details: list[str] = []
    going: list[str] = []
    others: list[str] = []
    for mechanism in MECHANISMS:
        cases = mechanism.cases(facts)
        if len(cases) < FEWEST:
            continue
        held = mechanism.agrees(cases)
        claims.append(
            Claim(
                name,
                Kind.COUNT,
                "share",
                [case.name for case in cases],
                [case.measured for case in cases],
                given={
                    "mechanism": mechanism.name,
                    "of": [case.of for case in cases],
                    "outcomes": [case.outcome for case in cases],
                    "agreeing": sum(held),
                    "pairs": len(held),
                },
            )
        )
        write_measured, write_outcome = mechanism.write
        measured = ", ".join(f"{case.name} {write_measured(case.measured)}" for case in cases)
        outcomes = ", ".join(write_outcome(case.outcome) for case in cases)
        (going if all(held) else others).append(mechanism.name)
        said = f"agrees in {sum(held)} of {len(held)}. To test: {mechanism.test}."
        details.append(f"{mechanism.words.format(measured, outcomes)}: {said}")
    if not details:
        return cannot(name, title, "no mechanism has three cases; steps, behaviour and several optimizers give them")
    told = [f"Agrees in every case, which proves no cause: {units.listing(going)}."] if going else []
    told += [f"No measured cause: {units.listing(others)}."] if others else []
    return Answer(name=name, title=title, points=[" ".join(told)], details=details, claims=claims)


def same_order(cases: Sequence[Case]) -> list[bool]:
    """Return for each pair of cases whether the measure and the outcome have the same order."""
    return [(a.measured - b.measured) * (a.outcome - b.outcome) > 0 for a, b in combinations(cases, 2)]


def contrary_order(cases: Sequence[Case]) -> list[bool]:
    """Return for each pair of cases whether the measure and the outcome have contrary orders."""
    return [(a.measured - b.measured) * (a.outcome - b.outcome) < 0 for a, b in combinations(cases, 2)]


def is_larger(cases: Sequence[Case]) -> list[bool]:
    """Return for each case whether the measure is above the outcome."""
    return [case.measured > case.outcome for case in cases]


# -- the mechanisms ----------------------------------------------------------------------------------------------------


def clipping(facts: Facts) -> list[Case]:
    """Share of steps of SGD that are clipped, and what the schedule of the rate changes."""
    found = []
    for arch, (fixed, scheduled) in with_both(facts, "sgd", "sgd_schedule").items():
        share = clipped_share(facts, fixed)
        if share is not None:
            change = facts.difference(fixed, scheduled).nats
            found.append(Case(units.architecture(arch), share, change, (fixed.reference, scheduled.reference)))
    return found


def with_both(facts: Facts, one: str, other: str) -> dict[str | None, tuple[Setting, Setting]]:
    """Return the lowest settings of two optimizers, of each architecture that has both."""
    best = best_of_each(facts.settings)
    archs = units.in_order(units.ARCHITECTURES, {arch for arch, _ in best})[:MOST_TRACED]
    return {arch: (best[arch, one], best[arch, other]) for arch in archs if {(arch, one), (arch, other)} <= {*best}}


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
                found.append(Case(run.reference, factor, float(used), (run.reference,)))
    return found


def size(facts: Facts) -> list[Case]:
    """Parameters of the lowest setting of each architecture, and its gap to the training loss without dropout."""
    found = []
    for setting in best_settings(facts.settings):
        parameters, gap = facts.mean(setting, "parameters"), facts.gap(setting)
        if math.isfinite(parameters) and math.isfinite(gap):
            found.append(Case(units.architecture(setting.arch), parameters, gap, (setting.reference,)))
    return found if len({case.measured for case in found}) > 1 else []


def rare_words(facts: Facts) -> list[Case]:
    """How much lower the loss of Adam is than that of SGD: of rare tokens, and of the most frequent ones."""
    frequent, _, rare = OF_FREQUENCIES
    found = []
    for arch, (adam, sgd) in with_both(facts, "adam", "sgd").items():
        gains = [facts.mean(sgd, column) - facts.mean(adam, column) for column in (rare, frequent)]
        if all(map(math.isfinite, gains)):
            found.append(Case(units.architecture(arch), gains[0], gains[1], (adam.reference, sgd.reference)))
    return found


MECHANISMS = (
    Mechanism(
        "clipped steps of SGD with the effect of the schedule",
        "Clipped steps of SGD: {0}; loss with the schedule less that without: {1}",
        contrary_order,
        (units.percent, units.signed),
        clipping,
        "SGD with clip_norm times 4, and the rate divided alike",
    ),
    Mechanism(
        "rare words with the gain of Adam",
        "Loss with SGD less that with Adam, beyond the 100 most frequent tokens: {0}; of the 10 most frequent: {1}",
        is_larger,
        (units.signed, units.signed),
        rare_words,
        "SGD with a rate of its own for the embedding",
    ),
    Mechanism(
        "gradients that reach back with the use of context",
        "Factor of the gradient per step back: {0}; tokens of context used: {1}",
        same_order,
        (units.decimals(".2f"), units.whole),
        memory,
        "the same models with a longer seq_len",
    ),
    Mechanism(
        "parameters with the gap to the training loss",
        "Parameters: {0}; gap to the training loss: {1}",
        same_order,
        (units.decimals(",.0f"), units.signed),
        size,
        "one architecture in several sizes",
    ),
)

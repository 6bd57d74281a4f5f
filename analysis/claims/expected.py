"""What was expected before the study against what was observed, in runs that are otherwise equal."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from analysis.blocks.sentences import first_few
from analysis.claims.claim import Claim, Kind, brief, compare, numbered, reached
from analysis.claims.facts import Facts, highest
from analysis.claims.verdict import EpochTimes, Verdict, difference, times_apart, verdicts
from analysis.study import units
from analysis.study.columns import TEXT_KEYS
from analysis.study.pairs import (
    ABSENT,
    ARCHITECTURE,
    FOLLOWS,
    OPTIMIZER,
    differing_keys,
    grouped_by,
    printed,
    tuned_keys,
    value_of,
)
from analysis.study.record import GAPS, TIMES, Expectation
from analysis.study.settings import Setting, settings_of
from analysis.study.study import StudyFiles
from analysis.study.values import rows_of

COMMON = "seconds_to_common"
MOST_TOLD = 4
"""Cases that an answer names; ``data/claims.json`` has all."""


class Reached(NamedTuple):
    """What a setting has reached of a metric."""

    setting: Setting
    value: float
    """The mean over seeds; of perplexities the geometric one."""


class Case(NamedTuple):
    """The lowest setting of each side among those that are otherwise equal."""

    where: str
    """What they agree in, of the keys in which the settings of the expectation differ."""
    lower: Reached
    """The lowest one expected lower."""
    higher: Reached


class Question(NamedTuple):
    """An expectation with its cases, and the verdict on each."""

    expectation: Expectation
    cases: list[Case]
    claims: list[Claim]
    also: list[str]
    """All keys that differ between the sides throughout, if these are several."""
    missing: str | None
    """The runs of a side of which none has finished with the number."""


def expected_points(facts: Facts) -> tuple[list[str], list[Claim]]:
    """Return a sentence for each expectation of the manifest, and the claims in them."""
    asked = []
    for place, expectation in enumerate(facts.study.expectations, start=1):
        sides = [_reached(facts, expectation.metric, ids) for ids in (expectation.lower, expectation.higher)]
        cases, also = _cases(expectation.metric, sides)
        claims = _claims(facts, expectation.metric, cases, place)
        asked.append(Question(expectation, cases, claims, also, _missing(facts.study, expectation, sides)))
    return [_point(question) for question in asked], [claim for question in asked for claim in question.claims]


def _point(question: Question) -> str:
    expectation, claims = question.expectation, question.claims
    told = f"“{expectation.text}”"
    if question.missing:
        return f"{told} Cannot be answered: no run on one side has finished with this number ({question.missing})."
    if not claims:
        alike = "were trained on equal machines" if expectation.metric in TIMES else "predict the same text"
        return f"{told} Cannot be answered: no two finished runs, one from each side, are otherwise equal and {alike}."
    cases = [f"{case.where}: {brief(claim)}" for case, claim in zip(question.cases, claims, strict=True)]
    if len(claims) == 1:
        told_of = numbered(claims[0])
        differ = f": {brief(claims[0])}" if math.isfinite(claims[0].difference) else ""
        cases = [f"{reached(claims[0])}{' against '.join(told_of)}{differ}"]
    more = f"; and {len(cases) - MOST_TOLD} more" if len(cases) > MOST_TOLD else ""
    verdict = as_expected(claims)
    parts = [f"{told} {verdict}: {'; '.join(cases[:MOST_TOLD])}{more}."]
    if question.also:
        keys = first_few(question.also, 4)
        parts.append(f"The sides differ in several keys ({keys}), so this is not the effect of a single one.")
    if verdict.startswith("As expected") and expectation.why:
        parts.append(f"Why: {expectation.why}")
    if verdict.startswith("Not as expected") and expectation.otherwise:
        parts.append(f"Otherwise: {expectation.otherwise}")
    return " ".join(parts)


def as_expected(claims: Sequence[Claim]) -> str:
    """Return what the cases of an expectation come to, as the beginning of a sentence."""
    clear = [claim for claim in claims if claim.is_clear]
    expected = sum(claim.is_less for claim in clear)
    here = " on this text" if any(claim.verdict == Verdict.THIS_TEXT for claim in clear) else ""
    part = f" in {len(clear)} of {len(claims)} cases" if len(clear) < len(claims) else ""
    if not clear:
        is_unknown = all(claim.verdict == Verdict.UNKNOWN for claim in claims)
        return "No verdict" if is_unknown else "Not told apart"
    if expected == len(clear):
        return f"As expected{here}{part}"
    if not expected:
        return f"Not as expected{here}{part}"
    return f"Mixed{here}, as expected in {expected} of {len(claims)} cases and not in {len(clear) - expected}"


# -- verdicts ----------------------------------------------------------------------------------------------------------


def _claims(facts: Facts, metric: str, cases: Sequence[Case], number: int) -> list[Claim]:
    """Return a claim on each case; all cases of an expectation are one family of comparisons."""
    if metric in TIMES:
        return _claims_on_times(facts, metric, cases, number)
    column = metric.replace("_ppl", "_loss")
    found = []
    for case in cases:
        a, b = case.lower.setting, case.higher.setting
        if metric == "val_ppl":
            found.append(facts.difference(a, b))
        else:
            losses = facts.mean(a, column), facts.mean(b, column)
            found.append(difference(losses, seeds=(len(a.runs), len(b.runs))))
    claims = []
    for text in dict.fromkeys(case.lower.setting.text for case in cases):
        noise = facts.noise(text, column)
        of_text = [(case, one) for case, one in zip(cases, found, strict=True) if case.lower.setting.text == text]
        differences = [one for _, one in of_text]
        pairs = [(case.lower.setting, case.higher.setting) for case, _ in of_text]
        if metric == "val_ppl":
            judged = facts.judged(pairs, differences, noise)
        else:
            judged = [(verdict, None) for verdict in verdicts(differences, noise)]
        for (case, one), own in zip(of_text, judged, strict=True):
            claims.append(
                compare("expected", metric, _members(case), _values(case), one, *own, noise, expectation=number)
            )
    order = {_members(case): place for place, case in enumerate(cases)}
    return sorted(claims, key=lambda claim: order[claim.members[0], claim.members[1]])


def _claims_on_times(facts: Facts, metric: str, cases: Sequence[Case], number: int) -> list[Claim]:
    if metric == COMMON:
        return [_claim_on_common(facts, case, number) for case in cases]
    pairs = [
        (a, b)
        for case in cases
        if (a := _times(facts, metric, case.lower.setting)) and (b := _times(facts, metric, case.higher.setting))
    ]
    apart = len(pairs) == len(cases) and bool(pairs) and times_apart(pairs)
    return [
        Claim(
            "expected",
            Kind.COMPARE,
            metric,
            _members(case),
            _values(case),
            verdict=Verdict.APART if apart else Verdict.NOT_APART,
            given={"expectation": number},
        )
        for case in cases
    ]


def _claim_on_common(facts: Facts, case: Case, number: int) -> Claim:
    """Compare the times to the lowest perplexity that both settings of a case reach."""
    a, b = case.lower.setting, case.higher.setting
    target = highest([a, b], facts)
    seconds = [facts.seconds_to(one, target) for one in (a, b)]
    verdict = Verdict.UNKNOWN
    if None not in seconds:
        is_apart = facts.is_sooner(a, b, target) or facts.is_sooner(b, a, target)
        verdict = Verdict.APART if is_apart else Verdict.NOT_APART
    return Claim(
        "expected",
        Kind.COMPARE,
        "seconds_to_target",
        _members(case),
        [math.nan if one is None else one for one in seconds],
        verdict=verdict,
        given={"expectation": number, "target": target},
    )


def _times(facts: Facts, metric: str, setting: Setting) -> EpochTimes | None:
    """Return the times of the epochs of a setting, or times its epochs for the time of all of them."""
    times = facts.epoch_times(setting)
    if times is None or metric == "epoch_seconds":
        return times
    epochs = facts.mean(setting, "epochs_done")
    return replace(times, seconds=tuple(epochs * one for one in times.seconds))


def _members(case: Case) -> tuple[str, str]:
    return case.lower.setting.reference, case.higher.setting.reference


def _values(case: Case) -> tuple[float, float]:
    return case.lower.value, case.higher.value


# -- cases ---------------------------------------------------------------------------------------------------------


def _reached(facts: Facts, metric: str, ids: Sequence[str]) -> list[Reached]:
    """Return the settings of some finished runs whose number is known, over those of its seeds that are named.

    For the time to a common perplexity this is the validation perplexity: of each side, the case has the lowest.
    """
    column = "val_ppl" if metric == COMMON else metric
    runs = facts.study.runs[facts.study.runs["id"].isin(ids)]
    runs = runs[runs[column].map(units.is_number) & ((runs[column] > 0) | (column in GAPS))]
    found = []
    for one in settings_of(runs):
        if column.endswith("_ppl"):
            value = math.exp(facts.mean(one, column.replace("_ppl", "_loss")))
        else:
            value = facts.mean(one, column)
        found.append(Reached(one, value))
    return found


def _cases(metric: str, sides: Sequence[Sequence[Reached]]) -> tuple[list[Case], list[str]]:
    """Return the cases, and all keys that differ between the sides throughout if these are several.

    Those are what the expectation is about, or go along with it. If the architecture or the optimizer is one of them,
    each side has the keys of the optimizer at its own best, and they are not named. Times are those of one machine.
    """
    settings = [[one.setting for one in side] for side in sides]
    varying = [key for key in differing_keys([*settings[0], *settings[1]]) if key not in FOLLOWS]
    found = {key: [{value_of(one, key) for one in side} for side in settings] for key in varying}
    kept = () if metric in TIMES else TEXT_KEYS  # perplexities of different texts do not compare
    about = [key for key, (lower, higher) in found.items() if not lower & higher and key not in kept]
    free = tuned_keys() if {ARCHITECTURE, OPTIMIZER} & {*about} else []
    shared = [key for key in varying if key not in (*about, *free)]
    cells: dict[tuple[Any, ...], tuple[list[Reached], list[Reached]]] = defaultdict(lambda: ([], []))
    for place, side in enumerate(sides):
        for one in side:
            machine = one.setting.machine if metric in TIMES else None
            cells[(*(value_of(one.setting, key) for key in shared), machine)][place].append(one)
    pairs = [[min(side, key=lambda one: one.value) for side in cell] for cell in cells.values() if all(cell)]
    kinds = grouped_by([*settings[0], *settings[1]], [ARCHITECTURE, OPTIMIZER])  # such keys follow from these
    named = [key for key in shared if key in (ARCHITECTURE, OPTIMIZER) or any(differing_keys(k, [key]) for k in kinds)]
    also = [key for key in about if key not in free and ABSENT not in found[key][0] | found[key][1]]
    cases = [Case(", ".join(_agreed(key, lower.setting) for key in named), lower, higher) for lower, higher in pairs]
    return cases, also if len(also) > 1 else []


def _agreed(key: str, setting: Setting) -> str:
    text = printed(key, value_of(setting, key))
    return text if key in (ARCHITECTURE, OPTIMIZER) else f"{key} = {text}"


def _missing(study: StudyFiles, expectation: Expectation, sides: Sequence[Sequence[Reached]]) -> str | None:
    """Name the runs of a side of which none has finished with the number; ``None`` if both sides have one."""
    empty = [ids for side, ids in zip(sides, (expectation.lower, expectation.higher), strict=True) if not side]
    runs = study.runs[study.runs["id"].isin([one for ids in empty for one in ids])].sort_values("number")
    states = [f"{run.number} {run.name}: {units.state_of(run.state, run.failure_kind)}" for run in rows_of(runs)]
    return (first_few(states, 3) if states else "no run directory") if empty else None

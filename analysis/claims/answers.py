"""The questions of a study and their answers: sentences that consist of claims, each linked to its evidence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from analysis.blocks.sentences import first_few
from analysis.claims.answer import Answer, cannot
from analysis.claims.claim import (
    Claim,
    Kind,
    among,
    compare,
    comparison,
    direction,
    labelled,
    numbered,
    outcome,
    ranked,
    ranking,
    unclear,
    written,
)
from analysis.claims.expected import expected_points
from analysis.claims.facts import Facts, best_of_each, highest, middle, timed_on_one_machine
from analysis.claims.mechanisms import curious
from analysis.claims.models import gradients, steps
from analysis.claims.next_runs import next_runs
from analysis.claims.published import published
from analysis.claims.search import search
from analysis.claims.texts import samples
from analysis.claims.verdict import Noise, Verdict, difference, verdicts
from analysis.study import units
from analysis.study.comparison import WITHIN
from analysis.study.pairs import OPTIMIZER, pairs_of
from analysis.study.settings import Setting, by_perplexity
from analysis.study.study import OVERFITTED_FROM, StudyFiles

MOST_COMPARED = 20
"""The setting with the lowest perplexity is compared with at most this many others."""
MOST_NAMED = 3
"""A sentence names at most this many settings, and counts the others."""
ENOUGH = 2
"""Optimizers that architectures must have in common for their spreads to be compared."""


def answers(study: StudyFiles) -> tuple[list[Answer], list[str]]:
    """Return an answer to each question, and a warning for each file that cannot be read.

    Settings are compared at equal epochs, and but for expectations those on one text.
    """
    compared = study.compared
    all_texts = Facts(study=compared)
    # One object for both reads each file once.
    one = all_texts if compared.on_one_text is compared else Facts(study=compared.on_one_text)
    own = picks(one)
    found = [
        expected(all_texts),
        published(study),
        optimizers(one),
        own,
        reliability(one),
        search(study),
        *(question(one) for question in (steps, gradients, samples, curious)),
        next_runs(study, one.settings, rival(own)),
    ]
    warnings = dict.fromkeys([*all_texts.warnings, *one.warnings])
    return [answer for answer in found if answer is not None], list(warnings)


def rival(own: Answer) -> str | None:
    """Return the first setting that is not told apart from the one with the lowest perplexity; ``None``: all are.

    Seeds that show no difference above the margin of their comparison are enough.
    """
    unclear = [claim for claim in own.claims if claim.kind == Kind.COMPARE and not claim.is_clear]
    unclear = [claim for claim in unclear if claim.given.get("over_seeds", {}).get("outcome") != "no difference"]
    return unclear[0].members[1] if unclear else None


def expected(facts: Facts) -> Answer:
    """Compare what the manifest expects with what has come."""
    name, title = "expected", "Did it come as expected?"
    points, claims = expected_points(facts)
    if not points:
        return cannot(name, title, "the manifest states no expectations as [[expect]] tables")
    return Answer(name=name, title=title, points=points, claims=claims, evidence=("results",))


# -- the optimizers ----------------------------------------------------------------------------------------------------


def optimizers(facts: Facts) -> Answer:
    """Compare optimizers where model, data and training agree, each with the lowest of its learning rates."""
    name, title = "optimizers", "How do the optimizers differ?"
    settings = facts.settings
    kinds = units.in_order(units.OPTIMIZERS, {one.optimizer for one in settings})
    if len(kinds) < 2:
        ran = f"only {units.optimizer(kinds[0])} has finished runs" if kinds else "no run has finished"
        return cannot(name, title, ran)
    pairs = [pair for pair in pairs_of(settings) if pair.key == OPTIMIZER]
    best = best_of_each(settings)
    of_kind = {kind: by_perplexity(one for (_, own), one in best.items() if own == kind) for kind in kinds}
    firsts = {kind: found[:2] for kind, found in of_kind.items() if len(found) > 1}
    compared = [(pair.b, pair.a) for pair in pairs] + [(found[0], found[1]) for found in firsts.values()]
    found = iter(compared_losses(facts, name, compared))
    claims: list[Claim] = []
    points: list[str] = []
    for values, group in itertools.groupby(pairs, key=lambda pair: pair.values):
        members = [(pair, next(found)) for pair in group]
        claims += [claim for _, claim in members]
        listed = ", ".join(
            f"{units.architecture(arch)} {among([claim for pair, claim in members if pair.a.arch == arch])}"
            for arch in dict.fromkeys(pair.a.arch for pair, _ in members)
        )
        together = f": {direction([claim for _, claim in members])}" if len(members) > 1 else ""
        a, b = (units.optimizer(value) for value in values)
        points.append(f"Loss with {b} less {a}: {listed}{together}.")
    if not pairs:
        points.append("No two settings with different optimizers agree in model, data and training.")
    lowest = []
    for kind in firsts:
        pair_claim, members_of = next(found), of_kind[kind]
        claim = ranking(pair_claim, [one.reference for one in members_of], [one.val_ppl for one in members_of])
        claims.append(claim)
        first, second = (units.architecture(one.arch) for one in members_of[:2])
        lowest.append(f"{units.optimizer(kind)}: {first} {written(claim)[0]}{unclear(claim, second)}")
    points += [f"Architecture with the lowest perplexity. {'; '.join(lowest)}."] if lowest else []
    times, gaps_of, counts = times_of_optimizers(facts, name), gaps(facts, name, of_kind), tried(settings, name)
    claims += [*times[0], *gaps_of[0], *counts[0]]
    return Answer(
        name=name,
        title=title,
        points=[*points, gaps_of[1]],
        details=[*filter(None, [times[1]]), counts[1]],
        claims=claims,
        evidence=("results", "effects"),
    )


def times_of_optimizers(facts: Facts, question: str) -> tuple[list[Claim], str]:
    """Compare the times in which the optimizers of one architecture reach the perplexity that all of them reach."""
    claims, parts = [], []
    best = best_of_each(timed_on_one_machine(facts))
    for arch in units.in_order(units.ARCHITECTURES, {arch for arch, _ in best}):
        members = [one for (own, _), one in best.items() if own == arch]
        claim = first_to(facts, question, members, highest(members, facts)) if len(members) > 1 else None
        if claim is not None:
            claims.append(claim)
            kinds = {one.reference: units.optimizer(one.optimizer) for one in members}
            target = units.perplexity(claim.given["target"])
            times = labelled(claim, [kinds[member] for member in claim.members])
            parts.append(f"{units.architecture(arch)} ({target}) {times}{unclear(claim, 'the first two')}")
    return claims, f"Time to the perplexity that each optimizer reaches: {'; '.join(parts)}." if parts else ""


def gaps(facts: Facts, question: str, of_kind: dict[str, list[Setting]]) -> tuple[list[Claim], str]:
    """State how far the lowest setting of each optimizer is from its training loss."""
    lowest = [found[0] for found in of_kind.values()]
    known = [(one, gap) for one in lowest if math.isfinite(gap := facts.gap(one))]
    if not known:
        return [], "Training loss without dropout is not recorded, so generalisation is test perplexity alone."
    claim = values_of(question, "gap", [one.reference for one, _ in known], [gap for _, gap in known])
    kinds = [units.optimizer(one.optimizer) for one, _ in known]
    return [claim], f"Validation less training loss without dropout, of the lowest of each: {labelled(claim, kinds)}."


def tried(settings: Sequence[Setting], question: str) -> tuple[list[Claim], str]:
    """Count the settings of which the lowest of each architecture and optimizer counts."""
    counts = {key: sum((one.arch, one.optimizer) == key for one in settings) for key in best_of_each(settings)}
    claim = Claim(
        question,
        Kind.COUNT,
        "settings",
        [f"{units.architecture(arch)} {units.optimizer(kind)}" for arch, kind in counts],
        list(map(float, counts.values())),
    )
    if set(counts.values()) == {1}:
        return [claim], "One setting per optimizer and architecture: how well each is tuned is not known."
    return [claim], f"Settings tried, of which the lowest counts: {labelled(claim, claim.members)}."


# -- the picks ---------------------------------------------------------------------------------------------------------


def picks(facts: Facts) -> Answer:
    """Name the setting for generalisation and the one for time, and what each costs."""
    name, title = "picks", "Which setting for time, which for generalisation, and at what cost?"
    ordered = by_perplexity(facts.settings)
    if not ordered:
        return cannot(name, title, "no run has finished")
    best, others = ordered[0], ordered[1 : 1 + MOST_COMPARED]
    timed = timed_on_one_machine(facts)
    soon = first_setting(facts, timed, middle(timed, facts)) if len(timed) > 1 else None
    if soon is not None and soon not in ordered[: 1 + MOST_COMPARED]:
        others.append(soon)
    test = f", test {units.perplexity(best.test_ppl)}" if units.is_number(best.test_ppl) else ""
    if not others:
        claim = values_of(name, "val_ppl", [best.reference], [best.val_ppl])
        points = [f"The only finished setting: {numbered(claim)[0]}{test}."]
        return Answer(name=name, title=title, points=points, claims=[claim], evidence=("results",))
    against = compared_losses(facts, name, [(best, other) for other in others])
    lowest, following = numbered(against[0])
    points = [f"Generalisation: {lowest}{test}. Against the next, {following}: {outcome(against[0])}."]
    level = [claim.members[1] for claim in against[1:] if claim.verdict in (Verdict.NOT_APART, Verdict.EQUAL)]
    details = [f"Also not told apart from it: {first_few(level, MOST_NAMED)}."] if level else []
    claims, said = soonest(facts, name, timed, best, against)
    return Answer(
        name=name,
        title=title,
        points=[*points, said],
        details=details,
        claims=[*against, *claims],
        evidence=("results", "time-and-perplexity"),
    )


def soonest(
    facts: Facts, question: str, timed: Sequence[Setting], best: Setting, against: Sequence[Claim]
) -> tuple[list[Claim], str]:
    """Name which of the ``timed`` settings reach a perplexity first, and what the first of them costs.

    ``against``: comparisons of ``best``, the setting with the lowest perplexity, with others.
    """
    if len(timed) < 2:
        return [], "Time: fewer than two settings have recorded times on one machine."
    half, near = middle(timed, facts), WITHIN * min(one.val_ppl for one in timed)
    claims, parts = [], []
    for target in dict.fromkeys((half, near)):
        claim = first_to(facts, question, timed, target)
        if claim is not None:
            claims.append(claim)
            count = len(claim.members)
            words = f"which {'all' if count == len(timed) else f'{count} of {len(timed)} settings'} reach"
            words = words if target == half else f"{WITHIN:g} times the lowest"
            told = ranked(claim, most=2) if count > 1 else f"{ranked(claim)} alone"
            parts.append(f"to {units.perplexity(target)}, {words}: {told}")
    first = first_setting(facts, timed, half)
    end = ""
    if first is best:
        end = " Both picks are one setting, so neither costs the other anything."
    elif first is not None:
        cost = next((claim for claim in against if claim.members[1] == first.reference), None)
        end = f" Cost of the setting for time: {comparison(cost)}." if cost is not None else ""
        seconds = dict(zip(claims[0].members, written(claims[0]), strict=True)).get(best.reference)
        if seconds is not None:
            end += f" Cost of the one for generalisation: it reaches {units.perplexity(half)} after {seconds}."
    left = len(facts.settings) - len(timed)
    if left:
        end += f" Without {units.count(left, 'setting')} on another machine than {timed[0].machine}."
    return claims, f"Time {'; '.join(parts)}.{end}"


# -- reliability -------------------------------------------------------------------------------------------------------


def reliability(facts: Facts) -> Answer:
    """Compare how far apart the settings of each architecture are, over the optimizers that all of them have."""
    name, title = "reliability", "Which architecture is reliable, which unstable?"
    best = best_of_each(facts.settings)
    archs = units.in_order(units.ARCHITECTURES, {arch for arch, _ in best})
    common = [
        kind
        for kind in units.in_order(units.OPTIMIZERS, {kind for _, kind in best})
        if all((arch, kind) in best for arch in archs)
    ]
    points, claims = instability(facts, name, archs)
    if len(archs) < 2 or len(common) < ENOUGH:
        why = (
            "fewer than two architectures have finished"
            if len(archs) < 2
            else "the architectures share no two optimizers"
        )
        return Answer(name=name, title=title, points=[f"Cannot be answered: {why}.", *points], claims=claims)
    spreads = []
    for arch in archs:
        ordered = by_perplexity(best[arch, kind] for kind in common)
        spreads.append((arch, ordered, facts.difference(ordered[0], ordered[-1])))
    spreads.sort(key=lambda one: one[2].nats)
    noise = facts.noise(facts.settings[0].text)
    ends = [one[2] for one in spreads]
    between = difference((ends[0].nats, ends[-1].nats))
    gap_error = math.hypot(ends[0].error(noise), ends[-1].error(noise))
    verdict = Verdict.UNKNOWN
    if noise.is_known and math.isfinite(gap_error):
        # A spread is a difference of two settings, so two spreads differ by the noise of four.
        (verdict,) = verdicts([between], Noise(variance=gap_error**2 / 2, freedom=noise.freedom))
    claim = Claim(
        name,
        Kind.SPREAD,
        "spread",
        tuple(
            f"{units.architecture(arch)}, {ordered[0].reference} to {ordered[-1].reference}"
            for arch, ordered, _ in spreads
        ),
        [found.nats for _, _, found in spreads],
        verdict=verdict,
        difference=between.nats,
        error=gap_error,
        given={"optimizers": list(common)},
    )
    listed = "; ".join(
        f"{units.architecture(arch)} {units.perplexity(ordered[0].val_ppl)} to {units.perplexity(ordered[-1].val_ppl)} "
        f"({ordered[-1].reference}; {found.nats:.3f} nats)"
        for arch, ordered, found in spreads
    )
    first, last = (units.architecture(spreads[place][0]) for place in (0, -1))
    told = {
        Verdict.APART: f"the {first} spreads less than the {last}, so it is the more reliable over optimizers",
        Verdict.UNKNOWN: "no verdict on which spreads less",
    }.get(verdict, f"the spreads of {first} and {last} are not told apart")
    kinds = ", ".join(units.optimizer(kind) for kind in common)
    return Answer(
        name=name,
        title=title,
        points=[f"Lowest settings over {kinds}: {listed}: {told}.", *points],
        claims=[claim, *claims],
        evidence=("results",),
    )


def instability(facts: Facts, question: str, archs: Sequence[str]) -> tuple[list[str], list[Claim]]:
    """Count the runs of each architecture that diverged, and those that ended 5 % above their best."""
    runs = facts.study.runs
    diverged = runs[(runs["state"] == "failed") & (runs["failure_kind"] == "diverged")]
    names = units.in_order(units.ARCHITECTURES, {*archs, *diverged["arch"].dropna()})
    if not names:
        return [], []
    done = list(facts.rows.values())
    rose = [row for row in done if row["final_val_ppl"] > OVERFITTED_FROM * row["val_ppl"]]
    of = [sum(row["arch"] == arch for row in done) + int((diverged["arch"] == arch).sum()) for arch in names]
    claims, points = [], []
    kinds = {"diverged": diverged["arch"].tolist(), "ended 5 % above their best": [row["arch"] for row in rose]}
    for what, found in kinds.items():
        counts = [found.count(arch) for arch in names]
        claims.append(
            Claim(
                question,
                Kind.COUNT,
                "runs",
                list(map(units.architecture, names)),
                list(map(float, counts)),
                given={"counted": what, "of": of},
            )
        )
        by_arch = zip(names, counts, of, strict=True)
        listed = ", ".join(f"{units.architecture(arch)} {bad} of {whole}" for arch, bad, whole in by_arch)
        points += [f"Runs that {what}: {listed}."] if any(counts) else []
    points = points or [f"No run of {sum(of)} diverged, or ended 5 % above its best epoch."]
    for row in sorted(rose, key=lambda row: -row["final_val_ppl"] / row["val_ppl"])[:MOST_NAMED]:
        claims.append(overfitted(question, row))
        points.append(
            f"{row['number']} {row['name']}: validation {' then '.join(map(units.perplexity, claims[-1].values))}, "
            f"training {' then '.join(map(units.perplexity, claims[-1].given['training']))} "
            f"(epoch {row['best_epoch'] + 1:.0f}, then the last)."
        )
    return [" ".join(points)], claims


def overfitted(question: str, row: dict[str, float]) -> Claim:
    """State the perplexities of a run at its best epoch and after its last."""
    return Claim(
        question,
        Kind.VALUE,
        "val_ppl",
        ("best epoch", "last epoch"),
        (row["val_ppl"], row["final_val_ppl"]),
        given={"run": f"{row['number']} {row['name']}", "training": [row["train_ppl"], row["final_train_ppl"]]},
    )


# -- shared ------------------------------------------------------------------------------------------------------------


def compared_losses(facts: Facts, question: str, pairs: Sequence[tuple[Setting, Setting]]) -> list[Claim]:
    """Compare the validation losses of the settings of each pair; all pairs are one family of comparisons."""
    found = [facts.difference(a, b) for a, b in pairs]
    texts = {a.text for a, _ in pairs}
    assert len(texts) < 2, "perplexities compare on one text"
    noise = facts.noise(*texts) if texts else Noise()
    return [
        compare(question, "val_ppl", (a.reference, b.reference), (a.val_ppl, b.val_ppl), one, *judged, noise)
        for (a, b), one, judged in zip(pairs, found, facts.judged(pairs, found, noise), strict=True)
    ]


def values_of(question: str, measure: str, members: Sequence[str], values: Sequence[float]) -> Claim:
    """Return a claim that states numbers."""
    return Claim(question, Kind.VALUE, measure, members, values)


def arrivals(facts: Facts, settings: Sequence[Setting], target: float) -> list[tuple[float, Setting]]:
    """Return the settings that reach a perplexity, by the time that they need."""
    found = [(seconds, one) for one in settings if (seconds := facts.seconds_to(one, target)) is not None]
    return sorted(found, key=lambda pair: (pair[0], pair[1].val_ppl, pair[1].number))


def first_setting(facts: Facts, settings: Sequence[Setting], target: float) -> Setting | None:
    """Return the setting that reaches a perplexity first, beyond an epoch; of those alike the lowest."""
    found = arrivals(facts, settings, target)
    alike = [one for _, one in found if not facts.is_sooner(found[0][1], one, target)]
    return by_perplexity(alike)[0] if alike else None


def first_to(facts: Facts, question: str, settings: Sequence[Setting], target: float) -> Claim | None:
    """Return the claim which settings reach a perplexity, and when; ``None``: none does."""
    found = arrivals(facts, settings, target)
    if not found:
        return None
    sooner = len(found) < 2 or facts.is_sooner(found[0][1], found[1][1], target)
    return Claim(
        question,
        Kind.FIRST,
        "seconds_to_target",
        [one.reference for _, one in found],
        [seconds for seconds, _ in found],
        verdict=None if len(found) < 2 else Verdict.APART if sooner else Verdict.NOT_APART,
        given={"target": target},
    )

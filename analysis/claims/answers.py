"""The questions of a study and their answers: sentences that consist of claims, each linked to its evidence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from analysis.claims.answer import Answer, cannot
from analysis.claims.claim import Claim, Kind, compare, comparison, direction, numbered, outcome, ranked, ranking
from analysis.claims.expected import expected_points
from analysis.claims.facts import Facts, best_of_each, highest, timed_on_one_machine
from analysis.claims.mechanisms import curious
from analysis.claims.models import gradients, steps
from analysis.claims.texts import samples
from analysis.claims.verdict import Noise, Verdict, difference, verdicts
from analysis.study import units
from analysis.study.comparison import WITHIN
from analysis.study.pairs import OPTIMIZER, pairs_of
from analysis.study.settings import Setting, by_perplexity
from analysis.study.study import OVERFITTED_FROM, StudyFiles

MOST_COMPARED = 20
"""The setting with the lowest perplexity is compared with at most this many others."""
ENOUGH = 2
"""Optimizers that architectures must have in common for their spreads to be compared."""


def answers(study: StudyFiles) -> tuple[list[Answer], list[str]]:
    """Return an answer to each question, and a warning for each file that cannot be read.

    ``study`` is one at equal epochs.
    """
    all_texts = Facts(study=study)
    one = all_texts if study.on_one_text is study else Facts(study=study.on_one_text)  # which reads each file once
    questions = [optimizers, picks, reliability, steps, gradients, samples, curious]
    found = [expected(all_texts), *(question(one) for question in questions)]
    return found, list(dict.fromkeys([*all_texts.warnings, *one.warnings]))


def rival(found: Sequence[Answer]) -> str | None:
    """Return the first setting that is not told apart from the one with the lowest perplexity; ``None``: all are."""
    claims = [claim for answer in found for claim in answer.claims if claim.question == "picks"]
    unclear = [claim for claim in claims if claim.kind == Kind.COMPARE and not claim.is_clear]
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
        listed = [f"{units.architecture(pair.a.arch)} {outcome(claim)}" for pair, claim in members]
        together = f": {direction([claim for _, claim in members])}" if len(members) > 1 else ""
        a, b = (units.optimizer(value) for value in values)
        points.append(f"Validation loss with {b} against {a}: {'; '.join(listed)}{together}.")
    if not pairs:
        points.append("No two settings with different optimizers agree in model, data and training.")
    for kind in firsts:
        pair_claim, members_of = next(found), of_kind[kind]
        claim = ranking(pair_claim, [one.reference for one in members_of], [one.val_ppl for one in members_of])
        claims.append(claim)
        labels = [units.architecture(one.arch) for one in members_of]
        points.append(f"{units.optimizer(kind)} by architecture: {ranked(claim, labels)}.")
    times, said = times_of_optimizers(facts, name)
    claims += times
    points += said
    gaps = [(one, facts.gap(one)) for kind in kinds for one in of_kind[kind][:1]]
    known = [(one, gap) for one, gap in gaps if math.isfinite(gap)]
    if known:
        claim = values_of(name, "gap", [one.reference for one, _ in known], [gap for _, gap in known])
        claims.append(claim)
        gaps_of = numbered(claim, [units.optimizer(one.optimizer) for one, _ in known])
        points.append(f"Validation less training loss without dropout, of the lowest of each: {', '.join(gaps_of)}.")
    else:
        points.append("Training loss without dropout is not recorded, so generalisation is its test perplexity alone.")
    counts = {key: sum((one.arch, one.optimizer) == key for one in settings) for key in best}
    claim = Claim(
        question=name,
        kind=Kind.COUNT,
        measure="val_ppl",
        members=tuple(f"{units.architecture(arch)} {units.optimizer(kind)}" for arch, kind in counts),
        values=tuple(map(float, counts.values())),
    )
    claims.append(claim)
    if set(counts.values()) == {1}:
        points.append("One setting per optimizer and architecture: how well each is tuned is not known.")
    else:
        listed = [f"{who} {value:.0f}" for who, value in zip(claim.members, claim.values, strict=True)]
        points.append(f"Settings tried, of which the lowest counts: {', '.join(listed)}.")
    return Answer(name=name, title=title, points=points, claims=claims, evidence=("results", "effects"))


def times_of_optimizers(facts: Facts, question: str) -> tuple[list[Claim], list[str]]:
    """Compare the times in which the optimizers of one architecture reach the perplexity that all of them reach."""
    claims, points = [], []
    best = best_of_each(timed_on_one_machine(facts))
    for arch in units.in_order(units.ARCHITECTURES, {arch for arch, _ in best}):
        members = [one for (own, _), one in best.items() if own == arch]
        claim = first_to(facts, question, members, highest(members, facts)) if len(members) > 1 else None
        if claim is not None:
            claims.append(claim)
            target = units.perplexity(claim.given["target"])
            kinds = {one.reference: units.optimizer(one.optimizer) for one in members}
            said = ranked(claim, [kinds[member] for member in claim.members])
            points.append(f"Time to {target}, which each {units.architecture(arch)} reaches: {said}.")
    return claims, points


# -- the picks ---------------------------------------------------------------------------------------------------------


def picks(facts: Facts) -> Answer:
    """Name the setting for generalisation and the one for time, and what each costs."""
    name, title = "picks", "Which setting for time, which for generalisation, and at what cost?"
    ordered = by_perplexity(facts.settings)
    if not ordered:
        return cannot(name, title, "no run has finished")
    best, others = ordered[0], ordered[1 : 1 + MOST_COMPARED]
    claims: list[Claim] = []
    test = f", test {units.perplexity(best.test_ppl)}" if units.is_number(best.test_ppl) else ""
    if not others:
        claims.append(values_of(name, "val_ppl", [best.reference], [best.val_ppl]))
        return Answer(
            name=name,
            title=title,
            points=[f"The only finished setting: {numbered(claims[0])[0]}{test}."],
            claims=claims,
            evidence=("results",),
        )
    against = compared_losses(facts, name, [(best, other) for other in others])
    claims += against
    lowest, following = numbered(against[0])
    points = [
        f"Generalisation: {lowest}{test}. Against the next, {following}: {outcome(against[0])}.",
    ]
    level = [claim.members[1] for claim in against[1:] if claim.verdict in (Verdict.NOT_APART, Verdict.EQUAL)]
    if level:
        more = f" and {len(level) - 3} more" if len(level) > 3 else ""
        points.append(f"Also not told apart from it: {', '.join(level[:3])}{more}.")
    if best.final_val_ppl > OVERFITTED_FROM * best.val_ppl:
        final = units.perplexity(best.final_val_ppl)
        points.append(
            f"After its last epoch its validation perplexity is {final}, so take the parameters of its best epoch."
        )
    timed = timed_on_one_machine(facts)
    if len(timed) > 1:
        near = WITHIN * min(one.val_ppl for one in timed)
        targets = {"which all of them reach": highest(timed, facts), f"{WITHIN:g} times the lowest": near}
        for words, target in targets.items():
            claim = first_to(facts, name, timed, target)
            if claim is not None:
                claims.append(claim)
                told = ranked(claim, most=2) if len(claim.members) > 1 else f"{ranked(claim)} alone"
                points.append(f"Time to {units.perplexity(target)}, {words}: {told}.")
        soonest = first_setting(facts, timed, near)
        if soonest is not None and soonest is not best:
            cost = next((claim for claim in against if claim.members[1] == soonest.reference), None)
            if cost is not None:
                points.append(f"The cost of the setting for time: {comparison(cost)}.")
        elif soonest is best:
            points.append("Both picks are one setting, so neither costs the other anything.")
        left = len(facts.settings) - len(timed)
        if left:
            points.append(f"Times are those on {timed[0].machine}, without {units.count(left, 'setting')}.")
    else:
        points.append("Time: fewer than two settings have recorded times on one machine.")
    return Answer(name=name, title=title, points=points, claims=claims, evidence=("results", "time-and-perplexity"))


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
        found = facts.difference(ordered[0], ordered[-1])
        spreads.append((arch, ordered, found))
    spreads.sort(key=lambda one: one[2].nats)
    text = facts.settings[0].text
    noise = facts.noise(text)
    ends = [one[2] for one in spreads]
    errors = [one.error(noise) for one in (ends[0], ends[-1])]
    between = difference((ends[0].nats, ends[-1].nats))
    gap_error = math.hypot(*errors)
    verdict = Verdict.UNKNOWN
    if noise.is_known and math.isfinite(gap_error):
        # A spread is a difference of two settings, so two spreads differ by the noise of four.
        known = Noise(variance=gap_error**2 / 2, freedom=noise.freedom)
        (verdict,) = verdicts([between], known)
    kinds = ", ".join(units.optimizer(kind) for kind in common)
    members = [
        f"{units.architecture(arch)}, {ordered[0].reference} to {ordered[-1].reference}" for arch, ordered, _ in spreads
    ]
    claim = Claim(
        question=name,
        kind=Kind.SPREAD,
        measure="spread",
        members=tuple(members),
        values=tuple(found.nats for _, _, found in spreads),
        verdict=verdict,
        difference=between.nats,
        error=gap_error,
        given={"optimizers": list(common)},
    )
    listed = [
        f"{units.architecture(arch)} {units.perplexity(ordered[0].val_ppl)} to {units.perplexity(ordered[-1].val_ppl)} "
        f"({found.nats:.3f} nats)"
        for arch, ordered, found in spreads
    ]
    first, last = (units.architecture(spreads[place][0]) for place in (0, -1))
    told = {
        Verdict.APART: f"the {first} spreads less than the {last}, so it is the more reliable over optimizers",
        Verdict.UNKNOWN: "no verdict on which spreads less",
    }.get(verdict, f"the spreads of {first} and {last} are not told apart")
    points = [f"Lowest settings over {kinds}: {'; '.join(listed)}: {told}.", *points]
    return Answer(
        name=name,
        title=title,
        points=points,
        claims=[claim, *claims],
        evidence=("results",),
    )


def instability(facts: Facts, question: str, archs: Sequence[str]) -> tuple[list[str], list[Claim]]:
    """Count the runs of each architecture that diverged, and those that ended 5 % above their best."""
    runs = facts.study.runs
    diverged = runs[(runs["state"] == "failed") & (runs["failure_kind"] == "diverged")]
    done = list(facts.rows.values())
    names = units.in_order(units.ARCHITECTURES, {*archs, *diverged["arch"].dropna()})
    if not names:
        return [], []
    rose = [
        sum(row["arch"] == arch and row["final_val_ppl"] > OVERFITTED_FROM * row["val_ppl"] for row in done)
        for arch in names
    ]
    failed = [int((diverged["arch"] == arch).sum()) for arch in names]
    of = [sum(row["arch"] == arch for row in done) + bad for arch, bad in zip(names, failed, strict=True)]
    claims = [
        Claim(
            question=question,
            kind=Kind.COUNT,
            measure="val_ppl",
            members=tuple(map(units.architecture, names)),
            values=tuple(map(float, counts)),
            given={"counted": what, "of": of},
        )
        for what, counts in (("diverged", failed), ("ended 5 % above their best", rose))
    ]
    listed = [
        f"{units.architecture(arch)} {bad} and {up} of {all_}"
        for arch, bad, up, all_ in zip(names, failed, rose, of, strict=True)
    ]
    return [f"Runs that diverged, and that ended 5 % or more above their best epoch: {', '.join(listed)}."], claims


# -- shared ------------------------------------------------------------------------------------------------------------


def compared_losses(facts: Facts, question: str, pairs: Sequence[tuple[Setting, Setting]]) -> list[Claim]:
    """Compare the validation losses of the settings of each pair; all pairs are one family of comparisons."""
    found = [facts.difference(a, b) for a, b in pairs]
    texts = {a.text for a, _ in pairs}
    assert len(texts) < 2, "perplexities compare on one text"
    noise = facts.noise(*texts) if texts else Noise()
    return [
        compare(question, "val_ppl", (a.reference, b.reference), (a.val_ppl, b.val_ppl), one, verdict, noise)
        for (a, b), one, verdict in zip(pairs, found, verdicts(found, noise), strict=True)
    ]


def values_of(question: str, measure: str, members: Sequence[str], values: Sequence[float]) -> Claim:
    """Return a claim that states numbers."""
    return Claim(question=question, kind=Kind.VALUE, measure=measure, members=tuple(members), values=tuple(values))


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
        question=question,
        kind=Kind.FIRST,
        measure="seconds_to_target",
        members=tuple(one.reference for _, one in found),
        values=tuple(seconds for seconds, _ in found),
        verdict=None if len(found) < 2 else Verdict.APART if sooner else Verdict.NOT_APART,
        given={"target": target},
    )

"""What is claimed of the trained models: their loss by context, and their gradients back in time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from analysis.claims.answer import Answer, cannot
from analysis.claims.claim import NATS, Claim, Kind, compare, ranked, ranking, written
from analysis.claims.facts import Facts
from analysis.claims.verdict import EQUAL_NATS, LEVEL, Difference, Noise, Verdict, of_blocks, verdicts
from analysis.study import units
from analysis.study.examined import ExaminedRun, examined_runs
from analysis.study.values import Values

NEAR_NATS = 0.01
"""Context is used up where the loss is this near its lowest."""
GONE = 1e-3
"""Gradients below this share of their maximum say nothing of how they shrink."""


def steps(facts: Facts) -> Answer:
    """Compare the loss at each time step of a window, the state zero at its start."""
    name, title = "steps", "How does the loss go along a window?"
    runs = [run for run in examined_runs(facts.study) if run.is_shown and run.losses.blocks is not None]
    if not runs:
        command = f"seqlm behaviour {next(iter(facts.study.directories))}"
        return cannot(name, title, f"no loss by context is recorded ({command} computes it)")
    claims: list[Claim] = []
    points: list[str] = []
    length = min(run.behaviour.seq_len for run in runs)
    alike = len({(run.losses.window, run.losses.tokens, run.behaviour.seq_len) for run in runs}) == 1
    if alike:
        claim = _first(facts, name, sorted(runs, key=lambda run: _mean(run, 0, length)), length)
        claims.append(claim)
        points.append(f"Perplexity over {length} steps from a zero state: {ranked(claim, most=len(runs))}.")
    labels = labels_of(runs)
    details = []
    ends = [_ends(name, run) for run in runs]
    listed = ", ".join(f"{label} {' and '.join(written(claim))}" for label, claim in zip(labels, ends, strict=True))
    details.append(f"Perplexity with one token of context and with those of a training window: {listed}.")
    used = [(label, claim) for label, run in zip(labels, runs, strict=True) for claim in _context(name, run)]
    if used:
        listed = ", ".join(f"{label} {claim.values[0]:.0f}" for label, claim in used)
        points.append(f"Tokens of context until the loss is within {NEAR_NATS:g} nats of the lowest step: {listed}.")
    beyond = [(label, claim) for label, run in zip(labels, runs, strict=True) for claim in _beyond(name, run)]
    if beyond:
        listed = ", ".join(f"{label} {_change(claim)}" for label, claim in beyond)
        points.append(f"Loss past a training window less that of its second half: {listed}.")
    claims += [*ends, *(claim for _, claim in [*used, *beyond])]
    evidence = ("loss-per-step", "behaviour")
    return Answer(name=name, title=title, points=points, details=details, claims=claims, evidence=evidence)


def labels_of(runs: Sequence[ExaminedRun]) -> list[str]:
    """Return the architecture of each run if that says which is meant, else its number and name."""
    archs = [units.architecture(run.arch) for run in runs]
    return archs if len(set(archs)) == len(archs) else [run.reference for run in runs]


def _ends(question: str, run: ExaminedRun) -> Claim:
    """State the perplexity at the first and the last step of a window as long as in training."""
    curve = run.losses.zero_state[: run.behaviour.seq_len]
    return Claim(
        question,
        Kind.VALUE,
        "val_ppl",
        ("after 1 token", f"after {len(curve)} tokens"),
        (math.exp(curve[0]), math.exp(curve[-1])),
        given={"run": run.reference},
    )


def _context(question: str, run: ExaminedRun) -> list[Claim]:
    """State how many tokens of context lower the loss; none if it does not fall along the window."""
    used = context_used(run.losses.zero_state[: run.behaviour.seq_len])
    if used is None:
        return []
    return [
        Claim(question, Kind.TREND, "context_tokens", [run.reference], [float(used)], given={"within_nats": NEAR_NATS})
    ]


def _change(claim: Claim) -> str:
    """Return the change of a loss, marked if it is none or not told apart from none."""
    text = f"{units.signed(claim.difference)} ± {NATS(claim.error)}"
    if claim.verdict == Verdict.EQUAL:
        return f"{text} (equal)"
    return text if claim.is_clear else f"{text} (not told apart)"


def _mean(run: ExaminedRun, first: int, last: int) -> float:
    return float(run.losses.zero_state[first:last].mean())


def _first(facts: Facts, question: str, ordered: Sequence[ExaminedRun], length: int) -> Claim:
    """Return the claim which run has the lowest loss over a window; the difference is over the same tokens."""
    values = tuple(math.exp(_mean(run, 0, length)) for run in ordered)
    members = tuple(run.reference for run in ordered)
    if len(ordered) < 2:
        return Claim(question=question, kind=Kind.VALUE, measure="val_ppl", members=members, values=values)
    a, b = (run.losses.blocks[:, :length].mean(axis=1) for run in ordered[:2] if run.losses.blocks is not None)
    nats = _mean(ordered[1], 0, length) - _mean(ordered[0], 0, length)
    found = _difference(nats, b.astype(float) - a.astype(float))
    text = facts.rows[ordered[0].number]["text"] if ordered[0].number in facts.rows else ""
    noise = facts.noise(text)
    (verdict,) = verdicts([found], noise)
    pair = compare(question, "val_ppl", (members[0], members[1]), (values[0], values[1]), found, verdict, None, noise)
    return ranking(pair, members, values)


def _difference(nats: float, blocks: Values) -> Difference:
    """Return a difference with its error from the same difference in each block."""
    known = blocks[np.isfinite(blocks)]
    return of_blocks(nats, known) if len(known) > 1 else Difference(nats=nats)


def context_used(curve: Values) -> int | None:
    """Return after how many tokens the loss is near its lowest; ``None``: it does not fall along the window.

    It falls if steps and losses are rank-correlated below 0 (Spearman) as in fewer than 5 % of shuffled curves.
    """
    if len(curve) < 3 or not np.isfinite(curve).all() or not falls(curve):
        return None
    return int(np.flatnonzero(curve <= curve.min() + NEAR_NATS)[0]) + 1


def falls(curve: Values) -> bool:
    """Return whether a curve falls, as shuffled ones seem to in fewer than 5 % of cases."""
    from scipy.special import stdtr

    count = len(curve)
    ranks = curve.argsort().argsort().astype(float)
    correlation = float(np.corrcoef(np.arange(count), ranks)[0, 1]) if np.ptp(ranks) else 0.0
    if abs(correlation) > 1 - 1e-12:
        return correlation < 0
    t = correlation * math.sqrt((count - 2) / (1 - correlation**2))
    return float(stdtr(count - 2, t)) < LEVEL


def _beyond(question: str, run: ExaminedRun) -> list[Claim]:
    """Compare the loss past the training length with that of its second half; none if it is not recorded."""
    blocks, length = run.losses.blocks, run.behaviour.seq_len
    if blocks is None or run.losses.window <= length or length < 2:
        return []
    inside, after = _mean(run, length // 2, length), _mean(run, length, run.losses.window)
    each = blocks[:, length:].mean(axis=1).astype(float) - blocks[:, length // 2 : length].mean(axis=1).astype(float)
    found = _difference(after - inside, each)
    # The same model reads the same tokens on both sides, so no other seed comes into it.
    (verdict,) = verdicts([found], Noise())
    reach = found.reach(Noise())
    if abs(found.nats) + reach < EQUAL_NATS:
        verdict = Verdict.EQUAL
    return [
        Claim(
            question,
            Kind.TREND,
            "step_loss",
            (f"{run.reference}, steps {length // 2 + 1} to {length}", f"steps {length + 1} to {run.losses.window}"),
            (inside, after),
            verdict=verdict,
            difference=found.nats,
            error=found.error(Noise()),
        )
    ]


# -- gradients ---------------------------------------------------------------------------------------------------------


def gradients(facts: Facts) -> Answer:
    """Say how fast the gradient of the last loss shrinks back in time."""
    name, title = "gradients", "How far back do gradients reach?"
    runs = [run for run in examined_runs(facts.study) if run.is_shown and run.gradients is not None]
    if not runs:
        return cannot(name, title, "no gradients are recorded")
    claims: list[Claim] = []
    parts: list[str] = []
    for label, run in zip(labels_of(runs), runs, strict=True):
        assert run.gradients is not None
        factor = shrinks_by(run.gradients.mean_of_norms) if run.reaches_back else None
        if not run.reaches_back:
            parts.append(f"{label} zero before the last position, as no later one reads its one block")
        elif factor is None:
            parts.append(f"{label} no steady decrease from step to step")
        else:
            halved = math.log(0.5) / math.log(factor)
            claims.append(
                Claim(name, Kind.TREND, "gradient_factor", [run.reference], [factor], given={"halved_in_steps": halved})
            )
            parts.append(f"{label} {factor:.2f} (halved in {halved:.1f} steps)")
    points = [f"Factor of the norm for each step back: {'; '.join(parts)}."]
    return Answer(name=name, title=title, points=points, claims=claims, evidence=("gradient-norms", "behaviour"))


def shrinks_by(norms: Values) -> float | None:
    """Return the factor of the norm for each step back, by least squares of its logarithm; ``None``: it is not below 1.

    Steps whose norm is below a thousandth of the largest are left out.
    """
    back = np.where(np.isfinite(norms), norms, 0.0)[::-1]
    known = back > GONE * back.max(initial=0.0)
    end = int(np.flatnonzero(~known)[0]) if not known.all() else len(back)
    if end < 3 or not falls(back[:end]):
        return None
    slope = float(np.polyfit(np.arange(end), np.log(back[:end]), 1)[0])
    return math.exp(slope) if slope < 0 else None

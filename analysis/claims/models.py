"""What is claimed of the trained models: their loss by context, and their gradients back in time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from analysis.claims.answer import Answer, cannot
from analysis.claims.claim import Claim, Kind, compare, numbered, outcome, ranking, trend
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
        command = f"launch.py behaviour {next(iter(facts.study.directories))}"
        return cannot(name, title, f"no loss by context is recorded ({command} computes it)")
    claims: list[Claim] = []
    points: list[str] = []
    length = min(run.behaviour.seq_len for run in runs)
    alike = len({(run.losses.window, run.losses.tokens, run.behaviour.seq_len) for run in runs}) == 1
    if alike:
        ordered = sorted(runs, key=lambda run: _mean(run, 0, length))
        claim = _first(facts, name, ordered, length)
        claims.append(claim)
        others = f"; the first against the second: {outcome(claim)}" if len(ordered) > 1 else ""
        points.append(f"Perplexity over {length} steps from a zero state: {', '.join(numbered(claim))}{others}.")
    for run in runs:
        curve = run.losses.zero_state[: run.behaviour.seq_len]
        ends = Claim(
            question=name,
            kind=Kind.VALUE,
            measure="val_ppl",
            members=("after 1 token", f"after {len(curve)} tokens"),
            values=(math.exp(curve[0]), math.exp(curve[-1])),
            given={"run": run.reference},
        )
        claims.append(ends)
        first, last = map(units.perplexity, ends.values)
        said = [f"{first} after one token of context, {last} after {len(curve)}"]
        used = context_used(curve)
        if used is not None:
            claims.append(
                Claim(
                    question=name,
                    kind=Kind.TREND,
                    measure="context_tokens",
                    members=(run.reference,),
                    values=(float(used),),
                    given={"within_nats": NEAR_NATS},
                )
            )
            said.append(f"within {NEAR_NATS:g} nats of its lowest step from {units.count(used, 'token')} on")
        beyond = _beyond(name, run)
        if beyond is not None:
            claims.append(beyond)
            said.append(f"past {run.behaviour.seq_len} tokens {trend(beyond)}")
        points.append(f"{run.reference}: {'; '.join(said)}.")
    return Answer(name=name, title=title, points=points, claims=claims, evidence=("loss-per-step", "behaviour"))


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
    pair = compare(question, "val_ppl", (members[0], members[1]), (values[0], values[1]), found, verdict, noise)
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


def _beyond(question: str, run: ExaminedRun) -> Claim | None:
    """Return the claim how the loss past the training length compares with that of the second half of it."""
    blocks, length = run.losses.blocks, run.behaviour.seq_len
    if blocks is None or run.losses.window <= length or length < 2:
        return None
    inside, after = _mean(run, length // 2, length), _mean(run, length, run.losses.window)
    each = blocks[:, length:].mean(axis=1).astype(float) - blocks[:, length // 2 : length].mean(axis=1).astype(float)
    found = _difference(after - inside, each)
    # The same model reads the same tokens on both sides, so no other seed comes into it.
    (verdict,) = verdicts([found], Noise())
    reach = found.reach(Noise())
    if abs(found.nats) + reach < EQUAL_NATS:
        verdict = Verdict.EQUAL
    return Claim(
        question=question,
        kind=Kind.TREND,
        measure="step_loss",
        members=(f"{run.reference}, steps {length // 2 + 1} to {length}", f"steps {length + 1} to {run.losses.window}"),
        values=(inside, after),
        verdict=verdict,
        difference=found.nats,
        error=found.error(Noise()),
    )


# -- gradients ---------------------------------------------------------------------------------------------------------


def gradients(facts: Facts) -> Answer:
    """Say how fast the gradient of the last loss shrinks back in time."""
    name, title = "gradients", "How far back do gradients reach?"
    runs = [run for run in examined_runs(facts.study) if run.is_shown and run.gradients is not None]
    if not runs:
        return cannot(name, title, "no gradients are recorded")
    claims: list[Claim] = []
    points: list[str] = []
    for run in runs:
        assert run.gradients is not None
        factor = shrinks_by(run.gradients.mean_of_norms) if run.reaches_back else None
        if not run.reaches_back:
            points.append(f"{run.reference}: zero before the last position, as one block is read at no later one.")
        elif factor is None:
            points.append(f"{run.reference}: no steady decrease from step to step.")
        else:
            halved = math.log(0.5) / math.log(factor)
            claims.append(
                Claim(
                    question=name,
                    kind=Kind.TREND,
                    measure="gradient_factor",
                    members=(run.reference,),
                    values=(factor,),
                    given={"halved_in_steps": halved},
                )
            )
            shrinks = f"each step back multiplies the norm by {factor:.2f}"
            points.append(f"{run.reference}: {shrinks}, which halves it in {halved:.1f} steps.")
    return Answer(name=name, title=title, points=points, claims=claims, evidence=("gradients", "behaviour"))


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

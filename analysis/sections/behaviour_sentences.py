"""What the curves of the trained models show, in sentences with numbers. Time steps are counted from 1."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from analysis.study import units
from analysis.study.behaved import Behaved
from analysis.study.values import Values
from seqlm.architectures import carries_state

STRETCH = 10
"""Steps over which losses are averaged where a single step's would say too little."""
NEAR = 1.02
"""A loss up to this many times the lowest counts as near it."""
VANISHED = 0.01
"""A gradient below this share of its maximum counts as vanished."""
CLEAR = 2.0
"""A change counts as one from this many standard errors on."""
FEWEST = 3
"""Steps without which a mean is not compared."""


def sentences(runs: Sequence[Behaved]) -> list[str]:
    """Each about all runs of which something can be said."""
    recurrent = [run for run in runs if carries_state(run.arch)]
    settles = f"The mean over {STRETCH} successive steps first comes within 2 % of its lowest in the stretch beginning"
    carries = "Carrying the state on instead of setting it to zero, the validation perplexity is"
    return [
        *_about(runs, f"From the first step to the mean of the last steps (up to {STRETCH}), the loss goes", _context),
        *_about(runs, settles, _settling),
        *_about(recurrent, carries, _carried),
        *_past_training(runs),
        *_about(runs, "Walking back from the last step, the norm of the mean gradient", _vanishing),
    ]


def _about(runs: Sequence[Behaved], start: str, part: Callable[[Behaved], str | None]) -> list[str]:
    parts = [f"{text} in {run.reference}" for run in runs if (text := part(run)) is not None]
    return [f"{start} {units.listing(parts)}."] if parts else []


def _context(run: Behaved) -> str | None:
    losses = run.behaviour.zero_state
    if len(losses) < 2:
        return None
    first, last = float(losses[0]), float(losses[max(1, len(losses) - STRETCH) :].mean())
    change = f"from {first:.2f} to {last:.2f} nats ({_signed(last - first)})"
    return change if math.isfinite(last - first) else None


def _settling(run: Behaved) -> str | None:
    step = settles_at(run.behaviour.zero_state)
    return None if step is None else f"at step {step}"


def settles_at(losses: Values) -> int | None:
    """Return the first step from which the mean of ``STRETCH`` successive losses is within 2 % of the lowest such mean.

    ``None``: there are no two such stretches, or a loss is not finite.
    """
    if len(losses) <= STRETCH or not np.isfinite(losses).all():
        return None
    means = np.convolve(losses, np.full(STRETCH, 1 / STRETCH), mode="valid")
    return int(np.flatnonzero(means <= NEAR * means.min())[0]) + 1


def _carried(run: Behaved) -> str | None:
    zero, carried = (mean_perplexity(losses) for losses in (run.behaviour.zero_state, run.behaviour.carried_state))
    return f"{units.perplexity(carried)} instead of {units.perplexity(zero)}" if math.isfinite(zero + carried) else None


def mean_perplexity(losses: Values) -> float:
    """The perplexity over all steps; NaN if it is too large for a number."""
    mean = float(losses.mean())
    return math.exp(mean) if mean < 700 else math.nan


def _past_training(runs: Sequence[Behaved]) -> list[str]:
    """Group the runs by how the loss goes past the training length."""
    named: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        if found := beyond(run.behaviour.zero_state, run.behaviour.seq_len):
            verdict, numbers = found
            named[verdict].append(f"{run.reference} ({numbers})")
    parts = [f"{verdict} in {units.listing(named[verdict])}" for verdict in sorted(named, reverse=True)]
    how = (
        "Compared are the mean losses of the second half of the training length and of all steps past it; ±: standard "
        f"error from the scatter of the steps, and a change of less than {CLEAR:g} of them is not counted as one."
    )
    return [f"Past the training length, the loss {'; it '.join(parts)}. {how}"] if parts else []


def beyond(losses: Values, seq_len: int) -> tuple[str, str] | None:
    """Return how the loss goes past the training length, in words and in numbers; ``None`` for too few steps.

    It is compared with the second half of the training length, where context is no longer scarce.
    """
    inside, after = losses[seq_len // 2 : seq_len], losses[seq_len:]
    if min(len(inside), len(after)) < FEWEST:
        return None
    low, high = float(inside.mean()), float(after.mean())
    error = math.sqrt(inside.var(ddof=1) / len(inside) + after.var(ddof=1) / len(after))
    if math.isnan(high - low) or math.isnan(error):
        return None
    verdict = "does not clearly change" if abs(high - low) <= CLEAR * error else "rises" if high > low else "falls"
    return verdict, f"from {low:.2f} to {high:.2f} nats, {_signed(high - low)} ± {error:.2f}"


def _vanishing(run: Behaved) -> str | None:
    norms = run.behaviour.gradient
    top = _maximum(norms)
    if not top > 0:
        return None
    back = vanishes_after(norms)
    of_norms = vanishes_after(run.behaviour.gradient_mean_of_norms)
    single = "mean of the sequences' norms: " + ("never" if of_norms is None else units.count(of_norms, "step"))
    if back is None:
        share = f"{units.percent(norms[0] / top)} at the first of {len(norms)} steps"
        return f"stays above 1 % of its maximum ({share}; {single})"
    exactly = "to exactly zero, " if norms[len(norms) - 1 - back] == 0 else ""
    return f"falls below 1 % of its maximum ({exactly}{units.count(back, 'step')} back; {single})"


def vanishes_after(norms: Values) -> int | None:
    """Return how many steps before the last one the gradient is first below 1 % of its maximum, walking back.

    ``None``: it never is, or there is no maximum above 0.

    >>> vanishes_after(np.array([0.5, 0.001, 0.2, 1.0]))
    2
    """
    top = _maximum(norms)
    below = np.flatnonzero(norms[::-1] < VANISHED * top)
    return int(below[0]) if top > 0 and len(below) else None


def _maximum(norms: Values) -> float:
    return float(np.nanmax(norms)) if np.isfinite(norms).any() else math.nan


def _signed(value: float) -> str:
    """``+0.15`` or ``−0.15``."""
    return f"{value:+.2f}".replace("-", "−")

"""What the curves of the trained models show, in sentences with their numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from analysis import units
from analysis.trained.behaved import Behaved
from analysis.trained.choosing import percent
from analysis.trained.curve_facts import CLEAR, STRETCH, beyond, last_mean, settles_at, vanishes_after


def sentences(runs: Sequence[Behaved]) -> list[str]:
    """Each about all runs of which something can be said; time steps are counted from 1."""
    recurrent = [run for run in runs if run.arch != "transformer"]
    told = [
        _told(runs, f"From the first step to the mean of the last {STRETCH}, the loss goes", _context),
        _told(
            runs,
            f"The mean over {STRETCH} successive steps first comes within 2 % of its lowest in the stretch that begins",
            _settling,
        ),
        _told(recurrent, "Carrying the state on instead of setting it to zero, the validation perplexity is", _carried),
        *_past_training(runs),
        _told(runs, "Walking back from the last step, the gradient norm", _vanishing),
    ]
    return [sentence for sentence in told if sentence]


def _told(runs: Sequence[Behaved], start: str, part: Callable[[Behaved], str | None]) -> str:
    parts = [f"{text} in {run.reference}" for run in runs if (text := part(run)) is not None]
    return f"{start} {units.listing(parts)}." if parts else ""


def _context(run: Behaved) -> str | None:
    first, last = float(run.behaviour.zero_state[0]), last_mean(run.behaviour.zero_state)
    if not (math.isfinite(first) and math.isfinite(last)):
        return None
    return f"from {first:.2f} to {last:.2f} nats ({_signed(last - first)})"


def _settling(run: Behaved) -> str | None:
    step = settles_at(run.behaviour.zero_state)
    return None if step is None else f"at step {step}"


def _carried(run: Behaved) -> str | None:
    zero, carried = (float(v.mean()) for v in (run.behaviour.zero_state, run.behaviour.carried_state))
    if not (math.isfinite(zero) and math.isfinite(carried)) or max(zero, carried) > 700:
        return None
    return f"{units.perplexity(math.exp(carried))} instead of {units.perplexity(math.exp(zero))}"


def _past_training(runs: Sequence[Behaved]) -> list[str]:
    """A sentence for each way that the loss goes past the training length."""
    found: dict[str, list[str]] = {}
    for run in runs:
        sides = beyond(run.behaviour.zero_state, run.behaviour.seq_len)
        if sides.verdict is not None:
            change = f"{_signed(sides.after - sides.before)} ± {sides.error:.2f}"
            text = f"{run.reference} (from {sides.before:.2f} to {sides.after:.2f} nats, {change})"
            found.setdefault(sides.verdict, []).append(text)
    how = (
        "Compared are the mean losses of the second half of the training length and of all steps past it; ±: standard "
        f"error from the scatter of the steps, and a change of less than {CLEAR:g} of them is not counted as one."
    )
    parts = [f"{verdict} in {units.listing(named)}" for verdict, named in sorted(found.items(), reverse=True)]
    return [f"Past the training length, the loss {'; it '.join(parts)}. {how}"] if parts else []


def _vanishing(run: Behaved) -> str | None:
    norms = run.behaviour.gradient
    top = float(np.nanmax(norms)) if np.isfinite(norms).any() else math.nan
    if not top > 0:
        return None
    back = vanishes_after(norms)
    if back is None:
        return f"stays above 1 % of its maximum ({percent(norms[0] / top)} at the first of {len(norms)} steps)"
    exactly = "to exactly zero, " if norms[len(norms) - 1 - back] == 0 else ""
    return f"falls below 1 % of its maximum ({exactly}{units.count(back, 'step')} back)"


def _signed(value: float) -> str:
    """``+0.15`` or ``−0.15``."""
    return f"{value:+.2f}".replace("-", "−")

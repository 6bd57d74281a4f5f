"""What the curves of the trained models show, in sentences with numbers. Time steps are counted from 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.sections.choosing import percent
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


def last_mean(losses: Values) -> float:
    """Mean over the last ``STRETCH`` steps, or over all after the first where there are fewer."""
    return float(losses[max(1, len(losses) - STRETCH) :].mean()) if len(losses) > 1 else math.nan


def settles_at(losses: Values) -> int | None:
    """First step from which the mean of ``STRETCH`` successive losses is within 2 % of the lowest such mean.

    None where there are no two such stretches, or a loss is not finite.
    """
    if len(losses) <= STRETCH or not np.isfinite(losses).all():
        return None
    means = np.convolve(losses, np.full(STRETCH, 1 / STRETCH), mode="valid")
    return int(np.flatnonzero(means <= NEAR * means.min())[0]) + 1


def vanishes_after(norms: Values) -> int | None:
    """How many steps before the last one the gradient is first below 1 % of its maximum, walking back.

    None where it never is, or where there is no maximum above 0.

    >>> vanishes_after(np.array([0.5, 0.001, 0.2, 1.0]))
    2
    """
    top = np.nanmax(norms) if np.isfinite(norms).any() else math.nan
    if not top > 0:
        return None
    below = np.flatnonzero(norms[::-1] < VANISHED * top)
    return int(below[0]) if len(below) else None


@dataclass(frozen=True, kw_only=True)
class Beyond:
    """Mean losses on both sides of the training length; NaN where there are too few steps."""

    before: float
    after: float
    error: float
    """Standard error of their difference, from how much the steps scatter."""

    @property
    def verdict(self) -> str | None:
        """``rises``, ``falls`` or ``does not clearly change``; none where nothing can be said."""
        difference = self.after - self.before
        if math.isnan(difference) or math.isnan(self.error):
            return None
        if abs(difference) <= CLEAR * self.error:
            return "does not clearly change"
        return "rises" if difference > 0 else "falls"


def beyond(losses: Values, seq_len: int) -> Beyond:
    """The steps past the training length against those of its second half, where context is no longer scarce."""
    inside, after = losses[seq_len // 2 : seq_len], losses[seq_len:]
    if min(len(inside), len(after)) < FEWEST:
        return Beyond(before=math.nan, after=math.nan, error=math.nan)
    error = math.sqrt(inside.var(ddof=1) / len(inside) + after.var(ddof=1) / len(after))
    return Beyond(before=float(inside.mean()), after=float(after.mean()), error=error)


# -- sentences -----------------------------------------------------------------------------------------------------


def sentences(runs: Sequence[Behaved]) -> list[str]:
    """Each about all runs of which something can be said; time steps are counted from 1."""
    recurrent = [run for run in runs if carries_state(run.arch)]
    told = [
        _told(runs, f"From the first step to the mean of the last {STRETCH}, the loss goes", _context),
        _told(
            runs,
            f"The mean over {STRETCH} successive steps first comes within 2 % of its lowest in the stretch that begins",
            _settling,
        ),
        _told(recurrent, "Carrying the state on instead of setting it to zero, the validation perplexity is", _carried),
        *_past_training(runs),
        _told(runs, "Walking back from the last step, the norm of the mean gradient", _vanishing),
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
    of_norms = vanishes_after(run.behaviour.gradient_mean_of_norms)
    single = "mean of the sequences' norms: " + ("never" if of_norms is None else units.count(of_norms, "step"))
    if back is None:
        share = f"{percent(norms[0] / top)} at the first of {len(norms)} steps"
        return f"stays above 1 % of its maximum ({share}; {single})"
    exactly = "to exactly zero, " if norms[len(norms) - 1 - back] == 0 else ""
    return f"falls below 1 % of its maximum ({exactly}{units.count(back, 'step')} back; {single})"


def _signed(value: float) -> str:
    """``+0.15`` or ``−0.15``."""
    return f"{value:+.2f}".replace("-", "−")

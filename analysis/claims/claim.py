"""Claims: typed statements, the numbers behind each, and their words. Nothing else in the report compares.

A claim is about members (settings, by their runs' numbers) and one measure. Its words follow from its kind, its measure
and its verdict alone, so that a word such as "lower" cannot stand where the policy gives none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from analysis.claims.verdict import Difference, Noise, Verdict
from analysis.study import units

MANY_SECONDS = 600
"""From here on times are written in minutes."""


class Kind(StrEnum):
    """What a claim says of its members."""

    VALUE = "value"
    """What a number is."""
    COUNT = "count"
    """How many there are."""
    COMPARE = "compare"
    """Whether the first member has less than the second."""
    FIRST = "first"
    """Which member has least, and whether it is told apart from the next."""
    SPREAD = "spread"
    """How far the members of a group are apart."""
    TREND = "trend"
    """How a number goes along a window."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What is measured: how a number is written, and the words for less and more of it."""

    words: str
    less: str
    more: str
    write: Any
    """Returns a number as text."""
    unit: str = ""


def seconds(value: Any) -> str:
    """Return a time with three digits, so that two times are not rounded to one: ``73 s``, ``12 min``."""
    return f"{value:.3g} s" if units.is_number(value) and value < MANY_SECONDS else units.duration(value)


NATS = units.decimals(".3f")
MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        "val_ppl": Measure(words="validation perplexity", less="lower", more="higher", write=units.perplexity),
        "train_ppl": Measure(words="training perplexity", less="lower", more="higher", write=units.perplexity),
        "test_ppl": Measure(words="test perplexity", less="lower", more="higher", write=units.perplexity),
        "gap": Measure(
            words="gap to the training loss", less="smaller", more="larger", write=units.signed, unit="nats"
        ),
        "final_gap": Measure(
            words="gap to the training loss after the last epoch",
            less="smaller",
            more="larger",
            write=units.signed,
            unit="nats",
        ),
        "epoch_seconds": Measure(words="time of an epoch", less="shorter", more="longer", write=seconds),
        "wall_seconds": Measure(words="time of all epochs", less="shorter", more="longer", write=units.duration),
        "seconds_to_target": Measure(words="time to a perplexity", less="sooner", more="later", write=seconds),
        "spread": Measure(words="spread of the losses", less="less", more="more", write=NATS, unit="nats"),
        "step_loss": Measure(words="loss at a time step", less="lower", more="higher", write=NATS, unit="nats"),
        "context_tokens": Measure(words="context that lowers the loss", less="fewer", more="more", write=units.whole),
        "gradient_factor": Measure(words="factor of the gradient per step", less="smaller", more="larger", write=NATS),
        "rating": Measure(words="loss of texts under the panel", less="lower", more="higher", write=NATS, unit="nats"),
        "known_pairs": Measure(words="known pairs of tokens", less="fewer", more="more", write=units.percent),
        "known_triples": Measure(words="known triples of tokens", less="fewer", more="more", write=units.percent),
        "share": Measure(words="share", less="smaller", more="larger", write=units.percent),
    }
)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One statement of the report."""

    question: str
    """Name of the answer in which it stands."""
    kind: Kind
    measure: str
    members: tuple[str, ...]
    """What it is about: settings as ``4/12 gru-adam``, or groups of them."""
    values: tuple[float, ...]
    """A number of each member."""
    verdict: Verdict | None = None
    """Of the first two members, for kinds that compare."""
    difference: float = math.nan
    """Of losses: that of the second member less that of the first, in nats."""
    error: float = math.nan
    """Its standard error."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """What the numbers depend on, such as the perplexity that is reached."""

    @property
    def is_clear(self) -> bool:
        return self.verdict in (Verdict.APART, Verdict.THIS_TEXT)

    @property
    def is_less(self) -> bool:
        """Whether the first member has less, clearly or not."""
        return self.difference > 0 if math.isfinite(self.difference) else self.values[0] < self.values[1]

    def to_plain(self) -> dict[str, Any]:
        """Return it as ``data/claims.json`` has it; a number that is not known is null."""
        return {
            "question": self.question,
            "kind": str(self.kind),
            "measure": self.measure,
            "members": list(self.members),
            "values": [_known(value) for value in self.values],
            "verdict": None if self.verdict is None else str(self.verdict),
            "difference": _known(self.difference),
            "error": _known(self.error),
            "given": dict(self.given),
        }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def compare(
    question: str,
    measure: str,
    members: tuple[str, str],
    values: tuple[float, float],
    found: Difference,
    verdict: Verdict,
    noise: Noise,
    **given: Any,
) -> Claim:
    """Return the claim that a verdict on two losses is. One whose tokens say otherwise than its table says nothing."""
    is_contrary = (values[1] - values[0]) * found.nats < 0
    return Claim(
        question=question,
        kind=Kind.COMPARE,
        measure=measure,
        members=members,
        values=values,
        verdict=Verdict.NOT_APART if is_contrary and verdict in (Verdict.APART, Verdict.THIS_TEXT) else verdict,
        difference=found.nats,
        error=found.error(noise),
        given={"seeds": list(found.seeds), "seeds_needed": found.seeds_needed(noise), **given},
    )


def ranking(first: Claim, members: Sequence[str], values: Sequence[float]) -> Claim:
    """Return the claim on the order of some members; ``first``: the comparison of the first two."""
    return replace(first, kind=Kind.FIRST, members=tuple(members), values=tuple(values))


# -- words -------------------------------------------------------------------------------------------------------------


def numbered(claim: Claim, labels: Sequence[str] = ()) -> list[str]:
    """Return each member of a claim with its value: ``57.99 (3 transformer-adam)``.

    With ``labels``, which say what the members are where the rest of a sentence is about: ``Transformer 57.99 (3)``.
    """
    measure = MEASURES[claim.measure]
    values = [f"{measure.write(value)}{f' {measure.unit}' if measure.unit else ''}" for value in claim.values]
    if labels:
        runs = [member.split()[0] for member in claim.members]
        return [f"{label} {value} ({run})" for label, value, run in zip(labels, values, runs, strict=True)]
    return [f"{value} ({member})" for member, value in zip(claim.members, values, strict=True)]


def outcome(claim: Claim) -> str:
    """Return what a comparison shows of its first member, such as ``lower by 0.056 ± 0.009 nats``."""
    measure, nats = MEASURES[claim.measure], _with_error(claim)
    word = measure.less if claim.is_less else measure.more
    if claim.verdict == Verdict.APART:
        return f"{word}{f' by {nats}' if nats else ''}"
    if claim.verdict == Verdict.THIS_TEXT:
        seeds = "one seed each" if claim.given.get("seeds") == [1, 1] else "its noise over seeds is not known"
        return f"{word}{f' by {nats}' if nats else ''} on this text; {seeds}"
    if claim.verdict == Verdict.EQUAL:
        return "equal within 1 %"
    if claim.verdict == Verdict.NOT_APART:
        needed = claim.given.get("seeds_needed")
        more = f"; with {needed} seeds each such a difference would be" if needed else ""
        return f"not told apart{f' ({nats}{more})' if nats else ''}"
    # A difference without a verdict has no direction in words.
    return f"{units.signed(-claim.difference)} nats, no verdict" if nats else "no verdict"


def _with_error(claim: Claim) -> str:
    if not math.isfinite(claim.difference):
        return ""
    error = f" ± {NATS(claim.error)}" if math.isfinite(claim.error) else ""
    return f"{NATS(abs(claim.difference))}{error} nats"


def comparison(claim: Claim) -> str:
    """Return a comparison in words: ``60.77 (5 gru-sgd) against 62.97 (2 gru-adam): lower by 0.036 ± 0.010 nats``."""
    first, second = numbered(claim)
    return f"{first} against {second}: {outcome(claim)}"


def ranked(claim: Claim, labels: Sequence[str] = (), *, most: int = 3) -> str:
    """Return the members of a claim by value, the least first, and whether the first is told apart from the next."""
    names = numbered(claim, labels)
    listed = ", ".join(names[:most])
    more = f" and {len(names) - most} more" if len(names) > most else ""
    if len(names) == 1:
        return listed
    return f"{listed}{more}; the first against the second: {outcome(claim)}"


def trend(claim: Claim) -> str:
    """Return how the loss of the second member follows that of the first, such as ``it rises by 0.251 nats``."""
    if claim.is_clear:
        return f"it {'rises' if claim.difference > 0 else 'falls'} by {_with_error(claim)}"
    if claim.verdict == Verdict.EQUAL:
        return "it stays the same within 0.01 nats"
    return f"no change is told apart ({_with_error(claim)})"


def direction(claims: Sequence[Claim]) -> str:
    """Return what several comparisons of one kind say together: a common direction, a contrary one, or none.

    A direction is common if at least two are told apart and none is told apart the other way.
    """
    if all(claim.verdict == Verdict.UNKNOWN for claim in claims):
        return "no verdict"
    clear = [claim for claim in claims if claim.is_clear]
    less = sum(claim.is_less for claim in clear)
    if less and less < len(clear):
        known = all(claim.verdict == Verdict.APART for claim in clear)
        return "contrary directions" if known else "contrary directions on this text"
    if len(clear) >= 2:
        return "one direction"
    return "no common direction"

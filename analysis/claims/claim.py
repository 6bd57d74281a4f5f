"""Claims: typed statements, the numbers behind each, and their words. Nothing else in the report compares.

A claim is about members (settings, by their runs' numbers) and one measure. Its words follow from its kind, its measure
and its verdict alone, so that a word such as "lower" cannot stand where the policy gives none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

from analysis.claims.verdict import Difference, Noise, Verdict
from analysis.study import units
from seqlm.records.comparisons import ComparisonVerdict

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


class Measure(NamedTuple):
    """What is measured: how a number is written, the words for less and more of it, and its unit."""

    write: Callable[[Any], str]
    less: str = "lower"
    more: str = "higher"
    unit: str = ""


def seconds(value: Any) -> str:
    """Return a time with three digits, so that two times are not rounded to one: ``73 s``, ``12 min``."""
    return f"{value:.3g} s" if units.is_number(value) and value < MANY_SECONDS else units.duration(value)


NATS = units.decimals(".3f")
MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        **dict.fromkeys(("val_ppl", "train_ppl", "test_ppl"), Measure(units.perplexity)),
        **dict.fromkeys(("gap", "final_gap"), Measure(units.signed, "smaller", "larger", "nats")),
        "epoch_seconds": Measure(seconds, "shorter", "longer"),
        "wall_seconds": Measure(units.duration, "shorter", "longer"),
        "seconds_to_target": Measure(seconds, "sooner", "later"),
        "spread": Measure(NATS, "less", "more", "nats"),
        **dict.fromkeys(("step_loss", "rating", "sample_loss"), Measure(NATS, unit="nats")),
        "gradient_factor": Measure(NATS),
        **dict.fromkeys(("known_pairs", "known_triples", "share", "importance"), Measure(units.percent)),
        **dict.fromkeys(("runs", "settings", "pairs", "context_tokens"), Measure(units.whole, "fewer", "more")),
        "epochs": Measure(units.decimals(",.0f"), "fewer", "more"),
        "hours": Measure(units.hours, "fewer", "more"),
        "lr": Measure(units.plain_value),
        "fall_per_epoch": Measure(units.decimals(".2%")),
        "published_percent": Measure(units.decimals("+,.1f"), unit="%"),
    }
)


@dataclass(frozen=True)
class Claim:
    """One statement of the report."""

    question: str
    """Name of the answer in which it stands."""
    kind: Kind
    measure: str
    members: Sequence[str]
    """What it is about: settings as ``4/12 gru-adam``, or groups of them."""
    values: Sequence[float]
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
    over_seeds: ComparisonVerdict | None,
    noise: Noise,
    **given: Any,
) -> Claim:
    """Return the claim that a verdict on two losses is. One whose tokens say otherwise than its table says nothing.

    ``over_seeds``: the comparison that gives the verdict. ``None``: none does, but the policy.
    """
    needed = found.seeds_needed(noise)
    if over_seeds is not None:
        kept = ("outcome", "low", "high", "seeds", "comparisons", "error", "epochs")
        plain, needed = over_seeds.to_plain(), None
        given["over_seeds"] = {key: plain[key] for key in kept}
    is_contrary = (values[1] - values[0]) * found.nats < 0
    return Claim(
        question,
        Kind.COMPARE,
        measure,
        members,
        values,
        verdict=Verdict.NOT_APART if is_contrary and verdict in (Verdict.APART, Verdict.THIS_TEXT) else verdict,
        difference=found.nats,
        error=found.error(noise),
        given={"seeds": list(found.seeds), "seeds_needed": needed, **given},
    )


def ranking(first: Claim, members: Sequence[str], values: Sequence[float]) -> Claim:
    """Return the claim on the order of some members; ``first``: the comparison of the first two."""
    return replace(first, kind=Kind.FIRST, members=members, values=values)


# -- words -------------------------------------------------------------------------------------------------------------


def numbered(claim: Claim) -> list[str]:
    """Return each member of a claim with its value: ``57.99 (3 transformer-adam)``."""
    return [f"{value} ({member})" for member, value in zip(claim.members, written(claim), strict=True)]


def labelled(claim: Claim, labels: Iterable[str]) -> str:
    """Return the values of a claim with a label before each: ``RNN 66.62, GRU 60.77``."""
    return ", ".join(f"{label} {value}" for label, value in zip(labels, written(claim), strict=True))


def written(claim: Claim) -> list[str]:
    """Return the values of a claim with their unit."""
    measure = MEASURES[claim.measure]
    return [f"{measure.write(value)}{f' {measure.unit}' if measure.unit else ''}" for value in claim.values]


def outcome(claim: Claim) -> str:
    """Return what a comparison shows of its first member, such as ``lower by 0.056 ± 0.009 nats``."""
    measure, nats = MEASURES[claim.measure], _with_error(claim)
    word = measure.less if claim.is_less else measure.more
    if claim.is_clear:
        return f"{word}{f' by {nats}' if nats else ''}"
    if claim.verdict == Verdict.NOT_APART:
        needed = claim.given.get("seeds_needed")
        more = f"; with {needed} seeds each such a difference would be" if needed else ""
        return f"not told apart{f' ({nats}{more})' if nats else ''}"
    if claim.verdict == Verdict.EQUAL:
        return UNCLEAR[Verdict.EQUAL]
    # A difference without a verdict has no direction in words.
    return f"{units.signed(-claim.difference)} nats, no verdict" if nats else "no verdict"


def _with_error(claim: Claim) -> str:
    if not math.isfinite(claim.difference):
        return ""
    error = f" ± {NATS(claim.error)}" if math.isfinite(claim.error) else ""
    return f"{NATS(abs(claim.difference))}{error} nats"


UNCLEAR = {Verdict.NOT_APART: "not told apart", Verdict.EQUAL: "equal within 1 %", Verdict.UNKNOWN: "no verdict"}


def brief(claim: Claim) -> str:
    """Return a comparison as a part of a list: the first member less the second in nats, marked if that is not clear.

    ``-0.056 ± 0.009``. Of times both: ``1.02 s against 1.48 s``.
    """
    if math.isfinite(claim.difference):
        error = f" ± {NATS(claim.error)}" if math.isfinite(claim.error) else ""
        text = f"{units.signed(-claim.difference)}{error}"
    else:
        text = reached(claim) + " against ".join(map(MEASURES[claim.measure].write, claim.values))
    return f"{text}{unclear(claim)}"


def among(claims: Sequence[Claim]) -> str:
    """Return comparisons of one kind as a part of a list; of several the ends, and how many are clear."""
    if len(claims) == 1:
        return brief(claims[0])
    ends = sorted(-claim.difference for claim in claims)
    clear = sum(claim.is_clear for claim in claims)
    return f"{units.signed(ends[0])} to {units.signed(ends[-1])} ({clear} of {len(claims)} told apart)"


def reached(claim: Claim) -> str:
    """Return the perplexity to which the times of a claim are, with a space at the end; nothing for other claims."""
    target = claim.given.get("target")
    return "" if target is None else f"to {units.perplexity(target)} in "


def unclear(claim: Claim, other: str = "") -> str:
    """Return the mark of a comparison that is not clear, with a space in front. ``other``: what is compared with it."""
    mark = UNCLEAR.get(claim.verdict) if claim.verdict else None
    needed = claim.given.get("seeds_needed")
    if needed and claim.verdict == Verdict.NOT_APART:
        mark = f"{mark}; {needed} seeds each would tell"
    return f" ({f'{other}: ' if other else ''}{mark})" if mark else ""


def comparison(claim: Claim) -> str:
    """Return a comparison in words: ``60.77 (5 gru-sgd) against 62.97 (2 gru-adam): lower by 0.036 ± 0.010 nats``."""
    first, second = numbered(claim)
    return f"{first} against {second}: {outcome(claim)}"


def ranked(claim: Claim, *, most: int = 3) -> str:
    """Return the members of a claim by value, the least first, and whether the first is told apart from the next."""
    names = numbered(claim)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more + unclear(claim, "the first two")


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

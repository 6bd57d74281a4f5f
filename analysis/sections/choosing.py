"""Which samples of a run a reader sees first: the best, the worst and some that are interesting, each with a reason.

Best and worst go by perplexity: under the judge, another run's model, and without one under the model itself. A text
that repeats itself, or is mostly ``<unk>``, has a low perplexity too (Holtzman et al., 2020, The Curious Case of Neural
Text Degeneration), so such texts are best only where there are no others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from analysis.study import units
from analysis.study.behaviour import Sample

EACH = 3
"""Samples of each group."""
MOST_REPEATED = 0.5
"""Best samples of words have at most this share of tokens that occur among the 16 before them. (Of characters most
occur again so soon in any text.)"""
LEAST_DISTINCT = 0.5
"""Best samples have at least this share of distinct three-token sequences."""
MOST_UNKNOWN = 0.25
"""Best samples have at most this share of ``<unk>``."""

Group: TypeAlias = Literal["Best", "Worst", "Interesting"]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A sample and why it is shown."""

    group: Group
    sample: Sample
    reason: str


def choose(samples: Sequence[Sample], judge: str | None, level: str) -> list[Chosen]:
    """At most three of each group, none twice; ties go to the earlier sample.

    Args:
        samples: of one run.
        judge: the run whose model has rated them.
        level: ``word`` or ``char``.
    """
    rank = Ranking(judge=judge, level=level)
    best = sorted(samples, key=lambda sample: (rank.flaw(sample) is not None, rank.perplexity(sample)))[:EACH]
    left = [sample for sample in samples if sample not in best]
    worst = sorted(left, key=lambda sample: -rank.perplexity(sample))[:EACH]
    left = [sample for sample in left if sample not in worst]
    return [
        *(Chosen(group="Best", sample=sample, reason=rank.best_reason(sample, n)) for n, sample in enumerate(best)),
        *(Chosen(group="Worst", sample=sample, reason=rank.worst_reason(sample, n)) for n, sample in enumerate(worst)),
        *_interesting(left, rank),
    ]


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """What best and worst mean for the samples of a run."""

    judge: str | None
    level: str

    def perplexity(self, sample: Sample) -> float:
        """What they are sorted by; infinity where it is not a finite number."""
        value = sample.perplexity_own if self.judge is None else sample.perplexity_other
        return value if math.isfinite(value) else math.inf

    def flaw(self, sample: Sample) -> str | None:
        """Why the sample's perplexity is low for a bad reason, where it is."""
        if self.level == "word" and sample.repetition > MOST_REPEATED:
            return f"{percent(sample.repetition)} of its tokens occur among the 16 before them"
        if sample.distinct[2] < LEAST_DISTINCT:
            return f"only {percent(sample.distinct[2])} of its three-token sequences are distinct"
        if sample.unk_share > MOST_UNKNOWN:
            return f"{percent(sample.unk_share)} of its tokens are <unk>"
        return None

    def best_reason(self, sample: Sample, place: int) -> str:
        flaw = self.flaw(sample)
        if flaw is None:
            return f"{_ordinal(place, 'lowest')} perplexity {self._under(sample)}, without heavy repetition"
        return f"perplexity {self._under(sample)}; no better one is left, although {flaw}"

    def worst_reason(self, sample: Sample, place: int) -> str:
        return f"{_ordinal(place, 'highest')} perplexity {self._under(sample)}"

    def _under(self, sample: Sample) -> str:
        value = units.rounded(sample.perplexity_own if self.judge is None else sample.perplexity_other)
        return (
            f"under the model itself, which has no judge: {value}"
            if self.judge is None
            else (f"under the judge {self.judge}: {value}")
        )


# -- interesting samples -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Something by which a sample can stand out: the more, the more interesting; not at all from 0 down."""

    amount: Callable[[Sample, Ranking], float]
    reason: Callable[[Sample, Ranking], str]


def entropy_rise(sample: Sample) -> float:
    """Mean entropy over the last third of the tokens less that over the first third, in nats; NaN below 3 tokens."""
    third = sample.length // 3
    return float(sample.entropy[-third:].mean() - sample.entropy[:third].mean()) if third else math.nan


def repeated(sample: Sample, level: str) -> float:
    """Share of what repeats: of words those among the 16 before them, of characters the three-token sequences."""
    return sample.repetition if level == "word" else 1 - sample.distinct[2]


def disagreement(sample: Sample) -> float:
    """How many times the model's own perplexity the judge's is, as a logarithm; NaN without a judge."""
    ratio = sample.perplexity_other / sample.perplexity_own if sample.perplexity_own else math.nan
    return math.log(ratio) if ratio > 0 and math.isfinite(ratio) else math.nan


def _copy_reason(sample: Sample, rank: Ranking) -> str:
    quoted = plain_text(sample.copied, rank.level).replace("\n", " ↵ ").strip()
    length = units.count(len(sample.copied), "token")
    return f"longest passage that stands in the training text as it is: {length}, “{quoted}”"


def _repetition_reason(sample: Sample, rank: Ranking) -> str:
    share = percent(repeated(sample, rank.level))
    if rank.level == "word":
        return f"most repetition: {share} of the tokens occur among the 16 before them"
    return f"most repetition: {share} of the three-token sequences have occurred before in the text"


def _entropy_reason(sample: Sample, _: Ranking) -> str:
    return f"largest rise of entropy: by {entropy_rise(sample):.2f} nats from its first third to its last"


def _unknown_reason(sample: Sample, _: Ranking) -> str:
    return f"most unknown words: {percent(sample.unk_share)} of the tokens are <unk>"


def _disagreement_reason(sample: Sample, _: Ranking) -> str:
    own, other = units.rounded(sample.perplexity_own), units.rounded(sample.perplexity_other)
    return f"largest disagreement: perplexity {own} under the model itself, {other} under the judge"


MEASURES = (
    Measure(amount=lambda sample, _: len(sample.copied), reason=_copy_reason),
    Measure(amount=lambda sample, rank: repeated(sample, rank.level), reason=_repetition_reason),
    Measure(amount=lambda sample, _: entropy_rise(sample), reason=_entropy_reason),
    Measure(amount=lambda sample, _: sample.unk_share, reason=_unknown_reason),
    Measure(amount=lambda sample, _: disagreement(sample), reason=_disagreement_reason),
)
"""In the order in which they get a sample each; one that no sample shows is passed over."""


def _interesting(samples: Iterable[Sample], rank: Ranking) -> list[Chosen]:
    left = list(samples)
    found: list[Chosen] = []
    for measure in MEASURES:
        amounts = np.array([measure.amount(sample, rank) for sample in left], dtype=float)
        amounts[np.isnan(amounts)] = 0.0
        if len(found) == EACH or not len(left) or not amounts.max() > 0:
            continue
        sample = left.pop(int(amounts.argmax()))
        found.append(Chosen(group="Interesting", sample=sample, reason=measure.reason(sample, rank)))
    return found


# -- words ---------------------------------------------------------------------------------------------------------


def percent(share: float) -> str:
    """``12 %``."""
    return f"{100 * share:.0f} %" if math.isfinite(share) else units.MISSING


def _ordinal(place: int, word: str) -> str:
    return word if place == 0 else f"{('second', 'third')[place - 1]} {word}"


# -- tokens as text ------------------------------------------------------------------------------------------------

EOS = "<eos>"

CLINGS = {"n't", "'s", "'m", "'d", "'re", "'ve", "'ll", "'", "''", "”", "’", "%", ")", "]", "}", "-rrb-"}
"""Tokens that stand close to the one before them. The first seven are the Penn Treebank's way with contractions."""
MARKS = set(".,;:!?…")
HOLDS = {"``", "“", "‘", "(", "[", "{", "$", "#", "-lrb-"}
"""Tokens that the next one stands close to."""

SHOWN = {"``": "“", "''": "”", "-lrb-": "(", "-rrb-": ")"}
"""The Penn Treebank's names of signs, and the signs."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A token in a text."""

    token: str
    text: str
    """How it is shown; empty for a line's end."""
    gap: str
    """What stands between it and the piece before: nothing, a space or a line's end."""


def pieces(tokens: Sequence[str], level: str) -> list[Piece]:
    r"""The tokens with what stands between them.

    >>> "".join(piece.gap + piece.text for piece in pieces(["it", "is", "n't", "<eos>", "no"], "word"))
    "it isn't\nno"
    """
    found: list[Piece] = []
    before = ""
    for token in tokens:
        gap = ""
        if before == EOS:
            gap = "\n"
        elif level == "word" and before and token != EOS and before not in HOLDS and not _clings(token):
            gap = " "
        text = "" if token == EOS else SHOWN.get(token, token) if level == "word" else token
        found.append(Piece(token=token, text=text, gap=gap))
        before = token
    return found


def plain_text(tokens: Sequence[str], level: str) -> str:
    """The whole as one text."""
    return "".join(piece.gap + piece.text for piece in pieces(tokens, level))


def raw_text(tokens: Iterable[str]) -> str:
    """The tokens as they are, a space between any two; one that is itself blank shows as ``␣``."""
    return " ".join(token if token.strip() else "␣" for token in tokens)


def _clings(token: str) -> bool:
    return token in CLINGS or (token != "" and set(token) <= MARKS)

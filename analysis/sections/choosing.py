"""Which samples of a run a reader sees first: the best, the worst and some that are interesting, each with a reason.

Best and worst go by perplexity: under the judge, another run's model, and without one under the model itself. A text
that repeats itself, or is mostly ``<unk>``, has a low perplexity too (Holtzman et al., 2020, The Curious Case of Neural
Text Degeneration), so such texts are best only where there are no others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

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

ORDINALS = ("", "second ", "third ")


class Chosen(NamedTuple):
    """A sample and why it is shown."""

    group: str
    """``Best``, ``Worst`` or ``Interesting``."""
    sample: Sample
    reason: str | None


def choose(samples: Sequence[Sample], judge: str | None, level: str) -> list[Chosen]:
    """Return at most three of each group, none twice; ties go to the earlier sample.

    Args:
        samples: of one run.
        judge: the run whose model has rated them.
        level: ``word`` or ``char``.
    """

    def perplexity(sample: Sample) -> float:
        value = sample.perplexity_own if judge is None else sample.perplexity_other
        return value if math.isfinite(value) else math.inf

    def under(sample: Sample) -> str:
        whose = "under the model itself (there is no judge)" if judge is None else f"under the judge {judge}"
        return f"perplexity {whose}: {units.rounded(perplexity(sample))}"

    chosen = []
    left = sorted(samples, key=lambda sample: (_flaw(sample, level) is not None, perplexity(sample)))
    for ordinal, sample in zip(ORDINALS, left, strict=False):
        flaw = _flaw(sample, level)
        reason = f"{ordinal}lowest {under(sample)}, without heavy repetition"
        if flaw is not None:
            reason = f"{under(sample)}; no better one is left, although {flaw}"
        chosen.append(Chosen("Best", sample, reason))
    left = [sample for sample in samples if sample not in left[:EACH]]
    worst = sorted(left, key=lambda sample: -perplexity(sample))[:EACH]
    chosen += [Chosen("Worst", s, f"{ordinal}highest {under(s)}") for ordinal, s in zip(ORDINALS, worst, strict=False)]
    return [*chosen, *_interesting([sample for sample in left if sample not in worst], level)]


def _flaw(sample: Sample, level: str) -> str | None:
    """Say why the sample's perplexity is low for a bad reason, if it is."""
    if level == "word" and sample.repetition > MOST_REPEATED:
        return f"{units.percent(sample.repetition)} of its tokens occur among the 16 before them"
    if sample.distinct_3 < LEAST_DISTINCT:
        return f"only {units.percent(sample.distinct_3)} of its three-token sequences are distinct"
    if sample.unk_share > MOST_UNKNOWN:
        return f"{units.percent(sample.unk_share)} of its tokens are <unk>"
    return None


def _interesting(left: list[Sample], level: str) -> list[Chosen]:
    """Return the sample that stands out most by each measure in turn; none by a measure that is 0 or less for all."""
    found: list[Chosen] = []
    for measure in (_copy, _repetition, _entropy_rise, _unknown_words, _disagreement):
        amounts = [amount if (amount := measure(sample, level)[0]) > 0 else 0.0 for sample in left]
        if len(found) < EACH and any(amounts):
            sample = left[amounts.index(max(amounts))]
            left = [other for other in left if other is not sample]
            found.append(Chosen("Interesting", sample, measure(sample, level)[1]))
    return found


# -- measures: an amount, and what is said of the sample with the largest ---------------------------------------------


def _copy(sample: Sample, level: str) -> tuple[float, str]:
    quoted = plain_text(sample.copied, level).replace("\n", " ↵ ").strip()
    length = units.count(len(sample.copied), "token")
    return len(sample.copied), f"longest passage copied from the training text: {length}, “{quoted}”"


def _repetition(sample: Sample, level: str) -> tuple[float, str]:
    share = sample.repetition if level == "word" else 1 - sample.distinct_3
    what = (
        "the tokens occur among the 16 before them"
        if level == "word"
        else "the three-token sequences occurred before in the text"
    )
    return share, f"most repetition: {units.percent(share)} of {what}"


def _entropy_rise(sample: Sample, _: str) -> tuple[float, str]:
    third = sample.length // 3
    rise = float(sample.entropy[-third:].mean() - sample.entropy[:third].mean()) if third else math.nan
    return rise, f"largest rise of entropy: by {rise:.2f} nats from its first third to its last"


def _unknown_words(sample: Sample, _: str) -> tuple[float, str]:
    return sample.unk_share, f"most unknown words: {units.percent(sample.unk_share)} of the tokens are <unk>"


def _disagreement(sample: Sample, _: str) -> tuple[float, str]:
    own, other = sample.perplexity_own, sample.perplexity_other
    ratio = other / own if own else math.nan
    text = f"perplexity {units.rounded(own)} under the model itself, {units.rounded(other)} under the judge"
    return math.log(ratio) if 0 < ratio < math.inf else math.nan, f"largest disagreement: {text}"


# -- tokens as text ------------------------------------------------------------------------------------------------

EOS = "<eos>"

CLINGS = {"n't", "'s", "'m", "'d", "'re", "'ve", "'ll", "'", "''", "”", "’", "%", ")", "]", "}", "-rrb-"}
"""Tokens that stand close to the one before them. The first seven are the Penn Treebank's way with contractions."""
MARKS = set(".,;:!?…")
HOLDS = {"``", "“", "‘", "(", "[", "{", "$", "#", "-lrb-"}
"""Tokens that the next one stands close to."""

SHOWN = {"``": "“", "''": "”", "-lrb-": "(", "-rrb-": ")"}
"""The Penn Treebank's names of signs, and the signs."""


def pieces(tokens: Sequence[str], level: str) -> list[tuple[str, str]]:
    r"""Return what stands before each token (nothing, a space or a line's end), and how the token is shown.

    >>> pieces(["it", "is", "n't", "<eos>", "no"], "word")
    [('', 'it'), (' ', 'is'), ('', "n't"), ('', ''), ('\n', 'no')]
    """
    found = []
    before = ""
    for token in tokens:
        clings = token == EOS or token in CLINGS or (token != "" and set(token) <= MARKS)
        is_apart = level == "word" and before != "" and before not in HOLDS and not clings
        gap = "\n" if before == EOS else " " if is_apart else ""
        text = "" if token == EOS else SHOWN.get(token, token) if level == "word" else token
        found.append((gap, text))
        before = token
    return found


def plain_text(tokens: Sequence[str], level: str) -> str:
    """The whole as one text."""
    return "".join(gap + text for gap, text in pieces(tokens, level))


def raw_text(tokens: Iterable[str]) -> str:
    """The tokens as they are, a space between any two; one that is itself blank shows as ``␣``."""
    return " ".join(token if token.strip() else "␣" for token in tokens)

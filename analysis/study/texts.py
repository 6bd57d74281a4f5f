"""Texts that models have written: which to read first, and how they stand against pieces of the validation text.

One panel of models rates all samples of a text, so that their losses compare. A text that repeats itself, or is mostly
``<unk>``, has a low loss too (Holtzman et al., 2020, The Curious Case of Neural Text Degeneration), so such texts are
best only where there are no others. Pieces of the validation text, measured in the same way, are the scale.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.study import units
from analysis.study.behaviour import Measures, Sample
from analysis.study.examined import ExaminedRun
from analysis.study.units import plain_text
from analysis.study.values import Values
from seqlm.data.tokens import UNK

EACH = 3
"""Samples of each group."""
MOST_REPEATED = 0.5
"""Best samples of words have at most this share of tokens that occur among the 16 before them. (Of characters most
occur again so soon in any text.)"""
LEAST_DISTINCT = 0.5
"""Best samples have at least this share of distinct three-token sequences."""
MOST_UNKNOWN = 0.25
"""Best samples have at most this share of ``<unk>`` if that of the validation text is not recorded."""
MOST_QUOTED = 12
"""Tokens of a quoted stretch."""
BEFORE = 2
"""Tokens that a quotation shows before the least likely word, and after it."""
CLEAR = 2.0
"""A mean over samples clearly differs from one over pieces of the validation text from this many standard errors on."""

SMALLEST = 1e-9
"""A standard error up to this one is that of rounding."""
FEWEST_ALIKE = 4
"""Texts on each side from which two values differ that all texts of their side have."""

ORDINALS = ("", "second ", "third ")


@dataclass(frozen=True, kw_only=True, eq=False)
class Text:
    """A sample with the run whose model wrote it."""

    run: ExaminedRun
    sample: Sample

    @property
    def place(self) -> str:
        """Where the page of all samples has it: an anchor."""
        return f"sample-{self.run.id}-{self.sample.index}"

    @property
    def raters(self) -> tuple[str, ...]:
        """The checkpoints of the models that rate it: those of the panel, else that of the model itself."""
        behaviour = self.run.behaviour
        return tuple(member.checkpoint_sha256 for member in behaviour.panel or ()) or (behaviour.checkpoint_sha256,)

    @property
    def is_rated_by_panel(self) -> bool:
        return self.sample.panel is not None and len(self.sample.panel) > 0

    @property
    def losses(self) -> Values:
        """The loss of each token in nats, the mean over its raters."""
        panel = self.sample.panel
        return -self.sample.log_prob if panel is None or not len(panel) else -panel.mean(axis=0)

    @property
    def is_word(self) -> npt.NDArray[np.bool_]:
        """Which of its tokens are not ``<unk>``."""
        return np.array([token != UNK for token in self.sample.tokens])

    @property
    def most_unknown(self) -> float:
        """The share of ``<unk>`` that a text may have: that of the pieces of validation text."""
        pieces_of_text = self.run.behaviour.held_out
        return mean_of(pieces_of_text, "unk_share")[0] if pieces_of_text else MOST_UNKNOWN

    @property
    def excess(self) -> float:
        """By how much its share of ``<unk>`` is above that of the validation text."""
        return max(0.0, self.sample.measures.unk_share - self.most_unknown)

    @property
    def loss(self) -> float:
        """The mean loss by which texts are ordered; infinity if it is not known.

        As many tokens are left out as the validation text has ``<unk>``: first the ``<unk>``, then those with the
        highest losses. So a word that is turned into ``<unk>`` never lowers the loss: without that it would be left out
        in any case, or takes the place of one with a higher loss.
        """
        losses = np.sort(self.losses[self.is_word])
        left_out = max(math.floor(self.most_unknown * len(self.sample.tokens) + 1e-9), int((~self.is_word).sum()))
        kept = losses[: len(self.sample.tokens) - left_out]
        value = float(kept.mean()) if len(kept) else math.inf
        return value if math.isfinite(value) else math.inf

    @property
    def is_degenerate(self) -> bool:
        """Whether its loss is low for a bad reason."""
        measures = self.sample.measures
        repeats = self.run.behaviour.level == "word" and measures.repetition > MOST_REPEATED
        return repeats or measures.distinct_3 < LEAST_DISTINCT or measures.unk_share > self.most_unknown

    @property
    def rating(self) -> str:
        """Its loss, and under whom."""
        whose = "the panel" if self.is_rated_by_panel else "the model itself"
        value = f"{units.decimals('.2f')(self.loss)} nats per token"
        without = f" without {units.percent(self.most_unknown)} of them" if self.most_unknown > 0 else ""
        return f"loss under {whose}, {value}{without}"


def texts_of(runs: Sequence[ExaminedRun]) -> list[Text]:
    """Every text of the runs."""
    return [Text(run=run, sample=sample) for run in runs for sample in run.samples]


# -- which are shown -----------------------------------------------------------------------------------------------


def choose(texts: Sequence[Text]) -> dict[str, list[tuple[Text, str]]]:
    """Return at most ``EACH`` texts of each group with their reasons, none twice; ties go to the earlier text.

    Texts that different models have rated are not put in one order: then there are the best and the worst of each run.
    """
    if len({text.raters for text in texts}) > 1:
        return _of_each_run(texts)
    left = best_first(texts)
    best = [
        (text, f"{ordinal}lowest {text.rating}{_although(text)}") for ordinal, text in zip(ORDINALS, left, strict=False)
    ]
    left = sorted(left[EACH:], key=lambda text: -text.loss)
    worst = [(text, f"{ordinal}highest {text.rating}") for ordinal, text in zip(ORDINALS, left, strict=False)]
    left = left[EACH:]
    interesting: list[tuple[Text, str]] = []
    for measure in (_copy, _repetition, _entropy_rise):
        amounts = [amount if (amount := measure(text)[0]) > 0 else 0.0 for text in left]
        if any(amounts) and len(interesting) < EACH:
            text = left.pop(amounts.index(max(amounts)))
            interesting.append((text, measure(text)[1]))
    return {"Best": best, "Worst": worst, "Interesting": interesting}


def best_first(texts: Sequence[Text]) -> list[Text]:
    """Return texts that the same models have rated from the best to the worst."""
    return sorted(texts, key=lambda text: (text.is_degenerate, text.excess, text.loss, text.sample.measures.unk_share))


def _although(text: Text) -> str:
    return ", although it repeats itself or has much <unk>" if text.is_degenerate else ""


def _of_each_run(texts: Sequence[Text]) -> dict[str, list[tuple[Text, str]]]:
    groups: dict[str, list[tuple[Text, str]]] = {"Best of each run": [], "Worst of each run": []}
    for run in dict.fromkeys(text.run for text in texts):
        first, *others = best_first([text for text in texts if text.run is run])
        groups["Best of each run"].append((first, f"lowest {first.rating}{_although(first)}"))
        if others:
            last = max(others, key=lambda text: text.loss)
            groups["Worst of each run"].append((last, f"highest {last.rating}"))
    return groups


def _copy(text: Text) -> tuple[float, str]:
    copied = text.sample.measures.copied
    length = units.count(len(copied), "token")
    return len(copied), f"longest passage copied from the training text: {length}, “{quoted(text, copied)}”"


def _repetition(text: Text) -> tuple[float, str]:
    measures = text.sample.measures
    if text.run.behaviour.level == "word":
        share, what = measures.repetition, "the tokens occur among the 16 before them"
    else:
        share, what = 1 - measures.distinct_3, "the three-token sequences occurred before in the text"
    return share, f"most repetition: {units.percent(share)} of {what}"


def _entropy_rise(text: Text) -> tuple[float, str]:
    third, entropy = len(text.sample.tokens) // 3, text.sample.entropy
    rise = float(entropy[-third:].mean() - entropy[:third].mean()) if third else math.nan
    return rise, f"largest rise of entropy: by {rise:.2f} nats from its first third to its last"


# -- against held-out text -----------------------------------------------------------------------------------------

MEASURES = {
    "rating": ("loss under the panel", units.decimals(".2f"), " nats"),
    "known_pairs": ("known pairs", units.percent, ""),
    "known_triples": ("known triples", units.percent, ""),
    "repetition": ("tokens that occur among the 16 before them", units.percent, ""),
    "distinct_2": ("distinct pairs of tokens", units.percent, ""),
    "unk_share": ("<unk>", units.percent, ""),
    "longest_copy": ("longest copied passage", units.decimals(".1f"), " tokens"),
}
"""Measure -> what it is, how its value is written, and its unit."""
GOODNESS = {"rating": -1, "known_pairs": 1, "known_triples": 1}
"""Measures that say how well a text is written: 1 if more is better, -1 if less is."""


def mean_of(measured: Sequence[Measures], name: str) -> tuple[float, float]:
    """Return the mean of a measure over texts, and its standard error; NaN if it is not known."""
    values = np.array([getattr(measures, name) for measures in measured], float)
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return float(values.mean()), error


def standing(run: ExaminedRun) -> dict[str, dict[str, Any]]:
    """Return each measure of a run's samples against pieces of the validation text.

    ``away`` is the difference of the means in standard errors of the difference; NaN if one is not known. Without any
    scatter it is 0 for equal means. For others it is infinite if there are four texts on each side, of which chance
    puts one kind first in 2 of 70 orders; NaN if there are fewer.
    """
    own, held_out = [sample.measures for sample in run.samples], run.behaviour.held_out or ()
    found = {}
    for name, (what, write, unit) in MEASURES.items():
        (mean, error), (scale, scale_error) = mean_of(own, name), mean_of(held_out, name)
        together = math.hypot(error, scale_error)
        away = (mean - scale) / together if together > SMALLEST else math.nan
        if together <= SMALLEST and abs(mean - scale) <= SMALLEST:
            away = 0.0
        elif together <= SMALLEST and min(len(own), len(held_out)) >= FEWEST_ALIKE:
            away = math.copysign(math.inf, mean - scale)
        said = write(mean)
        if math.isfinite(error):
            said = f"{said.removesuffix(' %')} ± {write(error)}"
        numbers = {"mean": mean, "scale_mean": scale, "away": away}
        found[name] = dict[str, Any](what=what, unit=unit, said=said, scale=write(scale), **numbers)
    return found


def longest_known_stretch(texts: Sequence[Text]) -> dict[str, Any] | None:
    """Return the longest stretch without ``<unk>`` whose triples all occur in the training text, and its sample.

    ``None``: there is none, or it is not recorded. Of equally long ones, the first. A stretch has no triple twice, and
    of words none with a word twice, so ``inf inf inf`` is no stretch.
    """
    best: tuple[int, Text, int] | None = None
    for text in texts:
        tokens, is_word = text.sample.tokens, text.is_word
        start = 0
        ends: dict[tuple[str, ...], int] = {}
        for end, is_known in enumerate(text.sample.ends_known_triple or []):
            triple = tuple(tokens[max(0, end - 2) : end + 1])
            is_repetition = text.run.behaviour.level == "word" and len(set(triple)) < len(triple)
            if not is_word[end]:
                start = end + 1
            elif not is_known or is_repetition:
                start = max(start, end - 1)
            start = max(start, ends.get(triple, 0) - 1)
            ends[triple] = end
            length = end + 1 - start
            if length >= 3 and (best is None or length > best[0]):
                best = (length, text, start)
    if best is None:
        return None
    length, text, start = best
    words = text.sample.tokens[start : start + min(length, MOST_QUOTED)]
    return {"text": text, "length": length, "quote": quoted(text, words) + (" …" if length > MOST_QUOTED else "")}


def least_likely_word(texts: Sequence[Text]) -> dict[str, Any] | None:
    """Return the token other than ``<unk>`` with the highest loss, with the tokens around it, and its sample.

    ``None``: there is none.
    """
    worst: tuple[float, Text, int] | None = None
    for text in texts:
        losses = np.where(text.is_word & np.isfinite(text.losses), text.losses, -math.inf)
        place = int(losses.argmax())
        if losses[place] > (worst[0] if worst else -math.inf):
            worst = (float(losses[place]), text, place)
    if worst is None:
        return None
    loss, text, place = worst
    tokens = text.sample.tokens
    around = quoted(text, tokens[max(0, place - BEFORE) : place + BEFORE + 1])
    return {"text": text, "loss": loss, "word": quoted(text, tokens[place : place + 1]), "quote": around}


def quoted(text: Text, tokens: Sequence[str]) -> str:
    """Return some tokens of a text on one line."""
    return plain_text(tokens, text.run.behaviour.level).replace("\n", " ↵ ").strip() or "↵"

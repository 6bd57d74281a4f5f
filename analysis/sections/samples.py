"""Texts that models have written: the best, the worst and some interesting ones, each with a reason, and all of them.

Best and worst go by perplexity: under the judge, another run's model, and without one under the model itself. A text
that repeats itself, or is mostly ``<unk>``, has a low perplexity too (Holtzman et al., 2020, The Curious Case of Neural
Text Degeneration), so such texts are best only where there are no others.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from analysis.blocks.section import Block, Folded, Prose, Samples
from analysis.study import units
from analysis.study.behaviour import Sample
from analysis.study.examined import ExaminedRun
from analysis.study.units import pieces, plain_text

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
SHADES = 8
"""Steps of the scale of entropies, of equal width from 0 on; the page has a style for each, ``e0`` to ``e7``."""


class Text(NamedTuple):
    """A sample with the run whose model wrote it."""

    run: ExaminedRun
    sample: Sample

    @property
    def perplexity(self) -> float:
        """Under the judge, and without one under the model itself; infinity if it is not known."""
        measures = self.sample.measures
        value = measures.perplexity_other if self.run.behaviour.judge else measures.perplexity_own
        return value if math.isfinite(value) else math.inf

    @property
    def is_degenerate(self) -> bool:
        """Whether its perplexity is low for a bad reason."""
        measures = self.sample.measures
        repeats = self.run.behaviour.level == "word" and measures.repetition > MOST_REPEATED
        return repeats or measures.distinct_3 < LEAST_DISTINCT or measures.unk_share > MOST_UNKNOWN

    @property
    def rating(self) -> str:
        """Its perplexity, and whose it is."""
        judge = self.run.behaviour.judge
        whose = f"the judge {judge.name}" if judge else "the model itself (there is no judge)"
        return f"perplexity {units.perplexity(self.perplexity)} under {whose}"


def texts_of(runs: Sequence[ExaminedRun]) -> list[Text]:
    """Every text of the runs."""
    return [Text(run, sample) for run in runs for sample in run.samples]


def chosen_samples(runs: Sequence[ExaminedRun]) -> Samples:
    """Return what to read first of all models together."""
    return _shown(choose(texts_of(runs)), shade_width(runs), with_run=len(runs) > 1)


def all_samples(runs: Sequence[ExaminedRun]) -> list[Block]:
    """Return every sample of each run, first what to read of it."""
    width = shade_width(runs)
    blocks: list[Block] = []
    for run in runs:
        if run.samples:
            groups = choose(texts_of([run]))
            chosen = [text for group in groups.values() for text, _ in group]
            groups["Others"] = [(text, "") for text in texts_of([run]) if text not in chosen]
            of, judge = run.behaviour, run.behaviour.judge
            about = (
                f"{units.count(len(run.samples), 'sample')}; parameters of epoch {of.best_epoch + 1}, temperature "
                f"{units.plain_value(of.settings.temperature)}, seed {of.settings.seed}, "
                f"{f'judge {judge.name}' if judge else 'no judge'}."
            )
            shown: list[Block] = [Prose(text=about), _shown(groups, width)]
            blocks.append(Folded(title=f"Samples of {run.reference}", blocks=shown))
    return blocks


# -- which are shown -----------------------------------------------------------------------------------------------


def choose(texts: Sequence[Text]) -> dict[str, list[tuple[Text, str]]]:
    """Return at most three texts of each group with their reasons, none twice; ties go to the earlier text."""
    left = sorted(texts, key=lambda text: (text.is_degenerate, text.perplexity))
    best = [
        (text, f"{ordinal}lowest {text.rating}{', although it repeats itself or is mostly <unk>' * text.is_degenerate}")
        for ordinal, text in zip(ORDINALS, left, strict=False)
    ]
    left = sorted(left[EACH:], key=lambda text: -text.perplexity)
    worst = [(text, f"{ordinal}highest {text.rating}") for ordinal, text in zip(ORDINALS, left, strict=False)]
    left, interesting = left[EACH:], []
    for measure in (_copy, _repetition, _entropy_rise):
        amounts = [amount if (amount := measure(text)[0]) > 0 else 0.0 for text in left]
        if any(amounts):
            text = left.pop(amounts.index(max(amounts)))
            interesting.append((text, measure(text)[1]))
    return {"Best": best, "Worst": worst, "Interesting": interesting}


def _copy(text: Text) -> tuple[float, str]:
    copied = text.sample.measures.copied
    quoted = plain_text(copied, text.run.behaviour.level).replace("\n", " ↵ ").strip()
    length = units.count(len(copied), "token")
    return len(copied), f"longest passage copied from the training text: {length}, “{quoted}”"


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


# -- as the page shows them ----------------------------------------------------------------------------------------


def shade_width(runs: Sequence[ExaminedRun]) -> float:
    """The width of a step of the scale for all samples, a tenth of a nat or a multiple of it."""
    values = [sample.entropy[np.isfinite(sample.entropy)] for run in runs for sample in run.samples]
    highest = max((float(v.max()) for v in values if len(v)), default=0.0)
    return max(1, math.ceil(10 * highest / SHADES - 1e-9)) / 10


def shade(entropy: float, width: float) -> int:
    """The step of an entropy on a scale with steps of ``width`` nats; 0 if it is not a finite number."""
    return min(SHADES - 1, int(entropy / width)) if math.isfinite(entropy) and entropy > 0 else 0


def _shown(groups: dict[str, list[tuple[Text, str]]], width: float, *, with_run: bool = False) -> Samples:
    legend = [(step, f"{step * width:.1f}–{(step + 1) * width:.1f}") for step in range(SHADES)]
    shown = [
        (title, [_sample(text, reason, width, with_run=with_run) for text, reason in texts])
        for title, texts in groups.items()
        if texts
    ]
    return Samples(legend=legend, groups=shown)


def _sample(text: Text, reason: str, width: float, *, with_run: bool) -> dict[str, Any]:
    run, sample, measures = text.run, text.sample, text.sample.measures
    level, given = run.behaviour.level, len(sample.prompt)
    words = [*sample.prompt, *sample.tokens]
    tokens: list[dict[str, Any]] = []
    for place, (word, (gap, shown)) in enumerate(zip(words, pieces(words, level), strict=True), start=-given):
        if place < 0:
            tokens.append({"text": shown, "gap": gap, "title": f"{word} · given to the model", "shade": None})
            continue
        entropy, log_prob = float(sample.entropy[place]), float(sample.log_prob[place])
        title = f"{word} · entropy {_nats(entropy)} · p {units.decimals('.2g')(math.exp(min(log_prob, 0.0)))}"
        tokens.append({"text": shown, "gap": gap, "title": title, "shade": shade(entropy, width)})
    judge = run.behaviour.judge
    facts = [
        units.count(sample.length, "token"),
        *([f"perplexity {units.perplexity(measures.perplexity_other)} under the judge"] if judge else []),
        f"perplexity {units.perplexity(measures.perplexity_own)} under the model itself",
        f"mean entropy {_nats(float(sample.entropy.mean()))}",
        f"repetition {units.percent(measures.repetition)}",
        f"<unk> {units.percent(measures.unk_share)}",
        f"longest copy {units.count(measures.longest_copy, 'token')}",
    ]
    prompt, whole = plain_text(sample.prompt, level), plain_text(words, level)
    label = f"Sample {sample.index}{f' of {run.reference}' if with_run else ''}"
    plain = f"[{prompt}]{whole.removeprefix(prompt)}"
    return {"label": label, "reason": reason, "facts": facts, "tokens": tokens, "plain": plain}


def _nats(value: float) -> str:
    return f"{value:.2f} nats" if math.isfinite(value) else units.MISSING

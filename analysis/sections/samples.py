"""Samples as the report shows them: text to read, each token shaded by how uncertain the model was."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from analysis.blocks.section import RunSamples, Samples, ShownSample, Token
from analysis.sections.choosing import choose, percent, pieces, plain_text, raw_text
from analysis.study import units
from analysis.study.behaved import Behaved
from analysis.study.behaviour import Sample

SHADES = 8
"""Steps of the scale; the page has a style for each, ``e0`` to ``e7``."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Steps of equal width from entropy 0 on."""

    width: float
    """Of a step, in nats."""

    def shade(self, entropy: float) -> int:
        """The step of an entropy, 0 where it is not a finite number."""
        return min(SHADES - 1, int(entropy / self.width)) if math.isfinite(entropy) and entropy > 0 else 0

    @property
    def legend(self) -> list[tuple[int, str]]:
        """Each step with its range."""
        return [(step, f"{step * self.width:.1f}–{(step + 1) * self.width:.1f}") for step in range(SHADES)]


def chosen_samples(runs: Sequence[Behaved]) -> Samples:
    """The best, the worst and some interesting samples of each run that has any."""
    scale = scale_of(runs)
    shown = []
    for run in runs:
        behaviour = run.behaviour
        chosen = choose(behaviour.samples, behaviour.judge, behaviour.level)
        groups = [
            (str(group), [_shown(run, choice.sample, scale, choice.reason) for choice in choices])
            for group, choices in groupby(chosen, key=lambda choice: choice.group)
        ]
        shown.append(_run_samples(run, groups))
    return Samples(name="samples", legend=scale.legend, runs=[run for run in shown if run.groups], folded=False)


def all_samples(runs: Sequence[Behaved]) -> Samples:
    """Every sample of each run, by length."""
    scale = scale_of(runs)
    shown = []
    for run in runs:
        ordered = sorted(run.behaviour.samples, key=lambda sample: sample.length)
        groups = [
            (units.count(length, "token"), [_shown(run, sample, scale, None) for sample in members])
            for length, members in groupby(ordered, key=lambda sample: sample.length)
        ]
        shown.append(_run_samples(run, groups))
    return Samples(name="all-samples", legend=scale.legend, runs=[run for run in shown if run.groups], folded=True)


def scale_of(runs: Iterable[Behaved]) -> Scale:
    """One scale for all samples: eight steps of a tenth of a nat or a multiple of it, up to the highest entropy."""
    values = [sample.entropy[np.isfinite(sample.entropy)] for run in runs for sample in run.behaviour.samples]
    highest = max((float(v.max()) for v in values if len(v)), default=0.0)
    return Scale(width=max(1, math.ceil(10 * highest / SHADES - 1e-9)) / 10)


def _run_samples(run: Behaved, groups: list[tuple[str, list[ShownSample]]]) -> RunSamples:
    behaviour = run.behaviour
    judge = f"judge {behaviour.judge}" if behaviour.judge is not None else "no judge"
    about = (
        f"{units.count(len(behaviour.samples), 'sample')}; parameters of epoch {behaviour.best_epoch + 1}, temperature "
        f"{units.plain_value(behaviour.temperature)}, seed {behaviour.seed}, {judge}"
    )
    return RunSamples(number=run.number, name=run.name, about=about, groups=groups)


def _shown(run: Behaved, sample: Sample, scale: Scale, reason: str | None) -> ShownSample:
    behaviour, level = run.behaviour, run.behaviour.level
    text = [*sample.prompt, *sample.tokens]
    given = len(sample.prompt)
    tokens = []
    for place, piece in enumerate(pieces(text, level)):
        if place < given:
            title, shade = f"{piece.token} · given to the model", None
        else:
            entropy, log_prob = float(sample.entropy[place - given]), float(sample.log_prob[place - given])
            title = f"{piece.token} · entropy {_nats(entropy)} · p {_probability(log_prob)}"
            shade = scale.shade(entropy)
        tokens.append(Token(text=piece.text, gap=piece.gap, title=title, shade=shade))
    return ShownSample(
        label=f"Sample {sample.index}",
        reason=reason,
        facts=_facts(sample, judged=behaviour.judge is not None),
        tokens=tokens,
        plain=plain_text(text, level),
        raw=raw_text(text),
    )


def _facts(sample: Sample, *, judged: bool) -> list[str]:
    perplexities = [f"perplexity {units.rounded(sample.perplexity_own)} under the model itself"]
    if judged:
        perplexities.insert(0, f"perplexity {units.rounded(sample.perplexity_other)} under the judge")
    return [
        units.count(sample.length, "token"),
        *perplexities,
        f"mean entropy {_nats(float(sample.entropy.mean()))}",
        f"repetition {percent(sample.repetition)}",
        f"<unk> {percent(sample.unk_share)}",
        f"longest copy {units.count(len(sample.copied), 'token')}",
    ]


def _nats(value: float) -> str:
    return f"{value:.2f} nats" if math.isfinite(value) else units.MISSING


def _probability(log_prob: float) -> str:
    """``0.012``: two digits that count."""
    return f"{math.exp(min(log_prob, 0.0)):.2g}" if math.isfinite(log_prob) else units.MISSING

"""Samples as the report shows them: text to read, each token shaded by how uncertain the model was."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

import numpy as np

from analysis.blocks.section import RunSamples, Samples, ShownSample, Token
from analysis.sections.choosing import Chosen, choose, pieces, plain_text, raw_text
from analysis.study import units
from analysis.study.behaved import Behaved
from analysis.study.behaviour import Behaviour, Sample

SHADES = 8
"""Steps of the scale of entropies, of equal width from 0 on; the page has a style for each, ``e0`` to ``e7``."""


def chosen_samples(runs: Sequence[Behaved]) -> Samples:
    """The best, the worst and some interesting samples of each run that has any."""
    return _samples("samples", runs, lambda b: choose(b.samples, b.judge, b.level), folded=False)


def all_samples(runs: Sequence[Behaved]) -> Samples:
    """Every sample of each run, by length."""

    def by_length(behaviour: Behaviour) -> list[Chosen]:
        ordered = sorted(behaviour.samples, key=lambda sample: sample.length)
        return [Chosen(units.count(sample.length, "token"), sample, None) for sample in ordered]

    return _samples("all-samples", runs, by_length, folded=True)


def _samples(
    name: str, runs: Sequence[Behaved], shown_of: Callable[[Behaviour], Iterable[Chosen]], *, folded: bool
) -> Samples:
    """Return what is shown of each run, with one scale for all: steps of a tenth of a nat or a multiple of it."""
    values = [sample.entropy[np.isfinite(sample.entropy)] for run in runs for sample in run.behaviour.samples]
    highest = max((float(v.max()) for v in values if len(v)), default=0.0)
    width = max(1, math.ceil(10 * highest / SHADES - 1e-9)) / 10
    found = []
    for run in runs:
        behaviour = run.behaviour
        about = (
            f"{units.count(len(behaviour.samples), 'sample')}; parameters of epoch {behaviour.best_epoch + 1}, "
            f"temperature {units.plain_value(behaviour.temperature)}, seed {behaviour.seed}, "
            f"{'no judge' if behaviour.judge is None else f'judge {behaviour.judge}'}"
        )
        groups = [
            (title, [_shown(behaviour, shown.sample, width, shown.reason) for shown in members])
            for title, members in groupby(shown_of(behaviour), key=lambda shown: shown.group)
        ]
        if groups:
            found.append(RunSamples(number=run.number, name=run.name, about=about, groups=groups))
    legend = [(step, f"{step * width:.1f}–{(step + 1) * width:.1f}") for step in range(SHADES)]
    return Samples(name=name, legend=legend, runs=found, folded=folded)


def shade(entropy: float, width: float) -> int:
    """The step of an entropy on a scale with steps of ``width`` nats; 0 if it is not a finite number."""
    return min(SHADES - 1, int(entropy / width)) if math.isfinite(entropy) and entropy > 0 else 0


def _shown(behaviour: Behaviour, sample: Sample, width: float, reason: str | None) -> ShownSample:
    text = [*sample.prompt, *sample.tokens]
    tokens = []
    for place, (token, (gap, shown)) in enumerate(zip(text, pieces(text, behaviour.level), strict=True)):
        drawn = place - len(sample.prompt)
        if drawn < 0:
            tokens.append(Token(text=shown, gap=gap, title=f"{token} · given to the model", shade=None))
            continue
        entropy, log_prob = float(sample.entropy[drawn]), float(sample.log_prob[drawn])
        probability = f"{math.exp(min(log_prob, 0.0)):.2g}" if math.isfinite(log_prob) else units.MISSING
        title = f"{token} · entropy {_nats(entropy)} · p {probability}"
        tokens.append(Token(text=shown, gap=gap, title=title, shade=shade(entropy, width)))
    judged = [] if behaviour.judge is None else [f"perplexity {units.rounded(sample.perplexity_other)} under the judge"]
    facts = [
        units.count(sample.length, "token"),
        *judged,
        f"perplexity {units.rounded(sample.perplexity_own)} under the model itself",
        f"mean entropy {_nats(float(sample.entropy.mean()))}",
        f"repetition {units.percent(sample.repetition)}",
        f"<unk> {units.percent(sample.unk_share)}",
        f"longest copy {units.count(len(sample.copied), 'token')}",
    ]
    return ShownSample(
        label=f"Sample {sample.index}",
        reason=reason,
        facts=facts,
        tokens=tokens,
        plain=plain_text(text, behaviour.level),
        raw=raw_text(text),
    )


def _nats(value: float) -> str:
    return f"{value:.2f} nats" if math.isfinite(value) else units.MISSING

"""Samples as the pages show them: those to read first, each with a reason, all of them, and a table of measures."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.blocks.section import Prose, Samples, Section
from analysis.blocks.table import Column, Table, number
from analysis.study import units
from analysis.study.examined import ExaminedRun
from analysis.study.texts import MEASURES, Text, choose, mean_of, texts_of
from analysis.study.units import pieces, plain_text

SHADES = 8
"""Steps of the scale of entropies, of equal width from 0 on; the page has a style for each, ``e0`` to ``e7``."""
PAGE = "samples"
"""Stem of the names of the pages with all samples."""


def chosen_samples(runs: Sequence[ExaminedRun]) -> Samples:
    """Return what to read first of all models together, and where all samples are."""
    texts = texts_of(runs)
    counted = f"{units.count(len(texts), 'sample')} of {units.count(len({text.run.id for text in texts}), 'run')}"
    return _shown(choose(texts), shade_width(runs), with_run=len(runs) > 1, more=f"All {counted}")


def sample_sections(runs: Sequence[ExaminedRun]) -> list[Section]:
    """Return every sample of each run, in the order in which it was drawn."""
    width = shade_width(runs)
    sections = []
    for run in runs:
        if not run.samples:
            continue
        of, members = run.behaviour, run.behaviour.panel
        about = (
            f"{units.count(len(run.samples), 'sample')}; parameters of epoch {of.best_epoch + 1}, temperature "
            f"{units.plain_value(of.settings.temperature)}, seed {of.settings.seed}. "
        )
        about += f"Panel: {units.listing([m.name for m in members])}." if members else "No panel has rated them."
        groups = {"": [(text, "") for text in texts_of([run])]}
        sections.append(
            Section(
                name=f"samples-{run.id}",
                title=f"Samples of {run.reference}",
                short=run.reference,
                blocks=[Prose(text=about), _shown(groups, width)],
            )
        )
    return sections


# -- against held-out text -----------------------------------------------------------------------------------------


def samples_table(runs: Sequence[ExaminedRun]) -> Table:
    """Means over the samples of each run, and over pieces of the validation text of each text."""
    records: list[dict[str, Any]] = []
    scales: dict[tuple[Any, ...], dict[str, Any]] = {}
    for run in runs:
        if not run.samples:
            continue
        own = {name: mean_of([sample.measures for sample in run.samples], name) for name in MEASURES}
        records.append({"number": run.number, "name": run.name, **own})
        if run.behaviour.held_out:
            scale = {name: mean_of(run.behaviour.held_out, name) for name in MEASURES}
            scales.setdefault(tuple(scale.values()), {"number": None, "name": "pieces of the validation text", **scale})
    panels = dict.fromkeys(
        units.listing([member.name for member in run.behaviour.panel]) for run in runs if run.behaviour.panel
    )
    named = f" Panel: {'; '.join(panels)}." if panels else ""

    def mean(key: str, title: str) -> Column:
        write = MEASURES[key][1]
        return number(key, title, write, lambda record: _finite(record[key][0]))

    return Table(
        name="samples",
        title="Samples against held-out text",
        caption=f"Means over samples; ±: one standard error. Loss: nats per token under the panel, without <unk>. "
        f"Known: share of pairs and triples of tokens that the training text has.{named}",
        columns=[
            number("number", "No.", lambda place: units.MISSING if place is None else str(place)),
            Column("name", "Run"),
            mean("rating", "Loss"),
            number("rating_error", "±", units.decimals(".2f"), lambda record: _finite(record["rating"][1])),
            mean("known_pairs", "Known pairs"),
            mean("known_triples", "Known triples"),
            mean("repetition", "Repetition"),
            mean("distinct_2", "Distinct-2"),
            mean("unk_share", "<unk>"),
            mean("longest_copy", "Longest copy"),
        ],
        records=[*records, *scales.values()],
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# -- as the pages show them ----------------------------------------------------------------------------------------


def shade_width(runs: Sequence[ExaminedRun]) -> float:
    """The width of a step of the scale for all samples, a tenth of a nat or a multiple of it."""
    values = [sample.entropy[np.isfinite(sample.entropy)] for run in runs for sample in run.samples]
    highest = max((float(v.max()) for v in values if len(v)), default=0.0)
    return max(1, math.ceil(10 * highest / SHADES - 1e-9)) / 10


def shade(entropy: float, width: float) -> int:
    """The step of an entropy on a scale with steps of ``width`` nats; 0 if it is not a finite number."""
    return min(SHADES - 1, int(entropy / width)) if math.isfinite(entropy) and entropy > 0 else 0


def _shown(
    groups: dict[str, list[tuple[Text, str]]], width: float, *, with_run: bool = False, more: str = ""
) -> Samples:
    legend = [(step, f"{step * width:.1f}–{(step + 1) * width:.1f}") for step in range(SHADES)]
    shown = [
        (title, [_sample(text, reason, width, with_run=with_run, is_chosen=bool(more)) for text, reason in texts])
        for title, texts in groups.items()
        if texts
    ]
    return Samples(legend=legend, groups=shown, more=more)


def _sample(text: Text, reason: str, width: float, *, with_run: bool, is_chosen: bool) -> dict[str, Any]:
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
    rated = [f"loss under the panel {_nats(measures.rating)}"] if text.is_rated_by_panel else []
    facts = [
        units.count(sample.length, "token"),
        *rated,
        f"perplexity {units.perplexity(measures.perplexity_own)} under the model itself",
        f"mean entropy {_nats(float(sample.entropy.mean()))}",
        f"repetition {units.percent(measures.repetition)}",
        f"<unk> {units.percent(measures.unk_share)}",
        *([f"known triples {units.percent(measures.known_triples)}"] if math.isfinite(measures.known_triples) else []),
        f"longest copy {units.count(measures.longest_copy, 'token')}",
    ]
    prompt, whole = plain_text(sample.prompt, level), plain_text(words, level)
    label = f"Sample {sample.index}{f' of {run.reference}' if with_run else ''}"
    plain = f"[{prompt}]{whole.removeprefix(prompt)}"
    names = {"anchor": "" if is_chosen else text.place, "link": text.place if is_chosen else ""}
    return {"label": label, "reason": reason, "facts": facts, "tokens": tokens, "plain": plain, **names}


def _nats(value: float) -> str:
    return f"{value:.2f} nats" if math.isfinite(value) else units.MISSING

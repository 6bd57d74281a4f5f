"""The section about the trained models' behaviour, its tables, and its data files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.blocks.section import Block, Points, Prose, Section, Subheading
from analysis.blocks.table import Column, Table, number
from analysis.blocks.texts import first_few
from analysis.plots.behaviour import behaviour_charts
from analysis.sections.behaviour_sentences import mean_perplexity, sentences, vanishes_after
from analysis.sections.choosing import LEAST_DISTINCT, MOST_REPEATED, MOST_UNKNOWN, plain_text
from analysis.sections.samples import all_samples, chosen_samples
from analysis.study import units
from analysis.study.behaved import Behaved, behaved_runs
from analysis.study.settings import best_runs
from analysis.study.study import Study
from analysis.study.values import rows_of

COMMAND = "launch.py behaviour STUDY"

TWO_DECIMALS = units.decimals(".2f")

MEASURES = ["perplexity_own", "perplexity_other", "entropy", "distinct_2", "repetition", "unk_share", "longest_copy"]
"""Columns of the samples of which a table gives the means."""


def behaviour_section(study: Study) -> Section:
    """Loss at each time step, gradients back in time, and samples."""
    runs = behaved_runs(study)
    shown = [run for run in runs if run.is_shown]
    text = f"Not computed yet. “{COMMAND}” computes it for the best run of each architecture on each text."
    blocks: list[Block] = [Prose(text=text)]
    if runs:
        blocks = [
            *(Prose(text=note) for note in _absence(study, runs, shown)),
            *behaviour_charts(shown),
            *(Prose(text=note) for note in _layer_notes(shown)),
            Points(items=sentences(shown)),
            behaviour_table(runs),
            *_samples_blocks(runs, shown),
        ]
    return Section(name="behaviour", title="Behaviour of the trained models", short="Behaviour", blocks=blocks)


def samples_appendix(study: Study) -> Section:
    """All samples of the runs that the section shows; without a block where there are none."""
    block = all_samples([run for run in behaved_runs(study) if run.is_shown])
    return Section(
        name="all-samples", title="Appendix: all samples", short="All samples", blocks=[block] if block.runs else []
    )


def _absence(study: Study, runs: Sequence[Behaved], shown: Sequence[Behaved]) -> list[str]:
    """Say which of the best runs is missing, and which runs are in the tables alone."""
    known = {run.id for run in runs}
    missing = [
        f"{run.number} {run.name} ({units.architecture(run.arch)})"
        for run in rows_of(best_runs(study.runs))
        if run.id not in known
    ]
    notes = []
    if missing:
        notes.append(
            f"Of the best runs of each architecture, {units.listing(missing)} {'is' if len(missing) == 1 else 'are'} "
            f"not here: the behaviour has not been computed or cannot be read. “{COMMAND}” computes it."
        )
    if len(shown) < len(runs):
        notes.append(
            f"Figures, sentences and samples are about {len(shown)} of {len(runs)} runs: the best of each architecture "
            "and those of the lowest validation perplexity on their text. The tables and data/behaviour.csv hold all."
        )
    return notes


def _layer_notes(runs: Sequence[Behaved]) -> list[str]:
    without = [run.reference for run in runs if run.behaviour.gradient_columns is None]
    notes = [f"No gradient norms: the model names no hidden_states ({first_few(without, 2)})."] if without else []
    single = [run.reference for run in runs if len(run.behaviour.layer_gradients) == 1]
    of = "every run here" if len(single) == len(runs) else units.listing(single)
    return [*notes, f"With one layer, the gradient norm of the layer is the overall one: {of}."] if single else notes


def _samples_blocks(runs: Sequence[Behaved], shown: Sequence[Behaved]) -> list[Block]:
    block = chosen_samples(shown)
    if not block.runs:
        return [Prose(text="There are no samples.")]
    rules = (
        "Each sample is drawn token by token from the model's own predictions; every token is the next one's input. "
        "Best and worst: lowest and highest perplexity under the judge, or under the model itself without a judge. "
        "A text that repeats itself has a low perplexity without being good. So the best samples have at most "
        f"{units.percent(MOST_REPEATED)} of tokens that occur among the 16 before them (words only), at least "
        f"{units.percent(LEAST_DISTINCT)} distinct three-token sequences and at most {units.percent(MOST_UNKNOWN)} "
        "<unk>, as long as there are such samples. Interesting: those of the others that stand out by the measure that "
        "their reason names. The appendix has all samples, data/samples.csv their measures."
    )
    return [Subheading(text="Samples"), Prose(text=rules), measures_table(runs), block]


# -- tables --------------------------------------------------------------------------------------------------------


def behaviour_table(runs: Sequence[Behaved]) -> Table:
    """What the curves come to, one row for each run."""

    def windows(run: Behaved) -> str:
        return f"{run.behaviour.windows:,} × {run.behaviour.columns:,} × {len(run.behaviour.zero_state):,}"

    caption = (
        "Windows: number × columns × tokens. First, last step: mean loss (nats). Zero state, carried: perplexity. "
        "Gradient < 1 %: steps back from the last one."
    )
    stale = [run.reference for run in runs if run.behaviour.is_stale]
    if stale:
        caption += f" Computed from an earlier checkpoint: {first_few(stale, 2)}."
    return Table(
        name="behaviour",
        title="Behaviour of the trained models",
        caption=caption,
        columns=[
            number("number", "No.", of=lambda run: run.number),
            Column("name", "Run", of=lambda run: run.name),
            Column("architecture", "Architecture", units.architecture, lambda run: run.arch),
            Column(
                "windows",
                "Windows",
                of=lambda r: r.behaviour.windows * r.behaviour.columns,
                shown=windows,
                numeric=True,
            ),
            number("first_step_loss", "First step", TWO_DECIMALS, lambda run: float(run.behaviour.zero_state[0])),
            number("last_step_loss", "Last step", TWO_DECIMALS, lambda run: float(run.behaviour.zero_state[-1])),
            number("zero_state_ppl", "Zero state", units.perplexity, lambda b: mean_perplexity(b.behaviour.zero_state)),
            number(
                "carried_state_ppl", "Carried", units.perplexity, lambda b: mean_perplexity(b.behaviour.carried_state)
            ),
            number(
                "steps_to_1_percent", "Gradient < 1 %", units.whole, lambda run: vanishes_after(run.behaviour.gradient)
            ),
            number(
                "mean_of_norms_steps_to_1_percent",
                "Mean of norms < 1 %",
                units.whole,
                lambda run: vanishes_after(run.behaviour.gradient_mean_of_norms),
            ),
            number("seconds", "Time", units.duration, lambda run: run.behaviour.seconds),
            Column("device", "Device", of=lambda run: run.behaviour.device),
            Column("judge", "Judge", units.text, lambda run: run.behaviour.judge),
        ],
        records=runs,
        run=lambda run: run.number,
    )


def measures_table(runs: Sequence[Behaved]) -> Table:
    """Means over the samples of each run and length; geometric ones of perplexities, NaN if one is missing."""
    means = []
    for run in runs:
        if run.behaviour.samples:
            samples = pd.DataFrame(_sample_records(run))
            losses = MEASURES[:2]
            samples[losses] = np.log(samples[losses].astype(float).where(samples[losses] > 0))
            mean = samples.groupby("length")[MEASURES].agg(pd.Series.mean, skipna=False)
            mean[losses] = np.exp(mean[losses])
            mean["samples"] = samples.groupby("length").size()
            run_facts: dict[str, Any] = {"number": run.number, "name": run.name, "architecture": run.arch}
            means.append(mean.assign(**run_facts).reset_index(names="tokens"))
    return Table(
        name="samples-measures",
        title="Measures of the samples",
        caption="Means over samples. Judge, own: perplexity under the judge and the model itself. Repetition: tokens "
        "that occur among the 16 before. Longest copy: tokens found in the training text.",
        columns=[
            number("number", "No."),
            Column("name", "Run"),
            Column("architecture", "Architecture", units.architecture),
            number("tokens", "Tokens", units.decimals(",")),
            number("samples", "Samples"),
            number("perplexity_other", "Judge", units.perplexity),
            number("perplexity_own", "Own", units.perplexity),
            number("entropy", "Entropy", TWO_DECIMALS),
            number("distinct_2", "Distinct-2", TWO_DECIMALS),
            number("repetition", "Repetition", units.percent),
            number("unk_share", "<unk>", units.percent),
            number("longest_copy", "Longest copy", units.decimals(".1f")),
        ],
        records=pd.concat(means),
        run=lambda row: row["number"],
    )


# -- data files ----------------------------------------------------------------------------------------------------


def behaviour_data(runs: Sequence[Behaved]) -> dict[str, pd.DataFrame]:
    """Tables of every curve's points and of every sample, at full precision; empty without any."""
    points = []
    for run in runs:
        behaviour = run.behaviour
        curves = {
            "loss_zero_state": behaviour.zero_state,
            "loss_carried_state": behaviour.carried_state,
            "gradient_overall": behaviour.gradient,
            "gradient_mean_of_norms": behaviour.gradient_mean_of_norms,
            **{f"gradient_layer_{place}": layer for place, layer in enumerate(behaviour.layer_gradients, start=1)},
        }
        points += [
            {"number": run.number, "id": run.id, "curve": curve, "t": t, "value": value}
            for curve, values in curves.items()
            for t, value in enumerate(values.tolist(), start=1)
        ]
    samples = [record for run in runs for record in _sample_records(run)]
    return {name: pd.DataFrame(rows) for name, rows in (("behaviour", points), ("samples", samples)) if rows}


def _sample_records(run: Behaved) -> list[dict[str, Any]]:
    level = run.behaviour.level
    return [
        {
            "number": run.number,
            "id": run.id,
            "index": sample.index,
            "length": sample.length,
            "prompt": plain_text(sample.prompt, level),
            "text": plain_text(sample.tokens, level),
            "perplexity_own": sample.perplexity_own,
            "perplexity_other": sample.perplexity_other,
            "entropy": float(sample.entropy.mean()),
            "repetition": sample.repetition,
            "distinct_1": sample.distinct_1,
            "distinct_2": sample.distinct_2,
            "distinct_3": sample.distinct_3,
            "unk_share": sample.unk_share,
            "longest_copy": len(sample.copied),
            "copied": plain_text(sample.copied, level),
        }
        for sample in run.behaviour.samples
    ]

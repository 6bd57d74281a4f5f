"""The section about the trained models' behaviour, its tables, and its data files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from analysis.blocks.section import Block, Points, Prose, Section, Subheading
from analysis.blocks.table import Column, Table, number
from analysis.blocks.words import first_few
from analysis.plots.behaviour import behaviour_charts
from analysis.sections.behaviour_sentences import sentences, vanishes_after
from analysis.sections.choosing import LEAST_DISTINCT, MOST_REPEATED, MOST_UNKNOWN, percent, plain_text
from analysis.sections.samples import all_samples, chosen_samples
from analysis.study import units
from analysis.study.behaved import Behaved, behaved_runs, shown_runs
from analysis.study.behaviour import Sample
from analysis.study.settings import best_runs
from analysis.study.study import Study
from analysis.study.values import Values

COMMAND = "launch.py behaviour STUDY"


def behaviour_section(study: Study) -> Section:
    """Loss at each time step, gradients back in time, and samples."""
    runs = behaved_runs(study)
    title, short = "Behaviour of the trained models", "Behaviour"
    if not runs:
        text = f"Not computed yet; “{COMMAND}” does it for the best run of each architecture."
        return Section(name="behaviour", title=title, short=short, blocks=[Prose(text=text)])
    shown = shown_runs(runs)
    notes = [*_absence(study, runs), *_left_out(runs, shown)]
    blocks: list[Block] = [
        *(Prose(text=note) for note in notes),
        *behaviour_charts(shown),
        *_one_layer_note(shown),
        Points(items=sentences(shown)),
        behaviour_table(runs),
        *_samples_blocks(runs, shown),
    ]
    return Section(name="behaviour", title=title, short=short, blocks=blocks)


def samples_appendix(study: Study) -> Section:
    """All samples of the runs that the section shows; without a block where there are none."""
    block = all_samples(shown_runs(behaved_runs(study)))
    return Section(
        name="all-samples", title="Appendix: all samples", short="All samples", blocks=[block] if block.runs else []
    )


def _absence(study: Study, runs: Sequence[Behaved]) -> list[str]:
    """Which of the best runs is missing."""
    known = {run.id for run in runs}
    missing = [
        f"{run['number']} {run['name']} ({units.architecture(run['arch'])})"
        for run in best_runs(study.runs).to_dict("records")
        if run["id"] not in known
    ]
    if not missing:
        return []
    verb = "is" if len(missing) == 1 else "are"
    return [
        f"Of the best runs of each architecture, {units.listing(missing)} {verb} not here, because the behaviour has "
        f"not been computed or cannot be read; “{COMMAND}” computes it."
    ]


def _left_out(runs: Sequence[Behaved], shown: Sequence[Behaved]) -> list[str]:
    if len(shown) == len(runs):
        return []
    return [
        f"Figures, sentences and samples are about {len(shown)} of {len(runs)} runs: the best of each architecture and "
        "those of the lowest validation perplexity. The tables and data/behaviour.csv hold all of them."
    ]


def _one_layer_note(runs: Sequence[Behaved]) -> list[Prose]:
    single = [run.reference for run in runs if len(run.behaviour.layer_gradients) == 1]
    if not single:
        return []
    of = "Every run here has" if len(single) == len(runs) else f"{units.listing(single)} {_have(single)}"
    return [Prose(text=f"{of} one layer, so that its gradient norm is the overall one.")]


def _have(items: Sequence[str]) -> str:
    return "has" if len(items) == 1 else "have"


# -- samples -------------------------------------------------------------------------------------------------------


def _samples_blocks(runs: Sequence[Behaved], shown: Sequence[Behaved]) -> list[Block]:
    block = chosen_samples(shown)
    if not block.runs:
        return [Prose(text="There are no samples.")]
    rules = (
        "Each sample is drawn token by token from the model's own predictions, every token the next one's input. Best "
        "and worst: lowest and highest perplexity under the judge (where there is none, under the model itself). A "
        "text that repeats itself has a low perplexity without being good, so the best are chosen among texts with at "
        f"most {percent(MOST_REPEATED)} of tokens that occur among the 16 before them (texts of words only), at least "
        f"{percent(LEAST_DISTINCT)} distinct three-token sequences and at most {percent(MOST_UNKNOWN)} <unk>, as long "
        "as there are any. Interesting: among the samples not chosen yet, by the measure that each one's reason names. "
        "All samples are in the appendix, their measures in data/samples.csv."
    )
    return [
        Subheading(text="Samples"),
        Prose(text=rules),
        measures_table([run for run in runs if run.behaviour.samples]),
        block,
    ]


# -- tables --------------------------------------------------------------------------------------------------------


def _run_columns(run_of: Callable[[Any], Behaved]) -> list[Column]:
    return [
        number("number", "No.", of=lambda record: run_of(record).number),
        Column("name", "Run", of=lambda record: run_of(record).name),
        Column("architecture", "Architecture", units.architecture, lambda record: run_of(record).arch),
    ]


TWO_DECIMALS = units.decimals(".2f")


def behaviour_table(runs: Sequence[Behaved]) -> Table:
    """What the curves come to, one row for each run."""
    columns = [
        *_run_columns(lambda run: run),
        Column(
            "windows",
            "Windows",
            of=lambda run: run.behaviour.windows * run.behaviour.columns,
            shown=_windows,
            numeric=True,
        ),
        number("first_step_loss", "First step", TWO_DECIMALS, lambda run: float(run.behaviour.zero_state[0])),
        number("last_step_loss", "Last step", TWO_DECIMALS, lambda run: float(run.behaviour.zero_state[-1])),
        number("zero_state_ppl", "Zero state", units.perplexity, lambda run: _perplexity(run.behaviour.zero_state)),
        number("carried_state_ppl", "Carried", units.perplexity, lambda run: _perplexity(run.behaviour.carried_state)),
        number("steps_to_1_percent", "Gradient < 1 %", units.whole, lambda run: vanishes_after(run.behaviour.gradient)),
        number("mean_of_norms_steps_to_1_percent", "Mean of norms < 1 %", units.whole, _mean_of_norms_vanishes),
        number("seconds", "Time", units.duration, lambda run: run.behaviour.seconds),
        Column("device", "Device", of=lambda run: run.behaviour.device),
        Column("judge", "Judge", units.text, lambda run: run.behaviour.judge),
    ]
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
        columns=columns,
        records=runs,
        run=lambda run: run.number,
    )


def _mean_of_norms_vanishes(run: Behaved) -> int | None:
    return vanishes_after(run.behaviour.gradient_mean_of_norms)


def _windows(run: Behaved) -> str:
    behaviour = run.behaviour
    return f"{behaviour.windows:,} × {behaviour.columns:,} × {len(behaviour.zero_state):,}"


def _perplexity(losses: Values) -> float:
    mean = float(losses.mean())
    return math.exp(mean) if mean < 700 else math.nan


# -- samples -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SamplesOfLength:
    """The samples of a run that have one length."""

    run: Behaved
    length: int
    samples: list[Sample]

    def mean(self, measure: Callable[[Sample], float]) -> float:
        return float(np.mean([measure(sample) for sample in self.samples]))

    def geometric_mean(self, measure: Callable[[Sample], float]) -> float:
        """NaN where one is missing."""
        values = np.array([measure(sample) for sample in self.samples], dtype=float)
        return float(np.exp(np.log(values).mean())) if (values > 0).all() else math.nan


def measures_table(runs: Sequence[Behaved]) -> Table:
    """Means over the samples of each run and length."""

    def of(measure: Callable[[Sample], float]) -> Callable[[SamplesOfLength], float]:
        return lambda group: group.mean(measure)

    columns = [
        *_run_columns(lambda group: group.run),
        number("tokens", "Tokens", units.decimals(","), lambda group: group.length),
        number("samples", "Samples", of=lambda group: len(group.samples)),
        number("perplexity_other", "Judge", units.perplexity, lambda g: g.geometric_mean(lambda s: s.perplexity_other)),
        number("perplexity_own", "Own", units.perplexity, lambda g: g.geometric_mean(lambda s: s.perplexity_own)),
        number("entropy", "Entropy", TWO_DECIMALS, of(lambda sample: float(sample.entropy.mean()))),
        number("distinct_2", "Distinct-2", TWO_DECIMALS, of(lambda sample: sample.distinct[1])),
        number("repetition", "Repetition", percent, of(lambda sample: sample.repetition)),
        number("unk_share", "<unk>", percent, of(lambda sample: sample.unk_share)),
        number("longest_copy", "Longest copy", "{:.1f}".format, of(lambda sample: len(sample.copied))),
    ]
    groups = [
        SamplesOfLength(run=run, length=length, samples=list(members))
        for run in runs
        for length, members in groupby(
            sorted(run.behaviour.samples, key=lambda sample: sample.length), key=lambda sample: sample.length
        )
    ]
    caption = (
        "Means over samples. Judge, own: perplexity under the judge and the model itself. Repetition: tokens that "
        "occur among the 16 before. Longest copy: tokens found in the training text."
    )
    return Table(
        name="samples-measures",
        title="Measures of the samples",
        caption=caption,
        columns=columns,
        records=groups,
        run=lambda group: group.run.number,
    )


# -- data files ----------------------------------------------------------------------------------------------------


def behaviour_data(runs: Sequence[Behaved]) -> dict[str, pd.DataFrame]:
    """Tables of every curve's points and of every sample, at full precision; empty without any."""
    points = [
        {"number": run.number, "id": run.id, "curve": curve, "t": t, "value": value}
        for run in runs
        for curve, values in _curves(run)
        for t, value in enumerate(values.tolist(), start=1)
    ]
    samples = [_sample_record(run, sample) for run in runs for sample in run.behaviour.samples]
    tables = {"behaviour": points, "samples": samples}
    return {name: pd.DataFrame(records) for name, records in tables.items() if records}


def _curves(run: Behaved) -> list[tuple[str, Values]]:
    behaviour = run.behaviour
    layers = [(f"gradient_layer_{place}", values) for place, values in enumerate(behaviour.layer_gradients, start=1)]
    return [
        ("loss_zero_state", behaviour.zero_state),
        ("loss_carried_state", behaviour.carried_state),
        ("gradient_overall", behaviour.gradient),
        ("gradient_mean_of_norms", behaviour.gradient_mean_of_norms),
        *layers,
    ]


def _sample_record(run: Behaved, sample: Sample) -> dict[str, Any]:
    level = run.behaviour.level
    return {
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
        "distinct_1": sample.distinct[0],
        "distinct_2": sample.distinct[1],
        "distinct_3": sample.distinct[2],
        "unk_share": sample.unk_share,
        "longest_copy": len(sample.copied),
        "copied": plain_text(sample.copied, level),
    }

"""The tables of the trained models' behaviour, for the page and as data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from analysis import units
from analysis.table_text import Cell, Column, Row, Table
from analysis.trained.behaved import Behaved
from analysis.trained.behaviour_files import Sample, Values
from analysis.trained.choosing import percent
from analysis.trained.curve_facts import vanishes_after
from analysis.trained.detokenise import plain_text

RUN = [
    Column(key="number", title="No.", numeric=True),
    Column(key="name", title="Run"),
    Column(key="architecture", title="Architecture"),
]


def behaviour_table(runs: Sequence[Behaved]) -> Table:
    """What the curves come to, one row for each run."""
    columns = [
        *RUN,
        Column(key="windows", title="Windows", numeric=True),
        Column(key="first_step_loss", title="First step", numeric=True),
        Column(key="last_step_loss", title="Last step", numeric=True),
        Column(key="zero_state_ppl", title="Zero state", numeric=True),
        Column(key="carried_state_ppl", title="Carried", numeric=True),
        Column(key="steps_to_1_percent", title="Gradient < 1 %", numeric=True),
        Column(key="seconds", title="Time", numeric=True),
        Column(key="device", title="Device"),
        Column(key="judge", title="Judge"),
    ]
    caption = (
        "Windows: number × columns × tokens of each, of the validation text. First and last step: mean loss there, in "
        "nats, the state zero at the window's start. Zero state and carried: perplexity over all steps, the "
        "exponential of the mean loss, with the state set to zero at each window's start and carried on. Gradient < "
        "1 %: steps before the last one at which the gradient norm first is below 1 % of its maximum, walking back "
        f"from the last step; {units.MISSING}: nowhere in the window. Time and device: of this evaluation. Judge: the "
        "run whose model rates the samples."
    )
    stale = [run.reference for run in runs if run.behaviour.is_stale]
    if stale:
        caption += f" Computed from an earlier checkpoint than the run's best by now: {units.listing(stale)}."
    return Table(
        name="behaviour",
        title="Behaviour of the trained models",
        caption=caption,
        columns=columns,
        rows=[_behaviour_row(run) for run in runs],
    )


def _behaviour_row(run: Behaved) -> Row:
    behaviour = run.behaviour
    steps = len(behaviour.zero_state)
    zero, carried = _perplexity(behaviour.zero_state), _perplexity(behaviour.carried_state)
    back = vanishes_after(behaviour.gradient)
    cells = [
        *_run_cells(run),
        Cell(
            text=f"{behaviour.windows:,} × {behaviour.columns:,} × {steps:,}",
            value=behaviour.windows * behaviour.columns,
        ),
        _loss_cell(behaviour.zero_state[0]),
        _loss_cell(behaviour.zero_state[-1]),
        Cell(text=units.perplexity(zero), value=zero),
        Cell(text=units.perplexity(carried), value=carried),
        Cell(text=units.MISSING if back is None else str(back), value=back),
        Cell(text=units.duration(behaviour.seconds), value=behaviour.seconds),
        Cell(text=behaviour.device, value=behaviour.device),
        Cell(text=behaviour.judge or units.MISSING, value=behaviour.judge),
    ]
    return Row(cells=cells, run=run.number)


def _run_cells(run: Behaved) -> list[Cell]:
    return [
        Cell(text=str(run.number), value=run.number),
        Cell(text=run.name, value=run.name),
        Cell(text=units.architecture(run.arch), value=run.arch),
    ]


def _loss_cell(loss: Any) -> Cell:
    return Cell(text=f"{loss:.2f}" if math.isfinite(loss) else units.MISSING, value=float(loss))


def _perplexity(losses: Values) -> float:
    mean = float(losses.mean())
    return math.exp(mean) if mean < 700 else math.nan


# -- samples -------------------------------------------------------------------------------------------------------


def measures_table(runs: Sequence[Behaved]) -> Table:
    """Means over the samples of each run and length."""
    columns = [
        *RUN,
        Column(key="tokens", title="Tokens", numeric=True),
        Column(key="samples", title="Samples", numeric=True),
        Column(key="perplexity_other", title="Judge", numeric=True),
        Column(key="perplexity_own", title="Own", numeric=True),
        Column(key="entropy", title="Entropy", numeric=True),
        Column(key="distinct_2", title="Distinct-2", numeric=True),
        Column(key="repetition", title="Repetition", numeric=True),
        Column(key="unk_share", title="<unk>", numeric=True),
        Column(key="longest_copy", title="Longest copy", numeric=True),
    ]
    rows = []
    for run in runs:
        ordered = sorted(run.behaviour.samples, key=lambda sample: sample.length)
        for length, members in groupby(ordered, key=lambda sample: sample.length):
            rows.append(_measures_row(run, length, list(members)))
    caption = (
        "Means over the samples of each length. Judge and own: perplexity under the judge's model and under the model "
        "itself, the exponential of the mean loss of a token (the geometric mean over samples). Entropy: of the "
        "distributions that the tokens were drawn from, in nats. Distinct-2: distinct pairs of successive tokens, "
        "divided by all. Repetition: share of the tokens, from the second on, that occur among the 16 before them. "
        "<unk>: share of the tokens. Longest copy: tokens of the longest passage that stands in the training text as "
        f"it is. {units.MISSING}: not available."
    )
    return Table(name="samples-measures", title="Measures of the samples", caption=caption, columns=columns, rows=rows)


def _measures_row(run: Behaved, length: int, samples: Sequence[Sample]) -> Row:
    other = _geometric_mean(sample.perplexity_other for sample in samples)
    own = _geometric_mean(sample.perplexity_own for sample in samples)
    entropy = _mean(float(sample.entropy.mean()) for sample in samples)
    distinct = _mean(sample.distinct[1] for sample in samples)
    repetition = _mean(sample.repetition for sample in samples)
    unknown = _mean(sample.unk_share for sample in samples)
    copied = _mean(len(sample.copied) for sample in samples)
    cells = [
        *_run_cells(run),
        Cell(text=f"{length:,}", value=length),
        Cell(text=str(len(samples)), value=len(samples)),
        Cell(text=units.perplexity(other), value=other),
        Cell(text=units.perplexity(own), value=own),
        _loss_cell(entropy),
        _loss_cell(distinct),
        Cell(text=percent(repetition), value=repetition),
        Cell(text=percent(unknown), value=unknown),
        Cell(text=f"{copied:.1f}", value=copied),
    ]
    return Row(cells=cells, run=run.number)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _geometric_mean(perplexities: Iterable[float]) -> float:
    """NaN where one is missing."""
    values = np.array(list(perplexities), dtype=float)
    return float(np.exp(np.log(values).mean())) if (values > 0).all() else math.nan


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

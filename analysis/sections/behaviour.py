"""The section about the trained models' behaviour: sentences, tables, and data files. Time steps count from 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.blocks.section import Block, Section, Subheading, paragraphs
from analysis.blocks.sentences import sentences
from analysis.blocks.table import Column, Table, number
from analysis.plots.behaviour import gradient_chart, loss_chart
from analysis.sections.samples import chosen_samples, sample_sections, samples_table
from analysis.study import units
from analysis.study.columns import table_of
from analysis.study.examined import ExaminedRun, examined_runs
from analysis.study.settings import best_runs, in_report_order
from analysis.study.study import StudyFiles
from analysis.study.texts import LEAST_DISTINCT, MOST_REPEATED, texts_of
from analysis.study.units import plain_text
from analysis.study.values import Values, rows_of

VANISHED = 0.01
"""A gradient below this share of its maximum counts as vanished."""

TWO_DECIMALS = units.decimals(".2f")


def behaviour_section(study: StudyFiles) -> Section:
    """Loss at each time step, gradients back in time, and samples."""
    runs = examined_runs(study)
    shown = [run for run in runs if run.is_shown]
    with_gradients = [run for run in shown if run.gradients]
    known = {run.id for run in runs}
    asked = study.runs[study.runs["id"].isin(study.behaviour_of)]
    wanted = asked if study.behaviour_of else best_runs(study.runs, study.settings)
    without = [run for run in rows_of(in_report_order(wanted)) if run.id not in known]
    absent = [run for run in study.absent if run.digits in study.behaviour_of]
    absence = sentences(
        "behaviour_absence",
        command=f"seqlm behaviour {next(iter(study.directories))}",
        runs=runs,
        shown=shown,
        missing=[run for run in without if run.state == "done"],
        waiting=[f"{run.number} {run.name}" for run in [*(run for run in without if run.state != "done"), *absent]],
        without=[run.reference for run in shown if not run.gradients],
    )
    blocks: list[Block] = paragraphs(absence)
    if runs:
        texts = texts_of(shown)
        rules = sentences(
            "samples",
            samples=texts,
            random_start=all(run.behaviour.settings.prompt is None for run in runs),
            panels=list({text.raters: panel_of(text.run) for text in texts if text.is_rated_by_panel}.values()),
            several=len({text.raters for text in texts}) > 1,
            own=any(not text.is_rated_by_panel for text in texts),
            limits=sorted({text.most_unknown for text in texts}),
            recorded=all(text.run.behaviour.held_out for text in texts),
            repeated=MOST_REPEATED,
            distinct=LEAST_DISTINCT,
        )
        blocks += [
            loss_chart(shown),
            *([gradient_chart(with_gradients)] if with_gradients else []),
            Subheading(text="Samples"),
            *paragraphs(rules),
        ]
        if texts:
            blocks += [chosen_samples(shown), samples_table(runs)]
        blocks.append(behaviour_table(runs))
    return Section(name="behaviour", title="Behaviour of the trained models", short="Behaviour", blocks=blocks)


def samples_page(study: StudyFiles) -> list[Section]:
    """All samples of the runs that the section shows, for a page of their own."""
    return sample_sections([run for run in examined_runs(study) if run.is_shown])


def panel_of(run: ExaminedRun) -> list[str]:
    """Names of the runs whose models rate a run's samples."""
    return [member.name for member in run.behaviour.panel or ()]


# -- what the curves come to ---------------------------------------------------------------------------------------


def facts_of(run: ExaminedRun) -> dict[str, Any]:
    """What the curves of a run come to, in numbers."""
    norms = run.gradients if run.reaches_back else None
    return {
        "losses": run.losses,
        "zero": mean_perplexity(run.losses.zero_state),
        "carried": mean_perplexity(run.losses.carried_state),
        "back": vanishes_after(norms.overall) if norms else None,
        "single": vanishes_after(norms.mean_of_norms) if norms else None,
    }


def mean_perplexity(losses: Values) -> float:
    """The perplexity over all steps; NaN if it is too large for a number."""
    mean = float(losses.mean())
    return math.exp(mean) if mean < 700 else math.nan


def vanishes_after(norms: Values) -> int | None:
    """Return how many steps before the last one the gradient is first below 1 % of its maximum, walking back.

    ``None``: it never is, or there is no maximum above 0.

    >>> vanishes_after(np.array([0.5, 0.001, 0.2, 1.0]))
    2
    """
    top = float(np.nanmax(norms)) if np.isfinite(norms).any() else math.nan
    below = np.flatnonzero(norms[::-1] < VANISHED * top)
    return int(below[0]) if top > 0 and len(below) else None


def behaviour_table(runs: Sequence[ExaminedRun]) -> Table:
    """What the curves come to, one row for each run."""
    caption = (
        "First, last step: nats. Zero state, carried: perplexity. < 1 %: steps back, for the norm of the mean and the "
        f"mean of norms ({units.MISSING}: never)."
    )
    return Table(
        name="behaviour",
        title="Behaviour of the trained models",
        caption=caption,
        columns=[
            number("number", "No."),
            Column("name", "Run"),
            number("first_step_loss", "First step", TWO_DECIMALS, lambda run: float(run["losses"].zero_state[0])),
            number("last_step_loss", "Last step", TWO_DECIMALS, lambda run: float(run["losses"].zero_state[-1])),
            number("zero_state_ppl", "Zero state", units.perplexity, lambda run: run["zero"]),
            number("carried_state_ppl", "Carried", units.perplexity, lambda run: run["carried"]),
            number("steps_to_1_percent", "Gradient < 1 %", units.whole, lambda run: run["back"]),
            number("mean_of_norms_steps_to_1_percent", "Norms < 1 %", units.whole, lambda run: run["single"]),
        ],
        records=[{"number": run.number, "name": run.name, **facts_of(run)} for run in runs],
    )


# -- data files ----------------------------------------------------------------------------------------------------


def behaviour_data(runs: Sequence[ExaminedRun]) -> dict[str, pd.DataFrame]:
    """Tables of every curve's points, of every sample and of every held-out piece, at full precision."""
    points: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    held_out: list[dict[str, Any]] = []
    for run in runs:
        curves = {"loss_zero_state": run.losses.zero_state, "loss_carried_state": run.losses.carried_state}
        if norms := run.gradients:
            curves |= {"gradient_overall": norms.overall, "gradient_mean_of_norms": norms.mean_of_norms}
            curves |= {f"gradient_layer_{place}": layer for place, layer in enumerate(norms.layers, start=1)}
        points += [
            {"number": run.number, "id": run.id, "curve": curve, "t": t, "value": value}
            for curve, values in curves.items()
            for t, value in enumerate(values.tolist(), start=1)
        ]
        level = run.behaviour.level
        samples += [
            {
                "number": run.number,
                "id": run.id,
                "index": sample.index,
                "length": sample.length,
                "prompt": plain_text(sample.prompt, level),
                "text": plain_text(sample.tokens, level),
                "entropy": float(sample.entropy.mean()),
                **vars(sample.measures),
                "copied": plain_text(sample.measures.copied, level),
            }
            for sample in run.samples
        ]
        held_out += [
            {"number": run.number, "id": run.id, "index": index, **vars(piece)}
            for index, piece in enumerate(run.behaviour.held_out or ())
        ]
    rows = {"behaviour": points, "samples": samples, "held_out": held_out}
    return {name: table_of(name, found) for name, found in rows.items()}

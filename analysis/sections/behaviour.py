"""The section about the trained models' behaviour: sentences, tables, and data files. Time steps count from 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.blocks.section import Block, Points, Prose, Section, Subheading
from analysis.blocks.table import Column, Table, number
from analysis.blocks.texts import first_few
from analysis.plots.behaviour import gradient_chart, loss_chart
from analysis.sections.samples import LEAST_DISTINCT, MOST_REPEATED, MOST_UNKNOWN, all_samples, chosen_samples
from analysis.study import units
from analysis.study.behaved import Behaved, behaved_runs
from analysis.study.settings import best_runs
from analysis.study.study import Study
from analysis.study.values import Values, rows_of
from analysis.study.wording import plain_text

COMMAND = "launch.py behaviour STUDY"

STRETCH = 10
"""Steps over which losses are averaged where a single step's would say too little."""
NEAR = 1.02
"""A loss up to this many times the lowest counts as near it."""
VANISHED = 0.01
"""A gradient below this share of its maximum counts as vanished."""
CLEAR = 2.0
"""A change counts as one from this many standard errors on."""
FEWEST = 3
"""Steps without which a mean is not compared."""

TWO_DECIMALS = units.decimals(".2f")
SIGNED = units.decimals("+.2f")


def behaviour_section(study: Study) -> Section:
    """Loss at each time step, gradients back in time, and samples."""
    runs = behaved_runs(study)
    shown = [run for run in runs if run.is_shown]
    text = f"Not computed yet. “{COMMAND}” computes it for the best run of each architecture on each text."
    blocks: list[Block] = [Prose(text=text)]
    if runs:
        with_gradients = [run for run in shown if run.gradients]
        blocks = [
            *(Prose(text=note) for note in _absence(study, runs, shown)),
            loss_chart(shown),
            *([gradient_chart(with_gradients)] if with_gradients else []),
            Points(items=[*comparisons(shown), *map(about, shown)]),
            *_samples(shown),
            behaviour_table(runs),
        ]
    return Section(name="behaviour", title="Behaviour of the trained models", short="Behaviour", blocks=blocks)


def samples_appendix(study: Study) -> Section:
    """All samples of the runs that the section shows; without a block where there are none."""
    blocks = all_samples([run for run in behaved_runs(study) if run.is_shown])
    return Section(name="all-samples", title="Appendix: all samples", short="All samples", blocks=blocks)


def _absence(study: Study, runs: Sequence[Behaved], shown: Sequence[Behaved]) -> list[str]:
    """Say which of the best runs is missing, and what is not shown of which runs."""
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
    if without := [run.reference for run in shown if not run.gradients]:
        notes.append(f"No gradient norms: the model names no hidden_states ({first_few(without, 2)}).")
    return notes


def _samples(runs: Sequence[Behaved]) -> list[Block]:
    if not any(run.samples for run in runs):
        return [Prose(text="There are no samples.")]
    start = "The first token of each is uniform over the vocabulary and counts in its length. "
    rules = (
        f"{start if all(run.behaviour.settings.prompt is None for run in runs) else ''}"
        f"Each further token is drawn from the model's own prediction and is the next input. {judges(runs)} Best and "
        "worst: lowest and highest perplexity under the judge, or under the model itself without a judge. A text that "
        f"repeats itself has a low perplexity without being good. So the best have at most "
        f"{units.percent(MOST_REPEATED)} of tokens that occur among the 16 before them (words only), at least "
        f"{units.percent(LEAST_DISTINCT)} distinct three-token sequences and at most {units.percent(MOST_UNKNOWN)} "
        "<unk>, as long as there are such samples. Interesting: those that stand out among the others. The appendix "
        "has the samples of each run, data/samples.csv their measures."
    )
    return [Subheading(text="Samples"), Prose(text=rules), chosen_samples(runs)]


def judges(runs: Sequence[Behaved]) -> str:
    """Name the runs whose models rate the samples, and of which runs: a judge is rated by another one."""
    rated: dict[str, list[str]] = {}
    for run in runs:
        if run.behaviour.judge:
            rated.setdefault(run.behaviour.judge.name, []).append(str(run.number))
    parts = [f"{judge} (of {first_few(numbers, 3)})" for judge, numbers in rated.items()]
    return f"Judge: {units.listing(parts)}." if parts else ""


# -- what the curves show, in sentences with numbers ---------------------------------------------------------------


def comparisons(runs: Sequence[Behaved]) -> list[str]:
    """Name the lowest and the highest of the runs by what can be compared."""
    means = {run.id: samples_means(run) for run in runs if run.samples}
    values: list[tuple[str, Callable[[Any], str], dict[str, float | None]]] = [
        ("Perplexity in windows with a zero state", units.perplexity, {r.id: zero_state(r) for r in runs}),
        (
            "Steps back to a gradient below 1 % of its maximum",
            units.whole,
            {r.id: vanishes_after(r.gradients.overall) for r in runs if r.gradients and r.reaches_back},
        ),
        (
            "Perplexity of the samples under their judge",
            units.rounded,
            {k: m["perplexity_other"] for k, m in means.items()},
        ),
        ("Tokens that occur among the 16 before them", units.percent, {k: m["repetition"] for k, m in means.items()}),
    ]
    names = {run.id: run.reference for run in runs}
    sentences = []
    for what, write, of_runs in values:
        found = sorted((amount, names[run]) for run, amount in of_runs.items() if units.is_number(amount))
        if found and write(found[0][0]) != write(found[-1][0]):
            (low, lowest), (high, highest) = found[0], found[-1]
            sentences.append(f"{what}: lowest {write(low)} ({lowest}), highest {write(high)} ({highest}).")
    return sentences


def about(run: Behaved) -> str:
    """What a run's curves and samples show."""
    found = [part(run) for part in (_context, _carried, _past_training, _vanishing, _habits)]
    return f"{run.reference}: {'; '.join(filter(None, found))}."


def _context(run: Behaved) -> str | None:
    losses = run.losses.zero_state
    first, last = (
        float(losses[0]),
        float(losses[max(1, len(losses) - STRETCH) :].mean()) if len(losses) > 1 else math.nan,
    )
    if not math.isfinite(last - first):
        return None
    step = settles_at(losses)
    near = f", and is within 2 % of its lowest mean over {STRETCH} steps from step {step}" if step else ""
    return f"the loss goes from {first:.2f} nats at the first step to {last:.2f} in the last {STRETCH}{near}"


def settles_at(losses: Values) -> int | None:
    """Return the first step from which the mean of ``STRETCH`` successive losses is within 2 % of the lowest such mean.

    ``None``: there are no two such stretches, or a loss is not finite.
    """
    if len(losses) <= STRETCH or not np.isfinite(losses).all():
        return None
    means = np.convolve(losses, np.full(STRETCH, 1 / STRETCH), mode="valid")
    return int(np.flatnonzero(means <= NEAR * means.min())[0]) + 1


def _carried(run: Behaved) -> str | None:
    zero, carried = zero_state(run), mean_perplexity(run.losses.carried_state)
    if not run.carries_state or not math.isfinite(zero + carried):
        return None
    return f"a state carried on gives a perplexity of {units.perplexity(carried)} instead of {units.perplexity(zero)}"


def zero_state(run: Behaved) -> float:
    """The perplexity over all steps of windows with a zero state."""
    return mean_perplexity(run.losses.zero_state)


def mean_perplexity(losses: Values) -> float:
    """The perplexity over all steps; NaN if it is too large for a number."""
    mean = float(losses.mean())
    return math.exp(mean) if mean < 700 else math.nan


def _past_training(run: Behaved) -> str | None:
    found = beyond(run.losses.zero_state, run.behaviour.seq_len)
    if found is None:
        return None
    change, error = found
    verdict = "does not clearly change" if abs(change) <= CLEAR * error else "rises" if change > 0 else "falls"
    return f"past the training length it {verdict} ({SIGNED(change)} ± {error:.2f} nats)"


def beyond(losses: Values, seq_len: int) -> tuple[float, float] | None:
    """Return the change of the mean loss past the training length and its standard error; ``None`` for too few steps.

    It is compared with the second half of the training length, where context is no longer scarce.
    """
    inside, after = losses[seq_len // 2 : seq_len], losses[seq_len:]
    if min(len(inside), len(after)) < FEWEST:
        return None
    change = float(after.mean() - inside.mean())
    error = math.sqrt(inside.var(ddof=1) / len(inside) + after.var(ddof=1) / len(after))
    return (change, error) if math.isfinite(change + error) else None


def _vanishing(run: Behaved) -> str | None:
    if run.gradients is None:
        return None
    if not run.reaches_back:
        return (
            "its gradient is zero before the last step by construction: what its one block gives at a position is read "
            "at no later one"
        )
    back, single = map(vanishes_after, (run.gradients.overall, run.gradients.mean_of_norms))
    if back is None:
        share = run.gradients.overall[0] / np.nanmax(run.gradients.overall)
        steps = f"the first of {run.gradients.window} steps"
        return f"the gradient of the last loss has {units.percent(share)} of its maximum left at {steps}"
    mean = "it never is" if single is None else f"{single} back"
    return (
        f"the gradient of the last loss is below 1 % of its maximum {units.count(back, 'step')} back ({mean} if the "
        "norm of each sequence is taken before the mean)"
    )


def vanishes_after(norms: Values) -> int | None:
    """Return how many steps before the last one the gradient is first below 1 % of its maximum, walking back.

    ``None``: it never is, or there is no maximum above 0.

    >>> vanishes_after(np.array([0.5, 0.001, 0.2, 1.0]))
    2
    """
    top = float(np.nanmax(norms)) if np.isfinite(norms).any() else math.nan
    below = np.flatnonzero(norms[::-1] < VANISHED * top)
    return int(below[0]) if top > 0 and len(below) else None


def _habits(run: Behaved) -> str | None:
    if not run.samples:
        return None
    means = samples_means(run)
    longest = max(run.samples, key=lambda sample: sample.measures.longest_copy)
    return (
        f"in its samples {units.percent(means['repetition'])} of the tokens occur among the 16 before them and "
        f"{units.percent(means['unk_share'])} are <unk>; the longest passage copied from the training text has "
        f"{units.count(longest.measures.longest_copy, 'token')} (sample {longest.index})"
    )


# -- tables --------------------------------------------------------------------------------------------------------


def behaviour_table(runs: Sequence[Behaved]) -> Table:
    """What the curves come to and the means over the samples, one row for each run."""

    def back(norms: str) -> Callable[[Behaved], int | None]:
        return lambda run: vanishes_after(getattr(run.gradients, norms)) if run.reaches_back else None

    means = {run.id: samples_means(run) for run in runs if run.samples}

    def mean(key: str, title: str, text: Callable[[Any], str]) -> Column:
        return number(key, title, text, lambda run: means[run.id][key] if run.samples else None)

    caption = (
        "First, last step: nats. Zero state, carried: perplexity. < 1 %: steps back, for the norm of the mean and the "
        f"mean of norms. Then means over samples. {judges(runs)}"
    ).strip()
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
            number("first_step_loss", "First step", TWO_DECIMALS, lambda run: float(run.losses.zero_state[0])),
            number("last_step_loss", "Last step", TWO_DECIMALS, lambda run: float(run.losses.zero_state[-1])),
            number("zero_state_ppl", "Zero state", units.perplexity, zero_state),
            number("carried_state_ppl", "Carried", units.perplexity, lambda r: mean_perplexity(r.losses.carried_state)),
            number("steps_to_1_percent", "Gradient < 1 %", units.whole, back("overall")),
            number("mean_of_norms_steps_to_1_percent", "Norms < 1 %", units.whole, back("mean_of_norms")),
            mean("perplexity_other", "Judge", units.perplexity),
            mean("perplexity_own", "Own", units.perplexity),
            mean("distinct_2", "Distinct-2", TWO_DECIMALS),
            mean("repetition", "Repetition", units.percent),
            mean("unk_share", "<unk>", units.percent),
            mean("longest_copy", "Longest copy", units.decimals(".1f")),
        ],
        records=runs,
        run=lambda run: run.number,
    )


def samples_means(run: Behaved) -> pd.Series[Any]:
    """Means over the samples of a run; geometric ones of perplexities, NaN if one is missing."""
    samples = behaviour_data([run])["samples"]
    losses = ["perplexity_own", "perplexity_other"]
    samples[losses] = np.log(samples[losses].where(samples[losses] > 0))
    means = samples.select_dtypes("number").mean(skipna=False)
    means[losses] = np.exp(means[losses])
    return means


# -- data files ----------------------------------------------------------------------------------------------------


def behaviour_data(runs: Sequence[Behaved]) -> dict[str, pd.DataFrame]:
    """Tables of every curve's points and of every sample, at full precision; empty without any."""
    points: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
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
    return {name: pd.DataFrame(rows) for name, rows in (("behaviour", points), ("samples", samples)) if rows}

"""What the captions of the learning curves say: how to read the figure, and what it does not show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.plots.axes import Progress, Scale
from analysis.plots.curves import Curve, highest
from analysis.plots.lines import Choice, Factor
from analysis.study import units
from analysis.study.study import Study
from analysis.study.values import Values

MOST_NAMED = 8
"""Runs that a sentence names; the rest are counted."""

LINE_STYLES = "Adam solid, circles; SGD dashed, squares; SGD schedule dotted, triangles"


def all_runs_caption(study: Study, choice: Choice, scale: Scale, progress: Progress) -> str:
    """The caption of the figure with all runs."""
    sentences = [
        *_number_sentences(choice, "run"),
        f"Colour: architecture. Line and marker: optimizer ({LINE_STYLES}).",
        *_axis_sentences(scale.logarithmic, [progress]),
        *_early_sentence(choice.all),
        *_cut_sentence([(curve, curve.val_ppl) for curve in choice.all if scale.cuts(curve.val_ppl)], scale.high),
        *_left_out_sentence(_facts(study.runs), choice.all),
    ]
    return " ".join(sentences)


def group_caption(
    runs: pd.DataFrame, choices: Mapping[Progress, Choice], scale: Scale, by: Factor | None = None
) -> str:
    """The caption of the figure of some runs, all of one architecture or optimizer if ``by``, over epochs and time."""
    choice = next(iter(choices.values()))
    styles = {"optimizer": "Colour: architecture.", "arch": f"Line and marker: optimizer ({LINE_STYLES})."}
    style = " ".join(text for factor, text in styles.items() if by in (None, factor))
    sentences = [
        *(
            ["Left: over epochs; right: over wall-clock time; the vertical axis is the same."]
            if len(choices) > 1
            else []
        ),
        *_number_sentences(choice, "setting" if any(curve.runs for curve in choice.all) else "run"),
        style,
        *_seeds_sentence(choice.all, list(choices)),
        *_axis_sentences(scale.logarithmic, list(choices)),
        *_early_sentence(choice.all),
        *_cut_sentence([(c, v) for c in choice.all if scale.cuts(v := np.concatenate(c.drawn))], scale.high),
        *_left_out_sentence(_facts(runs), choice.all),
    ]
    return " ".join(sentences)


def panels_caption(
    study: Study, curves: Sequence[Curve], shown: Sequence[Curve], scales: Sequence[Scale], progress: Progress
) -> str:
    """The caption of the figure with a panel for each run."""
    logarithmic = [scale for scale in scales if scale.logarithmic]
    sentences = [
        *_chosen_sentence(curves, shown),
        "Solid: validation; dashed: training (with dropout on, so that it can lie above validation).",
        "Each panel has its own vertical axis.",
        *_axis_sentences(len(logarithmic) == len(shown), [progress]),
        *_early_sentence(shown),
    ]
    for curve, scale in zip(shown, scales, strict=True):
        values = np.concatenate([curve.train_ppl, curve.val_ppl])
        if scale.cuts(values):
            sentences += _cut_sentence([(curve, values)], scale.high)
    return " ".join([*sentences, *_left_out_sentence(_facts(study.runs), curves)])


def spoken(progress: Progress) -> str:
    """What the horizontal axis counts, in words."""
    return "epochs" if progress == "epochs" else "wall-clock time"


# -- sentences -----------------------------------------------------------------------------------------------------


def _number_sentences(choice: Choice, what: str) -> list[str]:
    where = "its number" if what == "run" else "the number of its first run"
    if not choice.crowd:
        return [f"A line for each {what}, {where} at the end."]
    lines = f"{len(choice.all):,} {'runs' if what == 'run' else 'lines'}"
    return [
        *([f"A line for each {what}."] if what != "run" else []),
        f"In colour, {where} at the end: of {lines} the {len(choice.named)} best (lowest validation perplexity at any "
        f"epoch), in turn from each architecture with each optimizer. Grey: the other {len(choice.crowd):,}.",
    ]


def _seeds_sentence(curves: Sequence[Curve], kinds: Sequence[Progress]) -> list[str]:
    sizes = sorted({len(curve.runs) for curve in curves if curve.runs})
    if not sizes:
        return []
    n = f"n = {sizes[0]}" if len(sizes) == 1 else f"n = {sizes[0]} to {sizes[-1]}, as the legend lists them"
    over_time = "; over time, at their mean time of each epoch" if "time" in kinds else ""
    return [
        f"Where a setting has several finished seeds ({n}), the line is their geometric mean at each epoch and the "
        f"band reaches from the lowest to the highest seed{over_time}. An unfinished run has a line of its own."
    ]


def _chosen_sentence(curves: Sequence[Curve], shown: Sequence[Curve]) -> list[str]:
    if len(curves) == len(shown):
        return []
    settings = len({curve.setting for curve in curves})
    of_all = (
        f"the {len(shown)} best of {settings:,} settings" if settings > len(shown) else f"each of {settings} settings"
    )
    return [
        f"Of {len(curves):,} runs, the best of {of_all} (settings differ in more than the seed; best: the lowest "
        "validation perplexity at any epoch)."
    ]


def _axis_sentences(logarithmic: bool, kinds: Iterable[Progress]) -> list[str]:
    sentences = ["Vertical axis logarithmic."] if logarithmic else []
    if "epochs" in kinds:
        sentences.append("Epochs are counted by passes finished, from 1.")
    if "time" in kinds:
        sentences.append("Time runs from the start of training and includes validation.")
    return sentences


def _early_sentence(curves: Sequence[Curve]) -> list[str]:
    early = [curve.reference for curve in curves if curve.ended_early]
    return [f"Ended early (×): {_some(early)}."] if early else []


def _cut_sentence(cut: Sequence[tuple[Curve, Values]], high: float) -> list[str]:
    """Names the runs that leave the axis, so that nobody takes a cut line for a whole one."""
    if not cut:
        return []
    named = [f"{curve.reference} (up to {units.rounded(highest(values))})" for curve, values in cut]
    return [f"The axis ends at {units.rounded(high)}; cut off there (▲ where the line stays above): {_some(named)}."]


def _facts(runs: pd.DataFrame) -> list[tuple[int, str]]:
    return list(zip(runs["number"], runs["name"], strict=True))


def _left_out_sentence(runs: Iterable[tuple[int, str]], drawn: Sequence[Curve]) -> list[str]:
    shown = {number for curve in drawn for number in (curve.runs or (curve.number,))}
    missing = [f"{number} {name}" for number, name in runs if number not in shown]
    return [f"Without a finished epoch: {_some(missing)}."] if missing else []


def _some(names: list[str]) -> str:
    if len(names) <= MOST_NAMED + 1:
        return units.listing(names)
    return f"{', '.join(names[:MOST_NAMED])} and {len(names) - MOST_NAMED:,} others"

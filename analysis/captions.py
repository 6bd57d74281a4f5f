"""What the captions of the learning curves say: how to read the figure, and what it does not show."""

from __future__ import annotations

import numpy as np

from analysis import units
from analysis.axes import Scale
from analysis.curve import Curve, Progress, Values, highest
from analysis.load import Study


def all_runs_caption(study: Study, drawn: list[Curve], scale: Scale, progress: Progress) -> str:
    """The caption of the figure with all runs."""
    styles = "Adam solid, circles; SGD dashed, squares; SGD schedule dotted, triangles"
    sentences = [
        f"A line for each run, its number at the end. Colour: architecture. Line and marker: optimizer ({styles}).",
        *_shared_sentences(drawn, scale.logarithmic, progress),
        *_cut_sentence([(curve, curve.val_ppl) for curve in drawn if scale.cuts(curve.val_ppl)], scale.high),
        *_left_out_sentence(study, drawn),
    ]
    return " ".join(sentences)


def panels_caption(study: Study, curves: list[Curve], scales: list[Scale], progress: Progress) -> str:
    """The caption of the figure with a panel for each run."""
    logarithmic = [curve for curve, scale in zip(curves, scales, strict=True) if scale.logarithmic]
    sentences = [
        "Solid: validation; dashed: training (with dropout on, so that it can lie above validation).",
        "Each panel has its own vertical axis.",
        *_shared_sentences(curves, len(logarithmic) == len(curves), progress),
    ]
    for curve, scale in zip(curves, scales, strict=True):
        values = np.concatenate([curve.train_ppl, curve.val_ppl])
        if scale.cuts(values):
            sentences += _cut_sentence([(curve, values)], scale.high)
    return " ".join([*sentences, *_left_out_sentence(study, curves)])


def spoken(progress: Progress) -> str:
    """What the horizontal axis counts, in words."""
    return "epochs" if progress == "epochs" else "wall-clock time"


def _shared_sentences(curves: list[Curve], logarithmic: bool, progress: Progress) -> list[str]:
    sentences = ["Vertical axis logarithmic."] if logarithmic else []
    if progress == "epochs":
        sentences.append("Epochs are counted by passes finished, from 1.")
    else:
        sentences.append("Time runs from the start of training and includes validation.")
    early = [curve.reference for curve in curves if curve.ended_early]
    if early:
        sentences.append(f"Ended early (×): {units.listing(early)}.")
    return sentences


def _cut_sentence(cut: list[tuple[Curve, Values]], high: float) -> list[str]:
    """Names the runs that leave the axis, so that nobody takes a cut line for a whole one."""
    if not cut:
        return []
    named = [f"{curve.reference} (up to {units.rounded(highest(values))})" for curve, values in cut]
    return [
        f"The axis ends at {units.rounded(high)}; cut off there (▲ where the line stays above): {units.listing(named)}."
    ]


def _left_out_sentence(study: Study, drawn: list[Curve]) -> list[str]:
    shown = {curve.number for curve in drawn}
    missing = [f"{run['number']} {run['name']}" for run in study.runs.to_dict("records") if run["number"] not in shown]
    return [f"Without a finished epoch: {units.listing(missing)}."] if missing else []

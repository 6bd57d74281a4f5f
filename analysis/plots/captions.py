"""The captions of the learning curves: what the legend does not say, and what the figure does not show.

How to read every figure of curves is in docs/explanation/report.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from analysis.plots.axes import Progress, Scale
from analysis.plots.curves import Curve, highest
from analysis.plots.lines import Choice, Factor
from analysis.study import units
from analysis.study.study import Study
from analysis.study.values import Values

MOST_NAMED = 3
"""Runs that a sentence names; the rest are counted."""


def all_runs_caption(study: Study, choice: Choice, scale: Scale) -> str:
    """Return the caption of the figure with all runs."""
    sentences = [
        "Colour: architecture; line and marker: optimizer.",
        *_crowd_sentence(choice, "runs"),
        *_early_sentence(choice.all),
        *_cut_sentence([(curve, curve.val_ppl) for curve in choice.all if scale.cuts(curve.val_ppl)], scale.high),
        *_left_out_sentence(_facts(study.runs), choice.all),
    ]
    return " ".join(sentences)


def group_caption(runs: pd.DataFrame, choice: Choice, scale: Scale, by: Factor | None = None) -> str:
    """Return the caption of the figure of some runs, all of one architecture or optimizer if ``by`` says so."""
    styles = {"optimizer": "Colour: architecture.", "arch": "Line and marker: optimizer."}
    style = "Colour: architecture; line and marker: optimizer." if by is None else styles[by]
    sentences = [
        style,
        *_crowd_sentence(choice, "lines" if any(curve.runs for curve in choice.all) else "runs"),
        *_seeds_sentence(choice.all),
        *_early_sentence(choice.all),
        *_cut_sentence([(c, v) for c in choice.all if scale.cuts(v := np.concatenate(c.drawn))], scale.high),
        *_left_out_sentence(_facts(runs), choice.all),
    ]
    return " ".join(sentences)


def panels_caption(study: Study, curves: Sequence[Curve], shown: Sequence[Curve], scales: Sequence[Scale]) -> str:
    """Return the caption of the figure with a panel for each run."""
    drawn = [(curve, np.concatenate([curve.train_ppl, curve.val_ppl])) for curve in shown]
    sentences = [
        *_chosen_sentence(curves, shown),
        "Solid: validation; dashed: training. Each panel has its own vertical axis.",
        *_early_sentence(shown),
        *_cut_sentence([pair for pair, scale in zip(drawn, scales, strict=True) if scale.cuts(pair[1])], None),
        *_left_out_sentence(_facts(study.runs), curves),
    ]
    return " ".join(sentences)


def spoken(progress: Progress) -> str:
    """What the horizontal axis counts, in words."""
    return "epochs" if progress == "epochs" else "wall-clock time"


# -- sentences -----------------------------------------------------------------------------------------------------


def _crowd_sentence(choice: Choice, what: str) -> list[str]:
    if not choice.crowd:
        return []
    return [
        f"Coloured: the {len(choice.named)} best of {len(choice.all):,} {what}. Grey: the other {len(choice.crowd):,}."
    ]


def _seeds_sentence(curves: Sequence[Curve]) -> list[str]:
    sizes = sorted({len(curve.runs) for curve in curves if curve.runs})
    if not sizes:
        return []
    n = f"n = {sizes[0]}" if len(sizes) == 1 else f"n = {sizes[0]} to {sizes[-1]}"
    return [f"Several seeds ({n}): geometric mean, and a band from the lowest to the highest."]


def _chosen_sentence(curves: Sequence[Curve], shown: Sequence[Curve]) -> list[str]:
    if len(curves) == len(shown):
        return []
    settings = len({curve.setting for curve in curves})
    return [f"The best runs of {min(len(shown), settings)} of {settings:,} settings."]


def _early_sentence(curves: Sequence[Curve]) -> list[str]:
    early = [curve.reference for curve in curves if curve.ended_early]
    return [f"Ended early (×): {_some(early)}."] if early else []


def _cut_sentence(cut: Sequence[tuple[Curve, Values]], high: float | None) -> list[str]:
    """Name the runs that leave the axis. ``high`` is its end; ``None``: each has its own."""
    if not cut:
        return []
    named = [f"{curve.reference} (up to {units.rounded(highest(values))})" for curve, values in cut]
    end = "" if high is None else f" at {units.rounded(high)}"
    return [f"Cut off{end} (▲): {_some(named)}."]


def _facts(runs: pd.DataFrame) -> list[tuple[int, str]]:
    return list(zip(runs["number"], runs["name"], strict=True))


def _left_out_sentence(runs: Iterable[tuple[int, str]], drawn: Sequence[Curve]) -> list[str]:
    shown = {number for curve in drawn for number in (curve.runs or (curve.number,))}
    missing = [f"{number} {name}" for number, name in runs if number not in shown]
    return [f"Without a finished epoch: {_some(missing)}."] if missing else []


def _some(names: list[str]) -> str:
    if len(names) <= MOST_NAMED:
        return units.listing(names)
    return f"{', '.join(names[:MOST_NAMED])} and {len(names) - MOST_NAMED:,} others"

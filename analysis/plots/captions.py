"""The captions of the learning curves: what the legend does not say, and what the figure does not show.

How to read every figure of curves is in docs/explanation/report.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.blocks.words import first_few
from analysis.plots.axes import Scale
from analysis.plots.curves import Curve
from analysis.plots.lines import Choice, Factor
from analysis.study import units
from analysis.study.comparison import finished
from analysis.study.values import Values

MOST_NAMED = 3
"""Runs that a sentence names; the rest are counted."""

STYLES = {
    None: "Colour: architecture; line and marker: optimizer.",
    "optimizer": "Colour: architecture.",
    "arch": "Line and marker: optimizer.",
}
"""What colours and lines say in a figure of all runs, of one optimizer, of one architecture."""


def compared_before_end(runs: pd.DataFrame) -> list[int]:
    """Return the epochs after which runs are compared that have gone further."""
    done = finished(runs)
    return sorted(set(done.loc[done["epochs_done"] > done["compared_epochs"], "compared_epochs"].astype(int)))


def curves_caption(
    runs: pd.DataFrame, choice: Choice, scale: Scale, by: Factor | None, limits: Sequence[int] = ()
) -> str:
    """Return the caption of a figure of some runs, all of one architecture or optimizer if ``by`` says so.

    ``limits``: epochs at which the figure has a vertical line.
    """
    sizes = sorted({len(curve.runs) for curve in choice.all if len(curve.runs) > 1})
    sentences = [STYLES[by]]
    if limits:
        sentences.append(f"Dotted line: runs are compared by {units.listing([str(limit) for limit in limits])} epochs.")
    if choice.crowd:
        sentences.append(
            f"Coloured: the {len(choice.named)} best of {len(choice.all):,} {'lines' if sizes else 'runs'}. "
            f"Grey: the other {len(choice.crowd):,}."
        )
    if sizes:
        n = f"n = {sizes[0]}" if len(sizes) == 1 else f"n = {sizes[0]} to {sizes[-1]}"
        sentences.append(f"Several seeds ({n}): geometric mean, and a band from the lowest to the highest.")
    cut = [(curve, values) for curve in choice.all if scale.cuts(values := np.concatenate(curve.drawn))]
    return " ".join([*sentences, *_missing_sentences(runs, choice.all, cut, f" at {units.rounded(scale.high)}")])


def panels_caption(runs: pd.DataFrame, curves: Sequence[Curve], shown: Sequence[Curve], scales: Sequence[Scale]) -> str:
    """Return the caption of the figure with a panel for each run."""
    sentences = ["Solid: validation; dashed: training. Each panel has its own vertical axis."]
    if len(curves) > len(shown):
        settings = len({curve.setting for curve in curves})
        sentences.insert(0, f"The best runs of {min(len(shown), settings)} of {settings:,} settings.")
    drawn = [(curve, np.concatenate([curve.train_ppl, curve.val_ppl])) for curve in shown]
    cut = [pair for pair, scale in zip(drawn, scales, strict=True) if scale.cuts(pair[1])]
    left_out = runs[~runs["number"].isin([curve.number for curve in curves])]
    return " ".join([*sentences, *_missing_sentences(left_out, shown, cut)])


def _missing_sentences(
    runs: pd.DataFrame, drawn: Sequence[Curve], cut: Sequence[tuple[Curve, Values]], at: str = ""
) -> list[str]:
    """Name the runs that ended early, that leave the axis, and those of ``runs`` without a curve."""
    shown = {number for curve in drawn for number in curve.runs}
    facts = zip(runs["number"], runs["name"], strict=True)
    stopped = sum(curve.state == "stopped" for curve in drawn)
    named = {
        "Ended early (×)": [c.reference for c in drawn if c.ended_early and c.state != "stopped"],
        f"Cut off{at} (▲)": [f"{curve.reference} (up to {units.rounded(np.nanmax(v))})" for curve, v in cut],
        "Without a finished epoch": [f"{number} {name}" for number, name in facts if number not in shown],
    }
    sentences = [f"Stopped by the search (×): {units.count(stopped, 'run')}."] if stopped else []
    return sentences + [f"{what}: {first_few(names, MOST_NAMED)}." for what, names in named.items() if names]

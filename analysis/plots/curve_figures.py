"""The learning curves of a study, as figures with their captions.

Validation perplexity of all runs, and of each optimizer and each architecture; training and validation of each run.
Each over epochs and over wall-clock time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.blocks.figure import Chart, Line, Panel, run_mark
from analysis.blocks.section import Block, Subheading
from analysis.blocks.texts import first_few
from analysis.plots import look
from analysis.plots.axes import (
    SINGLE_CUT_FACTOR,
    Progress,
    Scale,
    label_grid,
    label_progress,
    panel_grid,
    panels_with_legend,
    place_numbers,
    scale_for,
    shared_cut,
)
from analysis.plots.curves import Curve, curves_of, setting_curves, time_unit
from analysis.plots.lines import (
    Choice,
    Factor,
    choose,
    draw_crowd,
    draw_curve,
    legend_columns,
    mark_end,
    number_mark,
    pointer_line,
    shown_values,
)
from analysis.study import units
from analysis.study.comparison import finished
from analysis.study.numbering import RunNumber
from analysis.study.study import Study
from analysis.study.values import Values
from seqlm.run_layout import slugify

SPOKEN: dict[Progress, str] = {"epochs": "epochs", "time": "wall-clock time"}
"""What the horizontal axis counts, in words."""


@look.applied()
def curve_blocks(study: Study) -> list[Block]:
    """Every figure that the study's epochs allow, under their headings; none while no epoch has been finished."""
    drawn = {kind: curves_of(study, kind) for kind in SPOKEN}
    curves = _validated(drawn)
    parts: dict[str, list[Chart]] = {
        "All runs": [
            _curves_chart(study, study.runs, {kind: found}, f"validation-{kind}", "Validation perplexity")
            for kind, found in curves.items()
        ],
        "By optimizer": _factor_charts(study, curves, "optimizer"),
        "By architecture": _factor_charts(study, curves, "arch"),
        "Each run": [panels_chart(study, drawn[kind], kind) for kind in curves],
    }
    blocks: list[Block] = []
    for title, charts in parts.items():
        if charts:
            blocks += [Subheading(text=title), *charts]
    return blocks


def _validated(curves: Mapping[Progress, Sequence[Curve]]) -> dict[Progress, list[Curve]]:
    kept = {kind: [curve for curve in found if curve.is_validated] for kind, found in curves.items()}
    return {kind: found for kind, found in kept.items() if found}


# -- validation ----------------------------------------------------------------------------------------------------


def _factor_charts(study: Study, curves: Mapping[Progress, Sequence[Curve]], by: Factor) -> list[Chart]:
    """A figure for each optimizer, or for each architecture, that has a curve."""
    word, titles = ("optimizer", units.OPTIMIZERS) if by == "optimizer" else ("architecture", units.ARCHITECTURES)
    charts = []
    for key, title in titles.items():
        runs = study.runs[study.runs[by] == key]
        if members := _members(study, runs, curves):
            name = f"{word}-{slugify(key).replace('_', '-')}"
            charts.append(_curves_chart(study, runs, members, name, f"{title}: validation perplexity", by))
    return charts


@look.applied()
def named_group_charts(study: Study) -> dict[str, Chart]:
    """A figure for each group of ``[report] groups`` that has a curve, by the group's title."""
    curves = _validated({kind: curves_of(study, kind) for kind in SPOKEN}) if study.groups else {}
    charts = {}
    for title, ids in study.groups.items():
        runs = study.runs[study.runs["id"].isin(ids)]
        if members := _members(study, runs, curves):
            name = f"curves-{study.group_name(title)}"
            charts[title] = _curves_chart(study, runs, members, name, f"{title}: validation perplexity")
    return charts


def _members(
    study: Study, runs: pd.DataFrame, curves: Mapping[Progress, Sequence[Curve]]
) -> dict[Progress, list[Curve]]:
    """Return the curves of some runs, the seeds of a setting as one, over each progress for which there are any."""
    numbers = set(runs["number"])
    groups = {kind: [curve for curve in found if curve.number in numbers] for kind, found in curves.items()}
    return {kind: setting_curves(study, group) for kind, group in groups.items() if group}


def _curves_chart(
    study: Study,
    runs: pd.DataFrame,
    curves: Mapping[Progress, Sequence[Curve]],
    name: str,
    title: str,
    by: Factor | None = None,
) -> Chart:
    """A panel for each progress, on one vertical axis."""
    chosen = choose(next(iter(curves.values())))
    choices = {kind: chosen.among(found) for kind, found in curves.items()}
    values = shown_values(chosen.all)
    scale = scale_for(values, cut_at=shared_cut(values))
    entries, columns = legend_columns(chosen.named, "optimizer" if by == "arch" else "arch")
    inches = 3.9 if len(curves) == 1 else 2.8
    figure, axes = panels_with_legend(inches, entries, columns, panels=len(curves), share=True)
    panels = [
        draw_choice(place, choice, scale, study, kind)
        for place, (kind, choice) in zip(axes, choices.items(), strict=True)
    ]
    for place in axes[1:]:
        place.set_ylabel("")
    done = finished(runs)
    longer = done[done["epochs_done"] > done["compared_epochs"]]
    limits = sorted(set(longer["compared_epochs"].astype(int))) if "epochs" in curves else []
    for limit in limits:
        axes[0].axvline(limit, color=look.MUTED, linestyle=(0, (1, 2)), linewidth=1.2, zorder=1)
    return Chart(
        name=name,
        title=f"{title} over {' and '.join(SPOKEN[kind] for kind in curves)}",
        caption=_curves_caption(runs, chosen, scale, by, limits),
        figure=figure,
        panels=panels,
    )


def draw_choice(axes: Axes, choice: Choice, scale: Scale, study: Study, progress: Progress) -> Panel:
    """Draw validation curves with their axes and numbers."""
    draw_crowd(axes, choice.crowd)
    for curve in choice.named:
        draw_curve(axes, curve)
    unit = time_unit(study)[1]
    label_progress(axes, progress, unit, [curve.progress for curve in choice.all])
    axes.set_ylabel("Validation perplexity")
    scale.applied_to(axes, "y", 9)
    place_numbers(axes, [number_mark(curve, scale) for curve in choice.named])
    return Panel(
        axes=axes,
        lines=[pointer_line(curve) for curve in choice.named],
        x_name="epoch" if progress == "epochs" else unit,
    )


# -- a panel for each run ------------------------------------------------------------------------------------------

MOST_PANELS = 48
"""With more runs than this, the best of each setting has a panel, and of the settings the best."""

TRAINING: dict[str, Any] = {"linestyle": (0, (3, 1.5)), "linewidth": 1.1}


def panels_chart(study: Study, curves: Sequence[Curve], progress: Progress) -> Chart:
    """Training and validation perplexity of each run in a panel of its own."""
    shown = choose_panels(curves)
    figure, grid = panel_grid(len(shown), 1.75, top_inches=0.55)
    unit = time_unit(study)[1]
    scales = []
    for axes, curve in zip(grid, shown, strict=True):
        scales.append(_draw_panel(axes, curve))
        spans = shown if progress == "epochs" else [curve]
        label_progress(axes, progress, unit, [other.progress for other in spans])
    label_grid(grid, "Perplexity", grid[0].get_xlabel())
    entries = [
        Line2D([], [], color=look.MUTED, label="validation"),
        Line2D([], [], color=look.MUTED, label="training", **TRAINING),
    ]
    look.add_legend(figure, entries, top=True)
    what = "each run" if len(shown) == len(curves) else "the best runs"
    return Chart(
        name=f"runs-{progress}",
        title=f"Training and validation perplexity of {what} over {SPOKEN[progress]}",
        caption=_panels_caption(study.runs, curves, shown, scales),
        figure=figure,
        panels=[
            Panel(axes=axes, lines=_lines(curve), x_name="epoch" if progress == "epochs" else unit)
            for axes, curve in zip(grid, shown, strict=True)
        ],
    )


def choose_panels(curves: Sequence[Curve]) -> list[Curve]:
    """All runs; of more than ``MOST_PANELS`` the best of each setting, and of more settings the best, by number."""
    if len(curves) <= MOST_PANELS:
        return list(curves)
    best: dict[RunNumber, Curve] = {}
    for curve in sorted(curves, key=lambda curve: (curve.best if curve.is_validated else math.inf, curve.number)):
        best.setdefault(curve.setting, curve)
    return sorted(list(best.values())[:MOST_PANELS], key=lambda curve: curve.number)


def _lines(curve: Curve) -> list[Line]:
    return [
        Line(label=f"{curve.reference}, {what}", x=curve.progress, y=values, run=curve.number)
        for what, values in (("training", curve.train_ppl), ("validation", curve.val_ppl))
    ]


def _draw_panel(axes: Axes, curve: Curve) -> Scale:
    both = [curve.train_ppl, curve.val_ppl]
    best = curve.best if curve.is_validated else math.inf
    scale = scale_for(both, cut_at=max(SINGLE_CUT_FACTOR * best, float(np.nanmin(np.concatenate(both)))))
    gid, colour = run_mark(curve.number), curve.style.colour
    axes.plot(curve.progress, curve.train_ppl, color=colour, gid=gid, **TRAINING)
    lone = "o" if len(curve.progress) == 1 else ""
    axes.plot(curve.progress, curve.val_ppl, color=colour, marker=lone, gid=gid)
    mark_end(axes, curve)
    scale.applied_to(axes, "y", 5)
    axes.set_title(curve.label, loc="left", fontweight="bold", fontsize=8)
    return scale


# -- captions ------------------------------------------------------------------------------------------------------

MOST_NAMED = 3
"""Runs that a sentence names; the rest are counted."""

STYLES = {
    None: "Colour: architecture; line and marker: optimizer.",
    "optimizer": "Colour: architecture.",
    "arch": "Line and marker: optimizer.",
}
"""What colours and lines say in a figure of all runs, of one optimizer, of one architecture."""


def _curves_caption(runs: pd.DataFrame, choice: Choice, scale: Scale, by: Factor | None, limits: Sequence[int]) -> str:
    """Return the caption of a figure of some runs, with a vertical line at each of ``limits`` (epochs)."""
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


def _panels_caption(
    runs: pd.DataFrame, curves: Sequence[Curve], shown: Sequence[Curve], scales: Sequence[Scale]
) -> str:
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

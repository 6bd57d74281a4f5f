"""The learning curves of a study, as figures with their captions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from analysis.blocks.figure import Chart
from analysis.blocks.sentences import caption, scope_of
from analysis.plots import look
from analysis.plots.axes import Unit, label_grid, panel_grid, panels_with_legend, signs_of, tick_text, unit_for
from analysis.plots.curves import (
    MOST_GREY,
    MOST_LINES,
    STANDING_OUT,
    STANDING_OUT_OF_KIND,
    TRAINING,
    Curve,
    Progress,
    curves_of,
    draw_curves,
    draw_run,
    legend_entries,
    prominent,
    seen,
    setting_curves,
)
from analysis.plots.steps import steps_chart
from analysis.study import units
from analysis.study.comparison import finished
from analysis.study.study import StudyFiles
from analysis.study.values import Values

BEST_PANELS = 9
"""Of more settings than ``MOST_LINES``, this many have a panel, in turn the best of each architecture and optimizer."""


@look.applied()
def curve_charts(study: StudyFiles) -> list[Chart]:
    """Every figure that the study's epochs and steps allow; none while no step has been saved.

    Of more than ``MOST_LINES`` curves, only the first figure has panels over time. If all runs have one optimizer, or
    one architecture, a figure by it would be the first one again.
    """
    curves = curves_of(study)
    validated = [curve for curve in curves if curve.is_validated]
    charts: list[Chart] = []
    if validated:
        merged = setting_curves(study, validated)
        charts = [runs_chart(study, study.runs, merged, "validation", "Validation perplexity")]
        by = {"optimizer": units.OPTIMIZERS, "arch": units.ARCHITECTURES}
        for key, titles in by.items():
            rows = {title: [c for c in merged if getattr(c, key) == value] for value, title in titles.items()}
            rows = {title: row for title, row in rows.items() if row}
            charts += [rows_chart(study, rows, key)] if len(rows) > 1 else []
        known = [curve for curve in merged if np.isfinite(curve.tokens).any()]
        charts += [compute_chart(study, known)] if known else []
    own = setting_curves(study, curves)
    if own:
        charts.append(panels_chart(study, own))
    return [*charts, *filter(None, [steps_chart(study, [curve.number for curve in prominent(own, BEST_PANELS)])])]


@look.applied()
def group_chart(study: StudyFiles, title: str, curves: Sequence[Curve]) -> Chart | None:
    """Those of the ``curves`` of a study that are of a group of ``[report] groups``; none if it has none."""
    runs = study.runs[study.runs["id"].isin(study.groups[title])]
    numbers = set(runs["number"])
    name = f"curves-{study.group_name(title)}"
    members = setting_curves(study, [curve for curve in curves if curve.is_validated and curve.number in numbers])
    return runs_chart(study, runs, members, name, f"{title}: validation perplexity") if members else None


# -- validation ----------------------------------------------------------------------------------------------------


def runs_chart(study: StudyFiles, runs: pd.DataFrame, curves: Sequence[Curve], name: str, title: str) -> Chart:
    """The curves of some runs over epochs and over time, with a legend of their names."""
    chart = _chart({"": curves}, [None, _unit(study)], name, title, legend_entries(curves), 3)
    done = finished(runs)
    longer = done[done["epochs_done"] > done["compared_epochs"]]
    limits = sorted(set(longer["compared_epochs"].astype(int)))
    for limit in limits:
        chart.figure.axes[0].axvline(limit, color=look.MUTED, linestyle=(0, (1, 2)), linewidth=1.2, zorder=1)
    top = chart.figure.axes[0].get_ylim()[1]
    named = prominent(curves)
    text = caption(
        "curves",
        named=len(named),
        curves=len(curves),
        most_grey=MOST_GREY,
        sizes=sorted({len(curve.runs) for curve in curves if len(curve.runs) > 1}),
        limits=[str(limit) for limit in limits],
        **signs_of(chart.figure),
        **_ends(runs, curves, named, [top] * len(named), [curve.drawn for curve in named]),
    )
    return Chart(name=name, title=chart.title, caption=text, figure=chart.figure)


def rows_chart(study: StudyFiles, rows: Mapping[str, Sequence[Curve]], key: str) -> Chart:
    """A row for each optimizer, or for each architecture: its curves over epochs and over time."""
    curves = [curve for row in rows.values() for curve in row]
    archs, optimizers = {curve.arch for curve in curves}, {curve.optimizer for curve in curves}
    word = "optimizer" if key == "optimizer" else "architecture"
    along: list[Progress] = [None] if len(curves) > MOST_LINES else [None, _unit(study)]
    entries = look.kind_handles(archs, optimizers)
    return _chart(rows, along, f"by-{word}", f"Validation perplexity by {word}", entries)


def compute_chart(study: StudyFiles, curves: Sequence[Curve]) -> Chart:
    """The curves of which steps are recorded, over what training has read, and what it has computed, if known."""
    title = "Validation perplexity"
    along: list[Progress] = ["tokens"]
    along += ["flops"] if any(np.isfinite(curve.parameters) for curve in curves) else []
    chart = _chart({"": curves}, along, "tokens-and-flops", title, legend_entries(curves), 3)
    return replace(chart, caption=f"{chart.caption}{scope_of(study.runs, len(study.absent))}")


def _chart(
    rows: Mapping[str, Sequence[Curve]],
    along: Sequence[Progress],
    name: str,
    title: str,
    entries: Sequence[Line2D],
    columns: int | None = None,
) -> Chart:
    """Each row of curves under its title, a panel for each progress."""
    figure, axes = panels_with_legend(
        2.8 if len(rows) == 1 else 1.7,
        entries,
        columns,
        rows=len(rows),
        panels=len(along),
        share=True,
        title_lines=int("" not in rows),
    )
    places = iter(axes)
    for heading, row in rows.items():
        for unit in along:
            place = next(places)
            draw_curves(place, row, unit, STANDING_OUT if len(rows) == 1 else STANDING_OUT_OF_KIND, [*rows.values()])
            if unit == along[0]:
                place.set_title(heading, loc="left")
            else:
                place.set_ylabel("")
    is_crowded = any(len(row) > MOST_LINES for row in rows.values())
    curves = [curve for row in rows.values() for curve in row]
    named = {id(curve): curve for row in rows.values() for curve in prominent(row, STANDING_OUT_OF_KIND)}
    in_view = {id(curve) for curve in seen(curves, [*named.values()])}
    cut = [curve.reference for key, curve in named.items() if key not in in_view]
    text = caption(
        "rows", cut=cut, crowded=is_crowded, coloured=STANDING_OUT_OF_KIND, grey=MOST_GREY, **signs_of(figure)
    )
    words = {None: "epochs", "tokens": "tokens", "flops": "FLOPs"}
    spoken = " and ".join(words.get(unit, "wall-clock time") for unit in along)  # type: ignore[arg-type]
    return Chart(name=name, title=f"{title} over {spoken}", caption=text, figure=figure)


def _unit(study: StudyFiles) -> Unit:
    return unit_for(study.epochs["elapsed_seconds"].max())


# -- a panel for each run ------------------------------------------------------------------------------------------


def panels_chart(study: StudyFiles, curves: Sequence[Curve]) -> Chart:
    """Training and validation perplexity of each curve in its own panel, over epochs, with the time above."""
    unit = _unit(study)
    shown = prominent(curves, BEST_PANELS)
    if len(shown) < len(curves):
        shown.sort(key=_kind)
    entries = [
        Line2D([], [], color=look.MUTED, label="validation"),
        Line2D([], [], color=look.MUTED, label="training", **TRAINING),
    ]
    title_lines = max(curve.heading.count("\n") for curve in shown) + 1
    figure, grid = panel_grid(len(shown), 1.1, entries, title_lines)
    for axes, curve in zip(grid, shown, strict=True):
        draw_run(axes, curve, unit, shown)
    label_grid(grid, "Perplexity", grid[0].get_xlabel())
    values = [np.concatenate([curve.train_ppl, curve.val_ppl]) for curve in shown]
    text = caption(
        "curves_of_runs",
        curves=len(curves),
        shown=len(shown),
        **signs_of(figure),
        **_ends(study.runs, curves, shown, [axes.get_ylim()[1] for axes in grid], values),
    )
    one = "setting" if any(curve.of_seeds for curve in curves) else "run"
    what = f"each {one}" if len(shown) == len(curves) else f"the best {one}s"
    return Chart(
        name="runs-epochs",
        title=f"Training and validation perplexity of {what} over epochs and wall-clock time",
        caption=text,
        figure=figure,
    )


def _kind(curve: Curve) -> tuple[int, int]:
    """Return where a curve stands by its architecture, then by its optimizer."""
    return units.rank(units.ARCHITECTURES, curve.arch), units.rank(units.OPTIMIZERS, curve.optimizer)


def _ends(
    runs: pd.DataFrame,
    curves: Sequence[Curve],
    drawn: Sequence[Curve],
    tops: Sequence[float],
    values: Sequence[Values],
) -> dict[str, Any]:
    """What a caption says about ends: of the ``drawn`` ones of ``curves``, and of ``runs`` without a curve.

    ``tops`` are the ends of their axes, ``values`` what leaves them there. Names are left out if some curves are.
    """
    with_curve = {number for curve in curves for number in curve.runs}
    highest = [float(np.nanmax(value)) for value in values]
    facts = zip(runs["number"], runs["name"], strict=True)
    return {
        "stopped": sum(curve.state == "stopped" for curve in drawn),
        "early": [c.reference for c in drawn if c.ended_early and c.state != "stopped"],
        "at": _rounded(tops[0]) if len(set(tops)) == 1 else None,
        "above": [
            (c.reference, _rounded(high)) for c, top, high in zip(drawn, tops, highest, strict=True) if high > top
        ],
        "empty": [f"{number} {name}" for number, name in facts if number not in with_curve],
        "are_named": len(drawn) == len(curves),
    }


def _rounded(value: float) -> str:
    """Return a number to three figures, as at a tick."""
    return tick_text(float(f"{value:.3g}"))

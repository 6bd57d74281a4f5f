"""The figures of the trained models' behaviour: loss at each time step, and gradients back in time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.blocks.figure import Chart, name_values, run_mark
from analysis.blocks.texts import first_few
from analysis.plots import look
from analysis.plots.axes import Mark, fit, label_grid, panel_grid, panels_with_legend, place_numbers
from analysis.plots.curves import LABEL_LENGTH
from analysis.study import units
from analysis.study.behaved import Behaved
from analysis.study.numbering import RunNumber
from analysis.study.values import Values
from seqlm.architectures import carries_state

LAYER_DASHES = ("-", (0, (5, 2)), (0, (1.2, 1.4)), (0, (5, 1.5, 1.2, 1.5)))
STEPS_NAME = "Time step t in the window"

STYLES_CAPTION = "Colour: architecture; line: optimizer."


@look.applied()
def behaviour_charts(runs: Sequence[Behaved]) -> list[Chart]:
    """Every figure that the runs allow."""
    if not runs:
        return []
    with_gradients = [run for run in runs if run.behaviour.gradient_columns is not None]
    layered = [run for run in with_gradients if len(run.behaviour.layer_gradients) > 1]
    gradients = [gradient_chart(with_gradients)] if with_gradients else []
    return [loss_chart(runs), *gradients, *([layers_chart(layered)] if layered else [])]


# -- loss ----------------------------------------------------------------------------------------------------------


def loss_chart(runs: Sequence[Behaved]) -> Chart:
    """Mean validation loss at each step, from a zero state and from a carried one, on a shared vertical axis."""
    figure, (left, right) = panels_with_legend(3.2, run_handles(runs), 3, panels=2, share=True)
    left.set_title("State zero at the start of each window", loc="left", fontweight="bold")
    right.set_title("State carried from the window before", loc="left", fontweight="bold")
    draw_losses(left, runs, [run.behaviour.zero_state for run in runs])
    draw_losses(right, runs, [run.behaviour.carried_state for run in runs])
    left.set_ylabel("Mean validation loss (nats)")
    sentences = [STYLES_CAPTION]
    if lengths := _training_lengths(runs):
        spoken = units.listing([str(length) for length in lengths])
        sentences.append(f"Dotted vertical line: the length of a window in training ({spoken} tokens).")
    if not all(carries_state(run.arch) for run in runs):
        sentences.append("The Transformer carries no state, so its two curves are the same.")
    return Chart(
        name="loss-per-step",
        title="Validation loss at each time step of a window",
        caption=" ".join(sentences),
        figure=figure,
    )


def draw_losses(axes: Axes, runs: Sequence[Behaved], curves: Sequence[Values]) -> Axes:
    """Draw a curve of losses (nats) for each run, with the length of a window in training."""
    for place, length in enumerate(_training_lengths(runs)):
        axes.axvline(length, color=look.MUTED, linestyle=(0, (1, 2)), linewidth=1.2, zorder=1)
        axes.annotate(
            f"training length {length}",
            (length, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(4, -9 - 10 * place),
            textcoords="offset points",
            fontsize=7.5,
            color=look.MUTED,
        )
    axes.margins(y=0.08)
    return _draw_curves(axes, runs, curves, "loss (nats)")


def _training_lengths(runs: Sequence[Behaved]) -> list[int]:
    """The lengths of windows in training that are shorter than the curve."""
    return sorted({run.behaviour.seq_len for run in runs if len(run.behaviour.zero_state) > run.behaviour.seq_len})


# -- gradients -----------------------------------------------------------------------------------------------------


def gradient_chart(runs: Sequence[Behaved]) -> Chart:
    """Norm of the last step's gradient at each step: rescaled to [0, 1], and as it is with the mean of the norms."""
    figure, (left, right) = panels_with_legend(3.2, run_handles(runs), 3, panels=2)
    left.set_title("Each curve rescaled to [0, 1]", loc="left", fontweight="bold")
    right.set_title("As it is, logarithmic", loc="left", fontweight="bold")
    left.set_ylim(-0.03, 1.05)
    _draw_curves(left, runs, [rescaled(run.behaviour.gradient) for run in runs], "rescaled norm")
    draw_gradient_norms(right, runs)
    left.set_ylabel("Gradient norm, rescaled")
    counts = sorted({run.behaviour.gradient_columns or 0 for run in runs})
    caption = (
        f"{STYLES_CAPTION} Norm of the mean gradient over {units.listing([f'{count:,}' for count in counts])} "
        "sequences; pale: mean of the norms."
    )
    if zero := [run.reference for run in runs if (run.behaviour.gradient == 0).any()]:
        caption += f" Exact zeros are left out on the right: {first_few(zero, 2)}."
    return Chart(
        name="gradient-norms",
        title="How far the loss at the last time step reaches back",
        caption=caption,
        figure=figure,
    )


def draw_gradient_norms(axes: Axes, runs: Sequence[Behaved]) -> Axes:
    """Draw the gradient norms of each run on a logarithmic axis, the mean of norms pale."""
    curves = [_positive(run.behaviour.gradient) for run in runs]
    means = [_positive(run.behaviour.gradient_mean_of_norms) for run in runs]
    fit(axes, "y", [*curves, *means], log=True)
    _draw_curves(axes, runs, curves, "norm")
    for run, values in zip(runs, means, strict=True):
        _plot(axes, values, run.number, f"{run.reference}, mean of norms", **_style(run).line)
        axes.lines[-1].set(linewidth=0.9, alpha=0.4)
    axes.set_ylabel("Gradient norm")
    return axes


def rescaled(values: Values) -> Values:
    """A curve taken to [0, 1]: (v - min) / (max - min), and 0 where it is constant.

    >>> rescaled(np.array([1.0, 3.0, 2.0])).tolist()
    [0.0, 1.0, 0.5]
    """
    finite = values[np.isfinite(values)]
    if not len(finite) or finite.max() == finite.min():
        return np.where(np.isfinite(values), 0.0, math.nan)
    scaled: Values = (values - finite.min()) / (finite.max() - finite.min())
    return scaled


def layers_chart(runs: Sequence[Behaved]) -> Chart:
    """The norms of each layer, a panel for each run."""
    figure, grid = panel_grid(len(runs), 2.1, top_inches=0.3)
    for axes, run in zip(grid, runs, strict=True):
        _draw_layers(axes, run)
    label_grid(grid, "Gradient norm", STEPS_NAME)
    sentences = [
        "Number at a line's end: layer or block (1: the lowest). Vertical axes logarithmic, each its own; exact zeros "
        "are left out."
    ]
    if not all(carries_state(run.arch) for run in runs):
        sentences.append("Of a Transformer's top block, only the last step counts.")
    if single := [f"layers of {run.reference}" for run in runs if not np.isfinite(run.behaviour.gradient).any()]:
        sentences.append(f"Not finite: {first_few(single, 2)}.")
    return Chart(
        name="gradient-norms-layers",
        title="The same for each layer",
        caption=" ".join(sentences),
        figure=figure,
    )


def _draw_layers(axes: Axes, run: Behaved) -> None:
    curves = [_positive(values) for values in run.behaviour.layer_gradients]
    marks = []
    for place, values in enumerate(curves):
        colour = look.shade(look.colour_of(run.arch), look.SHADES[place % len(look.SHADES)][0])
        style = {"color": colour, "linestyle": LAYER_DASHES[place % len(LAYER_DASHES)]}
        _plot(axes, values, run.number, f"{run.reference}, layer {place + 1}", **style)
        marks += _end_mark(values, str(place + 1), colour, run.number)
    axes.set_title(_label(run), loc="left", fontweight="bold", fontsize=8)
    _step_axis(axes, curves)
    fit(axes, "y", curves, log=True, ticks=6)
    place_numbers(axes, marks)
    name_values(axes, "step", "norm")


# -- parts of figures ----------------------------------------------------------------------------------------------


def run_handles(runs: Sequence[Behaved]) -> list[Line2D]:
    """Return a legend entry for each run."""
    return [look.run_entry(run.number, _label(run), _style(run), marker=False) for run in runs]


def _style(run: Behaved) -> look.LineStyle:
    return look.line_style(run.arch, run.optimizer, run.place)


def _label(run: Behaved) -> str:
    return f"{run.number}  {units.short_name(run.name, LABEL_LENGTH, run.arch, run.optimizer)}"


def _draw_curves(axes: Axes, runs: Sequence[Behaved], curves: Sequence[Values], y_name: str) -> Axes:
    """A curve for each run with its number at the end."""
    marks = []
    for run, values in zip(runs, curves, strict=True):
        style = _style(run)
        _plot(axes, values, run.number, run.reference, **style.line)
        marks += _end_mark(values, str(run.number), style.colour, run.number)
    _step_axis(axes, curves)
    axes.set_xlabel(STEPS_NAME)
    place_numbers(axes, marks)
    name_values(axes, "step", y_name)
    return axes


def _plot(axes: Axes, values: Values, number: RunNumber, label: str, **style: Any) -> None:
    """Draw a curve over the steps from 1."""
    steps = np.arange(1, len(values) + 1, dtype=np.float64)
    lone = "o" if np.isfinite(values).sum() == 1 else ""
    axes.plot(steps, values, marker=lone, linewidth=1.3, gid=run_mark(number), label=label, **style)


def _end_mark(values: Values, text: str, colour: str, number: RunNumber) -> list[Mark]:
    there = np.flatnonzero(np.isfinite(values))
    return [Mark(n + 1.0, float(values[n]), text, colour, number) for n in there[-1:]]


def _step_axis(axes: Axes, curves: Sequence[Values]) -> None:
    last = max(len(values) for values in curves)
    axes.set_xlim(1 - 0.02 * last, last + 0.02 * last)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]))


def _positive(values: Values) -> Values:
    """The values that a logarithmic axis can show; NaN in place of the others."""
    return np.where(np.isfinite(values) & (values > 0), values, math.nan)

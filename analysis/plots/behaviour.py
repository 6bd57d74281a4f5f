"""The figures of the trained models' behaviour: loss at each time step, and gradients back in time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from analysis.blocks.figure import Chart, Line, Panel, key_mark, run_mark
from analysis.blocks.words import first_few
from analysis.plots import look
from analysis.plots.axes import Mark, place_numbers
from analysis.plots.curves import LABEL_LENGTH
from analysis.plots.lines import add_legend, even_columns, legend_inches
from analysis.study import units
from analysis.study.behaved import Behaved
from analysis.study.numbering import RunNumber
from analysis.study.values import Values
from seqlm.architectures import carries_state

PANEL_COLUMNS = 3
LAYER_DASHES = ("-", (0, (5, 2)), (0, (1.2, 1.4)), (0, (5, 1.5, 1.2, 1.5)))
STEPS_NAME = "Time step t in the window"

STYLES_CAPTION = "Colour: architecture; line: optimizer."


def behaviour_charts(runs: Sequence[Behaved]) -> list[Chart]:
    """Every figure that the runs allow."""
    if not runs:
        return []
    with look.applied():
        charts = [loss_chart(runs), gradient_chart(runs)]
        layered = [run for run in runs if len(run.behaviour.layer_gradients) > 1]
        return [*charts, layers_chart(layered)] if layered else charts


# -- loss ----------------------------------------------------------------------------------------------------------


def loss_chart(runs: Sequence[Behaved]) -> Chart:
    """Mean validation loss at each step, from a zero state and from a carried one, on a shared vertical axis."""
    figure, pair = _pair_of_axes(runs, left=0.085, share=True)
    panels = []
    both = [[run.behaviour.zero_state for run in runs], [run.behaviour.carried_state for run in runs]]
    finite = np.concatenate([values[np.isfinite(values)] for curves in both for values in curves])
    for axes, curves, title in zip(
        pair, both, ("State zero at the start of each window", "State carried from the window before"), strict=True
    ):
        axes.set_title(title, loc="left", fontweight="bold")
        if len(finite):
            room = 0.05 * (finite.max() - finite.min()) or 0.1
            axes.set_ylim(finite.min() - room, finite.max() + 1.6 * room)
        panels.append(draw_losses(axes, runs, curves))
    pair[0].set_ylabel("Mean validation loss (nats)")
    lengths = sorted({run.behaviour.seq_len for run in runs if _is_longer(run)})
    sentences = [STYLES_CAPTION]
    if lengths:
        spoken = units.listing([str(length) for length in lengths])
        sentences.append(f"Dotted upright: the length of a window in training ({spoken} tokens).")
    if not all(carries_state(run.arch) for run in runs):
        sentences.append("The Transformer carries no state, so its two curves are the same.")
    return Chart(
        name="loss-per-step",
        title="Validation loss at each time step of a window",
        caption=" ".join(sentences),
        figure=figure,
        panels=panels,
    )


def draw_losses(axes: Axes, runs: Sequence[Behaved], curves: Sequence[Values]) -> Panel:
    """Draw a curve of losses (nats) for each run, with the length of a window in training."""
    panel = _draw_curves(axes, runs, curves, "loss (nats)")
    _mark_training_lengths(axes, runs)
    _number_lines(axes, runs, curves)
    return panel


def _is_longer(run: Behaved) -> bool:
    return len(run.behaviour.zero_state) > run.behaviour.seq_len


def _mark_training_lengths(axes: Axes, runs: Sequence[Behaved]) -> None:
    for place, length in enumerate(sorted({run.behaviour.seq_len for run in runs if _is_longer(run)})):
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


# -- gradients -----------------------------------------------------------------------------------------------------


def gradient_chart(runs: Sequence[Behaved]) -> Chart:
    """Norm of the last step's gradient at each step: rescaled to [0, 1], and as it is with the mean of the norms."""
    figure, (left, right) = _pair_of_axes(runs, left=0.085, share=False)
    scaled = [rescaled(run.behaviour.gradient) for run in runs]
    left.set_title("Each curve rescaled to [0, 1]", loc="left", fontweight="bold")
    right.set_title("As it is, logarithmic", loc="left", fontweight="bold")
    panels = [_draw_curves(left, runs, scaled, "rescaled norm"), draw_gradient_norms(right, runs)]
    left.set_ylim(-0.03, 1.05)
    left.set_ylabel("Gradient norm, rescaled")
    _number_lines(left, runs, scaled)
    counts = sorted({run.behaviour.gradient_columns for run in runs})
    sentences = [
        STYLES_CAPTION,
        f"Norm of the mean gradient over {units.listing([f'{count:,}' for count in counts])} sequences; pale: mean of "
        "the norms.",
        *_zero_sentences(runs),
    ]
    return Chart(
        name="gradient-norms",
        title="How far the loss at the last time step reaches back",
        caption=" ".join(sentences),
        figure=figure,
        panels=panels,
    )


def draw_gradient_norms(axes: Axes, runs: Sequence[Behaved]) -> Panel:
    """Draw the gradient norms of each run on a logarithmic axis, the mean of norms pale."""
    curves = [_positive(run.behaviour.gradient) for run in runs]
    means = [_positive(run.behaviour.gradient_mean_of_norms) for run in runs]
    panel = _draw_curves(axes, runs, curves, "norm")
    _draw_pale(axes, panel, runs, means)
    axes.set_ylabel("Gradient norm")
    _logarithmic(axes, [*curves, *means], most_ticks=9)
    _number_lines(axes, runs, curves)
    return panel


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


def _zero_sentences(runs: Sequence[Behaved]) -> list[str]:
    """Name the runs whose curves have zeros, which a logarithmic axis cannot show."""
    zero = [run for run in runs if (run.behaviour.gradient == 0).any()]
    if not zero:
        return []
    named = first_few([run.reference for run in zero], 2)
    return [f"Exact zeros are left out on the right: {named}."]


def layers_chart(runs: Sequence[Behaved]) -> Chart:
    """The norms of each layer, a panel for each run."""
    rows = math.ceil(len(runs) / PANEL_COLUMNS)
    height = 2.1 * rows + 0.7
    figure = Figure(figsize=(look.WIDTH_INCHES, height))
    grid = figure.subplots(rows, PANEL_COLUMNS, squeeze=False)
    figure.subplots_adjust(left=0.09, right=0.97, top=1 - 0.3 / height, bottom=0.5 / height, wspace=0.36, hspace=0.45)
    panels = []
    for axes, run in zip(grid.flat, runs, strict=False):
        panels.append(_layer_panel(axes, run))
    for place, axes in enumerate(grid.flat):
        if place >= len(runs):
            axes.set_axis_off()
        if place % PANEL_COLUMNS == 0:
            axes.set_ylabel("Gradient norm", fontsize=8)
        if place + PANEL_COLUMNS >= len(runs):
            axes.set_xlabel(STEPS_NAME, fontsize=8)
    sentences = [
        "Number at a line's end: layer or block (1: the lowest). Vertical axes logarithmic, each its own; exact zeros "
        "are left out."
    ]
    if not all(carries_state(run.arch) for run in runs):
        sentences.append("Of a Transformer's top block, only the last step counts.")
    single = [f"layers of {run.reference}" for run in runs if not np.isfinite(run.behaviour.gradient).any()]
    if single:
        sentences.append(f"Not finite: {first_few(single, 2)}.")
    return Chart(
        name="gradient-norms-layers",
        title="The same for each layer",
        caption=" ".join(sentences),
        figure=figure,
        panels=panels,
    )


def _layer_panel(axes: Axes, run: Behaved) -> Panel:
    curves = [_positive(values) for values in run.behaviour.layer_gradients]
    lines, marks = [], []
    for place, values in enumerate(curves):
        colour = look.shade(look.colour_of(run.arch), _shade(place))
        steps = _steps(values)
        _plot(axes, values, colour, LAYER_DASHES[place % len(LAYER_DASHES)], run.number)
        lines.append(Line(label=f"{run.reference}, layer {place + 1}", x=steps, y=values, run=run.number))
        marks += _end_mark(values, str(place + 1), colour, run.number)
    axes.set_title(_label(run), loc="left", fontweight="bold", fontsize=8)
    axes.tick_params(labelsize=7.5)
    _step_axis(axes, curves)
    _logarithmic(axes, curves, most_ticks=6)
    place_numbers(axes, marks) if marks else None
    return Panel(axes=axes, lines=lines, x_name="step", y_name="norm")


def _shade(place: int) -> float:
    return look.SHADES[place % len(look.SHADES)][0]


# -- parts of figures ----------------------------------------------------------------------------------------------


def _pair_of_axes(runs: Sequence[Behaved], *, left: float, share: bool) -> tuple[Figure, tuple[Axes, Axes]]:
    """A figure of two panels with the runs' legend beneath."""
    columns = even_columns(run_handles(runs))
    plot, below, above = 3.0, 0.56 + legend_inches(columns), 0.28
    height = plot + below + above
    figure = Figure(figsize=(look.WIDTH_INCHES, height))
    gap = 0.085 if share else 0.135
    width = (0.965 - left - gap) / 2
    bottom = below / height
    first = figure.add_axes((left, bottom, width, plot / height))
    second = figure.add_axes((left + width + gap, bottom, width, plot / height))
    add_legend(figure, columns)
    return figure, (first, second)


def run_handles(runs: Sequence[Behaved]) -> list[Line2D]:
    """Return a legend entry for each run."""
    styles = map(_style, runs)
    return [
        Line2D([], [], color=style.colour, linestyle=style.dashes, label=_label(run), gid=key_mark(run.number))
        for run, style in zip(runs, styles, strict=True)
    ]


def _style(run: Behaved) -> look.LineStyle:
    return look.line_style(run.arch, run.optimizer, run.place)


def _label(run: Behaved) -> str:
    return f"{run.number}  {units.shortened(run.name, LABEL_LENGTH)}"


def _draw_curves(axes: Axes, runs: Sequence[Behaved], curves: Sequence[Values], y_name: str) -> Panel:
    for run, values in zip(runs, curves, strict=True):
        style = _style(run)
        _plot(axes, values, style.colour, style.dashes, run.number)
    _step_axis(axes, curves)
    axes.set_xlabel(STEPS_NAME)
    lines = [
        Line(label=run.reference, x=_steps(values), y=values, run=run.number)
        for run, values in zip(runs, curves, strict=True)
    ]
    return Panel(axes=axes, lines=lines, x_name="step", y_name=y_name)


def _draw_pale(axes: Axes, panel: Panel, runs: Sequence[Behaved], curves: Sequence[Values]) -> None:
    """Add the mean of norms of each run to the panel that shows the norm of the mean."""
    for run, values in zip(runs, curves, strict=True):
        style, steps = _style(run), _steps(values)
        axes.plot(
            steps,
            values,
            color=style.colour,
            linestyle=style.dashes,
            linewidth=0.9,
            alpha=0.4,
            gid=run_mark(run.number),
        )
        panel.lines.append(Line(label=f"{run.reference}, mean of norms", x=steps, y=values, run=run.number))


def _plot(axes: Axes, values: Values, colour: str, dashes: object, number: RunNumber) -> None:
    lone = "o" if np.isfinite(values).sum() == 1 else ""
    axes.plot(_steps(values), values, color=colour, linestyle=dashes, marker=lone, linewidth=1.3, gid=run_mark(number))


def _number_lines(axes: Axes, runs: Sequence[Behaved], curves: Sequence[Values]) -> None:
    marks = [
        mark
        for run, values in zip(runs, curves, strict=True)
        for mark in _end_mark(values, str(run.number), _style(run).colour, run.number)
    ]
    if marks:
        place_numbers(axes, marks)


def _end_mark(values: Values, text: str, colour: str, number: RunNumber) -> list[Mark]:
    there = np.flatnonzero(np.isfinite(values))
    if not len(there):
        return []
    last = int(there[-1])
    return [Mark(x=last + 1.0, y=float(values[last]), text=text, colour=colour, run=number)]


def _steps(values: Values) -> Values:
    return np.arange(1, len(values) + 1, dtype=np.float64)


def _step_axis(axes: Axes, curves: Sequence[Values]) -> None:
    last = max(len(values) for values in curves)
    axes.set_xlim(1 - 0.02 * last, last + 0.02 * last)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]))


def _positive(values: Values) -> Values:
    """The values that a logarithmic axis can show; NaN in place of the others."""
    return np.where(np.isfinite(values) & (values > 0), values, math.nan)


def _logarithmic(axes: Axes, curves: Sequence[Values], *, most_ticks: int) -> None:
    """Limits and ticks of a logarithmic vertical axis; powers of ten where it spans enough of them."""
    values = np.concatenate(list(curves))
    values = values[np.isfinite(values)]
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_power))
    if not len(values):
        axes.yaxis.set_major_locator(FixedLocator([]))
        return
    low, high = float(values.min()) / 1.3, float(values.max()) * 1.3
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [10.0**decade for decade in decades if low <= 10.0**decade <= high]
    if len(ticks) < 3:
        ticks = [step * 10.0**decade for decade in decades for step in (1, 2, 5) if low <= step * 10.0**decade <= high]
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.yaxis.set_major_locator(FixedLocator(ticks[:: math.ceil(len(ticks) / most_ticks) or 1]))
    axes.set_ylim(low, high)


def _power(value: float, _: object = None) -> str:
    """``10⁻⁵``, or a plain number where it is no power of ten or near 1.

    >>> _power(1e-5), _power(0.02), _power(10.0)
    ('10⁻⁵', '0.02', '10')
    """
    exponent = round(math.log10(value)) if value > 0 else 0
    if exponent in (0, 1) or not math.isclose(value, 10.0**exponent):
        return f"{value:.3g}"
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))

"""The figures of the trained models' behaviour: loss at each time step, and gradients back in time."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.blocks.figure import Chart, name_values, run_mark
from analysis.blocks.sentences import caption
from analysis.plots import look
from analysis.plots.axes import Mark, fit, panels_with_legend, place_numbers
from analysis.plots.curves import LABEL_LENGTH
from analysis.study import units
from analysis.study.examined import ExaminedRun
from analysis.study.values import Values


@look.applied()
def loss_chart(runs: Sequence[ExaminedRun]) -> Chart:
    """Mean validation loss at each step from a zero state, and how far it is from that of one run over the same tokens.

    The second panel is there if two runs have recorded the losses of the same tokens.
    """
    paired = same_tokens(runs)
    count = 2 if len(paired) > 1 else 1
    figure, (left, *others) = panels_with_legend(3.2, run_handles(runs), 3, panels=count, title_lines=1)
    left.set_title("State zero at the start; pale: carried on", loc="left")
    draw_losses(left, runs, carried=False)
    left.set_ylabel("Mean validation loss (nats)")
    for axes in others:
        axes.set_title(f"Less that of {paired[0].number}, over the same tokens", loc="left")
        draw_differences(axes, paired)
    lengths, all_carry = map(str, _training_lengths(runs)), all(run.carries_state for run in runs)
    with_bands = any(run.losses.blocks is not None for run in runs)
    text = caption("losses", lengths=[*lengths], all_carry=all_carry, bands=with_bands, paired=len(paired) > 1)
    title = "Validation loss at each time step of a window"
    return Chart(name="loss-per-step", title=title, caption=text, figure=figure)


def same_tokens(runs: Sequence[ExaminedRun]) -> list[ExaminedRun]:
    """The runs with losses of the same tokens as the one of these with the lowest mean loss, which comes first."""
    known = [run for run in runs if run.losses.blocks is not None and len(run.losses.blocks) > 1]
    known.sort(key=lambda run: (float(run.losses.zero_state.mean()), str(run.number)))

    def tokens(run: ExaminedRun) -> Any:
        assert run.losses.blocks is not None
        return run.behaviour.corpus, run.behaviour.level, run.losses.tokens, run.losses.blocks.shape

    return [run for run in known if tokens(run) == tokens(known[0])]


def reach(blocks: Values) -> Values:
    """Half the width of the 95 % interval of the mean at each step, from the means of blocks (blocks x steps)."""
    from scipy.special import stdtrit  # slow to import

    n = len(blocks)
    found: Values = float(stdtrit(n - 1, 0.975)) * blocks.std(axis=0, ddof=1) / math.sqrt(n)
    return found


def draw_losses(axes: Axes, runs: Sequence[ExaminedRun], *, carried: bool) -> Axes:
    """Draw a curve of losses (nats) for each run, with the length of a window in training.

    From a zero state, bands are 95 % intervals, and the losses from a carried state are pale.
    """
    _draw_lengths(axes, runs)
    if carried:
        return _draw_curves(axes, runs, [run.losses.carried_state for run in runs], "loss (nats)")
    for run in runs:
        if run.losses.blocks is not None and len(run.losses.blocks) > 1:
            _draw_band(axes, run, run.losses.zero_state, reach(run.losses.blocks.astype(np.float64)))
        if run.carries_state:
            _plot(axes, run.losses.carried_state, run, ", state carried", linewidth=0.7, alpha=0.25)
    return _draw_curves(axes, runs, [run.losses.zero_state for run in runs], "loss (nats)")


def draw_differences(axes: Axes, runs: Sequence[ExaminedRun]) -> Axes:
    """Draw the loss of each run less that of the first, with the 95 % interval from the difference in each block."""
    first = runs[0].losses
    _draw_lengths(axes, runs)
    axes.axhline(0.0, color=look.MUTED, linewidth=1.0, zorder=1)
    for run in runs[1:]:
        assert run.losses.blocks is not None
        assert first.blocks is not None
        blocks = run.losses.blocks.astype(np.float64) - first.blocks.astype(np.float64)
        _draw_band(axes, run, run.losses.zero_state - first.zero_state, reach(blocks))
    axes.set_ylabel("Difference of losses (nats)")
    return _draw_curves(axes, runs[1:], [run.losses.zero_state - first.zero_state for run in runs[1:]], "nats")


def _draw_band(axes: Axes, run: ExaminedRun, middle: Values, half: Values) -> None:
    steps, gid = np.arange(1, len(middle) + 1), run_mark(run.number)
    colour = _style(run).colour
    axes.fill_between(steps, middle - half, middle + half, color=colour, alpha=0.18, linewidth=0, gid=gid)


def _draw_lengths(axes: Axes, runs: Sequence[ExaminedRun]) -> None:
    """Mark the lengths of windows in training."""
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


def _training_lengths(runs: Sequence[ExaminedRun]) -> list[int]:
    """The lengths of windows in training that are shorter than the curve."""
    return sorted({run.behaviour.seq_len for run in runs if run.losses.window > run.behaviour.seq_len})


@look.applied()
def gradient_chart(runs: Sequence[ExaminedRun]) -> Chart:
    """Norm of the last step's gradient at each step: rescaled to [0, 1], and as it is with the mean of the norms."""
    figure, (left, right) = panels_with_legend(3.2, run_handles(runs), 3, panels=2, title_lines=1)
    left.set_title("Each curve rescaled to [0, 1]", loc="left")
    right.set_title("As it is, logarithmic", loc="left")
    left.set_ylim(-0.03, 1.05)
    _draw_curves(left, runs, [rescaled(run.gradients.overall) for run in runs if run.gradients], "rescaled norm")
    draw_gradient_norms(right, runs)
    left.set_ylabel("Gradient norm, rescaled")
    counts = sorted({run.gradients.columns for run in runs if run.gradients})
    zero = [run.reference for run in runs if run.gradients and (run.gradients.overall == 0).any()]
    text = caption("gradients", counts=[f"{count:,}" for count in counts], zero=zero)
    title = "How far the loss at the last time step reaches back"
    return Chart(name="gradient-norms", title=title, caption=text, figure=figure)


def draw_gradient_norms(axes: Axes, runs: Sequence[ExaminedRun]) -> Axes:
    """Draw the gradient norms of runs that have them on a logarithmic axis, the mean of norms pale."""
    curves = [_positive(run.gradients.overall) for run in runs if run.gradients]
    means = [_positive(run.gradients.mean_of_norms) for run in runs if run.gradients]
    fit(axes, "y", [*curves, *means], log=True)
    _draw_curves(axes, runs, curves, "norm")
    for run, values in zip(runs, means, strict=True):
        _plot(axes, values, run, ", mean of norms", linewidth=0.9, alpha=0.4)
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


# -- parts of figures ----------------------------------------------------------------------------------------------


def run_handles(runs: Sequence[ExaminedRun]) -> list[Line2D]:
    """Return a legend entry for each run."""
    names = {run.id: units.short_name(run.name, LABEL_LENGTH, run.arch, run.optimizer) for run in runs}
    return [look.run_entry(run.number, f"{run.number}  {names[run.id]}", _style(run), marker=False) for run in runs]


def _style(run: ExaminedRun) -> look.LineStyle:
    return look.line_style(run.arch, run.optimizer, run.place)


def _draw_curves(axes: Axes, runs: Sequence[ExaminedRun], curves: Sequence[Values], y_name: str) -> Axes:
    """A curve for each run, with numbers at the ends of those with the lowest mean loss."""
    marks = []
    for run, values in sorted(
        zip(runs, curves, strict=True), key=lambda pair: float(pair[0].losses.carried_state.mean())
    ):
        _plot(axes, values, run, linewidth=1.3)
        ends, colour = np.flatnonzero(np.isfinite(values))[-1:], _style(run).colour
        marks += [Mark(n + 1.0, float(values[n]), str(run.number), colour, run.number) for n in ends]
    last = max(len(values) for values in curves)
    axes.set_xlim(1 - 0.02 * last, last + 0.02 * last)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("Time step t in the window")
    place_numbers(axes, marks)
    name_values(axes, "step", y_name)
    return axes


def _plot(axes: Axes, values: Values, run: ExaminedRun, of: str = "", **style: Any) -> None:
    """Draw a curve over the steps from 1."""
    steps = np.arange(1, len(values) + 1, dtype=np.float64)
    lone = "o" if np.isfinite(values).sum() == 1 else ""
    style |= {**_style(run).line, "gid": run_mark(run.number), "label": f"{run.reference}{of}"}
    axes.plot(steps, values, marker=lone, **style)


def _positive(values: Values) -> Values:
    """The values that a logarithmic axis can show; NaN in place of the others."""
    return np.where(np.isfinite(values) & (values > 0), values, math.nan)

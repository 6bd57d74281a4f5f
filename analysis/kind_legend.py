"""The legend of figures with a point for each run: architectures by colour, optimizers by marker."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from collections.abc import Set as AbstractSet

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import look, units


def kind_legend(
    figure: Figure,
    archs: AbstractSet[Hashable],
    optimizers: AbstractSet[Hashable],
    more: Sequence[Artist] = (),
    *,
    left: float,
) -> None:
    """One line at the foot of the figure: those architectures and optimizers that there are, then ``more``.

    ``left`` is where it begins, as a share of the figure's width.
    """
    handles: list[Artist] = [
        Line2D([], [], linestyle="", marker="o", color=colour, markersize=6, label=units.architecture(arch))
        for arch, colour in look.ARCHITECTURE_COLOURS.items()
        if arch in archs
    ]
    handles += [
        Line2D([], [], linestyle="", marker=marker, color=look.MUTED, markersize=6, label=units.optimizer(key))
        for key, (_, marker) in look.OPTIMIZER_STYLES.items()
        if key in optimizers
    ]
    handles += more
    figure.legend(handles=handles, ncols=len(handles), loc="lower left", bbox_to_anchor=(left, 0.0), fontsize=8)

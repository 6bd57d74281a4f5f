"""The colours of lines, without matplotlib, so that a terminal can use them too."""

from collections.abc import Sequence

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#cc79a7", "#f0e442")
"""Okabe and Ito's palette, which people with red-green or blue-yellow blindness can tell apart."""

UNKNOWN_COLOUR = "#7a7f85"

SHADES = ((0.0, 0.25), (-0.2, 0.37), (-0.35, 0.48), (-0.48, 0.58), (-0.6, 0.68))
"""Settings alike in architecture and optimizer differ in shade: towards black below 0, towards white above. The first
of each pair is for white paper, the second for a dark page. The last are not so near to black or white that
colour-blind readers confuse two architectures."""


def colours_of(architectures: Sequence[str]) -> dict[str, str]:
    """Return the colour of each architecture; of more than the palette has colours, one for the rest."""
    return dict.fromkeys(architectures, UNKNOWN_COLOUR) | dict(zip(architectures, PALETTE, strict=False))


def shade(colour: str, amount: float) -> str:
    """A colour moved towards black (negative) or white (positive) by a share of the way."""
    target = 1.0 if amount > 0 else 0.0
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    moved = [part + (target - part) * abs(amount) for part in parts]
    return "#" + "".join(f"{round(part * 255):02x}" for part in moved)

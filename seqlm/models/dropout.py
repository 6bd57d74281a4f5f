"""Dropout masks, drawn for a whole window at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

STEPS = 2**16
"""Keep probabilities are whole multiples of 1 / STEPS."""
CACHED_UNITS = 2**17
"""Units whose masks are made at a time on a CPU; half a megabyte in float32."""


@final
class Dropout(nn.Module):
    """Keep each unit with probability ``keep`` while training, and divide by it (Srivastava et al., 2014).

    ``keep`` is rounded to a multiple of 2^-16 (and is at least that); kept units are divided by the rounded value, so
    that the expectation is exact.
    """

    def __init__(self, keep: float) -> None:
        super().__init__()
        self.keep = keep

    @property
    def scale(self) -> float:
        """What kept units are multiplied by; 1 where nothing is dropped."""
        return STEPS / self._kept if self.training else 1.0

    @property
    def _kept(self) -> int:
        return max(1, round(self.keep * STEPS))

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return drop(x, self.mask(x.shape, x))

    def mask(self, shape: Sequence[int], like: Tensor) -> Tensor | None:
        """What a tensor of that ``shape`` is multiplied by, typed and placed as ``like``; none: nothing is dropped."""
        return self.masks([shape], like)[0]

    def masks(self, shapes: Sequence[Sequence[int]], like: Tensor) -> list[Tensor | None]:
        """A mask for each of ``shapes``, all from one call of the device's global generator.

        Each 64-bit number that it draws decides over four units, by 16 bits each.
        """
        kept = self._kept
        if kept >= STEPS or not self.training:
            return [None] * len(shapes)
        sizes = [math.prod(shape) for shape in shapes]
        count = sum(sizes)
        numbers = torch.empty((count + 3) // 4, dtype=torch.int64, device=like.device).random_(-(2**63), None)
        mask = torch.empty(count, dtype=like.dtype, device=like.device)
        # Piece by piece on a CPU: what one operation leaves in the cache is there for the next.
        piece = CACHED_UNITS if like.device.type == "cpu" else count
        for drawn, units in zip(numbers.view(torch.int16)[:count].split(piece), mask.split(piece), strict=True):
            torch.lt(drawn, kept - STEPS // 2, out=units)
            units.mul_(self.scale)
        return [part.view(*shape) for part, shape in zip(mask.split(sizes), shapes, strict=True)]


def drop(x: Float[Tensor, "*shape"], mask: Float[Tensor, "*shape"] | None) -> Float[Tensor, "*shape"]:
    """``x`` with the dropped units zero and the kept ones scaled."""
    return x if mask is None else x * mask

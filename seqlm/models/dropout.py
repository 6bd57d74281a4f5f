"""Dropout masks: drawn for a whole window at once, or the same for all windows of a step."""

import math
from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float, Int
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
        return STEPS / _kept_of(self.keep) if self.training else 1.0

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return drop(x, self.mask(x.shape, x))

    def mask(self, shape: Sequence[int], like: Tensor) -> Tensor | None:
        """What a tensor of that ``shape`` is multiplied by, typed and placed as ``like``; none: nothing is dropped."""
        return self.masks([shape], like)[0]

    def masks(self, shapes: Sequence[Sequence[int]], like: Tensor) -> list[Tensor | None]:
        """A mask for each of ``shapes``, all from one call of the device's global generator.

        Each 64-bit number that it draws decides over four units, by 16 bits each. On a GPU it also follows from the
        number of multiprocessors which unit gets which bits.
        """
        kept = _kept_of(self.keep)
        if kept >= STEPS or not self.training:
            return [None] * len(shapes)
        sizes = [math.prod(shape) for shape in shapes]
        count = sum(sizes)
        numbers = torch.empty((count + 3) // 4, dtype=torch.int64, device=like.device).random_(-(2**63), None)
        mask = torch.empty(count, dtype=like.dtype, device=like.device)
        # Piece by piece on a CPU: what one operation leaves in the cache is there for the next.
        piece = CACHED_UNITS if like.device.type == "cpu" else count
        for drawn, units in zip(numbers.view(torch.int16)[:count].split(piece), mask.split(piece), strict=True):
            _fill(units, drawn, kept)
        return [part.view(*shape) for part, shape in zip(mask.split(sizes), shapes, strict=True)]


def _kept_of(keep: float) -> int:
    """``keep`` as a number of STEPS."""
    return max(1, round(keep * STEPS))


def _fill(units: Tensor, drawn: Tensor, kept: int) -> None:
    """Make a mask of random 16-bit numbers: 0, or STEPS / ``kept`` with a probability of ``kept`` / STEPS."""
    torch.lt(drawn, kept - STEPS // 2, out=units)
    units.mul_(STEPS / kept)


# -- one mask for a whole step ----------------------------------------------------------------------------------------

_GOLDEN, _FIRST, _SECOND = (number - 2**64 for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""The constants of SplitMix64, as signed numbers."""


def step_masks(
    key: Int[Tensor, ""], wanted: Sequence[tuple[Sequence[int], float]], like: Tensor
) -> list[Tensor | None]:
    """Return a mask for each (shape, keep) as a pure function of ``key``, typed and placed as ``like``.

    Such a mask is over word types or weights, which all columns of a step share. A function of the key is the same on
    each rank, in each micro-batch and on each device. The numbers are those of SplitMix64 (Steele et al., 2014) with
    ``key`` as its seed, four units of 16 bits from each.
    """
    masks: list[Tensor | None] = []
    start = 1
    for shape, keep in wanted:
        kept, count = _kept_of(keep), math.prod(shape)
        if kept >= STEPS:
            masks.append(None)
            continue
        numbers = torch.arange(start, start + (count + 3) // 4, device=like.device)
        start += len(numbers)
        numbers.mul_(_GOLDEN).add_(key)
        for shift, factor in ((30, _FIRST), (27, _SECOND), (31, None)):
            numbers.bitwise_xor_((numbers >> shift).bitwise_and_(2 ** (64 - shift) - 1))  # >> repeats the sign
            if factor is not None:
                numbers.mul_(factor)
        mask = torch.empty(count, dtype=like.dtype, device=like.device)
        _fill(mask, numbers.view(torch.int16)[:count], kept)
        masks.append(mask.view(*shape))
    return masks


def drop(x: Float[Tensor, "*shape"], mask: Float[Tensor, "*shape"] | None) -> Float[Tensor, "*shape"]:
    """``x`` with the dropped units zero and the kept ones scaled."""
    return x if mask is None else x * mask


def drop_words(
    embedded: Float[Tensor, "T B E"], tokens: Int[Tensor, "T B"], mask: Float[Tensor, " V"] | None
) -> Float[Tensor, "T B E"]:
    """The vectors of ``tokens`` with the dropped word types zero and the kept ones scaled."""
    return embedded if mask is None else embedded * mask[tokens].unsqueeze(2)

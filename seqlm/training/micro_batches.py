"""Micro-batches: a rank's columns in several parts, one after the other, so that a step needs less memory.

The parts of a window are whole columns with their carried state, since columns are independent texts. Losses are summed
and gradients added over the parts, so the global batch, and with it the result, is the same up to rounding; dropout
masks are drawn part by part, so they are others than those of an undivided step.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Num
from torch import Tensor

from seqlm.data.layout import own_columns
from seqlm.environment import MICRO_BATCHES


def micro_batches_from(env: Mapping[str, str], batch_size: int, world_size: int) -> int:
    """Return the number of parts from ``SEQLM_MICRO_BATCHES``.

    Raises:
        UsageError: it is not a whole number above 0, or some rank has fewer columns.
    """
    most = len(own_columns(batch_size, world_size - 1, world_size))  # the last rank has the fewest
    expected = f"a whole number from 1 to {most}, the columns of a rank"
    return MICRO_BATCHES.read(env, is_valid=lambda parts: parts <= most, expected=expected)


def split_columns(tensor: Num[Tensor, "A B *rest"], parts: int) -> tuple[Num[Tensor, "A b *rest"], ...]:
    """The tensor cut along its batch, the second dimension, into ``parts`` views; their sizes differ by one at most."""
    return tensor.tensor_split(parts, dim=1) if parts > 1 else (tensor,)

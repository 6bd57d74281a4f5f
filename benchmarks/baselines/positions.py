"""The sinusoidal positions of the Transformer, as a table made once."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def position_table(length: int, width: int) -> Float[Tensor, "T H"]:
    """Sines in the even columns and cosines in the odd ones (Vaswani et al., 2017), of the default type."""
    position = torch.arange(length, dtype=torch.float64).unsqueeze(1)
    frequency = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10_000) / width))
    table = torch.zeros(length, width)
    table[:, 0::2] = torch.sin(position * frequency)
    table[:, 1::2] = torch.cos(position * frequency)[:, : width // 2]
    return table

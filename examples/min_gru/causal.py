"""A depthwise convolution over time that sees no later input."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CausalConvolution(nn.Module):
    """u_t = b + sum over k of w_k * x_{t-k}, k = 0 .. width - 1, for each unit on its own."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.w = nn.Parameter(torch.empty(width, size).uniform_(-(width**-0.5), width**-0.5))
        self.b = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """All u (T, B, H) of the inputs (T, B, H), and the inputs (B, width - 1, H) that the next window needs."""
        seen = torch.cat((past.transpose(0, 1), x))
        u = self.b + sum(self.w[k] * seen[self.width - 1 - k : len(seen) - k] for k in range(self.width))
        return u, seen[len(x) :].transpose(0, 1).contiguous()

"""Matrix products: in which precision they are computed, and the repeated one of a recurrent layer.

Products are the only operations that may run in a lower precision than the model's own (``train.precision``). Operands
are rounded on the way in and the result is brought back, so parameters, states, sums and everything point-wise keep
the type of the parameters.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F  # noqa: N812 -- the field's own abbreviation
from jaxtyping import Float
from torch import Tensor, nn

MANY_STEPS = 8
"""Repetitions from which preparing a weight pays."""
PACKED_SIZE = 1024
"""Width and height from which oneDNN's packed form beats the plain product (benchmarks/results)."""
PACKED_ROWS = 64
"""Rows up to which it does."""

CACHE_LINE_BYTES = 64
MANY_ROWS = 128
"""Rows of a result from which the alignment of each pays for a copy."""


def linear(layer: nn.Linear, x: Float[Tensor, "*shape D"], dtype: torch.dtype | None = None) -> Tensor:
    """W x + b (*shape, H), with the product in ``dtype`` (none: that of ``x``) and the result in that of ``x``."""
    if dtype is None or dtype == x.dtype:
        result: Tensor = layer(x)
        return result
    multiplied = F.linear(x.to(dtype), layer.weight.to(dtype)).to(x.dtype)
    return multiplied if layer.bias is None else multiplied + layer.bias


def multiply(a: Float[Tensor, "I K"], b: Float[Tensor, "K J"], out: Float[Tensor, "I J"]) -> None:
    """``out`` <- a b; computed in the type of the operands, stored in that of ``out``."""
    if a.dtype != out.dtype:
        out.copy_(a @ b)
    elif _rows_are_aligned(out):
        torch.mm(a, b, out=out)
    else:
        out.copy_(torch.mm(a, b, out=_aligned_like(out)))


def multiply_add(a: Float[Tensor, "I K"], b: Float[Tensor, "K J"], out: Float[Tensor, "I J"]) -> None:
    """``out`` <- out + a b; computed in the type of the operands, summed in that of ``out``."""
    if a.dtype != out.dtype:
        out.add_(a @ b)
    elif _rows_are_aligned(out):
        out.addmm_(a, b)
    else:
        out.add_(torch.mm(a, b, out=_aligned_like(out)))


def product(a: Float[Tensor, "I K"], b: Float[Tensor, "K J"], dtype: torch.dtype) -> Float[Tensor, "I J"]:
    """The product a b, computed in the type of the operands, in the type ``dtype``."""
    out = torch.empty(a.shape[0], b.shape[1], dtype=dtype, device=a.device)
    multiply(a, b, out=out)
    return out


def project(
    x: Float[Tensor, "I D"], weight: Float[Tensor, "H D"], bias: Float[Tensor, " H"], out: Float[Tensor, "I H"]
) -> None:
    """``out`` <- x W^T + b; the product in the type of ``x``, which ``weight`` is rounded to."""
    if x.dtype != out.dtype:
        torch.add(x @ weight.to(x.dtype).t(), bias, out=out)
    elif _rows_are_aligned(out):
        torch.addmm(bias, x, weight.t(), out=out)
    else:
        out.copy_(torch.addmm(bias, x, weight.t(), out=_aligned_like(out)))


def _rows_are_aligned(out: Tensor) -> bool:
    """Whether each row of ``out`` begins where a cache line does, or it does not matter.

    MKL is slow with a result of any other width: 107 instead of 148 GFLOP/s for 10,000 rows of 1,500 float32 numbers on
    an AVX2 processor (operands may be as they like). A product into aligned rows and a copy cost less.
    """
    return out.device.type != "cpu" or out.shape[1] * out.element_size() % CACHE_LINE_BYTES == 0 or len(out) < MANY_ROWS


def _aligned_like(out: Float[Tensor, "I J"]) -> Float[Tensor, "I J"]:
    """Room for ``out`` with aligned rows."""
    per_line = CACHE_LINE_BYTES // out.element_size()
    width = -(-out.shape[1] // per_line) * per_line
    return out.new_empty(len(out), width)[:, : out.shape[1]]


@final
class RepeatedProduct:
    """The product of few rows with one large matrix, h W^T, done once for every time step of a window.

    A general product rearranges W in memory each time it is called, which at 20 rows costs as much as the arithmetic.
    W stays the same for a whole window, so it is prepared once: on a CPU, large matrices go into oneDNN's own layout
    (operators that torch.compile emits too; there is no public call for them), small ones are transposed. The
    numbers are those of the plain product, up to the order of summation; no lower precision is involved.

    Args:
        weight: W (H, K), already in the type of the product.
        rows: rows of each factor h (rows, K).
        steps: how often the product will be asked for.
    """

    def __init__(self, weight: Float[Tensor, "H K"], rows: int, steps: int) -> None:
        self._packed: Tensor | None = None
        if steps >= MANY_STEPS and rows <= PACKED_ROWS and _can_be_packed(weight):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
        else:
            small = max(weight.shape) < PACKED_SIZE
            self._transposed = weight.t().contiguous() if small and steps >= MANY_STEPS else weight.t()

    def times(self, h: Float[Tensor, "rows K"]) -> Float[Tensor, "rows H"]:
        """The product h W^T, in the type of ``h``."""
        if self._packed is None:
            return h @ self._transposed
        result: Tensor = torch.ops.mkldnn._linear_pointwise(h, self._packed, None, "none", [], "")
        return result

    def plus(self, h: Float[Tensor, "rows K"], other: Float[Tensor, "rows H"]) -> Float[Tensor, "rows H"]:
        """``other`` + h W^T, summed in the type of ``other``."""
        if h.dtype != other.dtype:
            return other + self.times(h)
        if self._packed is None:
            return torch.addmm(other, h, self._transposed)
        result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(h, other, self._packed, None, "add")
        return result


def _can_be_packed(weight: Tensor) -> bool:
    """Whether oneDNN has a packed product for it; float64 and other devices take the plain one."""
    return bool(
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and min(weight.shape) >= PACKED_SIZE
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
    )

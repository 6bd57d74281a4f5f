"""Matrix products: in which precision they are computed, and the repeated one of a recurrent layer.

Products are the only operations that may run in a lower precision than the model's own (``train.precision``).
Parameters, states and everything point-wise keep the type of the parameters. With bf16 products:

- Both operands are rounded to bf16 (8 bits, relative error at most 2^-8), in the backward pass too.
- Sums are float32. The product of two bf16 numbers has 16 bits, so only additions round.
- On a GPU the result is float32 (``out_dtype`` of ``torch.mm`` and ``torch.bmm``, from PyTorch 2.8 on).
- On a CPU the finished float32 sum is rounded to bf16 once, and then stored as float32. PyTorch has no bf16 product
  with a float32 result on a CPU. docs/project/decisions/2026-11-26-bf16-products.md has the measurements.

``torch.addmm`` also takes ``out_dtype``, but some versions refuse a float32 matrix to add to. Additions to a bf16
product are therefore operations of their own.
"""

from __future__ import annotations

from typing import Any, TypeAlias, final

import torch
import torch.nn.functional as F  # noqa: N812 -- the field's own abbreviation
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function

from seqlm.models.function import apply

MANY_STEPS = 8
"""Repetitions from which preparing a weight pays."""
PACKED_SIZE = 1024
"""Width and height from which oneDNN's packed form beats the plain product (benchmarks/results)."""
PACKED_ROWS = 64
"""Rows up to which it does."""

CACHE_LINE_BYTES = 64
MANY_ROWS = 128
"""Rows of a result from which the alignment of each pays for a copy."""


@final
class TiedOutput(nn.Module):
    """An output layer with the embedding's matrix E: E h + b_y (Press and Wolf, 2017). Only b_y is its own."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(embedding.num_embeddings))
        self._embedding = (embedding,)  # hidden from torch, so that the matrix has one name, in checkpoints too

    @property
    def weight(self) -> Tensor:
        return self._embedding[0].weight

    @property
    def out_features(self) -> int:
        return len(self.bias)

    def forward(self, x: Float[Tensor, "*shape H"]) -> Float[Tensor, "*shape V"]:
        return F.linear(x, self.weight, self.bias)


LinearMap: TypeAlias = nn.Linear | TiedOutput


def linear(layer: LinearMap, x: Float[Tensor, "*shape D"], dtype: torch.dtype | None = None) -> Tensor:
    """Return W x + b (*shape, H) in the type of ``x``, with the product in ``dtype`` (``None``: that of ``x``)."""
    if dtype is None or dtype == x.dtype:
        result: Tensor = layer(x)
        return result
    multiplied = rounded_product(x.reshape(-1, x.shape[-1]), layer.weight.t(), dtype).view(*x.shape[:-1], -1)
    return multiplied if layer.bias is None else multiplied + layer.bias


def rounded_product(
    a: Float[Tensor, "*batch I K"], b: Float[Tensor, "*batch K J"], dtype: torch.dtype | None = None
) -> Float[Tensor, "*batch I J"]:
    """Return a b in the type of ``a``, with the product in ``dtype`` (``None``: that of ``a``).

    Can be differentiated any number of times. The products of its derivatives are rounded as this one is.
    """
    return a @ b if dtype is None or dtype == a.dtype else apply(_RoundedProduct, a, b, dtype)


@final
class _RoundedProduct(Function):
    """With the gradient g of a b: the gradient of a is g b^T, that of b is a^T g."""

    @staticmethod
    def forward(
        ctx: Any, a: Float[Tensor, "*batch I K"], b: Float[Tensor, "*batch K J"], dtype: torch.dtype
    ) -> Float[Tensor, "*batch I J"]:
        ctx.save_for_backward(a, b)
        ctx.dtype = dtype
        if a.dim() == 2:
            return product(a.to(dtype), b.to(dtype), a.dtype)
        flat = product(a.to(dtype).flatten(0, -3), b.to(dtype).flatten(0, -3), a.dtype)
        batched: Tensor = flat.unflatten(0, a.shape[:-2])
        return batched

    @staticmethod
    def backward(ctx: Any, g: Float[Tensor, "*batch I J"]) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        for_a, for_b, _ = ctx.needs_input_grad
        d_a = rounded_product(g, b.transpose(-2, -1), ctx.dtype) if for_a else None
        d_b = rounded_product(a.transpose(-2, -1), g, ctx.dtype) if for_b else None
        return d_a, d_b, None


def multiply(a: Float[Tensor, "*batch I K"], b: Float[Tensor, "*batch K J"], out: Float[Tensor, "*batch I J"]) -> None:
    """``out`` <- a b, for matrices or batches of them; operands in their own type, result in that of ``out``."""
    matmul = torch.mm if a.dim() == 2 else torch.bmm
    if a.dtype != out.dtype:
        if _stores_full_results(out.device):
            matmul(a, b, out_dtype=out.dtype, out=out)
        else:
            out.copy_(matmul(a, b))
    elif a.dim() == 3 or _rows_are_aligned(out):
        matmul(a, b, out=out)
    else:
        out.copy_(torch.mm(a, b, out=_aligned_like(out)))


def multiply_add(a: Float[Tensor, "I K"], b: Float[Tensor, "K J"], out: Float[Tensor, "I J"]) -> None:
    """``out`` <- out + a b; operands in their own type, summed in that of ``out``."""
    if a.dtype != out.dtype:
        out.add_(torch.mm(a, b, out_dtype=out.dtype) if _stores_full_results(out.device) else a @ b)
    elif _rows_are_aligned(out):
        out.addmm_(a, b)
    else:
        out.add_(torch.mm(a, b, out=_aligned_like(out)))


def product(
    a: Float[Tensor, "*batch I K"], b: Float[Tensor, "*batch K J"], dtype: torch.dtype
) -> Float[Tensor, "*batch I J"]:
    """The product a b of matrices or batches of them; operands in their own type, result in ``dtype``."""
    out = torch.empty(*a.shape[:-1], b.shape[-1], dtype=dtype, device=a.device)
    multiply(a, b, out=out)
    return out


def project(
    x: Float[Tensor, "I D"], weight: Float[Tensor, "H D"], bias: Float[Tensor, " H"], out: Float[Tensor, "I H"]
) -> None:
    """``out`` <- x W^T + b; ``weight`` is rounded to the type of ``x``, the sum has that of ``out``."""
    if x.dtype != out.dtype:
        transposed = weight.to(x.dtype).t()
        if _stores_full_results(out.device):
            torch.mm(x, transposed, out_dtype=out.dtype, out=out).add_(bias)
        else:
            torch.add(x @ transposed, bias, out=out)
    elif _rows_are_aligned(out):
        torch.addmm(bias, x, weight.t(), out=out)
    else:
        out.copy_(torch.addmm(bias, x, weight.t(), out=_aligned_like(out)))


def _stores_full_results(device: torch.device) -> bool:
    """Whether products there take ``out_dtype``; ``use_precision`` refuses bf16 on a GPU if PyTorch lacks it."""
    return device.type == "cuda"


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
        weight: W (H, K), in the type of the results.
        dtype: type of the operands, which W is rounded to.
        rows: rows of each factor h (rows, K).
        steps: how often the product will be asked for.
    """

    def __init__(self, weight: Float[Tensor, "H K"], dtype: torch.dtype, rows: int, steps: int) -> None:
        self._result_dtype = weight.dtype
        weight = weight.to(dtype)
        self._packed: Tensor | None = None
        if steps >= MANY_STEPS and rows <= PACKED_ROWS and _can_be_packed(weight):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
        else:
            small = max(weight.shape) < PACKED_SIZE
            self._transposed = weight.t().contiguous() if small and steps >= MANY_STEPS else weight.t()

    def times(self, h: Float[Tensor, "rows K"]) -> Float[Tensor, "rows H"]:
        """The product h W^T."""
        return self._times(h).to(self._result_dtype)

    def plus(self, h: Float[Tensor, "rows K"], other: Float[Tensor, "rows H"]) -> Float[Tensor, "rows H"]:
        """``other`` + h W^T, summed in the type of ``other``."""
        if h.dtype != other.dtype:
            return other + self._times(h)
        if self._packed is None:
            return torch.addmm(other, h, self._transposed)
        result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(h, other, self._packed, None, "add")
        return result

    def _times(self, h: Float[Tensor, "rows K"]) -> Float[Tensor, "rows H"]:
        """The product h W^T as the device stores it, in the type of the results or of ``h``."""
        if self._packed is not None:
            result: Tensor = torch.ops.mkldnn._linear_pointwise(h, self._packed, None, "none", [], "")
            return result
        if h.dtype != self._result_dtype and _stores_full_results(h.device):
            return torch.mm(h, self._transposed, out_dtype=self._result_dtype)
        return h @ self._transposed


def _can_be_packed(weight: Tensor) -> bool:
    """Whether oneDNN has a packed product for it; float64 and other devices take the plain one."""
    return bool(
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and min(weight.shape) >= PACKED_SIZE
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
    )

"""The fastest matrix product of this moment: what a training step would take if it did nothing but multiply."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from benchmarks.device import seconds_of_call
from benchmarks.shapes import Shape, built_in
from seqlm.config import Precision
from seqlm.models.products import set_switches

REPEATS = 3
"""Products of a kind that a GPU takes in a row."""


@dataclass(frozen=True)
class Product:
    """``out`` <- a b."""

    a: Tensor
    b: Tensor
    out: Tensor

    @property
    def flops(self) -> int:
        """A multiply-add counts 2, as in :mod:`jobs.plan.estimate`."""
        return 2 * self.a.shape[0] * self.a.shape[1] * self.b.shape[1]


@final
class GemmPeak:
    """The best of a few products in one precision, each done once a turn, on a GPU some times in a row; those in bf16
    have bf16 results.

    With N = T B rows: the output layer's product (N, H) (H, V) and its two gradients, the product with a recurrent
    or attention weight (N, H) (H, H), and a cubic one that owes nothing to the shape. In fp32 on a processor each is
    that of the faster library, BLAS or oneDNN.
    """

    def __init__(
        self,
        shape: Shape,
        device: torch.device,
        precision: Precision = "fp32",
        clock: Callable[[], float] = time.perf_counter,
        seed: int = 1,
    ) -> None:
        self._precision = precision
        self._device = device
        self._clock = clock
        generator = torch.Generator(device).manual_seed(seed)

        def matrix(rows: int, columns: int) -> Tensor:
            drawn = torch.randn(rows, columns, generator=generator, device=device)
            return drawn.bfloat16() if precision == "bf16" else drawn

        n, h, v, c = shape.tokens, built_in(shape.config).hidden_size, shape.vocab_size, shape.cube
        hidden, weight, logits, d_logits = matrix(n, h), matrix(v, h), matrix(n, v), matrix(n, v)
        self.products = (
            Product(hidden, weight.t(), logits),
            Product(d_logits, weight, torch.empty_like(hidden)),
            Product(d_logits.t(), hidden, torch.empty_like(weight)),
            Product(hidden, matrix(h, h), torch.empty_like(hidden)),
            Product(matrix(c, c), matrix(c, c), matrix(c, c)),
        )

    def __call__(self) -> float:
        """Billions of floating-point operations per second of the fastest."""
        set_switches(self._precision)
        return max(product.flops / self._seconds(product) for product in self.products) / 1e9

    def _seconds(self, product: Product) -> float:
        repeats = 1 if self._device.type == "cpu" else REPEATS

        def by_blas() -> None:
            torch.mm(product.a, product.b, out=product.out)

        def by_onednn() -> None:
            torch.ops.mkldnn._linear_pointwise(product.a, product.b.t(), None, "none", [], "")

        is_fp32_of_cpu = self._device.type == "cpu" and product.a.dtype == torch.float32
        libraries = (by_blas, by_onednn) if is_fp32_of_cpu and torch.backends.mkldnn.is_available() else (by_blas,)
        return min(seconds_of_call(multiply, self._device, repeats, self._clock) for multiply in libraries)

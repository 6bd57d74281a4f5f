"""Kernels for a CPU that give bf16 products a float32 result, as ``out_dtype`` does on a GPU.

With these, the lines of :mod:`seqlm.models.products` that run on a GPU also run where there is none. They accept what
PyTorch's CUDA kernels accept, and float64 as well, which gives the exact result for comparison.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TypeAlias

import pytest
import torch
from torch import Tensor

from seqlm.models import products

Matmul: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def full_results_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Within the block, products on a CPU are stored in the requested type."""
    if "dtype_out" not in torch.ops.aten.mm.overloads():
        pytest.skip("PyTorch before 2.8 has no out_dtype")
    library = torch.library.Library("aten", "IMPL", "CPU")
    for name, matmul in (("mm", torch.mm), ("bmm", torch.bmm)):
        library.impl(f"{name}.dtype", _product(matmul))
        library.impl(f"{name}.dtype_out", _product_into(matmul))
    with monkeypatch.context() as patch:
        patch.setattr(products, "_stores_full_results", lambda device: True)
        yield
    library._destroy()


def _product(matmul: Matmul) -> Callable[[Tensor, Tensor, torch.dtype], Tensor]:
    def kernel(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
        assert a.dtype == b.dtype == torch.bfloat16
        assert out_dtype in (torch.float32, torch.float64)
        return matmul(a.to(out_dtype), b.to(out_dtype))

    return kernel


def _product_into(matmul: Matmul) -> Callable[..., Tensor]:
    def kernel(a: Tensor, b: Tensor, out_dtype: torch.dtype, *, out: Tensor) -> Tensor:
        assert out.dtype == out_dtype
        return out.copy_(_product(matmul)(a, b, out_dtype))

    return kernel

"""Each product against float64, within bounds that a sum or a result in a shorter type would break."""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from seqlm import machine
from seqlm.machine import has_bf16, matmul_library
from seqlm.models import products
from seqlm.models.products import (
    PACKED_SIZE,
    RepeatedProduct,
    accumulate,
    linear,
    onednn_fault,
    product,
    rounded_product,
    set_switches,
)
from seqlm.training.distributed import Rank
from tests.full_results import full_results_on_the_cpu

SIZE = 64
"""Of all three sides of a product: rows, columns and terms of each sum."""
ROUNDED_SUM = 2.0**-23
"""Largest relative error of a float32 addition: 2^-24 to nearest, twice that where a tensor core truncates."""
ROUNDED_TO_BF16 = 2.0**-8
"""Largest relative error of a number rounded to bf16."""
ROUNDED_TO_TF32 = 2.0**-10
"""Largest relative error of a number cut to TF32's 11 bits; 2^-11 if it is rounded to nearest."""

NAMES = (
    "product",
    "accumulate",
    "product of batches",
    "product and bias",
    "product and matrix",
    "linear",
    "linear by x",
    "linear by W",
    "repeated times",
    "repeated plus",
)
names = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def _switches_restored() -> Iterator[None]:
    yield
    set_switches("fp32")


@pytest.fixture
def probed_anew() -> Iterator[None]:
    """oneDNN is probed as in a new process, and again after the test."""
    for cached in (products.onednn_fault, products.fp32_library):
        cached.cache_clear()
    yield
    for cached in (products.onednn_fault, products.fp32_library):
        cached.cache_clear()


@pytest.fixture
def full_results(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    with full_results_on_the_cpu(monkeypatch):
        yield


def drawn(size: int, device: str = "cpu", *, bf16: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Two float32 factors, with bf16 values if asked for, and a matrix to add to, all (size, size)."""
    torch.manual_seed(1)
    a, b, added = (torch.randn(size, size) for _ in range(3))
    return tuple(x.to(device) for x in ((a.bfloat16().float(), b.bfloat16().float(), added) if bf16 else (a, b, added)))


def computed(name: str, a: Tensor, b: Tensor, added: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """What the operation ``name`` gives, and the factors of the product it computed."""
    a_low, b_low, out, bias = a.to(dtype), b.to(dtype), added.clone(), added[0]
    layer = nn.Linear(SIZE, SIZE, device=a.device)
    with torch.no_grad():
        layer.weight.copy_(b.t())
        layer.bias.copy_(bias)
    leaf = a.clone().requires_grad_()
    repeated = RepeatedProduct(b.t(), dtype, rows=len(a), steps=35)
    match name:
        case "product":
            out = product(a_low, b_low, a.dtype)
        case "accumulate":
            accumulate(a_low, b_low, out=out)
        case "product of batches":
            out = product(torch.stack((b_low, a_low)), torch.stack((a_low, b_low)), a.dtype)[1]
        case "product and bias":
            out = product(a_low, b_low, a.dtype, bias)
        case "product and matrix":
            out = product(a_low, b_low, a.dtype, added)
        case "linear":
            out = linear(layer, a.view(2, -1, SIZE), dtype).flatten(0, 1)
        case "linear by x":
            linear(layer, leaf, dtype).backward(b.t())
            return gradient(leaf), b.t(), b.t()
        case "linear by W":
            linear(layer, a, dtype).backward(b)
            return gradient(layer.weight), b.t(), a
        case "repeated times":
            out = repeated.plus(a_low)
        case "repeated plus":
            out = repeated.plus(a_low, added.clone())
    return out, a, b


def gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def exact_and_magnitude(name: str, a: Tensor, b: Tensor, added: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The result in float64, the product in it, and the same with all terms positive: the most a partial sum can be."""
    exact, magnitude = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    if name in ("accumulate", "product and matrix", "repeated plus"):
        return exact + added, exact, magnitude + added.abs()
    if name in ("product and bias", "linear"):
        return exact + added[0], exact, magnitude + added[0].abs()
    return exact, exact, magnitude


@pytest.fixture(params=["onednn", "blas"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Products of float32 by each of the libraries in turn."""
    if request.param == "onednn" and not torch.backends.mkldnn.is_available():
        pytest.skip("PyTorch has no oneDNN here")
    monkeypatch.setattr(products, "fp32_library", lambda: request.param)
    return str(request.param)


@names
@pytest.mark.usefixtures("library")
def test_fp32_products_err_by_the_additions_alone(name: str) -> None:
    a, b, added = drawn(SIZE, bf16=False)
    found, *factors = computed(name, a, b, added, torch.float32)
    exact, _, magnitude = exact_and_magnitude(name, *factors, added)
    assert found.dtype == torch.float32
    assert ((found - exact).abs() <= (SIZE + 1) * ROUNDED_SUM * magnitude).all()


@pytest.mark.usefixtures("library")
@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    shape=st.tuples(*[st.integers(1, 200)] * 3),
    layouts=st.tuples(*[st.sampled_from(["rows", "transposed", "part", "every other column"])] * 2),
    addend=st.sampled_from(["none", "bias", "matrix", "transposed matrix"]),
)
def test_products_of_any_shape_and_layout_err_by_the_additions_alone(
    shape: tuple[int, int, int], layouts: tuple[str, str], addend: str
) -> None:
    rows, terms, columns = shape
    torch.manual_seed(1)
    a, b = laid_out(rows, terms, layouts[0]), laid_out(terms, columns, layouts[1])
    options = {
        "none": None,
        "bias": torch.randn(columns),
        "matrix": torch.randn(rows, columns),
        "transposed matrix": torch.randn(columns, rows).t(),
    }
    added = options[addend]
    out = laid_out(rows, columns, layouts[0])
    before = [tensor.clone() for tensor in (a, b, out)]
    found = product(a, b, torch.float32, added)
    accumulate(a, b, out=out)
    assert torch.equal(a, before[0])
    assert torch.equal(b, before[1])
    exact = a.double() @ b.double()
    for result, plus in ((found, torch.zeros(1) if added is None else added), (out, before[2])):
        bound = (terms + 1) * ROUNDED_SUM * (a.double().abs() @ b.double().abs() + plus.abs())
        assert ((result - (exact + plus)).abs() <= bound).all()


def laid_out(rows: int, columns: int, layout: str) -> Tensor:
    """A matrix of float32 numbers whose places in memory have these strides."""
    match layout:
        case "transposed":
            return torch.randn(columns, rows).t()
        case "part":
            return torch.randn(rows + 2, columns + 3)[1:-1, 2:-1]
        case "every other column":
            return torch.randn(rows, 2 * columns)[:, ::2]
    return torch.randn(rows, columns)


def test_the_variable_overrides_the_library_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onednn", "blas"):
        monkeypatch.setenv("SEQLM_MATMUL", name)
        assert matmul_library() == name


@pytest.mark.parametrize(
    ("vendor", "flags", "library"),
    [
        ("AuthenticAMD", "fma avx2 avx512f", "onednn"),
        ("AuthenticAMD", "fma avx2", "blas"),
        ("GenuineIntel", "fma avx2 avx512f", "blas"),
    ],
)
def test_the_library_follows_from_the_processor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, vendor: str, flags: str, library: str
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {flags}\n")
    monkeypatch.setattr(machine, "CPUINFO", cpuinfo)
    monkeypatch.delenv("SEQLM_MATMUL", raising=False)
    assert matmul_library() == library


class Onednn:
    """PyTorch's operators of oneDNN, one of them with a fault."""

    def __init__(self, faulty: str, fault: str) -> None:
        self._real, self._faulty, self._fault = torch.ops.mkldnn, faulty, fault

    def __getattr__(self, name: str) -> Any:
        is_faulty = self._faulty == name
        if is_faulty and self._fault == "missing":
            raise AttributeError(f"no operator {name}")
        real = getattr(self._real, name)
        binary = real.binary if name == "_linear_pointwise" else None
        operator = Mock(side_effect=self._broken(real) if is_faulty else real)
        operator.binary = self._broken(binary) if self._faulty == f"{name}.binary" else binary
        if self._faulty == f"{name}.binary" and self._fault == "missing":
            del operator.binary
        return operator

    def _broken(self, real: Any) -> Any:
        def refuse(*_: Any) -> Any:
            raise RuntimeError("refused")

        def err(*arguments: Any) -> Any:
            return 2 * real(*arguments).to_dense()

        return refuse if self._fault == "refuses" else err


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch has no oneDNN here")
@pytest.mark.parametrize("fault", ["missing", "refuses", "errs"])
@pytest.mark.parametrize("faulty", ["_linear_pointwise", "_linear_pointwise.binary", "_reorder_linear_weight"])
def test_a_fault_of_any_operator_of_onednn_leaves_all_products_to_blas(
    monkeypatch: pytest.MonkeyPatch, probed_anew: None, faulty: str, fault: str
) -> None:
    monkeypatch.setenv("SEQLM_MATMUL", "onednn")
    monkeypatch.setattr(torch.ops, "mkldnn", Onednn(faulty, fault))
    a, b, added = drawn(PACKED_SIZE, bf16=False)
    a, added = a[:20], added[:20]
    repeated = RepeatedProduct(b.t(), torch.float32, rows=20, steps=35)
    exact, _, magnitude = exact_and_magnitude("repeated plus", a, b, added)
    for found in (product(a, b, torch.float32, added), repeated.plus(a, added.clone())):
        assert ((found - exact).abs() <= (PACKED_SIZE + 1) * ROUNDED_SUM * magnitude).all()
    assert Rank().matmul == "blas", "the record of a run says what it used"
    assert onednn_fault(torch.float32)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch has no oneDNN here")
def test_sound_operators_of_onednn_are_used(monkeypatch: pytest.MonkeyPatch, probed_anew: None) -> None:
    monkeypatch.setenv("SEQLM_MATMUL", "onednn")
    assert (onednn_fault(torch.float32), Rank().matmul) == (None, "onednn")


@pytest.mark.skipif(has_bf16(), reason="this processor multiplies bf16 itself")
def test_bf16_products_of_a_processor_without_bf16_do_not_need_onednn() -> None:
    a, b, added = drawn(PACKED_SIZE, bf16=True)
    a, added = a[:20], added[:20]
    found = RepeatedProduct(b.t(), torch.bfloat16, rows=20, steps=35).plus(a.bfloat16(), added)
    exact, multiplied, magnitude = exact_and_magnitude("repeated plus", a, b, added)
    bound = (PACKED_SIZE + 1) * ROUNDED_SUM * magnitude + ROUNDED_TO_BF16 * multiplied.abs()
    assert ((found - exact).abs() <= bound).all()


@names
@pytest.mark.usefixtures("full_results")
def test_bf16_products_err_by_float32_additions_alone_where_results_are_stored_in_full(name: str) -> None:
    """The product of two bf16 numbers has 16 bits, so float32 holds each term."""
    a, b, added = drawn(SIZE, bf16=True)
    check_full_results(name, a, b, added)


@names
@pytest.mark.gpu
def test_bf16_products_of_a_gpu_err_by_float32_additions_alone(name: str) -> None:
    set_switches("bf16")
    check_full_results(name, *drawn(SIZE, "cuda", bf16=True))


def check_full_results(name: str, a: Tensor, b: Tensor, added: Tensor) -> None:
    found, *factors = computed(name, a, b, added, torch.bfloat16)
    exact, multiplied, magnitude = exact_and_magnitude(name, *factors, added)
    bound = (SIZE + 1) * ROUNDED_SUM * magnitude
    assert found.dtype == torch.float32
    assert ((found - exact).abs() <= bound).all()
    rounded = multiplied.bfloat16() - multiplied
    assert (rounded.abs() > bound).float().mean() > 0.5, "the bound must not let a rounded result pass"


@names
def test_bf16_products_of_a_cpu_round_the_finished_sum_once(name: str) -> None:
    a, b, added = drawn(SIZE, bf16=True)
    found, *factors = computed(name, a, b, added, torch.bfloat16)
    exact, multiplied, magnitude = exact_and_magnitude(name, *factors, added)
    bound = (SIZE + 1) * ROUNDED_SUM * magnitude + ROUNDED_TO_BF16 * multiplied.abs()
    assert found.dtype == torch.float32
    assert ((found - exact).abs() <= bound).all()


@pytest.mark.skipif(not has_bf16(), reason="this processor packs no bf16")
def test_a_packed_bf16_product_of_a_cpu_rounds_the_finished_sum_once() -> None:
    a, b, added = drawn(PACKED_SIZE, bf16=True)
    a, added = a[:20], added[:20]
    repeated = RepeatedProduct(b.t(), torch.bfloat16, rows=20, steps=35)
    if repeated._packed is None:
        pytest.skip("PyTorch has no oneDNN here")
    exact, multiplied, magnitude = exact_and_magnitude("repeated plus", a, b, added)
    bound = (PACKED_SIZE + 1) * ROUNDED_SUM * magnitude + ROUNDED_TO_BF16 * multiplied.abs()
    for found, wanted in (
        (repeated.plus(a.bfloat16()), multiplied),
        (repeated.plus(a.bfloat16(), added), exact),
    ):
        assert found.dtype == torch.float32
        assert ((found - wanted).abs() <= bound).all()


@pytest.mark.parametrize("terms", [16, 1000, 20_000])
def test_a_cpu_sums_bf16_products_of_any_length_in_float32(terms: int) -> None:
    """Ones and their sum: added up in bf16, the sum would stay at 256."""
    a, b = torch.ones(32, terms, dtype=torch.bfloat16), torch.ones(terms, 48, dtype=torch.bfloat16)
    found = product(a, b, torch.float32)
    assert ((found - terms).abs() <= ROUNDED_TO_BF16 * terms).all()


@names
@pytest.mark.gpu
def test_tf32_products_err_by_their_operands_rounding(name: str) -> None:
    a, b, added = drawn(SIZE, "cuda", bf16=False)
    set_switches("tf32")
    found, *factors = computed(name, a, b, added, torch.float32)
    exact, _, magnitude = exact_and_magnitude(name, *factors, added)
    additions = (SIZE + 1) * ROUNDED_SUM * magnitude
    assert ((found - exact).abs() <= additions + 2.1 * ROUNDED_TO_TF32 * magnitude).all()


@pytest.mark.gpu
def test_tf32_is_used_for_large_products_and_only_under_its_switch() -> None:
    """In the norm: float32 errs by some 2^-24, an operand of 11 bits by 2^-12 or 2^-11."""
    a, b, _ = drawn(1024, "cuda", bf16=False)
    exact = a.double() @ b.double()
    for precision, least, most in (("tf32", 5e-5, 2e-3), ("fp32", 0, 5e-6)):
        set_switches(precision)  # type: ignore[arg-type]
        error = (product(a, b, torch.float32) - exact).norm() / exact.norm()
        assert least < error < most


@pytest.mark.usefixtures("full_results")
def test_a_rounded_product_can_be_differentiated_twice() -> None:
    """Of the sum of w (a b), the gradient by a is w b^T; of the sum of v (w b^T), the gradient by b is v^T w."""
    a, b, _ = drawn(SIZE, bf16=True)
    w, v = a.t().contiguous(), b + 0
    a.requires_grad_()
    b.requires_grad_()
    (d_a,) = torch.autograd.grad((w * rounded_product(a, b, torch.bfloat16)).sum(), a, create_graph=True)
    (d_b,) = torch.autograd.grad((v * d_a).sum(), b)
    exact, _, magnitude = exact_and_magnitude("", v.t(), w, v)
    assert ((d_b - exact).abs() <= SIZE * ROUNDED_SUM * magnitude).all()

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from benchmarks.gemm_peak import GemmPeak
from benchmarks.implementations import build_step, draw_windows
from benchmarks.interleave import Rounds
from benchmarks.measurement import times_record
from benchmarks.names import implementation_names
from benchmarks.peak_memory import measure_peak_memory
from benchmarks.shapes import Shape, tiny
from seqlm import machine
from seqlm.optimizers import AdamConfig
from seqlm.training.precision import set_switches

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _switches_restored() -> Iterator[None]:
    yield
    set_switches("fp32")


all_tiny = pytest.mark.parametrize("shape", tiny(), ids=lambda shape: shape.name)


@pytest.mark.slow
@all_tiny
@pytest.mark.parametrize("name", implementation_names(["fp32", "bf16"]))
def test_every_implementation_returns_the_mean_loss_and_learns(
    name: str, shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "has_bf16", lambda: True)
    optim = AdamConfig(optimizer="adam", lr=0.02)
    step = build_step(name, replace(shape, config=replace(shape.config, optim=optim)), CPU)
    (window,) = draw_windows(shape, CPU, 1)
    losses = [step(*window) for _ in range(20)]
    assert losses[0].shape == ()
    assert not losses[0].requires_grad
    # Untrained, a model knows nothing of 50 tokens, give or take what its random logits add.
    assert math.log(50) - 0.3 < losses[0].item() < math.log(50) + 1.2
    assert sum(losses[-5:]) < sum(losses[:5])


def test_a_speedup_is_how_many_times_as_fast_ours_is_and_what_was_not_measured_is_null() -> None:
    shape = tiny()[0]
    # 20 tokens of 10,176 operations each: 0.2035 million in 2 ms are 0.1018 billion in a second.
    times = {"reference": [0.006, 0.012], "torch.nn-fp32": [0.001, 0.002], "ours-fp32": [0.002, 0.004]}
    record = times_record(Rounds({**times, "gemm-fp32": [2, 1]}), ["fp32", "bf16"], shape)
    assert record["rounds"] == 2
    assert list(record["step_ms"]) == ["reference", "torch.nn-fp32", "ours-fp32", "torch.nn-bf16", "ours-bf16"]
    assert record["step_ms"]["reference"] == {"median": 9, "min": 6, "max": 12}
    assert record["step_ms"]["ours-bf16"] is None
    three, half = ({"median": value, "min": value, "max": value} for value in (3, 0.5))
    assert record["speedup"] == {"ours-fp32": {"reference": three, "torch.nn-fp32": half}, "ours-bf16": None}
    assert record["gemm_peak_gflops"] == {"fp32": {"median": 1.5, "min": 1, "max": 2}, "bf16": None}
    assert record["share_of_gemm_peak"]["fp32"]["median"] == pytest.approx(0.05088, rel=1e-4)
    assert record["share_of_gemm_peak"]["bf16"] is None


@all_tiny
def test_the_peak_is_that_of_the_best_product_of_the_shapes_own_sizes(shape: Shape) -> None:
    flops = [2 * 20 * 16 * 50] * 3 + [2 * 20 * 16 * 16, 2 * 32**3]
    # The clock is read before and after each product, by BLAS and by oneDNN if PyTorch has it.
    libraries = 2 if torch.backends.mkldnn.is_available() else 1
    seconds = [[1, 2, 4, 1 / 8, 64], [1 / 2, 3, 9, 1, 99]][:libraries]
    times = iter([moment for turn in zip(*seconds, strict=True) for each in turn for moment in (0, each)])
    peak = GemmPeak(shape, CPU, "fp32", clock=lambda: next(times))
    assert [product.flops for product in peak.products] == flops
    assert peak() == pytest.approx(max(32_000 * libraries, 10_240 * 8, 65_536 / 64) / 1e9)
    for product in peak.products:
        torch.testing.assert_close(product.out, product.a @ product.b)


def test_peak_memory_is_that_of_the_step_and_not_of_the_process() -> None:
    shape = tiny()[0]
    peak = measure_peak_memory("torch.nn-fp32", shape, CPU)
    assert 0 <= peak.bytes < 50_000_000
    assert peak.counter in ("VmHWM", "ru_maxrss")

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.gemm_peak import GemmPeak
from benchmarks.implementations import build_step, draw_windows
from benchmarks.interleave import Rounds
from benchmarks.measurement import StepTurn, memory_ratios, times_record
from benchmarks.names import implementation_names
from benchmarks.peak_memory import measure_in_child, measure_peak_memory
from benchmarks.shapes import Shape, tiny
from seqlm.config import AdamConfig
from seqlm.errors import RunError, UsageError

CPU = torch.device("cpu")
all_tiny = pytest.mark.parametrize("shape", tiny(), ids=lambda shape: shape.name)


@all_tiny
@pytest.mark.parametrize("name", implementation_names(["fp32"]))
def test_every_implementation_returns_the_mean_loss_and_learns(name: str, shape: Shape) -> None:
    optim = AdamConfig(optimizer="adam", lr=0.02)
    step = build_step(name, replace(shape, config=replace(shape.config, optim=optim)), CPU)
    (window,) = draw_windows(shape, CPU, 1)
    losses = [step(*window) for _ in range(20)]
    assert losses[0].shape == ()
    assert not losses[0].requires_grad
    # Untrained, a model knows nothing of 50 tokens, give or take what its random logits add.
    assert math.log(50) - 0.3 < losses[0].item() < math.log(50) + 1.2
    assert sum(losses[-5:]) < sum(losses[:5])


def test_windows_are_random_ids_with_the_next_one_as_target() -> None:
    shape = tiny()[0]
    windows = draw_windows(shape, CPU, 3)
    assert [tuple(ids.shape) for pair in windows for ids in pair] == [(5, 4)] * 6
    inputs, targets = windows[0]
    assert torch.equal(inputs[1:], targets[:-1])
    assert 0 <= int(inputs.min()) < int(inputs.max()) < 50
    assert torch.equal(draw_windows(shape, CPU, 1)[0][0], inputs)


def test_an_unknown_implementation_is_told_the_nearest() -> None:
    with pytest.raises(UsageError, match=r'^unknown implementation "ours-fp23"; did you mean "ours-fp32"\? \(valid: '):
        build_step("ours-fp23", tiny()[0], CPU)


def test_a_turn_measures_one_step_and_takes_the_windows_round_and_round() -> None:
    times = iter([10.0, 12.5, 20.0, 21.0, 30.0, 34.0])
    windows = [(torch.tensor([n]), torch.tensor([n + 1])) for n in (0, 5)]
    seen = []

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append((inputs.item(), targets.item()))
        return inputs.double()

    turn = StepTurn(step, windows, CPU, clock=lambda: next(times))
    assert turn.last_loss is None
    assert [turn(), turn(), turn()] == [2.5, 1.0, 4.0]
    assert seen == [(0, 1), (5, 6), (0, 1)]
    assert turn.last_loss == 0.0


def test_a_loss_that_is_not_a_number_is_none() -> None:
    turn = StepTurn(lambda inputs, targets: torch.tensor(math.nan), [(torch.zeros(1), torch.zeros(1))], CPU)
    turn()
    assert turn.last_loss is None


def test_a_speedup_is_how_many_times_as_fast_ours_is_and_what_was_not_measured_is_null() -> None:
    shape = tiny()[0]
    # 20 tokens of 10,176 operations each: 0.2035 million in 2 ms are 0.1018 billion in a second.
    rounds = Rounds(
        {"literal": [0.006, 0.012], "torch.nn": [0.001, 0.002], "ours-fp32": [0.002, 0.004], "gemm": [2, 1]}
    )
    record = times_record(rounds, ["literal", "torch.nn", "ours-fp32", "ours-bf16"], shape)
    assert record["rounds"] == 2
    assert record["step_ms"]["literal"] == {"median": 9, "min": 6, "max": 12}
    assert record["step_ms"]["ours-bf16"] is None
    three, half = ({"median": value, "min": value, "max": value} for value in (3, 0.5))
    assert record["speedup"] == {"ours-fp32": {"literal": three, "torch.nn": half}, "ours-bf16": None}
    assert record["gemm_peak_gflops"] == {"median": 1.5, "min": 1, "max": 2}
    assert record["share_of_gemm_peak"]["median"] == pytest.approx(0.05088, rel=1e-4)


def test_low_precision_is_compared_with_the_baselines_and_with_our_float32() -> None:
    rounds = Rounds({"literal": [0.006], "torch.nn": [0.003], "ours-fp32": [0.002], "ours-bf16": [0.001], "gemm": [1]})
    record = times_record(rounds, ["literal", "torch.nn", "ours-fp32", "ours-bf16"], tiny()[0])
    assert {name: value["median"] for name, value in record["speedup"]["ours-bf16"].items()} == {
        "literal": 6,
        "torch.nn": 3,
        "ours-fp32": 2,
    }
    alone = times_record(Rounds({"torch.nn": [0.003], "ours-bf16": [0.001], "gemm": [1]}), ["ours-bf16"], tiny()[0])
    assert alone["share_of_gemm_peak"] is None


def test_a_memory_ratio_is_our_share_of_each_baseline_that_is_known() -> None:
    found = memory_ratios({"literal": None, "torch.nn": 200.0, "ours-fp32": 150.0, "ours-bf16": None})
    assert found == {"ours-fp32": {"torch.nn": 0.75}}


@all_tiny
def test_the_peak_is_that_of_the_best_product_of_the_shapes_own_sizes(shape: Shape) -> None:
    flops = [2 * 20 * 16 * 50] * 3 + [2 * 20 * 16 * 16, 2 * 32**3]
    # The clock is read before and after each product: they take 1, 2, 4, 1/8 and 64 seconds.
    times = iter([0, 1, 1, 3, 3, 7, 7, 7.125, 10, 74])
    peak = GemmPeak(shape, CPU, clock=lambda: next(times))
    assert [product.flops for product in peak.products] == flops
    assert peak() == pytest.approx(max(32_000, 10_240 * 8, 65_536 / 64) / 1e9)
    for product in peak.products:
        torch.testing.assert_close(product.out, product.a @ product.b)


def test_peak_memory_is_that_of_the_step_and_not_of_the_process() -> None:
    shape = tiny()[0]
    peak = measure_peak_memory("torch.nn", shape, CPU)
    assert 0 <= peak.bytes < 50_000_000
    assert peak.counter in ("VmHWM", "ru_maxrss")


@pytest.mark.process
def test_a_child_that_fails_says_why_in_one_line() -> None:
    with pytest.raises(RunError) as caught:
        measure_in_child("torch.n", tiny()[0], threads=1, device=CPU)
    assert str(caught.value) == (
        'torch.n: no peak memory, exit code 2: error: unknown implementation "torch.n"; did you mean "torch.nn"? '
        "(valid: literal, torch.nn, ours-fp32, ours-bf16, ours-tf32)"
    )

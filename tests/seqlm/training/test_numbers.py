"""A training step in each precision against the same step in float64: loss, gradients, parameters after it.

Errors are relative, those of gradients and parameters in the norm over all of them. Dropout is off: a GPU draws other
masks. The expected sizes follow from the rounding of operands; additions in float32 (2^-24 each) do not show:

- fp32: 2^-24 for each rounding, and a few times that after a window: below 2e-6.
- bf16: 2^-9 on average for each operand of a chain of some ten products: below 1 %. The Transformer's relu passes or
  stops a gradient by the sign of a product; near zero, rounding flips it. A flip in every thousand units is 3 % of the
  norm: below 10 %.
- TF32: operands have 11 bits instead of 8, and may be cut instead of rounded: a quarter of the bounds of bf16.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from seqlm.architectures import ModelConfig, RecurrentConfig, TransformerConfig
from seqlm.models import build_model
from seqlm.models.products import set_switches
from seqlm.optimizers import SgdConfig, build_optimizer
from seqlm.training.step import TrainingStep
from tests.full_results import full_results_on_the_cpu

STEPS, BATCH, VOCAB = 12, 5, 50
LR = 1.0
SEEDS = range(5)

archs = pytest.mark.parametrize("arch", ["rnn", "gru", "transformer"])


@dataclass(frozen=True)
class Error:
    """How far one step is from another."""

    loss: float
    gradients: float
    moved: float
    """Of the change of the parameters."""


@dataclass(frozen=True)
class Numbers:
    """What one step gave, on the CPU in float64."""

    loss: float
    gradients: Tensor
    moved: Tensor

    def error(self, exact: Numbers) -> Error:
        def relative(found: Tensor, wanted: Tensor) -> float:
            return ((found - wanted).norm() / wanted.norm()).item()

        loss = abs(self.loss / exact.loss - 1)
        return Error(loss, relative(self.gradients, exact.gradients), relative(self.moved, exact.moved))


@pytest.fixture(autouse=True)
def _switches_restored() -> Iterator[None]:
    yield
    set_switches("fp32")


def make_config(arch: str) -> ModelConfig:
    if arch == "transformer":
        return TransformerConfig(
            arch="transformer",
            hidden_size=64,
            num_heads=4,
            mlp_size=96,
            keep=1.0,
            attention_keep=1.0,
        )
    return RecurrentConfig(
        arch=arch,  # type: ignore[arg-type]
        hidden_size=64,
        embedding_size=48,
        keep=1.0,
    )


def one_step(
    config: ModelConfig,
    seed: int,
    dtype: torch.dtype = torch.float32,
    product_dtype: torch.dtype | None = None,
    device: str = "cpu",
) -> Numbers:
    """A step of a model whose parameters are float32 numbers; on a GPU the replay of a captured step."""
    torch.manual_seed(seed)
    model = build_model(config, VOCAB, STEPS, product_dtype).to(device, dtype)
    step = TrainingStep(
        model,
        build_optimizer(SgdConfig(optimizer="sgd", lr=LR), model.parameters()),
        clip_norm=0.25,
        tokens_per_step=STEPS * BATCH,
        capture=device == "cuda",
    )
    inputs, targets = torch.randint(VOCAB, (2, STEPS, BATCH), generator=torch.Generator().manual_seed(seed)).to(device)
    state = model.initial_state(BATCH)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    result = step(inputs, targets, state)
    assert all(tensor.dtype == dtype for tensor in (result.loss_nats, result.state, *model.parameters()))
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(gradients) == len(before)
    assert all(gradient.dtype == dtype for gradient in gradients)
    moved = [p.detach() - value for p, value in zip(model.parameters(), before, strict=True)]
    return Numbers(result.loss_nats.item(), as_vector(gradients), as_vector(moved))


def as_vector(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.double().cpu().flatten() for tensor in tensors])


def check(error: Error, *, loss: float, gradients: float) -> None:
    """Parameters move by the rate times the gradients; storing them as float32 adds 2^-24 of their own size.

    They are some hundred times as long as a step here, so that is less than 1e-5 of the step.
    """
    assert error.loss < loss
    assert error.gradients < gradients
    assert error.moved < gradients + 1e-5


def bf16_bound(arch: str) -> float:
    return 0.1 if arch == "transformer" else 0.01


@archs
def test_an_fp32_step_errs_by_float32_roundings(arch: str) -> None:
    config = make_config(arch)
    check(one_step(config, 1).error(one_step(config, 1, torch.float64)), loss=1e-6, gradients=2e-6)


@archs
@pytest.mark.parametrize("full", [False, True], ids=["results rounded", "results in full"])
def test_a_bf16_step_errs_by_the_rounding_of_operands(arch: str, full: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(arch)
    exact = one_step(config, 1, torch.float64)
    with full_results_on_the_cpu(monkeypatch) if full else nullcontext():
        error = one_step(config, 1, product_dtype=torch.bfloat16).error(exact)
    check(error, loss=1e-3, gradients=bf16_bound(arch))
    assert error.gradients > 1e-4, "the products were not rounded at all"


@pytest.mark.slow
@archs
def test_in_a_bf16_step_only_operands_are_rounded_where_results_are_stored_in_full(
    arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(arch)
    with full_results_on_the_cpu(monkeypatch):
        found = [one_step(config, seed, product_dtype=torch.bfloat16) for seed in SEEDS]
    check_that_only_operands_are_rounded(config, found, monkeypatch)
    rounded = [one_step(config, seed, product_dtype=torch.bfloat16) for seed in SEEDS]
    with pytest.raises(AssertionError):
        check_that_only_operands_are_rounded(config, rounded, monkeypatch)


def check_that_only_operands_are_rounded(
    config: ModelConfig, found: list[Numbers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare with steps in float64 whose operands are rounded to bf16.

    The difference is float32's, except where it lets an operand round to the other of two neighbours in bf16: by
    2^-8 of that operand, once in some ten thousand. Rounding all results would be 2e-3 and more.
    """
    with full_results_on_the_cpu(monkeypatch):
        exact = [one_step(config, seed, torch.float64, torch.bfloat16) for seed in SEEDS]
    errors = [one.error(other) for one, other in zip(found, exact, strict=True)]
    assert statistics.median(error.loss for error in errors) < 1e-6
    assert statistics.median(error.gradients for error in errors) < 1e-3
    assert statistics.median(error.moved for error in errors) < 1e-3


@archs
@pytest.mark.gpu
def test_a_bf16_step_of_a_gpu_rounds_operands_alone(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_switches("bf16")
    config = make_config(arch)
    found = [one_step(config, seed, product_dtype=torch.bfloat16, device="cuda") for seed in SEEDS]
    check(found[1].error(one_step(config, 1, torch.float64)), loss=1e-3, gradients=bf16_bound(arch))
    check_that_only_operands_are_rounded(config, found, monkeypatch)


@archs
@pytest.mark.gpu
def test_fp32_and_tf32_steps_of_a_gpu_err_by_the_rounding_of_operands(arch: str) -> None:
    config = make_config(arch)
    exact = one_step(config, 1, torch.float64)
    set_switches("fp32")
    check(one_step(config, 1, device="cuda").error(exact), loss=1e-6, gradients=4e-6)
    set_switches("tf32")
    check(one_step(config, 1, device="cuda").error(exact), loss=2.5e-4, gradients=bf16_bound(arch) / 4)

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
import torch

from seqlm.config import LARGEST_SEED
from seqlm.errors import CheckpointError
from seqlm.models import build_model
from seqlm.optimizers import AdamConfig, AdamWConfig, OptimConfig, SgdConfig
from seqlm.training.optimizers import build_optimizer, can_be_captured, restore_optimizer, set_learning_rate, step_key
from seqlm.training.resume import mask_seed
from seqlm.training.step import TrainingStep
from tests.training.studies import make_config


def test_the_compounding_schedule_is_flat_for_fifteen_epochs_and_has_vanished_by_epoch_24() -> None:
    config = SgdConfig(optimizer="sgd_schedule", lr=10.0)
    lr = 10.0
    expected = []
    for epoch in range(40):  # the published loop, literally: the current rate is multiplied
        if epoch > 14:
            lr *= (1 / 1.15) ** (epoch - 14)
        expected.append(lr)
    assert [config.learning_rate(epoch) for epoch in range(40)] == pytest.approx(expected, rel=1e-12)
    assert expected[14] == 10.0
    assert expected[15] == pytest.approx(8.695652173913043)
    assert expected[17] == pytest.approx(10 / 1.15**6)
    assert config.learning_rate(24) < 10 * 1e-3


def test_the_schedule_of_the_text_divides_by_1_15_after_each_epoch() -> None:
    config = SgdConfig(optimizer="sgd_schedule", lr=1.0, schedule="per_epoch")
    rates = [config.learning_rate(epoch) for epoch in range(4)]
    assert rates == pytest.approx([1.0, 0.8695652173913044, 0.7561436672967865, 0.6575162324319883], rel=1e-14)


def test_flat_epochs_move_the_start_of_both_schedules() -> None:
    compounding = SgdConfig(optimizer="sgd_schedule", lr=1.0, decay=2.0, flat_epochs=2)
    per_epoch = SgdConfig(optimizer="sgd_schedule", lr=1.0, decay=2.0, flat_epochs=2, schedule="per_epoch")
    assert [compounding.learning_rate(e) for e in range(5)] == [1.0, 1.0, 0.5, 0.125, 0.015625]
    assert [per_epoch.learning_rate(e) for e in range(5)] == [1.0, 1.0, 0.5, 0.25, 0.125]


def test_adam_and_sgd_keep_their_rate() -> None:
    assert AdamConfig(optimizer="adam", lr=1e-4).learning_rate(39) == 1e-4
    assert SgdConfig(optimizer="sgd", lr=10.0).learning_rate(39) == 10.0


@pytest.mark.parametrize("config", [SgdConfig(optimizer="sgd", lr=0.5), SgdConfig(optimizer="sgd_schedule", lr=0.5)])
def test_sgd_subtracts_the_rate_times_the_gradient_and_has_no_momentum(config: SgdConfig) -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = build_optimizer(config, [parameter])
    for _ in range(2):
        parameter.grad = torch.tensor([1.0, -2.0])
        optimizer.step()
    assert parameter.tolist() == [0.0, 4.0]


def test_adam_takes_a_first_step_of_the_learning_rate_with_pytorch_defaults() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = build_optimizer(AdamConfig(optimizer="adam", lr=0.1), [parameter])
    parameter.grad = torch.tensor([123.0])
    optimizer.step()
    assert parameter.item() == pytest.approx(0.9)
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    assert optimizer.defaults["eps"] == 1e-8
    assert optimizer.defaults["weight_decay"] == 0


def test_cosine_and_linear_fall_to_zero_a_little_with_each_step() -> None:
    def rates(schedule: str, epochs: int = 3) -> list[float]:
        config = AdamConfig(optimizer="adam", lr=2.0, schedule=schedule, decay_epochs=2)  # type: ignore[arg-type]
        return [config.learning_rate(epoch, step, 2) for epoch in range(epochs) for step in range(2)]

    half = math.sqrt(0.5)
    assert rates("cosine") == pytest.approx([2, 1 + half, 1, 1 - half, 0, 0])
    assert rates("linear") == pytest.approx([2, 1.5, 1, 0.5, 0, 0])


def test_warm_up_multiplies_the_rate_of_any_schedule_by_a_share_that_rises_with_the_steps() -> None:
    def rates(**schedule: Any) -> list[float]:
        config = SgdConfig(optimizer="sgd", lr=1.0, warmup_steps=4, **schedule)
        return [config.learning_rate(epoch, step, 3) for epoch in range(2) for step in range(3)]

    share = [0.25, 0.5, 0.75, 1, 1, 1]
    assert rates() == share
    assert rates(schedule="per_epoch", decay=2) == [0.25, 0.5, 0.75, 0.5, 0.5, 0.5]
    assert rates(schedule="linear", decay_epochs=2) == pytest.approx(
        [part * (1 - step / 6) for step, part in enumerate(share)]
    )


def gradients() -> Iterator[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    while True:
        yield torch.randn(3, dtype=torch.float64, generator=draw)


START = (1.0, -2.0, 0.5)


def taken(config: OptimConfig, steps: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """A bias and a matrix of one row after some steps, both with the same start and gradients."""
    bias = torch.nn.Parameter(torch.tensor(START, dtype=torch.float64))
    matrix = torch.nn.Parameter(torch.tensor([START], dtype=torch.float64))
    optimizer = build_optimizer(config, [bias, matrix])
    for _, gradient in zip(range(steps), gradients(), strict=False):
        bias.grad, matrix.grad = gradient, gradient[None].clone()
        optimizer.step()
    return bias.detach(), matrix.detach()[0]


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_follows_its_equations_with_momentum_and_decay(nesterov: bool) -> None:
    lr, m, decay = 0.1, 0.9, 0.05
    p, v = torch.tensor(START, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for _, gradient in zip(range(4), gradients(), strict=False):
        g = gradient + decay * p
        v = m * v + g
        p = p - lr * (g + m * v if nesterov else v)
    config = SgdConfig(optimizer="sgd", lr=lr, momentum=m, nesterov=nesterov, weight_decay=decay)
    for parameter in taken(config):
        torch.testing.assert_close(parameter, p, rtol=0, atol=1e-12)


@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_follows_its_equations_with_its_betas_and_either_decay(decoupled: bool) -> None:
    """The penalty of Adam holds for every parameter, the decoupled decay of AdamW for matrices alone."""
    lr, b1, b2, decay = 0.1, 0.8, 0.95, 0.2
    settings: dict[str, Any] = {"lr": lr, "beta1": b1, "beta2": b2, "weight_decay": decay}
    config = AdamWConfig(optimizer="adamw", **settings) if decoupled else AdamConfig(optimizer="adam", **settings)
    for parameter, decoupled_decay in zip(taken(config), (0.0, decay if decoupled else 0.0), strict=True):
        p = torch.tensor(START, dtype=torch.float64)
        m, v = torch.zeros_like(p), torch.zeros_like(p)
        for step, gradient in zip(range(1, 5), gradients(), strict=False):
            g = gradient if decoupled else gradient + decay * p
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            moved = (m / (1 - b1**step)) / ((v / (1 - b2**step)).sqrt() + 1e-8)
            p = p - lr * moved - lr * decoupled_decay * p
        torch.testing.assert_close(parameter, p, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "optimizer", [SgdConfig(optimizer="sgd", lr=1, momentum=0.9), AdamConfig(optimizer="adam", lr=1)]
)
def test_the_moments_that_memory_is_estimated_for_are_there(optimizer: OptimConfig) -> None:
    parameter = torch.nn.Parameter(torch.zeros(7))
    built = build_optimizer(optimizer, [parameter])
    parameter.grad = torch.ones(7)
    built.step()
    assert sum(v.numel() == 7 for v in built.state[parameter].values()) == optimizer.moments


@dataclass(frozen=True, kw_only=True)
class RmspropConfig(OptimConfig):
    """An optimizer of PyTorch that has no fused form."""

    LABELS: ClassVar[Mapping[str, str]] = {"rmsprop": "RMSprop"}
    CLASS = "torch.optim:RMSprop"

    optimizer: Literal["rmsprop"]
    """Optimizer."""

    @property
    def moments(self) -> int:
        """The running average of the squared gradients."""
        return 1

    def arguments(self) -> dict[str, Any]:
        return {"alpha": 0.9}


def test_any_optimizer_of_pytorch_takes_clipped_steps_and_skips_those_that_are_not_finite() -> None:
    config = make_config("rnn")
    torch.manual_seed(1)
    ours, theirs = (build_model(config.model, 9, 5) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = build_optimizer(RmspropConfig(optimizer="rmsprop", lr=0.01, weight_decay=0.1), ours.parameters())
    expected = torch.optim.RMSprop(theirs.parameters(), lr=0.01, alpha=0.9, weight_decay=0.1)
    step = TrainingStep(ours, optimizer, clip_norm=0.01, tokens_per_step=20)
    tokens = torch.arange(20).view(5, 4) % 9
    for _ in range(3):
        norm = float(step(tokens, tokens, ours.initial_state(4)).grad_norm)
        expected.zero_grad()
        (theirs.loss(tokens, tokens, theirs.initial_state(4))[0] / 20).backward()
        assert torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.01) == pytest.approx(norm, rel=1e-5)
        assert norm > 0.01
        expected.step()
    before = [parameter.clone() for parameter in ours.parameters()]
    for parameter, other in zip(before, theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter, other)
    step.scale = math.inf
    step(tokens, tokens, ours.initial_state(4))
    assert all(map(torch.equal, before, ours.parameters()))
    assert not can_be_captured(optimizer)
    restored = build_optimizer(RmspropConfig(optimizer="rmsprop", lr=0.01, weight_decay=0.1), ours.parameters())
    restore_optimizer(restored, optimizer.state_dict())
    assert [state["step"] for state in restored.state.values()] == [3] * len(before)


def test_keys_of_steps_are_unlike_whatever_the_seed_and_step() -> None:
    keys = {step_key(seed, epoch, step) for seed in range(3) for epoch in range(10) for step in range(100)}
    assert len(keys) == 3000
    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert min(keys) < -(2**62) < 2**62 < max(keys)


def test_valid_seeds_draw_unlike_numbers_on_a_cpu_in_every_epoch_and_on_every_rank() -> None:
    seeds = (0, 1, 1111, 2**31, 2**31 + 1111, LARGEST_SEED)
    drawn = [
        *seeds,
        *(mask_seed(seed, epoch, rank) for seed in seeds for epoch in range(10) for rank in range(3)),
    ]
    assert len({tuple(torch.rand(4, generator=torch.Generator().manual_seed(seed)).tolist()) for seed in drawn}) == 186


def test_the_learning_rate_reaches_every_group() -> None:
    optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)], lr=1.0)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_a_restored_optimizer_has_the_moments_and_steps_of_the_saved_one_and_its_own_form_and_rate() -> None:
    def adam(lr: float) -> torch.optim.Optimizer:
        parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        optimizer = build_optimizer(AdamConfig(optimizer="adam", lr=lr), [parameter])
        parameter.grad = torch.tensor([1.0, -2.0])
        return optimizer

    saved, resumed = adam(0.1), adam(0.3)
    for _ in range(3):
        saved.step()
    state = saved.state_dict()
    # As a GPU saves it: the learning rate on the device, the step capturable.
    state["param_groups"][0] |= {"lr": torch.tensor(0.1), "capturable": True}
    restore_optimizer(resumed, state)
    (found,), (wanted,) = resumed.state.values(), saved.state.values()
    assert found["step"] == wanted["step"] == 3
    assert torch.equal(found["exp_avg"], wanted["exp_avg"])
    assert torch.equal(found["exp_avg_sq"], wanted["exp_avg_sq"])
    (group,) = resumed.param_groups
    assert (group["lr"], group["capturable"], group["fused"]) == (0.3, False, True)


def test_moments_of_a_version_with_one_group_are_refused_and_not_given_to_other_parameters() -> None:
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in ((3,), (2, 2), (3,))]
    config = AdamWConfig(optimizer="adamw", lr=0.1)
    earlier = torch.optim.AdamW(parameters, lr=0.1, weight_decay=config.weight_decay, fused=True)
    optimizer = build_optimizer(config, parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    earlier.step()
    with pytest.raises(CheckpointError, match="decays other parameters") as caught:
        restore_optimizer(optimizer, earlier.state_dict())
    assert "\n" not in str(caught.value)
    assert not optimizer.state

import copy
import math
import typing
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from seqlm.config import LARGEST_SEED
from seqlm.errors import CheckpointError
from seqlm.optimizers import (
    OPTIMIZERS,
    AdamConfig,
    AdamWConfig,
    OptimConfig,
    SgdConfig,
    build_optimizer,
    restore_optimizer,
    set_learning_rate,
)
from seqlm.training.trainer import mask_seed, step_key


def rates(epochs: int, steps: int = 1, **keys: Any) -> list[float]:
    config = SgdConfig(**{"optimizer": "sgd", "lr": 1.0, **keys})
    return [config.learning_rate(epoch, step, steps) for epoch in range(epochs) for step in range(steps)]


def test_the_compounding_schedule_is_that_of_the_published_loop() -> None:
    lr, expected = 10.0, []
    for epoch in range(40):  # literally: the current rate is multiplied
        if epoch > 14:
            lr *= (1 / 1.15) ** (epoch - 14)
        expected.append(lr)
    assert rates(40, optimizer="sgd_schedule", lr=10.0) == pytest.approx(expected, rel=1e-12)


HALF = math.sqrt(0.5)
WARM = {"warmup_steps": 4}
SCHEDULED = {"optimizer": "sgd_schedule", "decay": 2.0, "flat_epochs": 2}


@pytest.mark.parametrize(
    ("epochs", "steps", "keys", "expected"),
    [
        (3, 1, {}, [1, 1, 1]),
        (4, 1, {"optimizer": "sgd_schedule", "schedule": "per_epoch"}, [1, 1 / 1.15, 1 / 1.15**2, 1 / 1.15**3]),
        (5, 1, SCHEDULED, [1, 1, 0.5, 0.125, 0.015625]),
        (5, 1, {**SCHEDULED, "schedule": "per_epoch"}, [1, 1, 0.5, 0.25, 0.125]),
        (3, 2, {"lr": 2.0, "schedule": "cosine", "decay_epochs": 2}, [2, 1 + HALF, 1, 1 - HALF, 0, 0]),
        (3, 2, {"lr": 2.0, "schedule": "linear", "decay_epochs": 2}, [2, 1.5, 1, 0.5, 0, 0]),
        (2, 3, WARM, [0.25, 0.5, 0.75, 1, 1, 1]),
        (2, 3, {**WARM, "schedule": "per_epoch", "decay": 2}, [0.25, 0.5, 0.75, 0.5, 0.5, 0.5]),
        (2, 3, {**WARM, "schedule": "linear", "decay_epochs": 2}, [0.25, 5 / 12, 0.5, 0.5, 1 / 3, 1 / 6]),
    ],
)
def test_the_rate_of_each_step_is_that_of_its_schedule(
    epochs: int, steps: int, keys: dict[str, Any], expected: list[float]
) -> None:
    assert rates(epochs, steps, **keys) == pytest.approx(expected, abs=1e-14)


def gradients() -> Iterator[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    while True:
        yield torch.randn(3, dtype=torch.float64, generator=draw)


def taken(build: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]) -> list[torch.Tensor]:
    """Return a bias and a matrix of one row after some steps, both with the same start and gradients."""
    start = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    parameters = [torch.nn.Parameter(start.clone()), torch.nn.Parameter(start[None].clone())]
    optimizer = build(parameters)
    for _, gradient in zip(range(4), gradients(), strict=False):
        parameters[0].grad, parameters[1].grad = gradient, gradient[None].clone()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


ADAM = {"lr": 0.1, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.2}
THEIRS: dict[str, Any] = {"lr": 0.1, "betas": (0.8, 0.95), "weight_decay": 0.2}
MOMENTUM: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05}


def with_decay_of_matrices_alone(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    bias, matrix = ({"params": [parameter]} for parameter in parameters)
    return torch.optim.AdamW([{**bias, "weight_decay": 0.0}, matrix], **THEIRS)


@pytest.mark.parametrize(
    ("config", "plain"),
    [
        (SgdConfig(optimizer="sgd", lr=0.5), lambda given: torch.optim.SGD(given, lr=0.5)),
        (SgdConfig(optimizer="sgd_schedule", lr=0.5), lambda given: torch.optim.SGD(given, lr=0.5)),
        (SgdConfig(optimizer="sgd", **MOMENTUM), lambda given: torch.optim.SGD(given, **MOMENTUM)),
        (AdamConfig(optimizer="adam", lr=0.1), lambda given: torch.optim.Adam(given, lr=0.1)),
        (AdamConfig(optimizer="adam", **ADAM), lambda given: torch.optim.Adam(given, **THEIRS)),
        (AdamWConfig(optimizer="adamw", **ADAM), with_decay_of_matrices_alone),
    ],
)
def test_an_optimizer_takes_the_steps_of_pytorchs_with_its_settings(config: OptimConfig, plain: Any) -> None:
    """The penalty of SGD and Adam holds for every parameter, the decoupled decay of AdamW for matrices alone."""
    found, wanted = taken(lambda given: build_optimizer(config, given)), taken(plain)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "optimizer", [SgdConfig(optimizer="sgd", lr=1, momentum=0.9), AdamConfig(optimizer="adam", lr=1)]
)
def test_the_moments_that_memory_is_estimated_for_are_there(optimizer: OptimConfig) -> None:
    parameter = torch.nn.Parameter(torch.zeros(7))
    built = build_optimizer(optimizer, [parameter])
    parameter.grad = torch.ones(7)
    built.step()
    assert sum(v.numel() == 7 for v in built.state[parameter].values()) == optimizer.moments


@pytest.mark.parametrize("is_of_earlier_version", [False, True])
@pytest.mark.parametrize(
    "optimizer", [SgdConfig(optimizer="sgd", lr=0.1, momentum=0.9), AdamConfig(optimizer="adam", lr=0.1)]
)
def test_a_matrix_that_lies_by_columns_takes_the_steps_of_one_that_lies_by_rows(
    optimizer: OptimConfig, is_of_earlier_version: bool
) -> None:
    """Also after a resume, and if the checkpoint has its moments by rows."""
    values, found = torch.arange(12.0).view(3, 4) / 7, []
    for start in (values, values.t().contiguous().t()):
        parameter = torch.nn.Parameter(start.clone())
        built = build_optimizer(optimizer, [parameter])
        for step in range(4):
            if step == 2:
                state = copy.deepcopy(built.state_dict())
                for name, tensor in state["state"][0].items() if is_of_earlier_version else ():
                    state["state"][0][name] = tensor.contiguous()
                built = build_optimizer(optimizer, [parameter])
                restore_optimizer(built, state)
            parameter.grad = torch.empty_like(parameter).copy_((values - step).sin())
            built.step()
        found.append(parameter.detach())
    assert found[1].stride() != found[0].stride()
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-6)


def test_every_optimizer_has_a_fused_form_which_a_training_step_needs() -> None:
    for kind in OPTIMIZERS:
        for name in typing.get_args(typing.get_type_hints(kind)["optimizer"]):
            parameter = torch.nn.Parameter(torch.ones(3))
            optimizer = build_optimizer(kind(optimizer=name, lr=1.0), [parameter])
            parameter.grad = torch.ones(3)
            optimizer.found_inf = torch.ones(())
            optimizer.step()
            assert torch.equal(parameter, torch.ones(3)), name
            optimizer.found_inf, optimizer.grad_scale = torch.zeros(()), torch.full((), 2.0)
            optimizer.step()
            assert not torch.equal(parameter, torch.ones(3)), name


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

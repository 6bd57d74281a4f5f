from __future__ import annotations

import pytest
import torch

from seqlm.optimizers import AdamConfig, SgdConfig
from seqlm.training.optimizers import build_optimizer, restore_optimizer, set_learning_rate


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

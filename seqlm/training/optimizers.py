"""The study's optimizers and learning-rate schedules (reference: Kingma and Ba, 2015, for Adam)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, assert_never

import torch

from seqlm.config import AdamConfig, OptimConfig, SgdConfig, SgdScheduleConfig


def build_optimizer(config: OptimConfig, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Adam with PyTorch's default betas and epsilon, or plain SGD: p <- p - lr g, without momentum.

    In PyTorch's fused form: one pass over all parameters. On a GPU the learning rate lives on the device, so that a
    captured step follows its schedule.
    """
    parameters = list(parameters)
    device = parameters[0].device
    on_gpu = device.type == "cuda"
    lr = torch.tensor(config.lr, device=device) if on_gpu else config.lr
    match config:
        case AdamConfig():
            return torch.optim.Adam(parameters, lr=lr, fused=True, capturable=on_gpu)
        case SgdConfig() | SgdScheduleConfig():
            return torch.optim.SGD(parameters, lr=lr, fused=True)
        case _:
            assert_never(config)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over the moments and step counts of ``optimizer.state_dict()``, and nothing else.

    Learning rate and form of the optimizer follow from the configuration and the device, which may be another one.
    """
    optimizer.load_state_dict({**state, "param_groups": optimizer.state_dict()["param_groups"]})


def learning_rate(config: OptimConfig, epoch: int) -> float:
    """The learning rate of an epoch, counted from 0: a pure function.

    Adam and SGD keep theirs. With f flat epochs and n = max(0, epoch - (f - 1)), the schedules are

    - ``per_epoch``: lr decay^-n, one division after each epoch past the flat ones;
    - ``compounding``: in each epoch past the flat ones the *current* rate is multiplied by decay^-n, so that
      lr decay^-(1 + 2 + ... + n) = lr decay^-(n (n + 1) / 2). This is what produced the published numbers.
    """
    match config:
        case AdamConfig() | SgdConfig():
            return config.lr
        case SgdScheduleConfig():
            assert config.flat_epochs is not None, "SgdScheduleConfig resolves flat_epochs"
            falls = max(0, epoch - (config.flat_epochs - 1))
            return float(config.lr * config.decay ** -_exponent(config.schedule, falls))
        case _:
            assert_never(config)


def _exponent(schedule: Literal["compounding", "per_epoch"], falls: int) -> float:
    match schedule:
        case "compounding":
            return falls * (falls + 1) / 2
        case "per_epoch":
            return falls
        case _:
            assert_never(schedule)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Put ``lr`` into every parameter group."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr

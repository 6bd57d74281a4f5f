"""The study's optimizers and learning-rate schedules (reference: Kingma and Ba, 2015, for Adam)."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from seqlm.config import AdamConfig, OptimConfig, SgdScheduleConfig


def build_optimizer(config: OptimConfig, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Adam with PyTorch's default betas and epsilon, or plain SGD: p <- p - lr g, without momentum."""
    if isinstance(config, AdamConfig):
        return torch.optim.Adam(parameters, lr=config.lr)
    return torch.optim.SGD(parameters, lr=config.lr)


def learning_rate(config: OptimConfig, epoch: int) -> float:
    """The learning rate of an epoch, counted from 0: a pure function.

    Adam and SGD keep theirs. With f flat epochs and n = max(0, epoch - (f - 1)), the schedules are

    - ``per_epoch``: lr decay^-n, one division after each epoch past the flat ones;
    - ``compounding``: in each epoch past the flat ones the *current* rate is multiplied by decay^-n, so that
      lr decay^-(1 + 2 + ... + n) = lr decay^-(n (n + 1) / 2). This is what produced the published numbers.
    """
    if not isinstance(config, SgdScheduleConfig):
        return config.lr
    assert config.flat_epochs is not None, "SgdScheduleConfig resolves flat_epochs"
    falls = max(0, epoch - (config.flat_epochs - 1))
    exponent = falls * (falls + 1) / 2 if config.schedule == "compounding" else falls
    return float(config.lr * config.decay**-exponent)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Put ``lr`` into every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr

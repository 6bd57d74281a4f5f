"""The training step of both baselines, in plain PyTorch with default arguments."""

from __future__ import annotations

from contextlib import nullcontext
from typing import final

import torch
import torch.nn.functional as F  # noqa: N812 -- the field's own abbreviation
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqlm.errors import UsageError
from seqlm.optimizers import AdamConfig, OptimConfig, SgdConfig


def default_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Adam or SGD with nothing but the learning rate given; a schedule's first rate.

    Raises:
        UsageError: another optimizer.
    """
    match config:
        case AdamConfig():
            return torch.optim.Adam(model.parameters(), lr=config.lr)
        case SgdConfig():
            return torch.optim.SGD(model.parameters(), lr=config.lr)
        case _:
            raise UsageError(f"optim.optimizer: expected one of the published study, got {config.optimizer}")


@final
class BaselineStep:
    """Forward, loss, backward, clip, update; the state goes on, detached, from step to step.

    Args:
        model: from tokens and a state to logits and the next state.
        optimizer: of the model's parameters.
        clip_norm: largest gradient norm over all parameters.
        state: the first one.
        autocast: type of ``torch.autocast`` around forward and loss; ``None``: no autocast.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        clip_norm: float,
        state: Tensor,
        autocast: torch.dtype | None = None,
    ) -> None:
        self._autocast = nullcontext() if autocast is None else torch.autocast(state.device.type, dtype=autocast)
        self._model = model
        self._optimizer = optimizer
        self._clip_norm = clip_norm
        self._state = state

    def __call__(self, inputs: Int[Tensor, "T B"], targets: Int[Tensor, "T B"]) -> Float[Tensor, ""]:
        """The mean loss of the window's tokens, in nats."""
        self._optimizer.zero_grad()
        with self._autocast:
            logits, state = self._model(inputs, self._state)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), self._clip_norm)
        self._optimizer.step()
        self._state = state.detach()
        return loss.detach()

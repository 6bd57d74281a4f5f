"""Our own training step behind the benchmark's interface: the only file here that knows how it is called."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from benchmarks.shapes import Shape
from seqlm.models import build_model
from seqlm.optimizers import build_optimizer
from seqlm.training.step import TrainingStep


@final
class OurStep:
    """What a worker of a run does with a window, without the files.

    Args:
        shape: of model, optimizer and window.
        dtype: of the operands of products; ``None``: that of the parameters.
        device: where it trains.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype | None, device: torch.device) -> None:
        config = shape.config
        model = build_model(config.model, shape.vocab_size, config.train.seq_len, dtype).to(device)
        optimizer = build_optimizer(config.optim, model.parameters())
        self._step = TrainingStep(
            model,
            optimizer,
            clip_norm=config.train.clip_norm,
            tokens_per_step=shape.tokens,
            capture=device.type == "cuda",
        )
        self._state = model.initial_state(config.train.batch_size)

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of the window's tokens, in nats."""
        result = self._step(inputs, targets, self._state)
        self._state = result.state
        return result.loss_nats / targets.numel()

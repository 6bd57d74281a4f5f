"""Our own training step behind the benchmark's interface: the only file here that knows how it is called."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from benchmarks.names import Precision
from benchmarks.shapes import Shape
from seqlm.models import build_model
from seqlm.training.optimizers import build_optimizer
from seqlm.training.precision import use_precision
from seqlm.training.step import TrainingStep

BASELINE_MATMUL_PRECISION = "highest"
"""Of float32 products outside our step."""


@final
class OurStep:
    """What a worker of a run does with a window, without the files.

    Raises:
        BackendError: the device has no such precision.
    """

    def __init__(self, shape: Shape, precision: Precision, device: torch.device) -> None:
        config = shape.config
        try:
            dtype = use_precision(precision, device)
            self._matmul_precision = torch.get_float32_matmul_precision()
        finally:
            torch.set_float32_matmul_precision(BASELINE_MATMUL_PRECISION)
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
        # The whole process has one setting, and other implementations take their turns in between.
        torch.set_float32_matmul_precision(self._matmul_precision)
        try:
            result = self._step(inputs, targets, self._state)
        finally:
            torch.set_float32_matmul_precision(BASELINE_MATMUL_PRECISION)
        self._state = result.state
        return result.loss_nats / targets.numel()

"""The implementations that are compared, built by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, final

import torch
from torch import Tensor, nn

from benchmarks.baselines.builtin import builtin_model
from benchmarks.baselines.step import BaselineStep, default_optimizer
from benchmarks.names import REFERENCE, compiled, ours, precision_of
from benchmarks.ours import OurStep
from benchmarks.shapes import Shape, built_in
from seqlm.architectures import RecurrentConfig
from seqlm.config import Precision
from seqlm.models import build_model, build_reference
from seqlm.models.products import set_switches, use_precision

Step: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Trains on a window of inputs and targets (T, B) and returns the mean loss."""

SEED = 1111


@final
class InPrecision:
    """A step under the switches of its precision: a process has one set, and steps of other precisions run between."""

    def __init__(self, step: Step, precision: Precision) -> None:
        self._step = step
        self._precision = precision

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """What the step returns."""
        set_switches(self._precision)
        return self._step(inputs, targets)


def build_step(name: str, shape: Shape, device: torch.device, compiler: str | None = None) -> Step:
    """A fresh model with its optimizer, ready to train in the precision that its name ends in (``reference``: fp32).

    ``compiler``: the backend with which ``torch.compile`` compiles a baseline's model at its first step.

    Raises:
        UsageError: there is no such implementation.
        BackendError: the device has no such precision.
    """
    precision = precision_of(name)
    dtype = use_precision(precision, device)
    torch.manual_seed(SEED)
    if name == ours(precision):
        return InPrecision(OurStep(shape, dtype, device), precision)
    config = shape.config
    size = (built_in(config), shape.vocab_size, config.train.seq_len)
    model: nn.Module
    model = build_reference(build_model(*size), size[0]) if name == REFERENCE else builtin_model(*size)
    model.to(device)
    step = BaselineStep(
        model,
        default_optimizer(config.optim, model),
        clip_norm=config.train.clip_norm,
        state=_zero_state(shape, device),
        autocast=dtype,
    )
    if name == compiled(precision):
        compiler = "inductor"
    if compiler is not None:
        model.compile(backend=compiler)
    return InPrecision(step, precision)


def draw_windows(shape: Shape, device: torch.device, count: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets (T, B) of ``count`` windows of random ids."""
    generator = torch.Generator().manual_seed(SEED)
    size = (shape.config.train.seq_len + 1, shape.config.train.batch_size)
    drawn = (torch.randint(shape.vocab_size, size, generator=generator).to(device) for _ in range(count))
    return [(ids[:-1], ids[1:]) for ids in drawn]


def _zero_state(shape: Shape, device: torch.device) -> Tensor:
    model = built_in(shape.config)
    layers = model.num_layers if isinstance(model, RecurrentConfig) else 0
    return torch.zeros(layers, shape.config.train.batch_size, model.hidden_size, device=device)

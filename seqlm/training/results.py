"""Losses and gradient norms of the last steps, kept on the device until they are read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import final

import torch

from seqlm.errors import DivergedError
from seqlm.training.distributed import Rank
from seqlm.training.perplexity import TokenLoss, perplexity
from seqlm.training.step import StepResult

GPU_STEPS = 32
"""Steps between two readings on a GPU, which has to finish all of them first; on a CPU each step is read."""


@final
class StepResults:
    """What the steps since the last reading gave, in float64. With ``read_each``, full after one step on a GPU, too."""

    def __init__(self, rank: Rank, *, read_each: bool = False) -> None:
        self._rank = rank
        capacity = GPU_STEPS if rank.device.type == "cuda" and not read_each else 1
        self._kept = torch.zeros(capacity, 2, dtype=torch.float64, device=rank.device)
        self._count = 0

    def add(self, result: StepResult) -> None:
        """Copy a step's numbers, on the device."""
        self._kept[self._count, 0] = result.loss_nats
        self._kept[self._count, 1] = result.grad_norm
        self._count += 1

    @property
    def are_full(self) -> bool:
        return self._count == len(self._kept)

    def read(self, *wishes: bool) -> tuple[list[tuple[float, float]], list[bool]]:
        """(loss in nats summed over the ranks, gradient norm) of each step since the last reading.

        Also return for each of ``wishes`` whether any rank has it, so ranks agree without an extra collective. Every
        rank must read after the same steps, with as many wishes; all get the same answer.
        """
        kept = self._kept[: self._count].clone()
        kept[:, 1] /= self._rank.world_size  # the norm is the same on every rank, the loss is a share
        self._count = 0
        if self._rank.world_size == 1:
            return [(loss_nats, norm) for loss_nats, norm in kept.tolist()], list(wishes)
        asked = torch.tensor([float(wish) for wish in wishes], dtype=kept.dtype, device=kept.device)
        numbers = self._rank.sum(torch.cat([kept.flatten(), asked])).tolist()
        end = len(numbers) - len(wishes)
        return list(zip(numbers[:end:2], numbers[1:end:2], strict=True)), [count > 0 for count in numbers[end:]]


def require_finite(results: Iterable[tuple[float, float]], tokens_per_step: int) -> None:
    """Check the (loss in nats, gradient norm) of steps.

    Raises:
        DivergedError: a number is not finite.
    """
    for loss_nats, norm in results:
        if not (math.isfinite(loss_nats) and math.isfinite(norm)):
            mean = loss_nats / tokens_per_step
            raise DivergedError(f"the loss of a step is {mean:g} with gradient norm {norm:g}; lower optim.lr")


def require_perplexity(valid: TokenLoss, when: str) -> None:
    """Check the validation loss. A mean loss above about 709 nats is finite, but its perplexity overflows.

    Raises:
        DivergedError: the perplexity is not a finite number.
    """
    if not math.isfinite(perplexity(valid.mean)):
        raise DivergedError(f"{when} the validation loss is {valid.mean:g}, too large for a perplexity; lower optim.lr")

"""The mean loss at each time step of a window."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from analysis.study.behaviour import StepLosses
from seqlm.data.batches import number_of_windows, windows
from seqlm.errors import DataError
from seqlm.models import LanguageModel
from seqlm.models.state import tensors_of

PARALLEL_COLUMNS = 128
"""Columns that are read at a time where windows are independent: few rows leave a processor waiting for weights."""


@torch.no_grad()
def step_losses(
    model: LanguageModel,
    columns: Int[Tensor, "length B"],
    window: int,
    between: Callable[[], None] = lambda: None,
) -> StepLosses:
    """Both curves over the columns of a split; ``between`` is called between two batches.

    Position t is divided by the number of windows times the number of columns, so every term is a mean of the same
    count. Sums are in float64. A model without a state, the Transformer, has one curve, computed once.

    Raises:
        DataError: the columns are too short for one window.
    """
    length, batch = columns.shape
    count = number_of_windows(length, 1, window)
    if not count:
        raise DataError(
            f"valid in {batch:,} columns of {length:,} tokens is too short for one window of {window:,}, which needs "
            f"{window + 1:,}; lower the window, as with `behaviour --window {max(1, length - 1)}`"
        )
    zero = torch.zeros(window, dtype=torch.float64, device=columns.device)
    for inputs, targets in _side_by_side(columns, window, count):
        between()
        losses, _ = model.token_losses(inputs, targets, model.initial_state(inputs.shape[1]))
        zero += losses.sum(dim=1)
    state = model.initial_state(batch)
    carried = zero
    if any(tensor.numel() for tensor in tensors_of(state)):
        carried = torch.zeros_like(zero)
        for inputs, targets in windows(columns, window):
            between()
            losses, state = model.token_losses(inputs, targets, state)
            carried += losses.sum(dim=1)
    means = [(total / (count * batch)).cpu().numpy() for total in (zero, carried)]
    return StepLosses(window=window, windows=count, columns=batch, zero_state=means[0], carried_state=means[1])


def _side_by_side(
    columns: Int[Tensor, "length B"], window: int, count: int
) -> Iterator[tuple[Int[Tensor, "T C"], Int[Tensor, "T C"]]]:
    """Inputs and targets of the ``count`` windows, several windows of all columns beside each other."""
    at_once = max(1, PARALLEL_COLUMNS // columns.shape[1])
    for first in range(0, count, at_once):
        chosen = range(first, min(first + at_once, count))
        yield tuple(  # type: ignore[misc]
            torch.cat([columns[k * window + shift : (k + 1) * window + shift] for k in chosen], dim=1)
            for shift in (0, 1)
        )

"""The mean loss at each time step of a window."""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from analysis.study.behaviour import StepLosses
from seqlm.data.batches import windows
from seqlm.data.layout import number_of_windows
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
    each = columns[: count * window + 1].unfold(0, window + 1, window)  # windows, B, window + 1
    for texts in each.flatten(0, 1).t().split(PARALLEL_COLUMNS, dim=1):
        between()
        losses, _ = model.token_losses(texts[:-1], texts[1:], model.initial_state(texts.shape[1]))
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

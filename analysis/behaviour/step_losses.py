"""The mean loss at each time step of a window."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 -- the field's own abbreviation
from jaxtyping import Float, Int
from torch import Tensor

from seqlm.data.batches import number_of_windows, windows
from seqlm.errors import DataError
from seqlm.models import LanguageModel

PARALLEL_COLUMNS = 128
"""Columns that are read at a time where windows are independent: few rows leave a processor waiting for weights."""
LOGIT_ROWS = 1024
"""Tokens whose logits are in memory at a time; 40 MB at 10,000 words."""


@dataclass(frozen=True, kw_only=True)
class StepLosses:
    """Mean of -log p(target) at each position of a window, in nats, over all windows and columns."""

    windows: int
    """Windows of each column."""
    columns: int
    zero_state: list[float]
    """With the state zero at the start of each window."""
    carried_state: list[float]
    """With the state that the window before has left; zero before the first."""


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
        hidden, _ = model.features(inputs, model.initial_state(inputs.shape[1]))
        zero += token_losses(model, hidden, targets).sum(dim=1)
    state = model.initial_state(batch)
    carried = zero
    if state.numel():
        carried = torch.zeros_like(zero)
        for inputs, targets in windows(columns, window):
            between()
            hidden, state = model.features(inputs, state)
            carried += token_losses(model, hidden, targets).sum(dim=1)
    terms = count * batch
    return StepLosses(
        windows=count,
        columns=batch,
        zero_state=(zero / terms).tolist(),
        carried_state=(carried / terms).tolist(),
    )


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


def token_losses(
    model: LanguageModel, hidden: Float[Tensor, "T B H"], targets: Int[Tensor, "T B"]
) -> Float[Tensor, "T B"]:
    """-log p(target) of each token, in nats, as float64; logits exist for a slice of the tokens at a time."""
    losses = [
        F.cross_entropy(model.output(h), target, reduction="none").double()
        for h, target in zip(hidden.flatten(0, 1).split(LOGIT_ROWS), targets.flatten().split(LOGIT_ROWS), strict=True)
    ]
    return torch.cat(losses).view(targets.shape)

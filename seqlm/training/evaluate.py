"""The loss of a model on a split."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from seqlm.data.batches import windows
from seqlm.models import LanguageModel
from seqlm.models.state import State, split_state
from seqlm.training.distributed import Rank
from seqlm.training.micro_batches import split_columns
from seqlm.training.perplexity import TokenLoss

WindowLoss: TypeAlias = Callable[[Tensor, Tensor, State], tuple[Tensor, State]]
"""Takes inputs, targets and state, and gives what :meth:`LanguageModel.loss` gives."""


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    state: State,
    columns: Int[Tensor, "length batch"],
    seq_len: int,
    rank: Rank,
    micro_batches: int = 1,
    before_window: Callable[[int], None] = lambda number: None,
    window_loss: WindowLoss | None = None,
) -> TokenLoss:
    """The loss over all windows of this run's columns, without dropout, summed over the ranks.

    The recurrent state starts as ``state`` (zero in the study's protocol) and is carried from window to window. With
    several ``micro_batches`` the columns are read in that many parts, one after the other. ``before_window`` is called
    with the number of each window, from 0; what it raises ends the evaluation. ``window_loss`` computes the model's
    loss on one window, such as a capture of it (:class:`seqlm.training.capture.Captured`). ``None``: ``model.loss``.
    """
    window_loss = window_loss or model.loss
    model.eval()
    total = torch.zeros(2, dtype=torch.float64, device=columns.device)
    states = split_state(state, micro_batches, model.batch_axis)
    parts = zip(split_columns(columns, micro_batches), states, strict=True)
    number = itertools.count()
    for part, carried in parts:
        for inputs, targets in windows(part, seq_len):
            before_window(next(number))
            loss_nats, carried = window_loss(inputs, targets, carried)
            total[0] += loss_nats
            total[1] += targets.numel()
    loss_nats, tokens = rank.sum(total).tolist()
    return TokenLoss(loss_nats=loss_nats, tokens=int(tokens))

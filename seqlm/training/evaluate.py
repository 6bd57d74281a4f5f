"""The loss of a model on a split, and the loss of one window that training shares with it."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 -- the field's own abbreviation
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqlm.data.batches import windows
from seqlm.training.distributed import Rank
from seqlm.training.perplexity import TokenLoss


def summed_cross_entropy(logits: Float[Tensor, "time batch vocab"], targets: Int[Tensor, "time batch"]) -> Tensor:
    """Sum of -log p(target) over the window's tokens, in nats (a scalar)."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


@torch.no_grad()
def evaluate(
    model: nn.Module, state: Tensor, columns: Int[Tensor, "length batch"], seq_len: int, rank: Rank
) -> TokenLoss:
    """The loss over all windows of this run's columns, without dropout, summed over the ranks.

    The recurrent state starts as ``state`` (zero in the study's protocol) and is carried from window to window.
    """
    model.eval()
    total = torch.zeros(2, dtype=torch.float64, device=columns.device)
    for inputs, targets in windows(columns, seq_len):
        logits, state = model(inputs, state)
        total[0] += summed_cross_entropy(logits, targets)
        total[1] += targets.numel()
    loss_nats, tokens = rank.sum(total).tolist()
    return TokenLoss(loss_nats=loss_nats, tokens=int(tokens))

"""The loss of a model on a split."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from seqlm.config import RunConfig
from seqlm.data.batches import columns, whole_text, windows
from seqlm.data.layout import number_of_windows
from seqlm.models import LanguageModel
from seqlm.models.state import State
from seqlm.training.distributed import Rank
from seqlm.training.records import TokenLoss
from seqlm.training.step import split_columns

WindowLoss: TypeAlias = Callable[[Tensor, Tensor, State], tuple[Tensor, State]]
"""Takes inputs, targets and state, and gives what :meth:`LanguageModel.loss` gives."""


def scored_columns(ids: memoryview, config: RunConfig, rank: Rank) -> tuple[list[Tensor], int]:
    """The columns in which this rank scores a split, and the tokens of a window.

    Every token but the first is scored if the configuration has ``eval``. Without, as in the published study, only the
    windows that training with this batch and window would have.
    """
    index, world, device = rank.index, rank.world_size, rank.device
    if config.eval.batch_size and config.eval.seq_len:
        return whole_text(ids, config.eval.batch_size, index, world, device=device), config.eval.seq_len
    found, seq_len = columns(ids, config.train.batch_size, index, world, device=device), config.train.seq_len
    return [found[: number_of_windows(len(found), 1, seq_len) * seq_len + 1]], seq_len


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    parts: Sequence[Tensor],
    seq_len: int,
    rank: Rank,
    micro_batches: int = 1,
    before_window: Callable[[], object] = lambda: None,
    window_loss: WindowLoss | None = None,
) -> TokenLoss:
    """The loss on every token of this rank's columns but their first, without dropout, summed over the ranks.

    Each of ``parts`` is (length, columns). The recurrent state is zero at the start of each column and carried from
    window to window. With several ``micro_batches`` the columns of a part are read in that many, one after the other.
    ``before_window`` is called before each window, as often on every rank; what it raises ends the evaluation.
    ``window_loss`` computes the model's loss on one window, such as a capture of it
    (:class:`seqlm.training.capture.Captured`). ``None``: ``model.loss``.
    """
    window_loss = window_loss or model.loss
    model.eval()
    total = torch.zeros(2, dtype=torch.float64, device=rank.device)
    for part in itertools.chain.from_iterable(split_columns(part, micro_batches) for part in parts):
        state = model.initial_state(part.shape[1])
        for inputs, targets in windows(part, seq_len, last_shorter=True):
            before_window()
            if targets.numel():
                loss_nats, state = window_loss(inputs, targets, state)
                total[0] += loss_nats
                total[1] += targets.numel()
    loss_nats, tokens = rank.sum(total).tolist()
    return TokenLoss(loss_nats=loss_nats, tokens=int(tokens))

"""The mean loss at each time step of a window."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analysis.study.behaviour import BLOCK, StepLosses
from seqlm.data.batches import windows
from seqlm.data.layout import number_of_windows
from seqlm.errors import DataError
from seqlm.models import LanguageModel
from seqlm.models.state import tensors_of

PARALLEL_COLUMNS = 128
"""Columns that are read at a time where windows are independent: few rows leave a processor waiting for weights."""
MOST_TOKENS = 10_000
"""Tokens of the text that each step predicts, at most."""
MOST_READ = 1_000_000
"""Tokens that the windows hold, at most: windows of 100 tokens and less predict ``MOST_TOKENS``."""


@torch.no_grad()
def step_losses(
    model: LanguageModel,
    text: Int[Tensor, " length"],
    columns: Int[Tensor, "rows B"],
    window: int,
    between: Callable[[], None] = lambda: None,
) -> StepLosses:
    """Both curves of a split, given as a text and in columns; ``between`` is called between two batches.

    With a zero state, a window starts at each token from the first one on. Step t of the curve is the mean over the
    tokens ``text[window]`` and those after it, each predicted from the t tokens before it. So all steps predict the
    same tokens, and two models are compared over the same ones.

    With a carried state, position t is divided by the number of windows times the number of columns. Sums are in
    float64. A model without a state, the Transformer, has one curve, computed once.

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
    losses = _of_each_context(model, text, window, between)
    tokens = losses.shape[1]
    zero = losses.mean(dim=1)
    whole = losses[:, : tokens // BLOCK * BLOCK]
    blocks = whole.unflatten(1, (-1, BLOCK)).mean(dim=2).t() if whole.numel() else whole.t()
    state = model.initial_state(batch)
    carried = zero
    if any(tensor.numel() for tensor in tensors_of(state)):
        total = torch.zeros(window, dtype=torch.float64, device=columns.device)
        for inputs, targets in windows(columns, window):
            between()
            of_window, state = model.token_losses(inputs, targets, state)
            total += of_window.sum(dim=1)
        carried = total / (count * batch)
    return StepLosses(
        window=window,
        windows=count,
        columns=batch,
        zero_state=zero.cpu().numpy(),
        carried_state=carried.cpu().numpy(),
        tokens=tokens,
        blocks=blocks.cpu().numpy().astype(np.float32),
    )


def _of_each_context(
    model: LanguageModel, text: Int[Tensor, " length"], window: int, between: Callable[[], None]
) -> Float[Tensor, "window tokens"]:
    """The loss of each token, ``text[window]`` first, given the token before it, the two before it, and so on."""
    tokens = min(len(text) - window, MOST_TOKENS, max(BLOCK, MOST_READ // window))
    read = text[: window + tokens]
    # Windows from the last `window` tokens on are cut off by the end. What fills them up predicts none of the tokens.
    starts = tokens + window - 1
    each = torch.cat([read, read.new_zeros(window)]).unfold(0, window + 1, 1)[:starts].t()  # window + 1, starts
    found = []
    for texts in each.split(PARALLEL_COLUMNS, dim=1):
        between()
        found.append(model.token_losses(texts[:-1], texts[1:], model.initial_state(texts.shape[1]))[0])
    losses = torch.cat(found, dim=1)
    # At step t, the window that starts at s predicts text[s + t], so token text[window] is that of s = window - t.
    return torch.stack([losses[t - 1, window - t : window - t + tokens] for t in range(1, window + 1)])

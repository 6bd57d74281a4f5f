"""The real worker on a machine that has room for two columns at once."""

from __future__ import annotations

import sys
from typing import Any

import torch

from seqlm.models.language_model import FusedModel
from seqlm.training.worker import main

_loss = FusedModel.loss


def loss(model: FusedModel, tokens: torch.Tensor, *rest: Any) -> Any:
    """Return the loss; fail as any allocation does that finds no room for more than two columns."""
    if 2 < tokens.shape[1] <= 8:  # the batch; the self-check has more columns
        torch.empty(2**50)
    return _loss(model, tokens, *rest)


if __name__ == "__main__":
    FusedModel.loss = loss  # type: ignore[method-assign]
    sys.exit(main())

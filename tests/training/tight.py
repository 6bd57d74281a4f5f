"""The real worker on a machine that has room for two columns at once."""

from __future__ import annotations

import sys
from typing import Any

import torch

from seqlm.models.language_model import OutputLayerModel
from seqlm.training.worker import main

_loss = OutputLayerModel.loss


def loss(model: OutputLayerModel, tokens: torch.Tensor, *rest: Any) -> Any:
    """Return the loss; fail as any allocation does that finds no room for more than two columns."""
    if 2 < tokens.shape[1] <= 8:  # the batch; the self-check has more columns
        torch.empty(2**50)
    return _loss(model, tokens, *rest)


if __name__ == "__main__":
    OutputLayerModel.loss = loss  # type: ignore[method-assign]
    sys.exit(main())

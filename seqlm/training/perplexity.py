"""Losses summed over tokens, and the one place where perplexity is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from seqlm.errors import DivergedError


def perplexity(mean_loss_nats: float) -> float:
    """exp(mean loss per predicted token, in nats); infinite where the exponential overflows, NaN for NaN."""
    try:
        return math.exp(mean_loss_nats)
    except OverflowError:
        return math.inf


@dataclass
class TokenLoss:
    """A sum of losses and the number of tokens predicted, divided once at the end."""

    loss_nats: float = 0.0
    """Sum of the cross-entropies, in nats."""
    tokens: int = 0
    """Number of predicted tokens."""

    def add(self, loss_nats: float, tokens: int) -> None:
        self.loss_nats += loss_nats
        self.tokens += tokens

    @property
    def mean(self) -> float:
        """Nats per predicted token; NaN before the first token."""
        return self.loss_nats / self.tokens if self.tokens else math.nan


def require_perplexity(valid: TokenLoss, when: str) -> None:
    """Check the validation loss. A mean loss above about 709 nats is finite, but its perplexity overflows.

    Raises:
        DivergedError: the perplexity is not a finite number.
    """
    if not math.isfinite(perplexity(valid.mean)):
        raise DivergedError(f"{when} the validation loss is {valid.mean:g}, too large for a perplexity; lower optim.lr")

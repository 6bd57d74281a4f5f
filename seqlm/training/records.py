"""Losses and perplexity, and the records of an epoch (``metrics.jsonl``) and of a finished run (``result.json``)."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from seqlm.errors import DivergedError
from seqlm.reading import timestamp
from seqlm.records.runs import Result
from seqlm.training.witness import process_seconds

if TYPE_CHECKING:
    from seqlm.training.trainer import Trainer

OF_THE_DAY = (
    *("epoch_seconds", "elapsed_seconds", "phases", "communication_seconds", "train_tokens_per_second"),
    *("peak_memory_bytes", "attempt"),
)
"""What ``metrics.jsonl`` says of the machine, not of the training."""


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


class Phases:
    """Where the time of a worker went since the last record of an epoch, each moment in one phase."""

    def __init__(self) -> None:
        self._at = time.perf_counter() - process_seconds()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def end(self, phase: str) -> float:
        """Count the time since the last call as that of ``phase``. Return the present time of ``perf_counter``."""
        before, self._at = self._at, time.perf_counter()
        self._seconds[phase] += self._at - before
        return self._at

    def take(self) -> dict[str, float]:
        """Return the seconds of each phase, and begin again."""
        found, self._seconds = dict(self._seconds), defaultdict(float)
        return found


def require_perplexity(valid: TokenLoss, when: str) -> None:
    """Check the validation loss. A mean loss above about 709 nats is finite, but its perplexity overflows.

    Raises:
        DivergedError: the perplexity is not a finite number.
    """
    if not math.isfinite(perplexity(valid.mean)):
        raise DivergedError(f"{when} the validation loss is {valid.mean:g}, too large for a perplexity; lower optim.lr")


def best_epoch(history: list[dict[str, Any]]) -> int:
    """Index of the epoch with the lowest validation loss, the first of equals; NaN is never the best."""
    losses = [math.inf if math.isnan(record["val_loss"]) else record["val_loss"] for record in history]
    return losses.index(min(losses))


def epoch_record(trainer: Trainer, valid: TokenLoss, valid_seconds: float) -> dict[str, Any]:
    """Return the record of the epoch that a trainer has trained and validated, which follows those of its history."""
    history, train, seconds = trainer.history, trainer.total, trainer.seconds + valid_seconds
    return {
        "epoch": len(history),
        "steps": trainer.steps,
        "train_loss": train.mean,
        "val_loss": valid.mean,
        "train_ppl": perplexity(train.mean),
        "val_ppl": perplexity(valid.mean),
        "val_bits_per_byte": trainer.corpus.bits_per_byte("valid", valid.mean),
        "val_tokens": valid.tokens,
        "lr": trainer.lr,
        "epoch_seconds": seconds,
        "elapsed_seconds": (history[-1]["elapsed_seconds"] if history else 0.0) + seconds,
        "phases": trainer.phases.take(),
        "communication_seconds": trainer.take_step.communication_seconds(),
        "train_tokens_per_second": train.tokens / trainer.seconds,
        "peak_memory_bytes": trainer.rank.peak_memory_bytes(),
        "attempt": trainer.attempt,
    }


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Losses with the parameters of the best epoch, without dropout."""

    test: TokenLoss
    train_slice: TokenLoss
    """On the beginning of the training text, as long as the validation text."""
    by_frequency: Sequence[TokenLoss]
    """On the validation text, by the class of its tokens (:data:`seqlm.records.runs.FREQUENCY_RANKS`)."""


def result_record(trainer: Trainer, scores: Scores) -> Result:
    """Return the result of the run of a trainer."""
    history, corpus = trainer.history, trainer.corpus
    best, final = history[best_epoch(history)], history[-1]
    return Result(
        epochs=len(history),
        best_epoch=best["epoch"],
        best_train_ppl=best["train_ppl"],
        best_val_loss=best["val_loss"],
        best_val_ppl=best["val_ppl"],
        final_epoch=final["epoch"],
        final_train_ppl=final["train_ppl"],
        final_val_ppl=final["val_ppl"],
        test_loss=scores.test.mean,
        test_ppl=perplexity(scores.test.mean),
        val_tokens=best.get("val_tokens"),
        test_tokens=scores.test.tokens,
        train_slice_loss=scores.train_slice.mean,
        train_slice_tokens=scores.train_slice.tokens,
        frequency_losses=tuple(loss.mean if loss.tokens else None for loss in scores.by_frequency),
        frequency_tokens=tuple(loss.tokens for loss in scores.by_frequency),
        best_val_bits_per_byte=corpus.bits_per_byte("valid", best["val_loss"]),
        test_bits_per_byte=corpus.bits_per_byte("test", scores.test.mean),
        lossless=corpus.lossless,
        parameters=sum(parameter.numel() for parameter in trainer.model.parameters()),
        elapsed_seconds=final["elapsed_seconds"],
        attempt=trainer.attempt,
        micro_batches=trainer.micro_batches,
        corpus_sha256=corpus.sha256,
        finished_at=timestamp(),
    )

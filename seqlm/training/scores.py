"""What the parameters of the best epoch score, beyond the loss of each epoch."""

from collections.abc import Callable

import torch
from torch import Tensor

from seqlm.records.runs import FREQUENCY_RANKS
from seqlm.training.records import Scores, TokenLoss
from seqlm.training.trainer import Trainer


def score(trainer: Trainer, before_window: Callable[[], object]) -> tuple[Scores, Tensor]:
    """Return the scores of the present parameters, and the loss of each token of the validation text.

    ``before_window``, and the losses of the tokens: as of :meth:`Trainer.token_losses`.
    """
    corpus = trainer.corpus
    train, valid = corpus.splits["train"], corpus.splits["valid"]
    test = trainer.evaluate("test", before_window)
    losses = trainer.token_losses(valid, before_window)
    train_slice = known_loss(trainer.token_losses(train[: len(valid)], before_window))
    classes = frequency_classes(train, valid, len(corpus.vocabulary))
    by_frequency = [known_loss(losses[classes == number]) for number in range(len(FREQUENCY_RANKS) + 1)]
    return Scores(test=test, train_slice=train_slice, by_frequency=by_frequency), losses


def known_loss(losses: Tensor) -> TokenLoss:
    """Return the sum of the losses that are no NaN, and their number."""
    known = losses[~losses.isnan()]
    return TokenLoss(loss_nats=float(known.sum()), tokens=len(known))


def frequency_classes(train: memoryview, text: memoryview, vocab_size: int) -> Tensor:
    """Return the class of each token of a text by the frequency of this token in the training text.

    Class 0 are the tokens of the first ``FREQUENCY_RANKS[0]`` ranks, class 1 those up to ``FREQUENCY_RANKS[1]``, and so
    on. Ids with equal frequency are ranked by number.
    """
    counts = torch.bincount(torch.frombuffer(bytearray(train), dtype=torch.int32), minlength=vocab_size)
    ranks = torch.empty(vocab_size, dtype=torch.int64)
    ranks[counts.argsort(descending=True, stable=True)] = torch.arange(1, vocab_size + 1)
    ids = torch.frombuffer(bytearray(text), dtype=torch.int32).long()
    return torch.bucketize(ranks[ids], torch.tensor(FREQUENCY_RANKS))

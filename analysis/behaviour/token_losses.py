"""The loss of each token of a text, read as training evaluates it, and what these losses come to."""

from array import array
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from analysis.study.values import Values
from seqlm.config import RunConfig
from seqlm.data.batches import scored_columns, windows
from seqlm.models import LanguageModel
from seqlm.records.behaviour import FrequencyClass, MeanLoss

Ids: TypeAlias = npt.NDArray[np.int32]
CLASSES = ((1, 10), (11, 100), (101, None))
"""Places of the most frequent tokens of the training text: first and last of each class. ``None``: all further ones."""
MOST_TOKENS = 1_000_000
"""Tokens of a text whose losses are kept."""


@torch.no_grad()
def token_losses(
    model: LanguageModel, config: RunConfig, ids: memoryview, between: Callable[[], None] = lambda: None
) -> Values:
    """The loss of each token of a text in nats, float64; NaN for those that an evaluation does not predict.

    The columns, the windows and the state carried from one window to the next are those in which training scores a
    split, so the mean is the run's validation loss. ``between`` is called between two windows.
    """
    found = np.full(len(ids), np.nan)
    places = memoryview(array("i", range(len(ids))))
    seq_len = config.eval.seq_len or config.train.seq_len
    parts = zip(
        scored_columns(config, ids, device=model.device),
        scored_columns(config, places),
        strict=True,
    )
    for columns, place_of in parts:
        state = model.initial_state(columns.shape[1])
        for (inputs, targets), (_, at) in zip(
            windows(columns, seq_len, last_shorter=True), windows(place_of, seq_len, last_shorter=True), strict=True
        ):
            between()
            losses, state = model.token_losses(inputs, targets, state)
            found[at.numpy()] = losses.cpu().numpy()
    return found


def mean_loss(losses: Values) -> MeanLoss:
    """The mean over the predicted tokens."""
    predicted = losses[~np.isnan(losses)]
    mean = float(predicted.mean()) if len(predicted) else np.nan
    return MeanLoss(tokens=len(predicted), loss=mean if np.isfinite(mean) else None)


def by_frequency(
    losses: Values,
    ids: Ids,
    source: Ids,
    vocabulary: int,
    classes: Sequence[tuple[int, int | None]] = CLASSES,
) -> tuple[FrequencyClass, ...]:
    """The mean loss of the predicted tokens of each class by their place among the tokens of ``source``.

    The most frequent token has place 1. Of equally frequent ones, the one with the lower id comes first.
    """
    counts = np.bincount(source, minlength=vocabulary)
    place_of = np.empty(vocabulary, dtype=np.int64)
    place_of[np.argsort(-counts, kind="stable")] = np.arange(1, vocabulary + 1)
    places = place_of[ids]
    found = []
    for first, last in classes:
        is_in = (places >= first) & (places <= (vocabulary if last is None else last))
        mean = mean_loss(losses[is_in])
        found.append(FrequencyClass(first=first, last=last, tokens=mean.tokens, loss=mean.loss))
    return tuple(found)

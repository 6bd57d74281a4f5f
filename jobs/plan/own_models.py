"""What is known of the user's own models without running them: the sizes that their check has measured.

A launch tests each model once (:mod:`jobs.launch.own_models`). What passed is kept in the cache, by the digest of the
model's files, its arguments, and the sizes of vocabulary and window.
"""

import functools
import importlib.metadata
from dataclasses import dataclass
from typing import Any

from seqlm.architectures import CustomConfig
from seqlm.config import RunConfig
from seqlm.data import cache

KIND = "own-models"
"""Folder of the cache."""
VERSION = 2
"""Of the checks; raise it when they become stricter."""


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """What a model costs, as :mod:`seqlm.check_model` has measured it."""

    parameters: int
    flops_per_token: int
    """Floating-point operations of training per predicted token."""
    saved_bytes: int
    """What autograd keeps of a window, without any column."""
    saved_bytes_per_column: int
    """What each column of the batch adds."""
    label: str | None
    """Name in print. ``None``: that of the class."""


def torch_version() -> str | None:
    """Return the version of torch without importing it; ``None`` if it is not installed."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def has_passed(config: CustomConfig, vocab_size: int, seq_len: int) -> bool:
    """Whether a model has been tested and keeps the contract."""
    return _found(config, vocab_size, seq_len) is not None


def model_sizes(config: RunConfig, vocab_size: int) -> ModelSizes | None:
    """Return the sizes of a run's own model. ``None``: they have not been measured here."""
    model = config.model
    assert isinstance(model, CustomConfig), "other sizes follow from the configuration"
    found = _found(model, vocab_size, config.train.seq_len)
    return None if not found else ModelSizes(**found)


def keep(config: CustomConfig, vocab_size: int, seq_len: int, sizes: dict[str, Any] | None) -> None:
    """Record that a model has passed, with its sizes if they could be measured."""
    cache.store(KIND, _key(config, vocab_size, seq_len), {}, sizes or {})
    _found.cache_clear()


def _key(config: CustomConfig, vocab_size: int, seq_len: int) -> str:
    model = {"model": vars(config), "vocab_size": vocab_size, "seq_len": seq_len}
    return cache.digest_key({"version": VERSION, **model, "torch": torch_version()})


@functools.lru_cache(maxsize=4096)
def _found(config: CustomConfig, vocab_size: int, seq_len: int) -> dict[str, Any] | None:
    entry = cache.find(KIND, _key(config, vocab_size, seq_len))
    return None if entry is None else entry[1]

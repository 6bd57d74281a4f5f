"""The language models of the study, written from tensor operations and linear layers.

Notation, the same in all signatures and equations: B batch, T time (positions of a window), V vocabulary, H hidden
units, L layers; where needed, D width of a layer's input, N attention heads of width K = H / N, S positions that can be
attended to. Tokens are (T, B), hidden states (T, B, H), logits (T, B, V), a carried state (L, B, H). Products are
written for column vectors, W x; ``torch.nn.Linear`` applies the same W to the last axis.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from seqlm.architectures import BuiltInConfig, CustomConfig, ModelConfig
from seqlm.machine import keep_freed_memory
from seqlm.models.custom import build_custom
from seqlm.models.language_model import LanguageModel, OutputLayerModel
from seqlm.models.products import linear

__all__ = ["LanguageModel", "build_model", "linear", "self_check_shapes"]


def build_model(
    config: ModelConfig,
    vocab_size: int,
    seq_len: int = 35,
    product_dtype: torch.dtype | None = None,
    folder: Path | None = None,
) -> LanguageModel:
    """The model that ``config`` describes, with fresh initial values from torch's global generator.

    Args:
        config: architecture, sizes and dropout.
        vocab_size: V; token ids are 0 .. V - 1.
        seq_len: tokens of a training window; the samples of a model without a state look back no further.
        product_dtype: type in which matrix products are computed; none: that of the parameters.
        folder: where the files of a user's own model are; of another model nothing is read.

    Raises:
        ValueError: if ``vocab_size`` or ``seq_len`` is less than 1.
        ModelError: the user's own model cannot be used.
    """
    for name, value in (("vocab_size", vocab_size), ("seq_len", seq_len)):
        if value < 1:
            raise ValueError(f"{name}: expected a whole number of at least 1, got {value}")
    keep_freed_memory()
    if isinstance(config, CustomConfig):
        assert folder is not None, "the caller knows where the files are"
        built = build_custom(config, vocab_size, product_dtype, folder)
    else:
        built = _class_of(config)(config, vocab_size, seq_len, product_dtype)
    built.vocab_size, built.seq_len = vocab_size, seq_len
    return built


def build_built_in(
    config: BuiltInConfig, vocab_size: int, seq_len: int, product_dtype: torch.dtype | None = None
) -> OutputLayerModel:
    """As :func:`build_model`, of an architecture that comes with seqlm."""
    model = build_model(config, vocab_size, seq_len, product_dtype)
    assert isinstance(model, OutputLayerModel), "all of them are"
    return model


def self_check_shapes(config: BuiltInConfig) -> list[tuple[BuiltInConfig, int, int]]:
    """Return small configurations whose fused operations are like those of ``config``, each with T and B of a window.

    Widths leave the same remainder by 8: kernels of products depend on the alignment of rows.
    """
    return [*_class_of(config).self_check_shapes(config)]


def _class_of(config: BuiltInConfig) -> Any:
    module, _, name = config.MODEL.partition(":")
    return getattr(importlib.import_module(module), name)

"""The language models of the study, written from tensor operations and linear layers.

Notation, the same in all signatures and equations: B batch, T time (positions of a window), V vocabulary, H hidden
units, L layers; where needed, D width of a layer's input, N attention heads of width K = H / N, S positions that can be
attended to. Tokens are (T, B), hidden states (T, B, H), logits (T, B, V), a carried state (L, B, H). Products are
written for column vectors, W x; ``torch.nn.Linear`` applies the same W to the last axis.
"""

from __future__ import annotations

from typing import assert_never

import torch

from seqlm.architectures import ModelConfig, RecurrentConfig, TransformerConfig
from seqlm.models.language_model import LanguageModel
from seqlm.models.recurrent import RecurrentModel
from seqlm.models.transformer import Transformer

__all__ = ["LanguageModel", "build_model", "self_check_shapes"]


def build_model(
    config: ModelConfig, vocab_size: int, seq_len: int = 35, product_dtype: torch.dtype | None = None
) -> LanguageModel:
    """The model that ``config`` describes, with fresh initial values from torch's global generator.

    Args:
        config: architecture, sizes and dropout.
        vocab_size: V; token ids are 0 .. V - 1.
        seq_len: tokens of a training window; the Transformer's samples look back no further.
        product_dtype: type in which matrix products are computed; none: that of the parameters.

    Raises:
        ValueError: if ``vocab_size`` or ``seq_len`` is less than 1.
    """
    for name, value in (("vocab_size", vocab_size), ("seq_len", seq_len)):
        if value < 1:
            raise ValueError(f"{name}: expected a whole number of at least 1, got {value}")
    match config:
        case RecurrentConfig():
            return RecurrentModel(config, vocab_size, product_dtype)
        case TransformerConfig():
            return Transformer(config, vocab_size, seq_len, product_dtype)
        case _:
            assert_never(config)


def self_check_shapes(config: ModelConfig) -> list[tuple[ModelConfig, int, int]]:
    """Return small configurations whose fused operations are like those of ``config``, each with T and B of a window.

    Widths leave the same remainder by 8: kernels of products depend on the alignment of rows.
    """
    match config:
        case RecurrentConfig():
            return [*RecurrentModel.self_check_shapes(config)]
        case TransformerConfig():
            return [*Transformer.self_check_shapes(config)]
        case _:
            assert_never(config)

"""The language models of the study, written from tensor operations and linear layers.

:mod:`seqlm.models.reference` has them by their equations, which is what to read first. Training uses those of
:mod:`seqlm.models.recurrent` and :mod:`seqlm.models.transformer`, which are the same functions, faster.

Notation, the same in all signatures and equations: B batch, T time (positions of a window), V vocabulary, H hidden
units, L layers; where needed, D width of a layer's input, N attention heads of width K = H / N. Tokens are (T, B),
hidden states (T, B, H), logits (T, B, V), a carried state (L, B, H). Products are written for column vectors, W x;
``torch.nn.Linear`` applies the same W to the last axis.
"""

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seqlm.architectures import BuiltInConfig, CustomConfig, ModelConfig
from seqlm.machine import keep_freed_memory
from seqlm.models.custom import build_custom
from seqlm.models.language_model import FusedModel, LanguageModel
from seqlm.models.products import linear

__all__ = ["LanguageModel", "build_model", "build_reference", "class_of", "linear"]


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
        ModelError: the user's own model cannot be used.
    """
    keep_freed_memory()
    if isinstance(config, CustomConfig):
        assert folder is not None, "the caller knows where the files are"
        built = build_custom(config, vocab_size, product_dtype, folder)
    else:
        built = class_of(config)(config, vocab_size, product_dtype)
    built.vocab_size, built.seq_len = vocab_size, seq_len
    return built


def build_reference(
    model: LanguageModel, config: ModelConfig, masks: Iterable[Tensor | None] | None = None
) -> LanguageModel:
    """Return ``model`` by its equations, with the same parameters, which can be differentiated any number of times.

    A model without hand-written gradients is its own reference.

    Args:
        model: built from ``config``.
        config: its configuration.
        masks: those of its dropouts, one after the other (:meth:`FusedModel.masks`). ``None``: ``nn.Dropout`` draws.
    """
    if not isinstance(model, FusedModel):
        return model
    with torch.device("meta"):  # draws nothing
        reference = model.by_equations(config, model.vocab_size)
    reference.load_state_dict(model.state_dict(), assign=True)
    reference.vocab_size, reference.seq_len = model.vocab_size, model.seq_len
    if masks is not None:
        given = iter(masks)

        def drop(_module: nn.Module, inputs: tuple[Tensor], _output: Tensor) -> Tensor:
            (x,), mask = inputs, next(given)
            return x if mask is None else x * mask.view(x.shape).to(x)

        for module in reference.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # draws nothing
                module.register_forward_hook(drop)
    return reference.train(model.training)


def class_of(config: BuiltInConfig) -> Any:
    """The class of the models that ``config`` describes."""
    module, _, name = config.MODEL.partition(":")
    return getattr(importlib.import_module(module), name)

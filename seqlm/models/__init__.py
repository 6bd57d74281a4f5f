"""The language models of the study, written from tensor operations and linear layers.

:mod:`seqlm.models.reference` has them by their equations and the notation of all signatures: read it first. Training
uses those of :mod:`seqlm.models.recurrent` and :mod:`seqlm.models.transformer`, which are the same functions, faster.
"""

import pkgutil
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

    Samples of a model without a state look back ``seq_len`` tokens at most. Products are computed in ``product_dtype``
    (``None``: the type of the parameters). ``folder`` has the files of a user's own model.

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

    A model without hand-written gradients is its own reference. ``config`` is what ``model`` was built from. ``masks``
    are those of its dropouts, one after the other (:meth:`FusedModel.masks`). ``None``: ``nn.Dropout`` draws.
    """
    if not isinstance(model, FusedModel):
        return model
    with torch.device("meta"):  # draws nothing
        reference = model.by_equations(config, model.vocab_size)
    reference.load_state_dict(model.state_dict(), assign=True)
    reference.vocab_size, reference.seq_len = model.vocab_size, model.seq_len
    if masks is not None:
        given = iter(masks)

        def drop(x: Tensor) -> Tensor:
            mask = next(given)
            return x if mask is None else x * mask.view(x.shape).to(x)

        for module in reference.modules():
            if isinstance(module, nn.Dropout):
                module.forward = drop  # type: ignore[assignment, method-assign]
    return reference.train(model.training)


def class_of(config: BuiltInConfig) -> Any:
    """The class of the models that ``config`` describes."""
    return pkgutil.resolve_name(config.MODEL)

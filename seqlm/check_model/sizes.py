"""What a user's own model costs, measured on tensors without values (the device ``meta``), which takes no memory."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from seqlm.models import LanguageModel


def sizes_of(model: LanguageModel, seq_len: int) -> dict[str, Any]:
    """Return parameters, operations and memory of a model for windows of ``seq_len`` tokens.

    ``flops_per_token`` counts matrix products of forward and backward pass, the backward pass as twice the forward
    pass, unless the model says it itself. ``saved_bytes`` is what autograd keeps of a window with no column, and
    ``saved_bytes_per_column`` what each column adds; both include the logits.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    model = copy.deepcopy(model).to("meta").train()
    one, two = (_saved_bytes(model, seq_len, columns) for columns in (1, 2))
    own = model.flops_per_token(seq_len)
    tokens = _window(seq_len, 2)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.loss(tokens, tokens, model.initial_state(2))
    forward_flops = int(counter.get_total_flops())
    return {
        "parameters": parameters,
        "flops_per_token": 3 * forward_flops // (2 * seq_len) if own is None else int(own),
        "saved_bytes": max(0, 2 * one - two),
        "saved_bytes_per_column": two - one,
        "label": None if model.label is None else str(model.label),
    }


def _window(seq_len: int, columns: int) -> Tensor:
    return torch.zeros(seq_len, columns, dtype=torch.int64, device="meta")


def _saved_bytes(model: LanguageModel, seq_len: int, columns: int) -> int:
    kept: dict[int, Any] = {}
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    tokens = _window(seq_len, columns)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model.loss(tokens, tokens, model.initial_state(columns))
    return sum(storage.nbytes() for storage in kept.values())

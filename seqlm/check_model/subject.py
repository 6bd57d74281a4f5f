"""The model under test, and the small window that all checks use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from seqlm.architectures import CustomConfig
from seqlm.models import LanguageModel, build_model
from seqlm.models.dropout import Dropout
from seqlm.models.state import State, tensors_of

SEED = 1
STEPS, COLUMNS, VOCAB = 7, 4, 41
"""T, B and V of the window. All differ, so that an exchanged axis shows."""
TOLERANCE = 1e-4
"""Largest difference, relative to the largest entry, that counts as rounding in float32."""


class BrokenContractError(Exception):
    """The model breaks the contract. The message is one sentence for its author."""


@final
class Subject:
    """A model of the user's, built as often as a check needs it, always with the same initial values."""

    def __init__(self, config: CustomConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        draw = torch.Generator().manual_seed(SEED)
        self.tokens, self.targets = torch.randint(VOCAB, (2, 2 * STEPS, COLUMNS), generator=draw)
        """Two windows (2 T, B)."""

    def build(self, vocab_size: int = VOCAB, seq_len: int = STEPS) -> LanguageModel:
        """A new model with the same initial values each time."""
        torch.manual_seed(SEED)
        return build_model(self.config, vocab_size, seq_len, folder=self.folder)


@contextlib.contextmanager
def without_dropout(model: LanguageModel) -> Iterator[None]:
    """Let dropout keep every unit of ``model`` while the block runs, so that training steps can be compared.

    Covers dropout modules, the dropout of ``nn.LSTM`` and ``nn.MultiheadAttention``, and functions of PyTorch with
    "dropout" in their name. The modules stay switched off.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd | Dropout):
            module.eval()
        elif isinstance(module, nn.RNNBase | nn.MultiheadAttention):
            module.dropout = 0.0
    with _KeepAll():
        yield


@final
class _KeepAll(TorchFunctionMode):
    """Return the input of a dropout function, however the model has imported it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if "dropout" in getattr(func, "__name__", ""):
            return args[0] if args else options["input"]
        if "dropout_p" in options:  # scaled_dot_product_attention
            options = {**options, "dropout_p": 0.0}
        return func(*args, **options)


def differing(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """The names whose tensors differ by more than rounding, of those that both have.

    A gradient that is zero by construction, such as that by the bias of a Transformer's keys, is nothing but rounding:
    tensors are compared on a scale of at least 1 % of the largest entry of any gradient.
    """
    gradients = [tensor for name, tensor in wanted.items() if name.startswith("the gradient") and tensor.numel()]
    least = 0.01 * max((float(tensor.abs().max()) for tensor in gradients), default=0) + 1e-12
    both = (name for name in wanted if name in found)
    return [name for name in both if difference(found[name], wanted[name], least=least) > TOLERANCE]


def difference(found: State, wanted: State, *, least: float = 1e-12) -> float:
    """The largest deviation of any entry, relative to the largest entry wanted of its tensor; infinite for NaN.

    ``least``: the smallest number that deviations are relative to.
    """
    worst = 0.0
    for one, other in zip(tensors_of(found), tensors_of(wanted), strict=True):
        if one.numel():
            scale = max(float(other.detach().abs().max()), least)
            error = float((one.detach() - other.detach()).abs().max()) / scale
            worst = max(worst, error if error == error else float("inf"))
    return worst


def shape(tensor: Tensor) -> str:
    """``(7, 4, 41)``."""
    return f"({', '.join(map(str, tensor.shape))})"

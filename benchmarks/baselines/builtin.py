"""The study's models from the layers of ``torch.nn``: the strongest that a user would build without further work.

``nn.GRU`` resets after its product with the hidden state and ``nn.LayerNorm`` takes the biased deviation, so the GRU
and the Transformer compute functions of the same cost, not the study's own.
"""

from __future__ import annotations

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqlm.architectures import BuiltInConfig, RecurrentConfig, TransformerConfig
from seqlm.models.reference import sinusoids


def builtin_model(config: BuiltInConfig, vocab_size: int, seq_len: int) -> nn.Module:
    """The model that ``config`` describes, with the initial values of ``torch.nn``."""
    match config:
        case RecurrentConfig():
            return BuiltinRecurrent(config, vocab_size)
        case TransformerConfig():
            return BuiltinTransformer(config, vocab_size, seq_len)
        case _:
            raise ValueError(f"{config.arch} is no architecture of the published study")


@final
class BuiltinRecurrent(nn.Module):
    """``nn.RNN`` (L H parameters more than ours: two biases in each layer) or ``nn.GRU`` (3 L H more)."""

    def __init__(self, config: RecurrentConfig, vocab_size: int) -> None:
        super().__init__()
        kind = nn.RNN if config.arch == "rnn" else nn.GRU
        dropout = 1 - config.keep
        between = dropout if config.num_layers > 1 else 0.0  # a single layer warns of a dropout
        self.embedding = nn.Embedding(vocab_size, config.embedding_size)
        self.layers = kind(config.embedding_size, config.hidden_size, num_layers=config.num_layers, dropout=between)
        self.output = nn.Linear(config.hidden_size, vocab_size)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tokens: Int[Tensor, "T B"], state: Float[Tensor, "L B H"]
    ) -> tuple[Float[Tensor, "T B V"], Float[Tensor, "L B H"]]:
        hidden, state = self.layers(self.dropout(self.embedding(tokens)), state)
        return self.output(self.dropout(hidden)), state


@final
class BuiltinTransformer(nn.Module):
    """``nn.TransformerEncoder`` under a causal mask; as many parameters as ours.

    Its layer has one dropout rate, so attention weights drop out like everything else, not with their own 0.1.
    """

    positions: Tensor
    mask: Tensor

    def __init__(self, config: TransformerConfig, vocab_size: int, seq_len: int) -> None:
        super().__init__()
        self.scale = config.hidden_size**0.5
        self.embedding = nn.Embedding(vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(1 - config.keep)
        layer = nn.TransformerEncoderLayer(
            config.hidden_size,
            nhead=config.num_heads,
            dim_feedforward=config.mlp_size,
            dropout=1 - config.keep,
            norm_first=True,
        )
        # Nested tensors need norm_first=False; left on, they warn.
        self.encoder = nn.TransformerEncoder(
            layer, config.num_layers, norm=nn.LayerNorm(config.hidden_size), enable_nested_tensor=False
        )
        self.output = nn.Linear(config.hidden_size, vocab_size)
        self.register_buffer("positions", sinusoids(torch.arange(float(seq_len)), config.hidden_size)[:, None])
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(seq_len))

    def forward(
        self, tokens: Int[Tensor, "T B"], state: Float[Tensor, "0 B H"]
    ) -> tuple[Float[Tensor, "T B V"], Float[Tensor, "0 B H"]]:
        x = self.dropout(self.embedding(tokens) * self.scale + self.positions)
        return self.output(self.encoder(x, mask=self.mask, is_causal=True)), state

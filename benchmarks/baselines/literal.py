"""The study's models written down from its equations, one product at a time, as a student does.

The functions are the study's own; the way to compute them is the straightforward one: a loop over time steps, in it a
loop over layers, a linear layer for each product, the output layer at every step.
"""

from __future__ import annotations

import math
from typing import final

import torch
import torch.nn.functional as F  # noqa: N812 -- the field's own abbreviation
from jaxtyping import Float, Int
from torch import Tensor, nn

from benchmarks.baselines.positions import position_table
from seqlm.architectures import BuiltInConfig, RecurrentConfig, TransformerConfig


def literal_model(config: BuiltInConfig, vocab_size: int, seq_len: int) -> nn.Module:
    """The model that ``config`` describes, with the initial values of ``torch.nn``."""
    match config:
        case RecurrentConfig():
            return LiteralRecurrent(config, vocab_size)
        case TransformerConfig():
            return LiteralTransformer(config, vocab_size, seq_len)
        case _:
            raise ValueError(f"{config.arch} is no architecture of the published study")


def literal_loss(logits: Float[Tensor, "T B V"], targets: Int[Tensor, "T B"]) -> Float[Tensor, ""]:
    """Mean over the tokens of -log softmax(logits)[target]."""
    log_p = F.log_softmax(logits, dim=-1)
    return F.nll_loss(log_p.view(-1, log_p.shape[-1]), targets.reshape(-1))


# -- recurrent models ----------------------------------------------------------------------------------------------


@final
class LiteralRNNCell(nn.Module):
    """h' = tanh(W_x x + W_h h + b)."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.W_x = nn.Linear(input_size, hidden_size)
        self.W_h = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x: Float[Tensor, "B D"], h: Float[Tensor, "B H"]) -> Float[Tensor, "B H"]:
        return torch.tanh(self.W_x(x) + self.W_h(h))


@final
class LiteralGRUCell(nn.Module):
    """r, z, c and h' of the study's GRU; the reset gate acts before the product with U_h."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.W_r, self.W_z, self.W_h = (nn.Linear(input_size, hidden_size) for _ in range(3))
        self.U_r, self.U_z, self.U_h = (nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(3))

    def forward(self, x: Float[Tensor, "B D"], h: Float[Tensor, "B H"]) -> Float[Tensor, "B H"]:
        r = torch.sigmoid(self.W_r(x) + self.U_r(h))
        z = torch.sigmoid(self.W_z(x) + self.U_z(h))
        c = torch.tanh(self.W_h(x) + self.U_h(r * h))
        return (1 - z) * h + z * c


@final
class LiteralRecurrent(nn.Module):
    """Time step by time step, layer by layer."""

    def __init__(self, config: RecurrentConfig, vocab_size: int) -> None:
        super().__init__()
        kind = LiteralRNNCell if config.arch == "rnn" else LiteralGRUCell
        widths = [config.embedding_size] + [config.hidden_size] * (config.num_layers - 1)
        self.embedding = nn.Embedding(vocab_size, config.embedding_size)
        self.cells = nn.ModuleList(kind(width, config.hidden_size) for width in widths)
        self.output = nn.Linear(config.hidden_size, vocab_size)
        self.dropout = nn.Dropout(1 - config.keep)

    def forward(
        self, tokens: Int[Tensor, "T B"], state: Float[Tensor, "L B H"]
    ) -> tuple[Float[Tensor, "T B V"], Float[Tensor, "L B H"]]:
        h = list(state)
        logits = []
        for token in tokens:
            x = self.dropout(self.embedding(token))
            for depth, cell in enumerate(self.cells):
                h[depth] = cell(x, h[depth])
                x = self.dropout(h[depth])
            logits.append(self.output(x))
        return torch.stack(logits), torch.stack(h)


# -- the Transformer -----------------------------------------------------------------------------------------------


@final
class LiteralLayerNorm(nn.Module):
    """a (x - mean) / (std + 1e-6) + b, std unbiased."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(hidden_size))
        self.b = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x: Float[Tensor, "T B H"]) -> Float[Tensor, "T B H"]:
        mean = x.mean(dim=-1, keepdim=True)
        std = x.std(dim=-1, keepdim=True)
        return self.a * (x - mean) / (std + 1e-6) + self.b


@final
class LiteralAttention(nn.Module):
    """Causal self-attention, equations 10-12 of the assignment."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.W_q, self.W_k, self.W_v, self.W_o = (nn.Linear(hidden_size, hidden_size) for _ in range(4))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "T B H"], mask: Float[Tensor, "T T"]) -> Float[Tensor, "T B H"]:
        q, k, v = (self._heads(linear(x)) for linear in (self.W_q, self.W_k, self.W_v))
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
        weights = self.dropout(F.softmax(scores.masked_fill(mask == 0, -1e9), dim=-1))
        joined = torch.matmul(weights, v).permute(2, 0, 1, 3).reshape(x.shape)
        attended: Float[Tensor, "T B H"] = self.W_o(joined)
        return attended

    def _heads(self, x: Float[Tensor, "T B H"]) -> Float[Tensor, "B N T K"]:
        return x.view(*x.shape[:2], self.num_heads, -1).permute(1, 2, 0, 3)


@final
class LiteralBlock(nn.Module):
    """x + dropout(attention(norm(x))), then x + dropout(mlp(norm(x)))."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = LiteralLayerNorm(config.hidden_size)
        self.attention = LiteralAttention(config.hidden_size, config.num_heads, 1 - config.attention_keep)
        self.mlp_norm = LiteralLayerNorm(config.hidden_size)
        self.W_1 = nn.Linear(config.hidden_size, config.mlp_size)
        self.W_2 = nn.Linear(config.mlp_size, config.hidden_size)
        self.dropout = nn.Dropout(1 - config.keep)

    def forward(self, x: Float[Tensor, "T B H"], mask: Float[Tensor, "T T"]) -> Float[Tensor, "T B H"]:
        x = x + self.dropout(self.attention(self.attention_norm(x), mask))
        inner = self.dropout(torch.relu(self.W_1(self.mlp_norm(x))))
        mapped: Float[Tensor, "T B H"] = x + self.dropout(self.W_2(inner))
        return mapped


@final
class LiteralTransformer(nn.Module):
    """The blocks over the embedded tokens with their positions."""

    positions: Tensor

    def __init__(self, config: TransformerConfig, vocab_size: int, seq_len: int) -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        self.embedding = nn.Embedding(vocab_size, config.hidden_size)
        self.register_buffer("positions", position_table(seq_len, config.hidden_size).unsqueeze(1))
        self.blocks = nn.ModuleList(LiteralBlock(config) for _ in range(config.num_layers))
        self.norm = LiteralLayerNorm(config.hidden_size)
        self.output = nn.Linear(config.hidden_size, vocab_size)
        self.dropout = nn.Dropout(1 - config.keep)

    def forward(
        self, tokens: Int[Tensor, "T B"], state: Float[Tensor, "0 B H"]
    ) -> tuple[Float[Tensor, "T B V"], Float[Tensor, "0 B H"]]:
        x = self.dropout(self.embedding(tokens) * math.sqrt(self.hidden_size) + self.positions[: len(tokens)])
        mask = torch.tril(torch.ones(len(tokens), len(tokens), device=tokens.device))
        for block in self.blocks:
            x = block(x, mask)
        return self.output(self.norm(x)), state

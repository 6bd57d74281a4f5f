"""The decoder-only Transformer, pre-norm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqlm.architectures import TransformerConfig
from seqlm.models.attention import KeyValueCache, MultiHeadAttention
from seqlm.models.dropout import Dropout, drop_words
from seqlm.models.fused_transformer import NORM_EPSILON, ReluDropout, linear_residual, norm_linear
from seqlm.models.language_model import OutputLayerModel, Predictor
from seqlm.models.products import TiedOutput, linear
from seqlm.models.state import State


def sinusoids(positions: Float[Tensor, " T"], width: int) -> Float[Tensor, "T H"]:
    """Fixed position vectors of ``width`` H (Vaswani et al., 2017, section 3.5).

    One row for each position t::

        p[t, 2i] = sin(t / 10000^(2i/H))        p[t, 2i+1] = cos(t / 10000^(2i/H))
    """
    even = torch.arange(0, width, 2, dtype=positions.dtype, device=positions.device)
    angles = positions.unsqueeze(1) * 10_000 ** (-even / width)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(start_dim=1)[:, :width]


@final
class LayerNorm(nn.Module):
    """Layer normalisation as the assignment defines it.

    Over the H units of each position x::

        a * (x - mean) / (std + 1e-6) + b

    with the unbiased standard deviation, so H must be at least 2. ``torch.nn.LayerNorm`` uses the biased one and
    adds its epsilon to the variance (Ba et al., 2016): another function. Starts at a = 1, b = 0.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(hidden_size))
        self.b = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, x: Float[Tensor, "*shape H"]) -> Float[Tensor, "*shape H"]:
        std, mean = torch.std_mean(x, dim=-1, correction=1, keepdim=True)
        return self.a * (x - mean) / (std + NORM_EPSILON) + self.b


@final
class MLP(nn.Module):
    """W_2 dropout(relu(W_1 x + b_1)) + b_2, the same for each position, with an inner width M."""

    def __init__(self, hidden_size: int, inner_size: int, keep: float, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.dtype = dtype
        self.W_1 = nn.Linear(hidden_size, inner_size)
        self.W_2 = nn.Linear(inner_size, hidden_size)
        self.dropout = Dropout(keep)

    def forward(self, x: Float[Tensor, "*shape H"]) -> Float[Tensor, "*shape H"]:
        inner = torch.relu(linear(self.W_1, x, self.dtype))
        return linear(self.W_2, self.dropout(inner), self.dtype)


@final
class Block(nn.Module):
    """A pre-norm block (Xiong et al., 2020).

    Two residual steps::

        x <- x + dropout(attention(norm(x)))
        x <- x + dropout(mlp(norm(x)))
    """

    def __init__(self, config: TransformerConfig, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.fused = config.implementation == "fused"
        self.dtype = dtype
        self.attention_norm = LayerNorm(hidden)
        self.attention = MultiHeadAttention(
            hidden, config.num_heads, config.attention_keep, kernel=config.attention, dtype=dtype
        )
        self.mlp_norm = LayerNorm(hidden)
        self.mlp = MLP(hidden, config.mlp_size, config.keep, dtype=dtype)
        self.dropout = Dropout(config.keep)

    def forward(self, x: Float[Tensor, "T B H"], cache: KeyValueCache | None = None) -> Float[Tensor, "T B H"]:
        """The block's output; with a ``cache`` (sampling, one position at a time) always by the equations."""
        if self.fused and cache is None:
            return self._fused(x)
        x = x + self.dropout(self.attention(self.attention_norm(x), cache))
        mapped: Float[Tensor, "T B H"] = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return mapped

    def _fused(self, x: Float[Tensor, "T B H"]) -> Float[Tensor, "T B H"]:
        flat = x.flatten(0, 1)
        norm, maps = self.attention_norm, (self.attention.W_q, self.attention.W_k, self.attention.W_v)
        W, c = torch.cat([linear_map.weight for linear_map in maps]), torch.cat([m.bias for m in maps])
        qkv = norm_linear(flat, norm.a, norm.b, W, c, dtype=self.dtype).unflatten(0, x.shape[:2])
        flat = self._residual(flat, self.attention.fused_core(qkv).flatten(0, 1), self.attention.W_o)
        norm, W_1 = self.mlp_norm, self.mlp.W_1
        relu = ReluDropout(self.mlp.dropout.mask((len(flat), W_1.out_features), flat), self.mlp.dropout.scale)
        inner = norm_linear(flat, norm.a, norm.b, W_1.weight, W_1.bias, relu, self.dtype)
        mapped: Tensor = self._residual(flat, inner, self.mlp.W_2).unflatten(0, x.shape[:2])
        return mapped

    def _residual(
        self, x: Float[Tensor, "I H"], y: Float[Tensor, "I M"], linear_map: nn.Linear
    ) -> Float[Tensor, "I H"]:
        factors = self.dropout.mask(x.shape, x)
        return linear_residual(x, y, linear_map.weight, linear_map.bias, factors, self.dtype)


@final
class Transformer(OutputLayerModel):
    """L blocks between an embedding with positions and a linear output layer.

    From the tokens of a window to the logits at each position::

        x_t = dropout(sqrt(H) embedding(token_t) + p_t)        p: sinusoids, t = 0 .. T - 1
        x   = block_L( .. block_1(x))
        logits = W_y norm(x) + b_y

    Each window is seen alone, so the state is empty: a (0, B, H) tensor, returned as it came. ``seq_len`` is the
    length of the training windows; only :meth:`generate` uses it, :meth:`forward` takes windows of any length.

    Word types can be dropped, so that all occurrences of a word in a step have embedding(token_t) = 0, and the
    embedding's matrix can be ``tied`` to W_y. Both are off by default.

    Initial values: every parameter with more than one axis Xavier-uniform (Glorot and Bengio, 2010); biases as in
    ``MultiHeadAttention``, ``LayerNorm`` and ``torch.nn.Linear``.
    """

    def __init__(
        self, config: TransformerConfig, vocab_size: int, seq_len: int, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(config.implementation, dtype)
        self.hidden_size = config.hidden_size
        self.seq_len = seq_len
        self.embedding = nn.Embedding(vocab_size, config.hidden_size)
        self.embedding_keep = config.embedding_keep
        self.dropout = Dropout(config.keep)
        self.blocks = nn.ModuleList(Block(config, dtype) for _ in range(config.num_layers))
        self.norm = LayerNorm(config.hidden_size)
        self.output = TiedOutput(self.embedding) if config.tied else nn.Linear(config.hidden_size, vocab_size)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    @staticmethod
    def self_check_shapes(config: TransformerConfig) -> Iterator[tuple[TransformerConfig, int, int]]:
        """Yield a narrow model. scaled_dot_product_attention draws its own dropout, so it is checked without."""
        keep = 1.0 if config.attention == "sdpa" else 0.5
        small = replace(
            config,
            hidden_size=64,
            num_heads=4,
            mlp_size=96 + config.mlp_size % 8,
            num_layers=2,
            keep=0.5,
            attention_keep=keep,
        )
        yield small, 12, 100

    @property
    def hidden_states(self) -> nn.ModuleList:
        return self.blocks

    def initial_state(self, batch_size: int) -> Float[Tensor, "0 B H"]:
        """Nothing."""
        return self.output.weight.new_zeros(0, batch_size, self.hidden_size)

    def features(
        self, tokens: Int[Tensor, "T B"], state: Float[Tensor, "0 B H"]
    ) -> tuple[Float[Tensor, "T B H"], Float[Tensor, "0 B H"]]:
        """The normalised outputs of the top block, and ``state`` itself."""
        return self._features(tokens, [None] * len(self.blocks), first_position=0), state

    def _features(
        self, tokens: Int[Tensor, "T B"], caches: list[KeyValueCache | None], first_position: int
    ) -> Float[Tensor, "T B H"]:
        (words,) = self._step_masks([((self.embedding.num_embeddings,), self.embedding_keep)])
        embedded = drop_words(self.embedding(tokens) * self.hidden_size**0.5, tokens, words)
        x = self.dropout(embedded + self._positions(first_position, len(tokens)).unsqueeze(1))
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block(x, cache)
        normalised: Float[Tensor, "T B H"] = self.norm(x)
        return normalised

    def _positions(self, first: int, count: int) -> Float[Tensor, "T H"]:
        weight = self.embedding.weight
        # Computed at least in float32: bfloat16 cannot tell position 256 from 257.
        precise = torch.promote_types(weight.dtype, torch.float32)
        positions = torch.arange(first, first + count, dtype=precise, device=weight.device)
        return sinusoids(positions, self.hidden_size).to(weight.dtype)

    def predictor(self, state: State) -> Predictor:
        """One position per token while all tokens so far fit into ``seq_len``, then the last ``seq_len`` anew.

        The recomputation is needed: once the window slides, each token in it stands at another position, so none of
        the kept keys and values is right any more.
        """
        window: list[Tensor] = []
        caches: list[KeyValueCache | None] = [KeyValueCache() for _ in self.blocks]

        def predict(tokens: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
            window.append(tokens)
            if len(window) <= self.seq_len:
                hidden = self._features(tokens.unsqueeze(0), caches, first_position=len(window) - 1)
            else:
                del window[0]
                # The window stays full from here on, so this branch is taken for every later token.
                hidden, _ = self.features(torch.stack(window), state)
            return linear(self.output, hidden[-1], self.dtype)

        return predict

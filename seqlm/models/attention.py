"""Causal multi-head attention, with the keys and values of earlier positions kept when sampling."""

from __future__ import annotations

from typing import Literal, final

import torch
import torch.nn.functional as F  # noqa: N812 -- the field's own abbreviation
from jaxtyping import Float
from torch import Tensor, nn

from seqlm.models.dropout import Dropout
from seqlm.models.fused_transformer import MASKED_SCORE, attention, is_later
from seqlm.models.products import linear, rounded_product


@final
class KeyValueCache:
    """The keys and values that one attention layer computed for the positions so far."""

    def __init__(self) -> None:
        self._kept: tuple[Tensor, Tensor] | None = None

    @property
    def positions(self) -> int:
        return 0 if self._kept is None else self._kept[0].shape[-2]

    def extend(
        self, k: Float[Tensor, "B N T K"], v: Float[Tensor, "B N T K"]
    ) -> tuple[Float[Tensor, "B N S K"], Float[Tensor, "B N S K"]]:
        """Add T positions; the keys and values of all S positions so far."""
        if self._kept is not None:
            k, v = (torch.cat(pair, dim=-2) for pair in zip(self._kept, (k, v), strict=True))
        self._kept = k, v
        return k, v


@final
class MultiHeadAttention(nn.Module):
    """Causal self-attention with N heads of width K = H / N (Vaswani et al., 2017, section 3.2).

    Head i sees its K columns of q = W_q x + b_q, k = W_k x + b_k, v = W_v x + b_v (assignment, equations 10-12)::

        s_i = q_i k_i^T / sqrt(K),  with -1e9 where the key's position is later than the query's
        a_i = dropout(softmax(s_i))
        attention(x) = W_o [a_1 v_1, .., a_N v_N] + b_o

    Initial values: biases uniform in [-1/sqrt(H), 1/sqrt(H)]; the model draws the weights.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        keep: float,
        *,
        kernel: Literal["own", "sdpa"] = "own",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.kernel = kernel
        self.dtype = dtype
        self.W_q, self.W_k, self.W_v, self.W_o = (nn.Linear(hidden_size, hidden_size) for _ in range(4))
        self.dropout = Dropout(keep)
        for linear_map in (self.W_q, self.W_k, self.W_v, self.W_o):
            nn.init.uniform_(linear_map.bias, -(hidden_size**-0.5), hidden_size**-0.5)

    def forward(self, x: Float[Tensor, "T B H"], cache: KeyValueCache | None = None) -> Float[Tensor, "T B H"]:
        """Attend from each position of ``x`` to itself and to the earlier ones.

        With a ``cache``, ``x`` holds the positions after those in it, may attend to them, and is added to it.
        """
        q, k, v = (self._split_heads(linear(map_, x, self.dtype)) for map_ in (self.W_q, self.W_k, self.W_v))
        if cache is None and self.kernel == "sdpa":
            heads = self._torch_attention(q, k, v)
        else:
            if cache is not None:
                k, v = cache.extend(k, v)
            s = rounded_product(q, k.transpose(-2, -1), self.dtype) * q.shape[-1] ** -0.5
            a = self.dropout(s.masked_fill(is_later(s), MASKED_SCORE).softmax(dim=-1))
            heads = rounded_product(a, v, self.dtype)
        return linear(self.W_o, _merge_heads(heads), self.dtype)

    def fused_core(self, qkv: Float[Tensor, "T B QKV"]) -> Float[Tensor, "T B H"]:
        """What W_o reads, from queries, keys and values side by side (QKV = 3 H), for the fused block."""
        positions, batch, _ = qkv.shape
        if self.kernel == "sdpa":
            return _merge_heads(self._torch_attention(*(self._split_heads(part) for part in qkv.chunk(3, dim=2))))
        factors = self.dropout.mask((batch, self.num_heads, positions, positions), qkv)
        return attention(qkv, factors, self.num_heads, self.dtype)

    def _torch_attention(
        self, q: Float[Tensor, "B N T K"], k: Float[Tensor, "B N T K"], v: Float[Tensor, "B N T K"]
    ) -> Float[Tensor, "B N T K"]:
        # Scores and sums are float32 inside, but a kernel of bf16 operands stores its result and gradients as bf16.
        low = self.dtype or q.dtype
        rate = 1 - self.dropout.keep if self.training else 0.0
        attended = F.scaled_dot_product_attention(q.to(low), k.to(low), v.to(low), dropout_p=rate, is_causal=True)
        return attended.to(q.dtype)

    def _split_heads(self, x: Float[Tensor, "T B H"]) -> Float[Tensor, "B N T K"]:
        positions, batch, hidden = x.shape
        return x.view(positions, batch, self.num_heads, hidden // self.num_heads).permute(1, 2, 0, 3)


def _merge_heads(heads: Float[Tensor, "B N T K"]) -> Float[Tensor, "T B H"]:
    return heads.permute(2, 0, 1, 3).flatten(start_dim=2)

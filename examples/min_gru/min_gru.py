"""The minimal gated unit minGRU (Feng et al., 2024, "Were RNNs All We Needed?"), with convolutions.

Gate and candidate depend on the input alone, so that h_t is linear in h_{t-1}::

    z_t = sigmoid(W_z u_t + b_z)
    h_t = (1 - z_t) * h_{t-1} + z_t * (W_h u_t + b_h)

In front of each layer, u is a causal convolution over the last ``width`` inputs of each unit, as in Mamba (Gu and Dao,
2023). Its last inputs are carried too, so the state of a layer is a tuple of two tensors of different shapes.
"""

from __future__ import annotations

import torch
from causal import CausalConvolution  # a file of its own: model.files names it
from torch import Tensor, nn

State = tuple[tuple[Tensor, Tensor], ...]


class MinGRULayer(nn.Module):
    """One layer, H -> H."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.before = CausalConvolution(hidden_size, width)
        self.W_z = nn.Linear(hidden_size, hidden_size)
        self.W_h = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, h: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """All h_1 .. h_T (T, B, H), and the inputs that the next window needs (B, width - 1, H)."""
        u, past = self.before(x, past)
        z, candidate, outputs = self.W_z(u).sigmoid(), self.W_h(u), []
        for keep, new in zip((1 - z).unbind(0), (z * candidate).unbind(0), strict=True):
            h = keep * h + new
            outputs.append(h)
        return torch.stack(outputs), past


class MinGRU(nn.Module):
    """Residual layers between an embedding and a linear output layer. The state is a tuple of (h, past) of each."""

    batch_axis = 0  # of h (B, H) and past (B, width - 1, H)
    label = "minGRU"

    def __init__(self, vocab_size: int, hidden_size: int = 200, num_layers: int = 2, width: int = 4) -> None:
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_size) for _ in range(num_layers))
        self.layers = nn.ModuleList(MinGRULayer(hidden_size, width) for _ in range(num_layers))
        self.output = nn.Linear(hidden_size, vocab_size)

    @property
    def hidden_states(self) -> nn.ModuleList:
        return self.layers

    def initial_state(self, batch_size: int) -> State:
        """Zeros, with the type and device of the parameters."""
        weight, hidden = self.embedding.weight, self.embedding.embedding_dim
        shapes = (batch_size, hidden), (batch_size, self.width - 1, hidden)
        return tuple((weight.new_zeros(shapes[0]), weight.new_zeros(shapes[1])) for _ in self.layers)

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits (T, B, V) of tokens (T, B), and the state after the window."""
        x, after = self.embedding(tokens), []
        for norm, layer, (h, past) in zip(self.norms, self.layers, state, strict=True):
            outputs, past = layer(norm(x), h, past)
            after.append((outputs[-1], past))
            x = x + outputs
        return self.output(x), tuple(after)

"""The long short-term memory of Hochreiter and Schmidhuber (1997), with forget gates (Gers et al., 2000), by equations.

From the input x_t and the hidden state h_{t-1}, with elementwise products *::

    i = sigmoid(W_i x_t + U_i h_{t-1} + b_i)        input gate
    f = sigmoid(W_f x_t + U_f h_{t-1} + b_f)        forget gate
    o = sigmoid(W_o x_t + U_o h_{t-1} + b_o)        output gate
    g = tanh(W_g x_t + U_g h_{t-1} + b_g)
    c_t = f * c_{t-1} + i * g
    h_t = o * tanh(c_t)

Dropout as in Zaremba et al. (2014): between layers, never from h_{t-1} to h_t. Off by default, as in Merity et al.
(2018): dropout of word types and of the weights U, both with one mask for a window, and tied matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LSTMLayer(nn.Module):
    """One layer. ``W`` and ``U`` hold the maps of the four gates one above the other."""

    def __init__(self, size: int, weight_keep: float) -> None:
        super().__init__()
        self.W, self.U = nn.Linear(size, 4 * size), nn.Linear(size, 4 * size, bias=False)
        self.weight_dropout = nn.Dropout(1 - weight_keep)
        nn.init.ones_(self.W.bias[size : 2 * size])  # remember at first (Jozefowicz et al., 2015)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """All h_1 .. h_T (T, B, H) and the cell c_T (B, H)."""
        outputs, kept = [], self.weight_dropout(self.U.weight)
        for from_x in self.W(x).unbind(0):  # the products with x do not depend on h: one for the whole window
            i, f, o, g = (from_x + h @ kept.t()).chunk(4, dim=-1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs), c


class LSTM(nn.Module):
    """L layers between an embedding and a linear output layer. The state is (h, c), each (L, B, H)."""

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 200,
        num_layers: int = 2,
        keep: float = 0.5,
        embedding_keep: float = 1.0,
        weight_keep: float = 1.0,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.layers = nn.ModuleList(LSTMLayer(hidden_size, weight_keep) for _ in range(num_layers))
        self.hidden_states = list(self.layers)  # their first output is h: the report's gradient norms are by it
        self.dropout, self.word_dropout = nn.Dropout(1 - keep), nn.Dropout(1 - embedding_keep)
        self.output = nn.Linear(hidden_size, vocab_size)
        if tied:
            self.output.weight = self.embedding.weight
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def initial_state(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Zeros, with the type and device of the parameters."""
        zeros = self.embedding.weight.new_zeros(len(self.layers), batch_size, self.embedding.embedding_dim)
        return zeros, zeros

    def forward(self, tokens: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Logits (T, B, V) of tokens (T, B), and the state after the window."""
        words = self.word_dropout(self.embedding.weight.new_ones(self.embedding.num_embeddings, 1))
        x, after = self.dropout(self.embedding(tokens) * words[tokens]), []
        for layer, h, c in zip(self.layers, *state, strict=True):
            outputs, c = layer(x, h, c)
            after.append((outputs[-1], c))
            x = self.dropout(outputs)
        h, c = map(torch.stack, zip(*after, strict=True))
        return self.output(x), (h, c)

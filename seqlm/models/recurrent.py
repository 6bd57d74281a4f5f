"""The stacked tanh RNN and the stacked GRU.

A layer takes all products with its input out of the time loop: they do not depend on the hidden state, so one product
serves the whole window. Only the products with the hidden state are left inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqlm.architectures import RecurrentConfig
from seqlm.models.dropout import Dropout, drop
from seqlm.models.fused_recurrent import fused_gru, fused_rnn
from seqlm.models.language_model import OutputLayerModel
from seqlm.models.products import PACKED_SIZE, linear


@final
class RNNLayer(nn.Module):
    """A layer of the tanh RNN (Elman, 1990).

    From inputs x_t of width D to hidden states h_t of H units::

        h_t = tanh(W_x x_t + W_h h_{t-1} + b)

    ``W_x`` holds b as its bias.
    """

    def __init__(
        self, input_size: int, hidden_size: int, *, fused: bool = True, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.fused = fused
        self.dtype = dtype
        self.W_x = nn.Linear(input_size, hidden_size)
        self.W_h = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x: Float[Tensor, "T B D"], h: Float[Tensor, "B H"]) -> Float[Tensor, "T B H"]:
        """All h_1 .. h_T from the inputs and h_0."""
        if self.fused:
            return fused_rnn(x, h, self.W_x.weight, self.W_x.bias, self.W_h.weight, self.dtype)
        outputs = []
        for from_x in linear(self.W_x, x, self.dtype).unbind(0):
            h = torch.tanh(from_x + linear(self.W_h, h, self.dtype))
            outputs.append(h)
        return torch.stack(outputs)


@final
class GRULayer(nn.Module):
    """A layer of gated recurrent units (Cho et al., 2014).

    From inputs x of width D, and the hidden state h of H units, to the next hidden state h'::

        r = sigmoid(W_r x + U_r h + b_r)
        z = sigmoid(W_z x + U_z h + b_z)
        c = tanh(W_h x + U_h (r * h) + b_h)
        h' = (1 - z) * h + z * c

    The reset gate r acts on h *before* the product with U_h, as in the paper. ``torch.nn.GRU`` and cuDNN apply it to
    the product instead, and let z keep the old state: another function.

    ``W`` holds W_r, W_z, W_h stacked along its outputs, and as its bias b_r, b_z, b_h; ``U_rz`` holds U_r and U_z.
    """

    def __init__(
        self, input_size: int, hidden_size: int, *, fused: bool = True, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.fused = fused
        self.dtype = dtype
        self.hidden_size = hidden_size
        self.W = nn.Linear(input_size, 3 * hidden_size)
        self.U_rz = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.U_h = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x: Float[Tensor, "T B D"], h: Float[Tensor, "B H"]) -> Float[Tensor, "T B H"]:
        """All h_1 .. h_T from the inputs and h_0."""
        if self.fused:
            return fused_gru(x, h, self.W.weight, self.W.bias, self.U_rz.weight, self.U_h.weight, self.dtype)
        from_x = linear(self.W, x, self.dtype).split([2 * self.hidden_size, self.hidden_size], dim=-1)
        outputs = []
        for rz_from_x, c_from_x in zip(*(part.unbind(0) for part in from_x), strict=True):
            r, z = torch.sigmoid(rz_from_x + linear(self.U_rz, h, self.dtype)).chunk(2, dim=-1)
            c = torch.tanh(c_from_x + linear(self.U_h, r * h, self.dtype))
            h = (1 - z) * h + z * c
            outputs.append(h)
        return torch.stack(outputs)


_LAYERS: dict[str, type[RNNLayer | GRULayer]] = {"rnn": RNNLayer, "gru": GRULayer}


@final
class RecurrentModel(OutputLayerModel):
    """L recurrent layers between an embedding and a linear output layer.

    From the tokens of a window to the logits at each time step::

        x^0_t = dropout(embedding(token_t))
        h^l_t = layer_l(x^{l-1}_t, h^l_{t-1})        l = 1 .. L
        x^l_t = dropout(h^l_t)
        logits_t = W_y x^L_t + b_y

    Dropout lies between layers, never on the path from h^l_{t-1} to h^l_t, and draws a fresh mask at each time step
    (Zaremba et al., 2014). The state is h^1 .. h^L at the end of a window, without dropout, and the next window
    continues from it.

    Initial values: embedding and W_y uniform in [-0.1, 0.1], b_y zero, everything else, biases too, uniform in
    [-1/sqrt(H), 1/sqrt(H)].
    """

    def __init__(
        self, config: RecurrentConfig, vocab_size: int, seq_len: int = 35, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(config.implementation, dtype)
        layer_type = _LAYERS[config.arch]
        widths = [config.embedding_size] + [config.hidden_size] * (config.num_layers - 1)
        self.hidden_size = config.hidden_size
        self.embedding = nn.Embedding(vocab_size, config.embedding_size)
        self.layers = nn.ModuleList(
            layer_type(width, config.hidden_size, fused=self.fused, dtype=dtype) for width in widths
        )
        self.output = nn.Linear(config.hidden_size, vocab_size)
        self.dropout = Dropout(config.keep)
        self._draw_initial_values()

    def _draw_initial_values(self) -> None:
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.output.weight, -0.1, 0.1)
        nn.init.zeros_(self.output.bias)
        k = self.hidden_size**-0.5
        for parameter in self.layers.parameters():
            nn.init.uniform_(parameter, -k, k)

    @staticmethod
    def self_check_shapes(config: RecurrentConfig) -> Iterator[tuple[RecurrentConfig, int, int]]:
        """Yield a narrow model, and for wide ones also one of a width from which a CPU has another product.

        That product is :class:`seqlm.models.products.RepeatedProduct`.
        """
        remainder = config.hidden_size % 8
        narrow = replace(config, hidden_size=64 + remainder, num_layers=2, embedding_size=48, keep=0.5)
        yield narrow, 12, 100
        if config.hidden_size >= PACKED_SIZE:
            yield replace(narrow, hidden_size=PACKED_SIZE + remainder, num_layers=1), 9, 4

    @property
    def hidden_states(self) -> nn.ModuleList:
        return self.layers

    def initial_state(self, batch_size: int) -> Float[Tensor, "L B H"]:
        """Zeros."""
        return self.output.weight.new_zeros(len(self.layers), batch_size, self.hidden_size)

    def features(
        self, tokens: Int[Tensor, "T B"], state: Float[Tensor, "L B H"]
    ) -> tuple[Float[Tensor, "T B H"], Float[Tensor, "L B H"]]:
        """The dropped-out outputs of the top layer, x^L, and the state h^1 .. h^L after the window."""
        # A mask over (T, B, H) has its own values at every time step, hence "fresh" without a loop.
        embedded = self.embedding(tokens)
        outputs_shape = (*tokens.shape, self.hidden_size)
        mask, *layer_masks = self.dropout.masks([embedded.shape] + [outputs_shape] * len(self.layers), embedded)
        x = drop(embedded, mask)
        last = []
        for layer, h, mask in zip(self.layers, state.unbind(0), layer_masks, strict=True):
            outputs = layer(x, h)
            x = drop(outputs, mask)
            last.append(outputs[-1])
        return x, torch.stack(last)

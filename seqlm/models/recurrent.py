"""The stacked tanh RNN and the stacked GRU.

A layer takes all products with its input out of the time loop: they do not depend on the hidden state, so one product
serves the whole window. Only the products with the hidden state are left inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqlm.architectures import RecurrentConfig
from seqlm.models.dropout import Dropout, drop, drop_words
from seqlm.models.fused_recurrent import fused_gru, fused_rnn
from seqlm.models.language_model import OutputLayerModel
from seqlm.models.products import PACKED_SIZE, TiedOutput, linear, rounded_product


@final
class RNNLayer(nn.Module):
    """A layer of the tanh RNN (Elman, 1990).

    From inputs x_t of width D to hidden states h_t of H units::

        h_t = tanh(W_x x_t + W_h h_{t-1} + b)

    ``W_x`` holds b as its bias. A layer takes the masks of its recurrent weights, W_h, which are multiplied by them.
    """

    def __init__(
        self, input_size: int, hidden_size: int, *, fused: bool = True, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.fused = fused
        self.dtype = dtype
        self.W_x = nn.Linear(input_size, hidden_size)
        self.W_h = nn.Linear(hidden_size, hidden_size, bias=False)

    @property
    def recurrent(self) -> list[Tensor]:
        """The recurrent weights."""
        return [self.W_h.weight]

    def forward(
        self, x: Float[Tensor, "T B D"], h: Float[Tensor, "B H"], masks: Sequence[Tensor | None] = (None,)
    ) -> Float[Tensor, "T B H"]:
        """All h_1 .. h_T from the inputs and h_0."""
        (W_h,) = map(drop, self.recurrent, masks)
        if self.fused:
            return fused_rnn(x, h, self.W_x.weight, self.W_x.bias, W_h, self.dtype)
        outputs = []
        for from_x in linear(self.W_x, x, self.dtype).unbind(0):
            h = torch.tanh(from_x + rounded_product(h, W_h.t(), self.dtype))
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

    @property
    def recurrent(self) -> list[Tensor]:
        """The recurrent weights."""
        return [self.U_rz.weight, self.U_h.weight]

    def forward(
        self, x: Float[Tensor, "T B D"], h: Float[Tensor, "B H"], masks: Sequence[Tensor | None] = (None, None)
    ) -> Float[Tensor, "T B H"]:
        """All h_1 .. h_T from the inputs and h_0."""
        U_rz, U_h = map(drop, self.recurrent, masks)
        if self.fused:
            return fused_gru(x, h, self.W.weight, self.W.bias, U_rz, U_h, self.dtype)
        from_x = linear(self.W, x, self.dtype).split([2 * self.hidden_size, self.hidden_size], dim=-1)
        outputs = []
        for rz_from_x, c_from_x in zip(*(part.unbind(0) for part in from_x), strict=True):
            r, z = torch.sigmoid(rz_from_x + rounded_product(h, U_rz.t(), self.dtype)).chunk(2, dim=-1)
            c = torch.tanh(c_from_x + rounded_product(r * h, U_h.t(), self.dtype))
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

    Two more dropouts, both off by default, have one mask for a whole step (:func:`seqlm.models.dropout.step_masks`):
    of word types, so that all occurrences of a word have embedding(token_t) = 0, and of recurrent weights, so that a
    layer computes every time step with W_h * mask. Kept ones are divided by the probability of keeping them. ``tied``:
    W_y is the embedding's matrix.

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
        self.output = TiedOutput(self.embedding) if config.tied else nn.Linear(config.hidden_size, vocab_size)
        self.dropout = Dropout(config.keep)
        self.embedding_keep, self.weight_keep = config.embedding_keep, config.weight_keep
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

        def small(hidden: int, layers: int) -> RecurrentConfig:
            embedding = hidden if config.tied else 48
            return replace(config, hidden_size=hidden, num_layers=layers, embedding_size=embedding, keep=0.5)

        yield small(64 + remainder, 2), 12, 100
        if config.hidden_size >= PACKED_SIZE:
            yield small(PACKED_SIZE + remainder, 1), 9, 4

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
        layers = cast("list[RNNLayer | GRULayer]", list(self.layers))
        weights = [(weight.shape, self.weight_keep) for layer in layers for weight in layer.recurrent]
        words, *drawn = self._step_masks([((self.embedding.num_embeddings,), self.embedding_keep), *weights])
        rest = iter(drawn)
        by_layer = [[next(rest) for _ in layer.recurrent] for layer in layers]
        embedded = drop_words(self.embedding(tokens), tokens, words)
        # A mask over (T, B, H) has its own values at every time step, hence "fresh" without a loop.
        outputs_shape = (*tokens.shape, self.hidden_size)
        mask, *layer_masks = self.dropout.masks([embedded.shape] + [outputs_shape] * len(self.layers), embedded)
        x = drop(embedded, mask)
        last = []
        for layer, h, mask, masks in zip(layers, state.unbind(0), layer_masks, by_layer, strict=True):
            outputs = layer(x, h, masks)
            x = drop(outputs, mask)
            last.append(outputs[-1])
        return x, torch.stack(last)

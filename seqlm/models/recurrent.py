"""The RNN and the GRU for training: a whole layer over a whole window is one differentiable operation.

Their equations and initial values are in :mod:`seqlm.models.reference`, to read first. Autograd over its time loop
records a handful of small operations for each time step, and in the backward pass adds every step's weight gradient to
the sum of the others: for H = 1500, a read and a write of 9 MB for each product of 20 rows. Written by hand,

- the products with the inputs of all time steps are one product,
- the loop holds the product with the hidden state and what is point-wise, in place,
- the backward pass first computes, for all steps at once, the factors that do not depend on the gradient, and its loop
  holds again one product (two for the GRU) and the point-wise rest,
- each weight gradient is one product over all time steps.

Both operations can be differentiated once, not twice.

Products are computed in ``dtype``; states, pre-activations and sums keep the type of the inputs. Where a name ends in
``_low``, it is rounded to ``dtype`` (the same tensor if the types agree).
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from seqlm.architectures import RecurrentConfig
from seqlm.models import reference
from seqlm.models.dropout import Dropout, drop, drop_words
from seqlm.models.language_model import FusedModel, small_like
from seqlm.models.products import PACKED_SIZE, RepeatedProduct, apply, product
from seqlm.models.state import State


@final
class RecurrentModel(FusedModel):
    """The function of :class:`seqlm.models.reference.RecurrentModel`."""

    references: ClassVar = {"rnn": reference.RNN, "gru": reference.GRU}
    initial_state = reference.RecurrentModel.initial_state
    embedding: nn.Embedding
    layers: nn.ModuleList

    def __init__(self, config: RecurrentConfig, vocab_size: int, dtype: torch.dtype | None = None) -> None:
        super().__init__(config, vocab_size, dtype)
        self.dropout = Dropout(config.keep)
        self.embedding_keep, self.weight_keep = config.embedding_keep, config.weight_keep

    @staticmethod
    def self_check_shapes(config: RecurrentConfig) -> Iterator[tuple[RecurrentConfig, int, int, int]]:
        size, wide = (least + config.hidden_size % 8 for least in (64, PACKED_SIZE))
        small = small_like(config, hidden_size=size, embedding_size=size if config.tied else 48, num_layers=2)
        yield small, 12, 100, 12 * small.num_layers
        if config.hidden_size >= PACKED_SIZE:  # a CPU has another product (RepeatedProduct) from this width on
            embedding_size = wide if config.tied else 48
            yield replace(small, hidden_size=wide, embedding_size=embedding_size, num_layers=1), 9, 4, 9

    def masks(self, steps: int, columns: int) -> Iterator[Tensor | None]:
        """Yield those of word types and of the embedding, and for each layer those of its weights and its outputs."""
        weights = [(linear.weight.shape, self.weight_keep) for layer in self.layers for linear in _maps(layer)[1:]]
        of_step = iter(self._step_masks([((self.embedding.num_embeddings,), self.embedding_keep), *weights]))
        widths = [self.embedding.embedding_dim] + [self.output.weight.shape[1]] * len(self.layers)
        units = iter(self.dropout.masks([(steps, columns, width) for width in widths], self.output.weight))
        yield next(of_step)
        yield next(units)
        for layer in self.layers:
            yield from islice(of_step, len(_maps(layer)) - 1)
            yield next(units)

    def features(self, tokens: Int[Tensor, "T B"], state: State) -> tuple[Float[Tensor, "T B H"], State]:
        """The dropped-out outputs of the top layer, x^L, and the state h^1 .. h^L after the window."""
        masks = self.masks(*tokens.shape)
        embedded = drop_words(self.embedding(tokens), tokens, next(masks))
        x = drop(embedded, next(masks))
        last = []
        for layer, h in zip(self.layers, state.unbind(0), strict=True):
            inputs, *recurrent = _maps(layer)
            kept = [drop(linear.weight, next(masks)) for linear in recurrent]
            function = FusedRNN if isinstance(layer, reference.RNNLayer) else FusedGRU
            outputs = apply(function, x, h, inputs.weight, inputs.bias, *kept, self.dtype or x.dtype)
            last.append(outputs[-1])
            x = drop(outputs, next(masks))
        return x, torch.stack(last)


def _maps(layer: nn.Module) -> list[nn.Linear]:
    """The map of a layer's inputs, then those of its hidden state."""
    return [module for module in layer.children() if isinstance(module, nn.Linear)]


@final
class FusedRNN(Function):
    """h_1 .. h_T (T, B, H) of :class:`seqlm.models.reference.RNNLayer`, with its products in ``dtype``.

    From x (T, B, D), h_0 (B, H), W_x (H, D), b (H,) and W_h (H, H).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, h_0: Tensor, W_x: Tensor, b: Tensor, W_h: Tensor, dtype: torch.dtype) -> Tensor:
        x_low = x.flatten(0, 1).to(dtype)
        h = _states(x, h_0)
        h_low = _rounded(h, dtype)
        from_x = product(x_low, W_x.to(dtype).t(), x.dtype, b).unflatten(0, x.shape[:2])
        recurrent = RepeatedProduct(W_h, dtype, rows=len(h_0), steps=len(x))
        for t, inputs in enumerate(from_x):
            torch.tanh(recurrent.plus(h_low[t], inputs), out=h[t + 1])
            _round(h[t + 1], h_low[t + 1])
        ctx.save_for_backward(x_low, W_x, W_h, h, h_low)
        return h[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x_low, W_x, W_h, h, h_low = ctx.saved_tensors
        dtype = x_low.dtype
        # d holds the factors 1 - h^2 at first, and step by step the gradient of the pre-activations.
        d = torch.mul(h[1:], h[1:]).neg_().add_(1)
        d_low = _rounded(d, dtype)
        recurrent = RepeatedProduct(W_h.t(), dtype, rows=d.shape[1], steps=len(d))
        d_out = d_out.clone() if recurrent.overwrites else d_out
        d_h = d_out[-1]
        for t in range(len(d) - 1, -1, -1):
            _round(d[t].mul_(d_h), d_low[t])
            d_h = recurrent.plus(d_low[t], d_out[t - 1] if t else None)
        d_low = d_low.flatten(0, 1)
        d_x = product(d_low, W_x.to(dtype), d.dtype).unflatten(0, d.shape[:2])
        d_W_x = product(d_low.t(), x_low, d.dtype)
        d_W_h = product(d_low.t(), h_low[:-1].flatten(0, 1), d.dtype)
        return d_x, d_h, d_W_x, d.sum(dim=(0, 1)), d_W_h, None


@final
class FusedGRU(Function):
    """h_1 .. h_T (T, B, H) of :class:`seqlm.models.reference.GRULayer`, with its products in ``dtype``.

    From x (T, B, D), h_0 (B, H), W (3 H, D), b (3 H,), U_rz (2 H, H) and U_h (H, H).

    With the gradient g of h_t = h + z (c - h), where h = h_{t-1}, the gradients of the pre-activations are::

        candidate   g z (1 - c^2)
        update      g (c - h) z (1 - z)
        reset       (U_h^T candidate) h r (1 - r)

    and h_{t-1} receives g (1 - z) + (U_h^T candidate) r + U_rz^T [reset, update].
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h_0: Tensor, W: Tensor, b: Tensor, U_rz: Tensor, U_h: Tensor, dtype: torch.dtype
    ) -> Tensor:
        steps, batch, _ = x.shape
        hidden = h_0.shape[1]
        x_low = x.flatten(0, 1).to(dtype)
        h = _states(x, h_0)
        h_low = _rounded(h, dtype)
        W_low = W.to(dtype).t()
        rz = product(x_low, W_low[:, : 2 * hidden], x.dtype, b[: 2 * hidden]).unflatten(0, (steps, batch))
        c = product(x_low, W_low[:, 2 * hidden :], x.dtype, b[2 * hidden :]).unflatten(0, (steps, batch))
        rh_low = x.new_empty(steps, batch, hidden, dtype=dtype)
        gates = RepeatedProduct(U_rz, dtype, rows=batch, steps=steps)
        candidate = RepeatedProduct(U_h, dtype, rows=batch, steps=steps)
        for t in range(steps):
            torch.sigmoid(gates.plus(h_low[t], rz[t]), out=rz[t])
            r, z = rz[t].chunk(2, dim=1)
            torch.mul(r, h[t], out=rh_low[t])
            torch.tanh(candidate.plus(rh_low[t], c[t]), out=c[t])
            torch.lerp(h[t], c[t], z, out=h[t + 1])
            _round(h[t + 1], h_low[t + 1])
        ctx.save_for_backward(x_low, W, U_rz, U_h, h, h_low, rz, c, rh_low)
        return h[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        x_low, W, U_rz, U_h, h, h_low, rz, c, rh_low = ctx.saved_tensors
        dtype = x_low.dtype
        steps, batch, hidden = c.shape
        r, z = rz.chunk(2, dim=2)
        # Holds factors at first, and step by step the gradients of the pre-activations.
        d = c.new_empty(steps, batch, 3 * hidden)
        d_rz, d_c = d.split((2 * hidden, hidden), dim=2)
        torch.mul(r, 1 - r, out=d_rz[..., :hidden]).mul_(h[:-1])
        torch.mul(z, 1 - z, out=d_rz[..., hidden:]).mul_(c - h[:-1])
        torch.mul(c, c, out=d_c).neg_().add_(1).mul_(z)
        d_low = _rounded(d, dtype)
        d_rz_low, d_c_low = d_low.split((2 * hidden, hidden), dim=2)
        keep = 1 - z
        gates = RepeatedProduct(U_rz.t(), dtype, rows=batch, steps=steps)
        candidate = RepeatedProduct(U_h.t(), dtype, rows=batch, steps=steps)
        d_h = d_out[-1]
        for t in range(steps - 1, -1, -1):
            _round(d_c[t].mul_(d_h), d_c_low[t])
            d_rh = candidate.plus(d_c_low[t])
            d_rz[t, :, :hidden].mul_(d_rh)
            d_rz[t, :, hidden:].mul_(d_h)
            _round(d_rz[t], d_rz_low[t])
            rest = torch.addcmul(d_out[t - 1], d_h, keep[t]) if t else d_h * keep[t]
            d_h = gates.plus(d_rz_low[t], rest.addcmul_(d_rh, r[t]))
        d_low = d_low.flatten(0, 1)
        d_x = product(d_low, W.to(dtype), c.dtype).unflatten(0, (steps, batch))
        d_W = product(d_low.t(), x_low, c.dtype)
        d_U_rz = product(d_low[:, : 2 * hidden].t(), h_low[:-1].flatten(0, 1), c.dtype)
        d_U_h = product(d_low[:, 2 * hidden :].t(), rh_low.flatten(0, 1), c.dtype)
        return d_x, d_h, d_W, d.sum(dim=(0, 1)), d_U_rz, d_U_h, None


def _states(x: Float[Tensor, "T B D"], h_0: Float[Tensor, "B H"]) -> Float[Tensor, "T+1 B H"]:
    """Room for h_0 .. h_T, with h_0 in its place."""
    h = x.new_empty(len(x) + 1, *h_0.shape)
    h[0] = h_0
    return h


def _rounded(full: Tensor, dtype: torch.dtype) -> Tensor:
    """``full`` in ``dtype``: itself, or room of the same shape where :func:`_round` keeps its rounded rows."""
    return full if full.dtype == dtype else full.to(dtype)


def _round(full: Tensor, low: Tensor) -> None:
    if low.dtype != full.dtype:
        low.copy_(full)

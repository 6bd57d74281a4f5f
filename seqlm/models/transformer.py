"""The Transformer for training: the parts of a block as differentiable operations that keep little for backward.

Plain autograd keeps, for each block and token, the inputs and outputs of every small step: twice the normalised input,
the queries, keys and values in two layouts, the scores before and after the softmax, each dropout's factors. These
operations keep what the gradients need and recompute what is cheap:

- :class:`NormLinear` keeps the normalised input. The gain and shift of the norm go into the weights, which are small
  beside the activations;
- :class:`Attention` keeps queries, keys, values and attention weights;
- :class:`LinearResidual` keeps its input and the dropout's factors.

All can be differentiated once, not twice. :mod:`seqlm.models.reference` has the equations. I = T B counts the positions
of all windows. Products are computed in ``dtype``; names that end in ``_low`` are rounded to it.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from seqlm.architectures import TransformerConfig
from seqlm.models import reference
from seqlm.models.dropout import Dropout, drop, drop_words
from seqlm.models.language_model import FusedModel, small_like
from seqlm.models.products import apply, product
from seqlm.models.state import State

NORM_EPSILON = 1e-6
MASKED_SCORE = -1e9


@final
class Transformer(FusedModel):
    """The function of :class:`seqlm.models.reference.Transformer`."""

    references: ClassVar = {"transformer": reference.Transformer}
    initial_state = reference.Transformer.initial_state
    embedding: nn.Embedding
    blocks: nn.ModuleList
    norm: reference.LayerNorm

    def __init__(self, config: TransformerConfig, vocab_size: int, dtype: torch.dtype | None = None) -> None:
        super().__init__(config, vocab_size, dtype)
        self.hidden_size, self.num_heads, self.mlp_size = config.hidden_size, config.num_heads, config.mlp_size
        self.dropout, self.attention_dropout = Dropout(config.keep), Dropout(config.attention_keep)
        self.embedding_keep = config.embedding_keep

    @staticmethod
    def self_check_shapes(config: TransformerConfig) -> Iterator[tuple[TransformerConfig, int, int, int]]:
        small = small_like(config, hidden_size=64, num_layers=2, num_heads=4, mlp_size=96 + config.mlp_size % 8)
        yield small, 12, 100, 6 * small.num_layers  # queries, scores, weighted sum, W_o, W_1 and W_2

    def masks(self, steps: int, columns: int) -> Iterator[Tensor | None]:
        """Yield those of word types, the embedding, and of each block: the weights, the step, the MLP and the step."""
        like, tokens = self.output.weight, steps * columns
        yield from self._step_masks([((self.embedding.num_embeddings,), self.embedding_keep)])
        yield self.dropout.mask((steps, columns, self.hidden_size), like)
        for _ in self.blocks:
            yield self.attention_dropout.mask((columns, self.num_heads, steps, steps), like)
            yield self.dropout.mask((tokens, self.hidden_size), like)
            yield self.dropout.mask((tokens, self.mlp_size), like)
            yield self.dropout.mask((tokens, self.hidden_size), like)

    def features(self, tokens: Int[Tensor, "T B"], state: State) -> tuple[Float[Tensor, "T B H"], State]:
        """The normalised outputs of the top block, and ``state`` itself."""
        masks = self.masks(*tokens.shape)
        embedded = drop_words(self.embedding(tokens) * self.hidden_size**0.5, tokens, next(masks))
        positions = torch.arange(len(tokens), dtype=embedded.dtype, device=embedded.device)
        placed = embedded + reference.sinusoids(positions, self.hidden_size).unsqueeze(1)
        x = drop(placed, next(masks)).flatten(0, 1)
        for block in cast("list[reference.Block]", list(self.blocks)):
            x = self._block(block, x, len(tokens), masks)
        return self.norm(x.view_as(embedded)), state

    def _block(
        self, block: reference.Block, x: Float[Tensor, "I H"], steps: int, masks: Iterator[Tensor | None]
    ) -> Float[Tensor, "I H"]:
        maps, mlp, dtype = block.attention, block.mlp, self.dtype or x.dtype
        stacked = (maps.W_q, maps.W_k, maps.W_v)
        W, c = torch.cat([one.weight for one in stacked]), torch.cat([one.bias for one in stacked])
        norm = block.attention_norm
        qkv = apply(NormLinear, x, norm.a, norm.b, W, c, None, None, dtype).unflatten(0, (steps, -1))
        heads = apply(Attention, qkv, next(masks), self.num_heads, dtype).flatten(0, 1)
        x = apply(LinearResidual, x, heads, maps.W_o.weight, maps.W_o.bias, next(masks), dtype)
        norm, hidden, scale = block.mlp_norm, mlp.W_1, self.dropout.scale
        inner = apply(NormLinear, x, norm.a, norm.b, hidden.weight, hidden.bias, scale, next(masks), dtype)
        return apply(LinearResidual, x, inner, mlp.W_2.weight, mlp.W_2.bias, next(masks), dtype)


@final
class NormLinear(Function):
    """W norm(x) + c (I, M), by ``reference.LayerNorm`` of gain ``a`` and shift ``b``; if ``scale`` is given, a relu.

    x (I, H), a and b (H,), W (M, H), c (M,). After the relu, ``factors`` (I, M) drop units: 0 or ``scale``. ``None``:
    nothing is dropped, and ``scale`` is 1.

    With u = (x - mean) / (std + eps), norm(x) = a u + b, so that W norm(x) + c = (W diag(a)) u + (c + W b).

    From the gradient g of that sum::

        W    (g^T u) diag(a) + (sum g) b^T        c    sum g
        a    column sums of (g^T u) W             b    W^T sum g

    and for x, with v = diag(a) W^T g, std = s and means over the H units::

        (v - mean(v) - u (u . v) (s + eps) / ((H - 1) s)) / (s + eps)

    Where the result after relu and dropout is positive, relu let its input through and dropout kept it; nothing else
    has to be remembered of either.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        W: Tensor,
        c: Tensor,
        scale: float | None,
        factors: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        u = x - x.mean(dim=1, keepdim=True)
        # The unbiased one; torch.std_mean is several times slower.
        std = torch.linalg.vector_norm(u, dim=1, keepdim=True) / (x.shape[1] - 1) ** 0.5
        u_low = u.div_(std + NORM_EPSILON).to(dtype)
        out = product(u_low, (W * a).to(dtype).t(), x.dtype, torch.addmv(c, W, b))
        if scale is not None:
            out.relu_()
        if factors is not None:
            out.mul_(factors)
        ctx.scale = scale
        ctx.save_for_backward(u_low, std, a, b, W, None if scale is None else out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        u_low, std, a, b, W, out = ctx.saved_tensors
        if out is not None:
            d_out = torch.ops.aten.threshold_backward(d_out, out, 0.0)
            if ctx.scale != 1:
                d_out.mul_(ctx.scale)
        d_low = d_out.to(u_low.dtype)
        d_c = d_out.sum(dim=0)
        d_scaled_W = product(d_low.t(), u_low, W.dtype).contiguous()
        d_a = (d_scaled_W * W).sum(dim=0)
        d_W = d_scaled_W.mul_(a).addr_(d_c, b)
        v = product(d_low, (W * a).to(d_low.dtype), W.dtype)
        u, shifted = u_low.to(v.dtype), std + NORM_EPSILON
        smallest = torch.finfo(std.dtype).tiny  # zero through the std where all units are equal
        along_u = (u * v).sum(dim=1, keepdim=True).mul_(shifted / ((u.shape[1] - 1) * std.clamp_min(smallest)))
        mean = v.mean(dim=1, keepdim=True)
        d_x = v.sub_(mean).addcmul_(u, along_u, value=-1).div_(shifted)
        return d_x, d_a, W.t() @ d_c, d_W, d_c, None, None, None


@final
class Attention(Function):
    """Causal attention (T, B, H), dropout(softmax(s)) v for all N heads.

    ``qkv`` (T, B, 3 H) has queries, keys and values of all heads side by side. ``factors`` (B, N, T, T) are the
    dropout's on the attention weights; ``None``: no dropout.

    With w = softmax(s), p = factors w, and g the gradient of the output, the gradients are::

        v    p^T g
        s    d = w (e - row sums of e w), where e = factors (g v^T)
        q    d k / sqrt(K)
        k    d^T q / sqrt(K)
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, factors: Tensor | None, num_heads: int, dtype: torch.dtype) -> Tensor:
        heads = qkv.unflatten(2, (3, num_heads, -1)).permute(2, 1, 3, 0, 4)  # 3, B, N, T, K
        q, k, v = heads.to(dtype).flatten(1, 2).contiguous()
        s = product(q, k.transpose(1, 2), qkv.dtype).mul_(q.shape[-1] ** -0.5)
        later = torch.ones(s.shape[1:], dtype=torch.bool, device=s.device).triu(1)
        s.masked_fill_(later, MASKED_SCORE)
        w = s.softmax(dim=-1)
        if factors is not None:
            factors = factors.flatten(0, 1)
        attended = product((w if factors is None else w * factors).to(dtype), v, qkv.dtype)
        ctx.save_for_backward(q, k, v, w, factors)
        ctx.num_heads = num_heads
        ctx.full = qkv.dtype
        merged: Tensor = attended.unflatten(0, (-1, num_heads)).permute(2, 0, 1, 3).flatten(2)
        return merged

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, w, factors = ctx.saved_tensors
        g = d_out.to(q.dtype).unflatten(2, (ctx.num_heads, -1)).permute(1, 2, 0, 3).flatten(0, 1)
        p = w if factors is None else w * factors
        d_v = product(p.to(q.dtype).transpose(1, 2), g, ctx.full)
        e = product(g, v.transpose(1, 2), ctx.full)
        if factors is not None:
            e.mul_(factors)
        e.mul_(w)
        d_s = torch.addcmul(e, w, e.sum(dim=-1, keepdim=True), value=-1).mul_(q.shape[-1] ** -0.5).to(q.dtype)
        d_q, d_k = product(d_s, k, ctx.full), product(d_s.transpose(1, 2), q, ctx.full)
        by_position = [d.unflatten(0, (-1, ctx.num_heads)).permute(2, 0, 1, 3) for d in (d_q, d_k, d_v)]  # T, B, N, K
        return torch.stack(by_position, dim=2).flatten(2), None, None, None


@final
class LinearResidual(Function):
    """A residual step with its dropout, x + factors (W y + c). ``factors`` = ``None``: no dropout.

    x, the factors and the result are (I, H), y (I, M), W (H, M), c (H,).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, W: Tensor, c: Tensor, factors: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        y_low = y.to(dtype)
        out = product(y_low, W.to(dtype).t(), x.dtype, c)
        if factors is not None:
            out.mul_(factors)
        ctx.save_for_backward(y_low, W, factors)
        return out.add_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        y_low, W, factors = ctx.saved_tensors
        d = d_out if factors is None else d_out * factors
        d_low = d.to(y_low.dtype)
        d_y = product(d_low, W.to(d_low.dtype), W.dtype)
        d_W = product(d_low.t(), y_low, W.dtype)
        return d_out, d_y, d_W, d.sum(dim=0), None, None

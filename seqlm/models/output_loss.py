"""The output layer and the cross-entropy in one, for a window's tokens in chunks."""

from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from seqlm.models.products import LinearMap, accumulate, apply, product

CHUNK_TOKENS = 1024
"""Tokens of a chunk. Two matrices of CHUNK_TOKENS x V are the most that the fused loss keeps at a time."""


def fused_output_loss(
    output: LinearMap,
    hidden: Float[Tensor, "T B H"],
    targets: Int[Tensor, "T B"],
    dtype: torch.dtype | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Float[Tensor, ""]:
    """Sum over the window of -log softmax(W_y h + b_y)[target], in nats, in the memory of one chunk.

    The gradients are computed together with the loss, chunk by chunk, so that no logit outlives its chunk; ``backward``
    only multiplies them by the incoming gradient, and works once. There is no second derivative. ``output`` has W_y
    (V, H) and b_y. Products are computed in ``dtype`` (``None``: that of ``hidden``). The default of ``chunk_tokens``
    was found on processors; a GPU may want more.
    """
    arguments = (hidden.flatten(0, 1), output.weight, output.bias, targets.flatten())
    return apply(_OutputLoss, *arguments, dtype or hidden.dtype, chunk_tokens, torch.is_grad_enabled())


@final
class _OutputLoss(Function):
    """With p = softmax(W h + b) the gradient of -log p[target] by the logits is p - onehot(target)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Float[Tensor, "I H"],
        weight: Float[Tensor, "V H"],
        bias: Float[Tensor, " V"],
        targets: Int[Tensor, " I"],
        dtype: torch.dtype,
        chunk_tokens: int,
        with_gradients: bool,
    ) -> Float[Tensor, ""]:
        low_weight = weight.to(dtype)
        d_hidden: list[Tensor] = []
        d_weight, d_bias = torch.empty(0), torch.zeros_like(bias)
        loss = hidden.new_zeros(())
        for part, target in zip(hidden.split(chunk_tokens), targets.unsqueeze(1).split(chunk_tokens), strict=True):
            h = part.to(dtype)
            logits = product(h, low_weight.t(), hidden.dtype, bias)
            largest, at_target = logits.amax(dim=1), logits.gather(1, target).squeeze(1)
            p = torch.softmax(logits, dim=1, out=logits)
            # log sum exp, from the largest logit and its probability (at least 1 / V): two reductions, no exponential.
            loss += (largest - p.amax(dim=1).log() - at_target).sum()
            if with_gradients:
                # With a number, not a tensor, to add: that of a tensor is a sort on a GPU in deterministic mode, and in
                # some versions of PyTorch it copies to the device, which a CUDA graph cannot hold.
                p.scatter_(1, target, -1.0, reduce="add")
                d_bias += p.sum(dim=0)
                d_logits = p.to(dtype)
                d_hidden.append(product(d_logits, low_weight, hidden.dtype))
                if d_weight.numel():
                    accumulate(d_logits.t(), h, out=d_weight)
                else:
                    d_weight = product(d_logits.t(), h, weight.dtype)
        if with_gradients:
            ctx.gradients = (torch.cat(d_hidden), d_weight.contiguous(), d_bias)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Float[Tensor, ""]) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "the fused loss keeps its gradients for one backward pass; use seqlm.models.reference for more"
            )
        gradients, ctx.gradients = ctx.gradients, None
        if d_loss.device.type != "cpu" or d_loss != 1:  # a training step scales all gradients at once, in its update
            gradients = tuple(gradient.mul_(d_loss) for gradient in gradients)
        return *gradients, None, None, None, None

"""How far the loss at the last time step reaches back: its gradient with respect to each earlier hidden state."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 -- the field's own abbreviation
from jaxtyping import Float, Int
from torch import Tensor, nn

from analysis.study.behaviour import GradientNorms
from seqlm.models import LanguageModel
from seqlm.models.language_model import hidden_states_of
from seqlm.models.state import tensors_of


def gradient_norms(model: LanguageModel, tokens: Int[Tensor, "T B"], targets: Int[Tensor, "T B"]) -> GradientNorms:
    """The norms for one minibatch, the state zero at its start, dropout off.

    With the loss C_b = -log p(target_T) of sequence b, and h^l_t its hidden state in layer l (for the Transformer the
    output of block l at position t)::

        g^l_t = 1/B sum_b dC_b / dh^l_{t,b}        layers[l][t] = |g^l_t|
        mean_of_norms[t] = 1/B sum_b |dC_b / dh_{t,b}|, over all layers side by side

    The derivative is the total one: h^l_t acts on the layer above at t and on its own layer at t + 1 (in the
    Transformer, on the block above at t and at all later positions, so that before the last position nothing depends
    on the top block).

    Args:
        model: with hidden states, in evaluation mode; of a model of seqlm's the reference.
        tokens: a window.
        targets: their successors; the last row alone is used.
    """
    layers = hidden_states_of(model)
    if layers is None or model.training:
        raise ValueError("gradient norms need hidden states (seqlm.models.reference has them) and evaluation mode")
    with _outputs_of(layers) as outputs, torch.enable_grad():
        loss = F.cross_entropy(_last_logits(model, tokens), targets[-1], reduction="sum")
        states = [state for layer in outputs for state in layer]
        # A sequence's loss depends on its own states alone: row b of a gradient of the sum is dC_b / dh_b. States
        # on which nothing depends, such as earlier ones in the Transformer's top block, come back as zeros.
        gradients = torch.autograd.grad(loss, states, allow_unused=True, materialize_grads=True)
    steps = len(tokens)
    # (layer, time, sequence, unit); each gradient is of one time step, or of all
    of_sequences = torch.cat([gradient.double() for gradient in gradients]).unflatten(0, (len(outputs), steps))
    per_layer = of_sequences.mean(dim=2).norm(dim=2)
    mean_of_norms = of_sequences.norm(dim=3).norm(dim=0).mean(dim=1)
    return GradientNorms(
        window=steps,
        columns=tokens.shape[1],
        overall=per_layer.norm(dim=0).cpu().numpy(),
        mean_of_norms=mean_of_norms.cpu().numpy(),
        layers=per_layer.cpu().numpy(),
    )


def _last_logits(model: LanguageModel, tokens: Int[Tensor, "T B"]) -> Float[Tensor, "B V"]:
    """The logits at the last time step.

    A model that carries a state gets one token at a time. What a layer returns is then the tensor that it carries on,
    so that one hook sees both paths.
    """
    state = model.initial_state(tokens.shape[1])
    pieces = tokens.split(1) if any(tensor.numel() for tensor in tensors_of(state)) else [tokens]
    for piece in pieces:
        logits, state = model(piece, state)
    last: Tensor = logits[-1]
    return last


@contextmanager
def _outputs_of(modules: Iterable[nn.Module]) -> Iterator[list[list[Tensor]]]:
    """The hidden states that each layer returns while the block runs, in the order of its calls."""
    layers = list(modules)
    outputs: list[list[Tensor]] = [[] for _ in layers]

    def keep(output: Any, kept: list[Tensor]) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    hooks = [
        layer.register_forward_hook(lambda _layer, _inputs, output, kept=kept: keep(output, kept))
        for layer, kept in zip(layers, outputs, strict=True)
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()

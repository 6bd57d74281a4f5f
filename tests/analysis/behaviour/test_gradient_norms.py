import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from analysis.behaviour.gradient_norms import gradient_norms
from seqlm.models import LanguageModel
from tests.analysis.behaviour.models import ARCHS, VOCAB_SIZE, make_models

STEPS, BATCH, EPSILON = 5, 3, 1e-5


def window() -> tuple[Tensor, Tensor]:
    return tuple(torch.randint(VOCAB_SIZE, (2, STEPS, BATCH), generator=torch.Generator().manual_seed(4)))


@torch.no_grad()
def last_loss(model: LanguageModel, tokens: Tensor, last: Tensor, nudges: Tensor) -> float:
    """The mean loss at the last step, after the hidden state of each layer and step (L, T, H) was nudged."""
    start = 0
    hooks = [
        layer.register_forward_hook(lambda _, __, out, nudge=nudge: out + nudge[start : start + len(out), None])
        for layer, nudge in zip(model.hidden_states, nudges, strict=True)
    ]
    state = model.initial_state(BATCH)
    for piece in tokens.split(1) if state.numel() else [tokens]:
        logits, state = model(piece, state)
        start += len(piece)
    for hook in hooks:
        hook.remove()
    return float(F.cross_entropy(logits[-1], last))


@pytest.mark.parametrize("arch", ARCHS)
def test_the_norms_are_those_of_central_differences(arch: str) -> None:
    _, model = make_models(arch)
    tokens, targets = window()
    found = gradient_norms(model, tokens, targets)
    gradient = np.zeros((2, STEPS, 4))
    for place in np.ndindex(gradient.shape):
        nudges = torch.zeros(gradient.shape, dtype=torch.float64)
        nudges[place] = EPSILON
        above, below = (last_loss(model, tokens, targets[-1], sign * nudges) for sign in (1, -1))
        gradient[place] = (above - below) / (2 * EPSILON)
    np.testing.assert_allclose(found.layers, np.linalg.norm(gradient, axis=2), rtol=1e-6, atol=1e-9)
    overall = np.linalg.norm(gradient.transpose(1, 0, 2).reshape(STEPS, -1), axis=1)
    np.testing.assert_allclose(found.overall, overall, rtol=1e-6, atol=1e-9)
    assert min(found.layers[0]) > 1e-6, "the lower layer's states all matter"
    earlier = found.layers[1][:-1]
    assert max(earlier) == 0 if arch == "transformer" else min(earlier) > 1e-6


@pytest.mark.parametrize("arch", ARCHS)
def test_the_mean_of_norms_is_that_of_each_sequence_alone(arch: str) -> None:
    _, model = make_models(arch)
    tokens, targets = window()
    alone = [gradient_norms(model, tokens[:, b : b + 1], targets[:, b : b + 1]).overall for b in range(BATCH)]
    assert gradient_norms(model, tokens, targets).mean_of_norms == pytest.approx(np.mean(alone, axis=0), rel=1e-6)


def test_nothing_is_left_behind_on_the_model() -> None:
    _, model = make_models("gru")
    gradient_norms(model, *window())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(layer._forward_hooks for layer in model.modules())


def test_a_model_that_would_give_other_numbers_is_refused() -> None:
    fused, reference = make_models("rnn")
    for model in (fused, reference.train()):
        with pytest.raises(ValueError, match=r"seqlm\.models\.reference"):
            gradient_norms(model, *window())

from __future__ import annotations

import numpy as np
import pytest
import torch

from analysis.behaviour.gradient_norms import gradient_norms
from tests.analysis.behaviour.literal import VOCAB_SIZE, Array, Literal, make_model, nats

STEPS, BATCH, EPSILON = 5, 3, 1e-5


def differences(arch: str, model: torch.nn.Module, tokens: list[list[int]], last: list[int]) -> Array:
    """Central differences of the last step's loss by each hidden unit, averaged over the batch: (layer, time, unit)."""
    gradient = np.zeros((2, STEPS, 4))
    for layer, t, unit in np.ndindex(2, STEPS, 4):
        for sequence, target in zip(tokens, last, strict=True):
            for sign in (1, -1):
                nudge = np.zeros(4)
                nudge[unit] = sign * EPSILON
                literal = Literal(model, arch, {(layer, t): nudge})  # type: ignore[arg-type]
                loss = nats(literal.logits(sequence)[-1], target)
                gradient[layer, t, unit] += sign * loss / (2 * EPSILON) / BATCH
    return gradient


@pytest.mark.parametrize("arch", ["rnn", "gru", "transformer"])
def test_the_norms_are_those_of_central_differences(arch: str) -> None:
    model = make_model(arch)
    generator = torch.Generator().manual_seed(4)
    tokens, targets = (torch.randint(VOCAB_SIZE, (STEPS, BATCH), generator=generator) for _ in range(2))
    found = gradient_norms(model, tokens, targets)
    wanted = differences(arch, model, tokens.t().tolist(), targets[-1].tolist())
    for layer in range(2):
        for t in range(STEPS):
            norm = sum(wanted[layer, t] ** 2) ** 0.5
            assert found.layers[layer][t] == pytest.approx(norm, rel=1e-6, abs=1e-9)
    for t in range(STEPS):
        assert found.overall[t] == pytest.approx(sum(wanted[:, t].flatten() ** 2) ** 0.5, rel=1e-6, abs=1e-9)
    assert min(found.layers[0]) > 1e-6, "the lower layer's states all matter"
    earlier = found.layers[1][:-1]
    assert max(earlier) == 0 if arch == "transformer" else min(earlier) > 1e-6


def test_the_batch_is_averaged_before_the_norm() -> None:
    """Two sequences with opposite gradients have none on average."""
    model = make_model("rnn")
    one = torch.randint(VOCAB_SIZE, (STEPS, 1), generator=torch.Generator().manual_seed(4))
    alone = gradient_norms(model, one, one)
    twice = gradient_norms(model, one.expand(-1, 2), one.expand(-1, 2))
    assert twice.overall == pytest.approx(alone.overall, rel=1e-12)
    # With two tokens of probability a half, the gradients of their losses at the output are opposite.
    with torch.no_grad():
        model.output.bias.fill_(float("-inf"))[:2] = 0.0
        model.output.weight[1] = -model.output.weight[0]
        model.output.weight[:2] *= 1e-9
    targets = torch.tensor([[0, 1]]).expand(STEPS, 2)
    both = gradient_norms(model, one.expand(-1, 2), targets)
    single = gradient_norms(model, one, targets[:, :1])
    assert max(both.overall) < 1e-6 * min(single.overall)
    assert both.mean_of_norms == pytest.approx(single.overall, rel=1e-5), "nothing cancels between the sequences"


@pytest.mark.parametrize("arch", ["rnn", "gru", "transformer"])
def test_the_mean_of_norms_is_that_of_each_sequence_alone(arch: str) -> None:
    model = make_model(arch)
    generator = torch.Generator().manual_seed(4)
    tokens, targets = (torch.randint(VOCAB_SIZE, (STEPS, BATCH), generator=generator) for _ in range(2))
    alone = [gradient_norms(model, tokens[:, b : b + 1], targets[:, b : b + 1]).overall for b in range(BATCH)]
    wanted = [sum(norms) / BATCH for norms in zip(*alone, strict=True)]
    assert gradient_norms(model, tokens, targets).mean_of_norms == pytest.approx(wanted, rel=1e-6)


def test_nothing_is_left_behind_on_the_model() -> None:
    model = make_model("gru")
    tokens = torch.zeros(STEPS, BATCH, dtype=torch.int64)
    gradient_norms(model, tokens, tokens)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(layer._forward_hooks for layer in model.modules())


@pytest.mark.parametrize(("kind", "training"), [("fused", False), ("reference", True)])
def test_a_model_that_would_give_other_numbers_is_refused(kind: str, training: bool) -> None:
    tokens = torch.zeros(STEPS, BATCH, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"seqlm\.models\.reference"):
        gradient_norms(make_model("rnn", kind).train(training), tokens, tokens)  # type: ignore[arg-type]

"""The reference next to the models of ``torch.nn``, and the step with which benchmarks train those."""

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from benchmarks.baselines.builtin import builtin_model
from benchmarks.baselines.step import BaselineStep
from seqlm.architectures import ModelConfig
from seqlm.models import LanguageModel
from seqlm.models.reference import LayerNorm
from tests.seqlm.models.conftest import VOCAB_SIZE

Pair = tuple[list[Tensor], list[Tensor]]
"""Parameters of two models, each list stacked along the first axis, that mean the same."""


def linears(one: nn.Module, other: nn.Module, names: list[str]) -> list[Pair]:
    found: list[Pair] = []
    for name in names:
        first, second = one.get_submodule(name), other.get_submodule(name)
        found += [([p], [q]) for p, q in zip(first.parameters(), second.parameters(), strict=True)]
    return found


def pairs_with_torch_rnn(ours: LanguageModel, builtin: nn.Module) -> list[Pair]:
    found = linears(ours, builtin, ["embedding", "output"])
    for depth, layer in enumerate(ours.layers):
        names = (f"weight_ih_l{depth}", f"bias_ih_l{depth}", f"weight_hh_l{depth}")
        of_ours = (layer.W_x.weight, layer.W_x.bias, layer.W_h.weight)
        found += [([p], [getattr(builtin.layers, name)]) for p, name in zip(of_ours, names, strict=True)]
    return found


def pairs_with_torch_transformer(ours: LanguageModel, builtin: nn.Module) -> list[Pair]:
    found = linears(ours, builtin, ["embedding", "output"])
    found += [([ours.norm.a], [builtin.encoder.norm.weight]), ([ours.norm.b], [builtin.encoder.norm.bias])]
    for block, layer in zip(ours.blocks, builtin.encoder.layers, strict=True):
        maps, attention = block.attention, layer.self_attn
        for kind in ("weight", "bias"):
            of_ours = [getattr(linear, kind) for linear in (maps.W_q, maps.W_k, maps.W_v)]
            found.append((of_ours, [getattr(attention, f"in_proj_{kind}")]))
            for one, other in (
                (maps.W_o, attention.out_proj),
                (block.mlp.W_1, layer.linear1),
                (block.mlp.W_2, layer.linear2),
            ):
                found.append(([getattr(one, kind)], [getattr(other, kind)]))
        for norm, other in ((block.attention_norm, layer.norm1), (block.mlp_norm, layer.norm2)):
            found += [([norm.a], [other.weight]), ([norm.b], [other.bias])]
    return found


def give_the_same_weights(one: nn.Module, other: nn.Module, pairs: list[Pair]) -> None:
    """No parameter of ``one`` stays at a neutral value, and none is without its pair."""
    assert sum(p.numel() for first, _ in pairs for p in first) == sum(p.numel() for p in one.parameters())
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for first, second in pairs:
            source = torch.cat(first)
            for target, part in zip(second, source.split([len(p) for p in second]), strict=True):
                target.copy_(part)


def assert_same_function(one: nn.Module, other: nn.Module, pairs: list[Pair], tokens: Tensor, state: Tensor) -> None:
    """Logits, state, and the gradients of one random weighting of them agree, not all zero."""
    one.eval()
    other.eval()
    of_one, of_other = one(tokens, state), other(tokens, state)
    torch.testing.assert_close(of_other, of_one, rtol=0, atol=1e-10)
    weights = [torch.randn_like(output) for output in of_one]
    for outputs in (of_one, of_other):
        sum((weight * output).sum() for weight, output in zip(weights, outputs, strict=True)).backward()
    for first, second in pairs:
        wanted = torch.cat([p.grad for p in first])
        assert wanted.abs().max() > 0
        torch.testing.assert_close(torch.cat([p.grad for p in second]), wanted, rtol=0, atol=1e-10)


@pytest.fixture
def builtin(config: ModelConfig, tokens: Tensor) -> Iterator[nn.Module]:
    """The model of ``torch.nn``, made in float64, its positions too."""
    torch.set_default_dtype(torch.float64)
    yield builtin_model(config, VOCAB_SIZE, len(tokens))
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("arch", ["rnn"])
def test_the_torch_nn_rnn_is_ours_in_values_and_gradients(
    reference: LanguageModel, builtin: nn.Module, tokens: Tensor
) -> None:
    for name, parameter in builtin.named_parameters():
        if "bias_hh" in name:
            nn.init.zeros_(parameter)
    pairs = pairs_with_torch_rnn(reference, builtin)
    give_the_same_weights(reference, builtin, pairs)
    assert_same_function(reference, builtin, pairs, tokens, torch.randn(3, 4, 6, dtype=torch.float64))


@pytest.mark.parametrize("arch", ["transformer"])
def test_the_torch_nn_transformer_is_ours_but_for_its_layer_norm(
    reference: LanguageModel, builtin: nn.Module, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def biased(self: LayerNorm, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.a, self.b, eps=1e-5)

    monkeypatch.setattr(LayerNorm, "forward", biased)
    builtin.train()
    pairs = pairs_with_torch_transformer(reference, builtin)
    give_the_same_weights(reference, builtin, pairs)
    assert_same_function(reference, builtin, pairs, tokens, torch.zeros(0, 4, 8, dtype=torch.float64))


# -- the step ------------------------------------------------------------------------------------------------------


class Scale(nn.Module):
    """Remembers the states it is given; the next one is in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.states: list[Tensor] = []

    def forward(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        self.states.append(state)
        return self.weight.expand(*tokens.shape, 2), state + self.weight + 1


def test_a_baseline_step_clips_updates_and_carries_the_state_detached() -> None:
    model = Scale()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    step = BaselineStep(model, optimizer, clip_norm=0.25, state=torch.zeros(2))
    ids = torch.zeros(1, 2, dtype=torch.long)
    assert step(ids, ids).item() == pytest.approx(math.log(2))
    moved = 0.25 / math.sqrt(2)  # the gradient is (-0.5, 0.5)
    torch.testing.assert_close(model.weight.detach(), torch.tensor([moved, -moved]))
    step(ids, ids)
    assert not model.states[1].requires_grad
    torch.testing.assert_close(model.states[1], torch.ones(2))

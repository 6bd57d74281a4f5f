from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from benchmarks.baselines.builtin import builtin_loss, builtin_model
from benchmarks.baselines.literal import LiteralLayerNorm, literal_loss, literal_model
from benchmarks.baselines.positions import position_table
from benchmarks.baselines.step import BaselineStep, default_optimizer
from seqlm.architectures import ModelConfig, RecurrentConfig, TransformerConfig
from seqlm.models import LanguageModel, build_model
from seqlm.models.reference import sinusoids
from seqlm.optimizers import AdamConfig, SgdConfig
from tests.benchmarks.conftest import BATCH_SIZE, SEQ_LEN, VOCAB_SIZE

Pair = tuple[list[Tensor], list[Tensor]]
"""Parameters of two models, each list stacked along the first axis, that mean the same."""


def linears(one: nn.Module, other: nn.Module, names: list[str]) -> list[Pair]:
    found: list[Pair] = []
    for name in names:
        first, second = one.get_submodule(name), other.get_submodule(name)
        found += [([p], [q]) for p, q in zip(first.parameters(), second.parameters(), strict=True)]
    return found


def pairs_with_literal(ours: LanguageModel, literal: nn.Module) -> list[Pair]:
    found = linears(ours, literal, ["embedding", "output"])
    if hasattr(ours, "blocks"):
        for of_ours, of_literal in zip(ours.blocks, literal.blocks, strict=True):
            found += linears(of_ours, of_literal, ["attention_norm", "mlp_norm"])
            found += linears(of_ours.attention, of_literal.attention, ["W_q", "W_k", "W_v", "W_o"])
            found += linears(of_ours.mlp, of_literal, ["W_1", "W_2"])
        return found + linears(ours, literal, ["norm"])
    for layer, cell in zip(ours.layers, literal.cells, strict=True):
        if hasattr(layer, "W_x"):
            found += linears(layer, cell, ["W_x", "W_h"])
            continue
        found += [
            ([layer.W.weight], [cell.W_r.weight, cell.W_z.weight, cell.W_h.weight]),
            ([layer.W.bias], [cell.W_r.bias, cell.W_z.bias, cell.W_h.bias]),
            ([layer.U_rz.weight], [cell.U_r.weight, cell.U_z.weight]),
            ([layer.U_h.weight], [cell.U_h.weight]),
        ]
    return found


def pairs_with_torch_rnn(ours: LanguageModel, builtin: nn.Module) -> list[Pair]:
    found = linears(ours, builtin, ["embedding", "output"])
    for depth, layer in enumerate(ours.layers):
        names = (f"weight_ih_l{depth}", f"bias_ih_l{depth}", f"weight_hh_l{depth}")
        of_ours = (layer.W_x.weight, layer.W_x.bias, layer.W_h.weight)
        found += [([p], [getattr(builtin.layers, name)]) for p, name in zip(of_ours, names, strict=True)]
    return found


def pairs_of_transformers(literal: nn.Module, builtin: nn.Module) -> list[Pair]:
    found = linears(literal, builtin, ["embedding", "output"])
    found += [([literal.norm.a], [builtin.encoder.norm.weight]), ([literal.norm.b], [builtin.encoder.norm.bias])]
    for block, layer in zip(literal.blocks, builtin.encoder.layers, strict=True):
        maps, attention = block.attention, layer.self_attn
        for kind in ("weight", "bias"):
            of_literal = [getattr(linear, kind) for linear in (maps.W_q, maps.W_k, maps.W_v)]
            found.append((of_literal, [getattr(attention, f"in_proj_{kind}")]))
            for one, other in ((maps.W_o, attention.out_proj), (block.W_1, layer.linear1), (block.W_2, layer.linear2)):
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


def random_state(model: LanguageModel) -> Tensor:
    return torch.empty_like(model.initial_state(BATCH_SIZE)).uniform_(-1, 1)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.usefixtures("double")
def test_the_literal_model_is_ours_in_values_and_gradients(config: ModelConfig, tokens: Tensor) -> None:
    ours = build_model(config, VOCAB_SIZE, SEQ_LEN)
    literal = literal_model(config, VOCAB_SIZE, SEQ_LEN)
    pairs = pairs_with_literal(ours, literal)
    give_the_same_weights(ours, literal, pairs)
    assert_same_function(ours, literal, pairs, tokens, random_state(ours))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("config", ["rnn"], indirect=True)
def test_the_torch_nn_rnn_is_ours_in_values_and_gradients(config: ModelConfig, tokens: Tensor) -> None:
    ours = build_model(config, VOCAB_SIZE, SEQ_LEN)
    builtin = builtin_model(config, VOCAB_SIZE, SEQ_LEN)
    for name, parameter in builtin.named_parameters():
        if "bias_hh" in name:
            nn.init.zeros_(parameter)
    pairs = pairs_with_torch_rnn(ours, builtin)
    give_the_same_weights(ours, builtin, pairs)
    assert_same_function(ours, builtin, pairs, tokens, random_state(ours))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("config", ["transformer"], indirect=True)
def test_the_torch_nn_transformer_is_the_literal_one_but_for_its_layer_norm(
    config: ModelConfig, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def biased(self: LiteralLayerNorm, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.a, self.b, eps=1e-5)

    monkeypatch.setattr(LiteralLayerNorm, "forward", biased)
    literal = literal_model(config, VOCAB_SIZE, SEQ_LEN)
    builtin = builtin_model(config, VOCAB_SIZE, SEQ_LEN).train()
    pairs = pairs_of_transformers(literal, builtin)
    give_the_same_weights(literal, builtin, pairs)
    assert_same_function(literal, builtin, pairs, tokens, torch.zeros(0, BATCH_SIZE, 8))


def test_the_baselines_have_our_parameters_and_torch_nn_has_second_biases(config: ModelConfig) -> None:
    wanted = count(build_model(config, VOCAB_SIZE, SEQ_LEN))
    assert count(literal_model(config, VOCAB_SIZE, SEQ_LEN)) == wanted
    second_biases = {"rnn": 3 * 6, "gru": 3 * 3 * 6, "transformer": 0}[config.arch]
    assert count(builtin_model(config, VOCAB_SIZE, SEQ_LEN)) == wanted + second_biases


@pytest.mark.parametrize("make", [literal_model, builtin_model])
def test_dropout_has_the_studys_rates(make, config: ModelConfig) -> None:
    model = make(config, VOCAB_SIZE, SEQ_LEN)
    rates = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    attention = {1 - 0.8} if isinstance(config, TransformerConfig) and make is literal_model else set()
    assert rates == {0.5} | attention
    if make is builtin_model and isinstance(config, RecurrentConfig):
        assert model.layers.dropout == 0.5


@pytest.mark.parametrize("config", ["rnn", "gru"], indirect=True)
def test_the_literal_recurrent_path_is_free_of_dropout(
    config: ModelConfig, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: torch.zeros_like(x))
    literal = literal_model(config, VOCAB_SIZE, SEQ_LEN)
    state = torch.randn(3, BATCH_SIZE, 6)
    logits, after = literal(tokens, state)
    torch.testing.assert_close(logits, literal.output.bias.expand_as(logits))
    for depth, cell in enumerate(literal.cells):
        h = state[depth]
        for _ in range(SEQ_LEN):
            h = cell(torch.zeros(BATCH_SIZE, 6 if depth else 5), h)
        torch.testing.assert_close(after[depth], h)


def test_the_position_table_is_ours(double: None) -> None:
    for width in (8, 9):
        torch.testing.assert_close(position_table(5, width), sinusoids(torch.arange(5.0), width), rtol=0, atol=1e-12)


def test_both_losses_are_the_mean_over_the_tokens() -> None:
    logits = torch.tensor([[[0.0, math.log(3)], [0.0, 0.0]], [[math.log(3), 0.0], [0.0, math.log(3)]]])
    targets = torch.tensor([[1, 0], [1, 0]])
    wanted = torch.tensor((math.log(4 / 3) + math.log(2) + 2 * math.log(4)) / 4)
    for loss in (literal_loss, builtin_loss):
        torch.testing.assert_close(loss(logits, targets), wanted)


# -- the step ------------------------------------------------------------------------------------------------------


class Scale(nn.Module):
    """Remembers the states it is given; the next one is in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0, 4.0]))
        self.states: list[Tensor] = []

    def forward(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        self.states.append(state)
        return 100 * self.weight, state + self.weight


def test_a_baseline_step_clips_updates_and_carries_the_state_detached() -> None:
    model = Scale()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    ids = torch.zeros(1, 2, dtype=torch.long)
    step = BaselineStep(
        model, lambda logits, targets: (logits * targets).sum(), optimizer, clip_norm=0.25, state=torch.zeros(2)
    )
    assert step(ids, torch.tensor([[1, 1]])).item() == pytest.approx(700)
    # The gradient is (100, 100), then (100, -100) and nothing of the first: both are clipped to the norm 0.25.
    moved = 0.25 / math.sqrt(2)
    torch.testing.assert_close(model.weight.detach(), torch.tensor([3 - moved, 4 - moved]))
    step(ids, torch.tensor([[1, -1]]))
    torch.testing.assert_close(model.weight.detach(), torch.tensor([3 - 2 * moved, 4.0]))
    assert not model.states[1].requires_grad
    torch.testing.assert_close(model.states[1], torch.tensor([3.0, 4.0]))


def test_the_optimizers_of_the_baselines_are_torchs_with_default_arguments() -> None:
    model = nn.Linear(2, 2)
    adam = default_optimizer(AdamConfig(optimizer="adam", lr=0.5), model)
    assert isinstance(adam, torch.optim.Adam)
    assert adam.defaults == {**torch.optim.Adam(model.parameters()).defaults, "lr": 0.5}
    sgd = default_optimizer(SgdConfig(optimizer="sgd_schedule", lr=20.0), model)
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.defaults == {**torch.optim.SGD(model.parameters()).defaults, "lr": 20.0}

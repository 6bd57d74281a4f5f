from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from comparison import assert_same_values_and_gradients
from torch import Tensor, nn

from seqlm.architectures import TransformerConfig
from seqlm.models import LanguageModel, build_model
from seqlm.models.reference import LayerNorm, sinusoids

transformer_only = pytest.mark.parametrize("arch", ["transformer"])
ROOT_2 = math.sqrt(2)


def double(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_layer_norm_divides_by_the_unbiased_deviation_plus_epsilon() -> None:
    norm = LayerNorm(4).double()
    # 1 2 3 4: mean 2.5, squared deviations 2.25 + 0.25 + 0.25 + 2.25 = 5, over 3.
    std = 1.2909944487358056
    wanted = double(-1.5 / (std + 1e-6), -0.5 / (std + 1e-6), 0.5 / (std + 1e-6), 1.5 / (std + 1e-6))
    torch.testing.assert_close(norm(double(1, 2, 3, 4)), wanted, rtol=0, atol=1e-12)
    # 0 2e-6: deviations 1e-6, std sqrt(2) 1e-6, so 1 / (sqrt(2) + 1) = sqrt(2) - 1.
    tiny = LayerNorm(2).double()(double(0, 2e-6))
    torch.testing.assert_close(tiny, double(1 - ROOT_2, ROOT_2 - 1), rtol=0, atol=1e-10)


def test_layer_norm_scales_by_a_and_shifts_by_b() -> None:
    norm = LayerNorm(2).double()
    with torch.no_grad():
        norm.a.copy_(double(2, 3))
        norm.b.copy_(double(10, 20))
    # -1 1: std sqrt(2).
    wanted = double(10 - 2 / (ROOT_2 + 1e-6), 20 + 3 / (ROOT_2 + 1e-6))
    torch.testing.assert_close(norm(double(-1, 1)), wanted, rtol=0, atol=1e-12)


def test_layer_norm_gradients_equal_finite_differences_and_are_finite_for_equal_units() -> None:
    torch.manual_seed(1)
    norm = LayerNorm(5).double()
    assert torch.autograd.gradcheck(norm, torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True))
    equal = torch.ones(5, dtype=torch.float64, requires_grad=True)
    norm(equal).sum().backward()
    assert equal.grad is not None
    assert equal.grad.isfinite().all()


def test_positions_are_sines_and_cosines_of_falling_frequency() -> None:
    wanted = double(
        [0.0, 1.0, 0.0, 1.0],
        [0.8414709848078965, 0.5403023058681398, 0.009999833334166664, 0.9999500004166653],
        [0.9092974268256817, -0.4161468365471424, 0.01999866669333308, 0.9998000066665778],
    )
    torch.testing.assert_close(sinusoids(double(0, 1, 2), 4), wanted, rtol=0, atol=1e-12)


def test_positions_of_an_odd_width_end_with_a_sine() -> None:
    wanted = double([0.0, 1.0, 0.0], [0.8414709848078965, 0.5403023058681398, math.sin(1 / 10000 ** (2 / 3))])
    torch.testing.assert_close(sinusoids(double(0, 1), 3), wanted, rtol=0, atol=1e-12)


def norm(module: nn.Module, x: Tensor) -> Tensor:
    deviations = x - x.sum(-1, keepdim=True) / x.shape[-1]
    std = (deviations.square().sum(-1, keepdim=True) / (x.shape[-1] - 1)).sqrt()
    return module.a * deviations / (std + 1e-6) + module.b


def literal(model: LanguageModel, tokens: Tensor, masks: Iterator[Tensor]) -> Tensor:
    """The logits of one window by plain products; ``masks`` in the reference's order, all ones for no dropout."""
    steps, batch = tokens.shape
    positions = double(
        *[[(math.sin, math.cos)[i % 2](t / 10000 ** (i // 2 * 2 / 8)) for i in range(8)] for t in range(steps)]
    )
    x = next(masks) * (model.embedding.weight[tokens] * math.sqrt(8) + positions[:, None])
    earlier = torch.ones(steps, steps, dtype=torch.bool).tril()
    for block in model.blocks:
        y = norm(block.attention_norm, x)
        maps = block.attention
        q, k, v = (
            (y @ linear.weight.T + linear.bias).reshape(steps, batch, 2, 4) for linear in (maps.W_q, maps.W_k, maps.W_v)
        )
        scores = torch.einsum("tbnk,sbnk->bnts", q, k) / 2
        weights = next(masks) * scores.where(earlier, torch.tensor(-1e9, dtype=torch.float64)).softmax(-1)
        heads = torch.einsum("bnts,sbnk->tbnk", weights, v).reshape(steps, batch, 8)
        x = x + next(masks) * (heads @ maps.W_o.weight.T + maps.W_o.bias)
        y = norm(block.mlp_norm, x)
        inner = next(masks) * (y @ block.mlp.W_1.weight.T + block.mlp.W_1.bias).clamp(min=0)
        x = x + next(masks) * (inner @ block.mlp.W_2.weight.T + block.mlp.W_2.bias)
    return norm(model.norm, x) @ model.output.weight.T + model.output.bias


def shake(model: LanguageModel) -> None:
    """No parameter at a neutral value such as 0 or 1, which would hide its part."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


@transformer_only
def test_the_transformer_equals_its_equations_in_values_and_gradients(
    arch: str, model: LanguageModel, tokens: Tensor
) -> None:
    shake(model.eval())
    ones = [torch.ones((), dtype=torch.float64)] * 9
    logits, _ = model(tokens, model.initial_state(4))
    wanted = literal(model, tokens, iter(ones))
    assert_same_values_and_gradients([logits], [wanted], list(model.parameters()))


@transformer_only
def test_dropout_in_training_is_in_the_places_of_the_reference_with_their_rates(
    arch: str, fused: LanguageModel, tokens: Tensor, dropout_record
) -> None:
    shake(model := fused)
    logits, _ = model(tokens, model.initial_state(4))
    in_a_block = [(4, 2, 7, 7), (7, 4, 8), (7, 4, 12), (7, 4, 8)]
    masks = [m.view(s) for m, s in zip(dropout_record.masks, [(7, 4, 8), *in_a_block, *in_a_block], strict=True)]
    assert dropout_record.keeps == [0.5, *([0.8, 0.5, 0.5, 0.5] * 2)]
    wanted = literal(model, tokens, iter(masks))
    assert_same_values_and_gradients([logits], [wanted], list(model.parameters()))


@transformer_only
def test_the_transformer_has_an_empty_state_and_sees_each_window_alone(
    arch: str, model: LanguageModel, tokens: Tensor
) -> None:
    model.eval()
    state = model.initial_state(4)
    assert state.shape == (0, 4, 8)
    assert state.dtype == torch.float64
    first, after = model(tokens, state)
    assert after is state
    torch.testing.assert_close(model(tokens, after)[0], first, rtol=0, atol=0)


@transformer_only
def test_the_gradient_of_the_last_loss_reaches_the_blocks_outputs_at_earlier_positions(
    arch: str, reference: LanguageModel, tokens: Tensor
) -> None:
    outputs, model = [], reference.eval()
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    logits, _ = model(tokens, model.initial_state(4))
    lower, top = torch.autograd.grad(logits[-1].logsumexp(-1).sum(), outputs)
    assert lower.abs().amax(dim=(1, 2)).min() > 0
    assert top[:-1].abs().max() == 0  # nothing above the top block mixes positions


@transformer_only
def test_positions_stay_apart_in_bfloat16(arch: str, fused: LanguageModel) -> None:
    table = fused.bfloat16()._positions(256, 2)
    assert table.dtype == torch.bfloat16
    assert not torch.equal(table[0], table[1])
    assert table[1, 0].item() == pytest.approx(math.sin(257), abs=0.004)


def test_transformer_initial_values_fill_their_ranges() -> None:
    torch.manual_seed(5)
    config = TransformerConfig(arch="transformer", hidden_size=64, num_layers=2, num_heads=4, mlp_size=100)
    model = build_model(config, 200)
    assert sum(isinstance(module, nn.Linear) for module in model.modules()) == 2 * 6 + 1
    seen = set()
    for prefix, module in model.named_modules():
        match module:
            case nn.Linear() | nn.Embedding():
                rows, columns = module.weight.shape
                ranges = {"weight": math.sqrt(6 / (rows + columns)), "bias": 1 / math.sqrt(columns)}
                for name, parameter in module.named_parameters():
                    assert 0.85 * ranges[name] < parameter.abs().max() <= ranges[name], prefix
                    assert parameter.std().item() == pytest.approx(ranges[name] / 3**0.5, rel=0.25), prefix
                    seen.add(parameter)
            case LayerNorm():
                assert torch.equal(module.a, torch.ones(64))
                assert torch.equal(module.b, torch.zeros(64))
                seen |= {module.a, module.b}
    assert seen == set(model.parameters())


@transformer_only
def test_relu_is_the_activation(arch: str, model: LanguageModel) -> None:
    mlp = model.eval().blocks[0].mlp
    x = torch.randn(3, 8, dtype=torch.float64)
    torch.testing.assert_close(mlp(x), mlp.W_2(F.relu(mlp.W_1(x))), rtol=0, atol=1e-12)

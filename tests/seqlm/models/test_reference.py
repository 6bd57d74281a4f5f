"""The models of seqlm.models.reference: equations, initial values, states and the places of dropout.

``test_baselines.py`` compares RNN and Transformer with those of ``torch.nn``.
"""

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seqlm.architectures import BuiltInConfig, CustomConfig, RecurrentConfig, TransformerConfig
from seqlm.models import LanguageModel, build_model
from seqlm.models.dropout import Dropout
from seqlm.models.reference import LayerNorm, MultiHeadAttention, sinusoids
from seqlm.models.reference import __file__ as reference_file
from tests.seqlm.models.conftest import assert_same_values_and_gradients

VOCAB_SIZE = 11
ROOT_2 = math.sqrt(2)
recurrent_only = pytest.mark.parametrize("arch", ["rnn", "gru"])
transformer_only = pytest.mark.parametrize("arch", ["transformer"])


def double(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# -- recurrent models ------------------------------------------------------------------------------------------------


def next_state(arch: str, layer: nn.Module, x: Tensor, h: Tensor) -> Tensor:
    """h' from the column vectors x and h."""
    if arch == "rnn":
        return torch.tanh(layer.W_x.weight @ x + layer.W_h.weight @ h + layer.W_x.bias)
    W_r, W_z, W_h = layer.W.weight.chunk(3)  # noqa: N806
    b_r, b_z, b_h = layer.W.bias.chunk(3)
    U_r, U_z = layer.U_rz.weight.chunk(2)  # noqa: N806
    r = 1 / (1 + torch.exp(-(W_r @ x + U_r @ h + b_r)))
    z = 1 / (1 + torch.exp(-(W_z @ x + U_z @ h + b_z)))
    return (1 - z) * h + z * torch.tanh(W_h @ x + layer.U_h.weight @ (r * h) + b_h)


def random_state(model: LanguageModel, batch: int) -> Tensor:
    return torch.empty_like(model.initial_state(batch)).uniform_(-1, 1).requires_grad_()


@recurrent_only
def test_a_recurrent_model_equals_its_equations_in_values_and_gradients(
    arch: str, reference: LanguageModel, tokens: Tensor
) -> None:
    model, state = reference.eval(), random_state(reference, 4)
    logits, last = [], []
    for b in range(4):
        h = list(state[:, b])
        for t in range(7):
            x = model.embedding.weight[tokens[t, b]]
            for depth, layer in enumerate(model.layers):
                x = h[depth] = next_state(arch, layer, x, h[depth])
            logits.append(model.output.weight @ x + model.output.bias)
        last.append(torch.stack(h))
    wanted = (torch.stack(logits).view(4, 7, -1).transpose(0, 1), torch.stack(last, dim=1))
    assert_same_values_and_gradients(model(tokens, state), wanted, [state, *model.parameters()])


@recurrent_only
def test_with_every_unit_dropped_the_hidden_state_still_runs_on_its_own(
    arch: str, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dropout, "masks", lambda _, shapes, like: [like.new_zeros(shape) for shape in shapes])
    config = RecurrentConfig(arch=arch, hidden_size=6, num_layers=2, embedding_size=5, keep=0.5)
    model = build_model(config, VOCAB_SIZE).double()
    nn.init.uniform_(model.output.bias)
    state = random_state(model, 4)
    logits, last = model(tokens, state)
    for depth, layer in enumerate(model.layers):
        for b in range(4):
            h = state[depth, b]
            for _ in tokens:
                h = next_state(arch, layer, h.new_zeros(6 if depth else 5), h)
            torch.testing.assert_close(last[depth, b], h, rtol=0, atol=1e-10)
    torch.testing.assert_close(logits, model.output.bias.expand_as(logits), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arch", "shapes"),
    [
        *((arch, [(7, 4, 5), (7, 4, 6), (7, 4, 6), (7, 4, 6)]) for arch in ("rnn", "gru")),
        ("transformer", [(7, 4, 8), *[(4, 2, 7, 7), (7, 4, 8), (7, 4, 12), (7, 4, 8)] * 2]),
    ],
)
def test_every_step_and_every_place_has_its_own_dropout_mask(
    arch: str, shapes: list[tuple[int, ...]], fused: LanguageModel
) -> None:
    """In the order in which the reference applies them; ``test_fused`` compares both with the same masks."""
    masks = [mask for mask in fused.masks(7, 4) if mask is not None]
    assert [mask.numel() for mask in masks] == [math.prod(shape) for shape in shapes]
    rows = torch.cat([mask.flatten() for mask in masks]).unfold(0, 64, 64)
    assert len(rows.unique(dim=0)) == len(rows)


@recurrent_only
def test_two_windows_with_the_state_carried_equal_one_long_window(
    arch: str, model: LanguageModel, tokens: Tensor
) -> None:
    state = random_state(model.eval(), 4)
    first, middle = model(tokens[:3], state)
    second, last = model(tokens[3:], middle)
    found = (torch.cat((first, second)), last)
    assert_same_values_and_gradients(found, model(tokens, state), [state, *model.parameters()])


def test_the_state_starts_at_zero_or_empty_with_the_type_of_the_parameters(arch: str, model: LanguageModel) -> None:
    state = model.initial_state(4)
    assert state.shape == ((0, 4, 8) if arch == "transformer" else (3, 4, 6))
    assert (state.dtype, state.any().item()) == (torch.float64, False)
    assert model.float().initial_state(4).dtype == torch.float32


# -- the Transformer -------------------------------------------------------------------------------------------------


def test_layer_norm_divides_by_the_unbiased_deviation_plus_epsilon() -> None:
    # 1 2 3 4: mean 2.5, squared deviations 2.25 + 0.25 + 0.25 + 2.25 = 5, over 3.
    std = math.sqrt(5 / 3) + 1e-6
    wanted = double(-1.5 / std, -0.5 / std, 0.5 / std, 1.5 / std)
    torch.testing.assert_close(LayerNorm(4).double()(double(1, 2, 3, 4)), wanted, rtol=0, atol=1e-12)
    # 0 2e-6: deviations 1e-6, std sqrt(2) 1e-6, so 1 / (sqrt(2) + 1) = sqrt(2) - 1.
    tiny = LayerNorm(2).double()(double(0, 2e-6))
    torch.testing.assert_close(tiny, double(1 - ROOT_2, ROOT_2 - 1), rtol=0, atol=1e-10)


def test_layer_norm_scales_by_a_and_shifts_by_b_and_has_finite_gradients_for_equal_units() -> None:
    norm = LayerNorm(2).double()
    with torch.no_grad():
        norm.a.copy_(double(2, 3))
        norm.b.copy_(double(10, 20))
    wanted = double(10 - 2 / (ROOT_2 + 1e-6), 20 + 3 / (ROOT_2 + 1e-6))  # -1 1: std sqrt(2)
    torch.testing.assert_close(norm(double(-1, 1)), wanted, rtol=0, atol=1e-12)
    equal = torch.ones(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(norm(equal).sum(), equal)[0].isfinite().all()


@pytest.mark.parametrize("width", [4, 3])
def test_positions_are_sines_and_cosines_of_falling_frequency(width: int) -> None:
    wanted = [[(math.sin, math.cos)[i % 2](t / 10_000 ** (i // 2 * 2 / width)) for i in range(width)] for t in range(3)]
    torch.testing.assert_close(sinusoids(double(0, 1, 2), width), double(*wanted), rtol=0, atol=1e-12)


@pytest.fixture
def attention() -> MultiHeadAttention:
    """H = 6 in N = 2 heads of K = 3, on the scale at which weights are far from equal."""
    torch.manual_seed(1)
    attention = MultiHeadAttention(hidden_size=6, num_heads=2, keep=1.0).double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_()
    return attention


def test_attention_equals_torchs(attention: MultiHeadAttention) -> None:
    x = torch.randn(5, 3, 6, dtype=torch.float64, requires_grad=True)
    maps = (linear(x) for linear in (attention.W_q, attention.W_k, attention.W_v))
    q, k, v = (mapped.view(5, 3, 2, 3).permute(1, 2, 0, 3) for mapped in maps)
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    wanted = attention.W_o(attended.permute(2, 0, 1, 3).reshape(5, 3, 6))
    assert_same_values_and_gradients([attention(x)], [wanted], [x, *attention.parameters()])


def test_masked_scores_are_minus_1e9_and_not_infinite(attention: MultiHeadAttention) -> None:
    # A first query whose own score is far below -1e9 tells the two apart: it then prefers the masked keys.
    with torch.no_grad():
        for linear in (attention.W_q, attention.W_k):
            linear.weight.zero_()
        attention.W_q.bias.fill_(1.0)
        attention.W_k.bias.fill_(-1e12)
    weights = []
    attention.dropout.register_forward_hook(lambda _module, inputs, _output: weights.append(inputs[0]))
    attention(torch.zeros(3, 1, 6, dtype=torch.float64))
    torch.testing.assert_close(weights[0][0, 0, 0], double(0.0, 0.5, 0.5), rtol=0, atol=1e-12)


@transformer_only
def test_the_transformer_sees_each_window_alone(arch: str, model: LanguageModel, tokens: Tensor) -> None:
    state = model.eval().initial_state(4)
    first, after = model(tokens, state)
    assert after is state
    torch.testing.assert_close(model(tokens, after)[0], first, rtol=0, atol=0)


# -- the file as a model of one's own --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        *(
            RecurrentConfig(arch=arch, hidden_size=6, embedding_size=6, embedding_keep=0.5, weight_keep=0.5, tied=True)
            for arch in ("rnn", "gru")
        ),
        TransformerConfig(arch="transformer", hidden_size=8, num_heads=2, mlp_size=12, embedding_keep=0.5, tied=True),
    ],
)
def test_a_copy_of_the_file_takes_every_key_of_the_configuration_and_starts_with_the_same_parameters(
    tmp_path: Path, config: BuiltInConfig, tokens: Tensor
) -> None:
    shutil.copy(reference_file, tmp_path / "reference.py")
    arguments = dataclasses.asdict(config)
    name = {"rnn": "RNN", "gru": "GRU", "transformer": "Transformer"}[arguments.pop("arch")]
    torch.manual_seed(1)
    own = build_model(
        CustomConfig(arch="custom", source=f"reference.py:{name}", arguments=arguments), VOCAB_SIZE, folder=tmp_path
    )
    torch.manual_seed(1)
    built_in = build_model(config, VOCAB_SIZE)
    assert list(own.state_dict()) == list(built_in.state_dict())
    assert all(map(torch.equal, own.state_dict().values(), built_in.state_dict().values()))
    own_loss, loss = (model.eval().loss(tokens, tokens, model.initial_state(4))[0] for model in (own, built_in))
    torch.testing.assert_close(own_loss, loss)


class Devices(TorchDispatchMode):
    """Collects the devices of all tensors that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.found |= {leaf.device.type for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
        return result


def test_every_tensor_is_made_on_the_device_of_the_parameters(reference: LanguageModel, tokens: Tensor) -> None:
    """A copy from the CPU would keep the step of a model of one's own out of a CUDA graph."""
    model, ids = reference.to("meta"), tokens.to("meta")
    with Devices() as devices:
        model.loss(ids, ids, model.initial_state(4))
    assert devices.found == {"meta"}


# -- initial values --------------------------------------------------------------------------------------------------


def test_initial_values_fill_their_ranges(arch: str) -> None:
    torch.manual_seed(5)
    if arch == "transformer":
        config = TransformerConfig(arch="transformer", hidden_size=64, num_layers=2, num_heads=4, mlp_size=100)
    else:
        config = RecurrentConfig(arch=arch, hidden_size=64, num_layers=2, embedding_size=30)
    for name, parameter in build_model(config, 200).named_parameters():
        of_norm = name.rpartition(".")[2] in ("a", "b")
        if of_norm or (name == "output.bias" and arch != "transformer"):
            assert parameter.unique().tolist() == [1.0 if name.endswith(".a") else 0.0], name
            continue
        if arch == "transformer":
            inputs = 100 if "W_2" in name else 64
            bound = math.sqrt(6 / sum(parameter.shape)) if parameter.dim() > 1 else 1 / math.sqrt(inputs)
        else:
            bound = 0.1 if name in ("embedding.weight", "output.weight") else 1 / 8
        # The smallest has 64 values: all of them inside 85 % of the range happens once in 30,000 draws.
        assert 0.85 * bound < parameter.abs().max() <= bound, name
        assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.25), name
        assert parameter.mean().abs() < 0.25 * bound, name

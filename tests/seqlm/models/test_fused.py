"""The models that train are those of seqlm.models.reference: values and gradients at random shapes."""

from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from seqlm.architectures import RecurrentConfig, TransformerConfig
from seqlm.models import LanguageModel, build_model, build_reference, products
from seqlm.models.products import PACKED_SIZE, RepeatedProduct, apply
from seqlm.models.recurrent import FusedGRU, FusedRNN
from seqlm.models.reference import LayerNorm
from seqlm.models.transformer import Attention, LinearResidual, NormLinear
from tests.seqlm.models.conftest import assert_same_values_and_gradients


@st.composite
def recurrent_shapes(draw: st.DrawFn, arch: Literal["rnn", "gru"]) -> dict[str, Any]:
    hidden_size, tied = draw(st.integers(1, 7)), draw(st.booleans())
    return {
        "arch": arch,
        "hidden_size": hidden_size,
        "num_layers": draw(st.integers(1, 3)),
        "embedding_size": hidden_size if tied else draw(st.integers(1, 7)),
        "keep": draw(st.sampled_from([1.0, 0.6])),
        "embedding_keep": draw(st.sampled_from([1.0, 0.6])),
        "weight_keep": draw(st.sampled_from([1.0, 0.6])),
        "tied": tied,
    }


@st.composite
def transformer_shapes(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.integers(1, 3))
    return {
        "arch": "transformer",
        "num_heads": heads,
        "hidden_size": max(2, heads * draw(st.integers(1, 4))) if heads != 1 else draw(st.integers(2, 6)),
        "num_layers": draw(st.integers(1, 2)),
        "mlp_size": draw(st.integers(1, 9)),
        "keep": draw(st.sampled_from([1.0, 0.6])),
        "attention_keep": draw(st.sampled_from([1.0, 0.7])),
        "embedding_keep": draw(st.sampled_from([1.0, 0.6])),
        "tied": draw(st.booleans()),
    }


shapes = st.one_of(recurrent_shapes("rnn"), recurrent_shapes("gru"), transformer_shapes())
windows = st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 12))


def both(
    shape: dict[str, Any], vocab: int, dtype: torch.dtype, window: tuple[int, int] = (1, 1)
) -> list[LanguageModel]:
    """The fused model and its reference, with the same parameters, none of them at a neutral value.

    For a window (T, B) the reference has the dropout masks that the fused model draws in :func:`loss_and_gradients`.
    """
    kind = TransformerConfig if shape["arch"] == "transformer" else RecurrentConfig
    torch.manual_seed(1)
    config = kind(**shape)
    model = build_model(config, vocab, 35).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    torch.manual_seed(2)
    return [model, build_reference(model, config, list(model.masks(*window)))]


def loss_and_gradients(
    model: LanguageModel, tokens: Tensor, targets: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Loss, state and the gradients of both together, by the state before the window and by every parameter."""
    torch.manual_seed(2)  # the same dropout masks
    state = state.detach().requires_grad_()
    loss, after = model.loss(tokens, targets, state)
    weighting = torch.linspace(0.3, 1.0, after.numel(), dtype=after.dtype).view_as(after)
    leaves = [*([state] if state.numel() else []), *model.parameters()]
    gradients = torch.autograd.grad(0.7 * loss + (after * weighting).sum(), leaves)
    return loss, after, list(gradients)


def random_window(model: LanguageModel, window: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    steps, batch, vocab = window
    tokens, targets = torch.randint(vocab, (2, steps, batch), generator=torch.Generator().manual_seed(3))
    torch.manual_seed(4)
    return tokens, targets, torch.empty_like(model.initial_state(batch)).uniform_(-1, 1)


@pytest.mark.slow
@settings(max_examples=75, deadline=None, derandomize=True)
@given(shape=shapes, window=windows)
def test_fused_equals_reference_in_float64_at_any_shape(shape: dict[str, Any], window: tuple[int, int, int]) -> None:
    fused, reference = both(shape, window[2], torch.float64, window[:2])
    arguments = random_window(fused, window)
    found, wanted = loss_and_gradients(fused, *arguments), loss_and_gradients(reference, *arguments)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)  # a norm over two nearly equal units rounds


@pytest.mark.parametrize("library", ["onednn", "blas"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("outputs", [8, PACKED_SIZE])
@pytest.mark.parametrize(("rows", "steps"), [(20, 35), (20, 1), (1000, 35)])
def test_a_repeated_product_is_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, library: str, dtype: torch.dtype, outputs: int, rows: int, steps: int
) -> None:
    monkeypatch.setattr(products, "fp32_library", lambda: library)
    torch.manual_seed(1)
    weight, h = torch.randn(outputs, PACKED_SIZE + 8, dtype=dtype), torch.randn(rows, PACKED_SIZE + 8, dtype=dtype)
    other = torch.randn(rows, outputs, dtype=dtype)
    repeated = RepeatedProduct(weight, dtype, rows=rows, steps=steps)
    exact, exact_sum = h.double() @ weight.double().t(), h.double() @ weight.double().t() + other
    before = other.clone()
    # 1032 terms of size 1: rounding in float32 is some 1e-5, in bfloat16 it would be 0.1.
    torch.testing.assert_close(repeated.plus(h).double(), exact, rtol=0, atol=1e-3)
    torch.testing.assert_close(repeated.plus(h, other).double(), exact_sum, rtol=0, atol=1e-3)
    torch.testing.assert_close(other.double(), exact_sum if repeated.overwrites else before.double(), rtol=0, atol=1e-3)


def test_the_norm_of_equal_units_has_finite_gradients_and_those_of_the_reference() -> None:
    torch.manual_seed(1)
    norm, linear = LayerNorm(6).double(), nn.Linear(6, 4).double()
    with torch.no_grad():
        norm.a.uniform_(0.5, 2)
        norm.b.uniform_(-1, 1)
    x = torch.randn(3, 6, dtype=torch.float64)
    x[1] = 2.5
    x.requires_grad_()
    leaves = [x, norm.a, norm.b, linear.weight, linear.bias]
    found = apply(NormLinear, x, norm.a, norm.b, linear.weight, linear.bias, None, None, torch.float64)
    assert_same_values_and_gradients([found], [linear(norm(x))], leaves)


def first_derivatives() -> list[tuple[Tensor, Tensor]]:
    """(a result of each fused operation, what it depends on)."""

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    torch.manual_seed(1)
    x, y, qkv = leaf(4, 2, 3), leaf(8, 3), leaf(4, 2, 6)
    rnn = apply(FusedRNN, x, leaf(2, 5), leaf(5, 3), leaf(5), leaf(5, 5), torch.float64)
    gru = apply(FusedGRU, x, leaf(2, 5), leaf(15, 3), leaf(15), leaf(10, 5), leaf(5, 5), torch.float64)
    return [
        (rnn, x),
        (gru, x),
        (apply(NormLinear, y, leaf(3), leaf(3), leaf(2, 3), leaf(2), None, None, torch.float64), y),
        (apply(Attention, qkv, None, 1, torch.float64), qkv),
        (apply(LinearResidual, y, y, leaf(3, 3), leaf(3), None, torch.float64), y),
    ]


@pytest.mark.parametrize("number", range(5))
def test_a_second_derivative_of_a_fused_operation_is_an_error_and_not_a_wrong_number(number: int) -> None:
    result, leaf = first_derivatives()[number]
    (gradient,) = torch.autograd.grad(result.square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_the_loss_is_the_cross_entropy_of_the_logits(model: LanguageModel, tokens: Tensor) -> None:
    model.eval()
    state = model.initial_state(4)
    logits, after = model(tokens, state)
    targets = tokens.flip(0)
    found, found_after = model.loss(tokens, targets, state)
    wanted = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    torch.testing.assert_close((found, found_after), (wanted, after), rtol=0, atol=1e-10)

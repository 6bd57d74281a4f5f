"""Dropout of word types and recurrent weights, and tied embeddings, each against a literal implementation."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from seqlm.architectures import ModelConfig, RecurrentConfig
from seqlm.models import LanguageModel, build_model
from seqlm.models.dropout import STEPS, Dropout, step_masks
from tests.seqlm.models.conftest import CONFIGS, VOCAB_SIZE


class Draws(TorchDispatchMode):
    """Counts the calls that take numbers from a generator."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def mask_of(keep: float, count: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    torch.manual_seed(1)
    mask = Dropout(keep).mask((count,), torch.empty(0, dtype=dtype))
    assert mask is not None
    return mask


@pytest.mark.parametrize("keep", [0.05, 0.35, 0.5, 0.75, 0.9])
def test_units_are_kept_with_the_given_probability_and_scaled_by_its_inverse(keep: float) -> None:
    mask = mask_of(keep, 400_001)
    kept = mask != 0
    # The share has a standard deviation of at most 0.0008.
    assert kept.double().mean().item() == pytest.approx(keep, abs=0.004)
    (scale,) = mask[kept].unique().tolist()
    assert scale == pytest.approx(1 / keep, rel=1e-3)
    assert scale == Dropout(keep).scale
    assert mask.mean().item() == pytest.approx(1, abs=5 * ((1 / keep - 1) / 400_001) ** 0.5)


def test_the_four_units_of_one_number_are_independent() -> None:
    kept = (mask_of(0.5, 4 * 50_000) != 0).double().view(-1, 4)
    correlations = torch.corrcoef(kept.t()) - torch.eye(4, dtype=torch.float64)
    assert correlations.abs().max() < 0.025
    neighbours = torch.corrcoef(torch.stack((kept[:-1, 3], kept[1:, 0])))[0, 1]
    assert neighbours.abs() < 0.025


def test_keep_is_rounded_to_a_multiple_of_two_to_the_minus_sixteen() -> None:
    assert Dropout(0.35).scale == 2**16 / 22938
    assert Dropout(1e-9).scale == 2**16
    assert Dropout(0.999999).mask((3,), torch.empty(0)) is None
    assert Dropout(1.0).mask((3,), torch.empty(0)) is None


def test_nothing_is_dropped_outside_of_training() -> None:
    dropout = Dropout(0.5).eval()
    x = torch.randn(5)
    assert dropout(x) is x
    assert dropout.scale == 1


def test_masks_follow_the_generator_and_not_the_type_of_the_units() -> None:
    assert torch.equal(mask_of(0.5, 101), mask_of(0.5, 101))
    assert torch.equal(mask_of(0.5, 101), mask_of(0.5, 101, torch.float32).double())


@pytest.mark.parametrize("arch", ["rnn", "gru"])
def test_a_window_of_a_recurrent_model_draws_once_whatever_its_length_and_depth(arch: str) -> None:
    config = RecurrentConfig(arch=arch, hidden_size=4, num_layers=3, embedding_size=3)
    model = build_model(config, 5)
    with Draws() as draws:
        model.loss(torch.zeros(11, 2, dtype=torch.int64), torch.zeros(11, 2, dtype=torch.int64), model.initial_state(2))
    assert draws.count == 1


RECURRENT = pytest.mark.parametrize("arch", ["rnn", "gru"])
KEY = torch.tensor(-(2**62) + 5)


def config_of(arch: str, **changes: Any) -> ModelConfig:
    off = {"keep": 1.0, "attention_keep": 1.0} if arch == "transformer" else {"keep": 1.0}
    if changes.get("tied") and arch != "transformer":
        off["embedding_size"] = 6
    return dataclasses.replace(CONFIGS[arch], **off, **changes)


def build(config: ModelConfig) -> LanguageModel:
    torch.manual_seed(1)
    model = build_model(config, VOCAB_SIZE, 5).double()
    model.mask_key = KEY
    return model


def window(model: LanguageModel, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    return tokens, tokens.flip(0), torch.empty_like(model.initial_state(4)).uniform_(-1, 1)


# -- masks ---------------------------------------------------------------------------------------------------------


def splitmix64(seed: int, count: int) -> list[int]:
    """The generator of Steele, Lea and Flood (2014), literally."""
    numbers, modulus = [], 2**64
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) % modulus
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % modulus
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % modulus
        numbers.append(z ^ (z >> 31))
    return numbers


def test_masks_are_those_of_splitmix64_by_16_bits_one_after_the_other() -> None:
    masks = step_masks(KEY, [((2, 3), 0.5), ((4,), 1.0), ((5,), 0.25)], torch.zeros((), dtype=torch.float64))
    numbers = splitmix64(int(KEY) % 2**64, 4)
    drawn = [number >> 16 * part & 0xFFFF for number in numbers for part in range(4)]
    signed = [one - STEPS if one >= STEPS // 2 else one for one in drawn]
    assert masks[1] is None
    first, last = (mask.flatten().tolist() for mask in (masks[0], masks[2]) if mask is not None)
    assert first == [2.0 if one < 0 else 0.0 for one in signed[:6]]
    assert last == [4.0 if one < STEPS // 4 - STEPS // 2 else 0.0 for one in signed[8:13]]


def test_masks_keep_their_share_and_are_unlike_from_key_to_key() -> None:
    like = torch.zeros(())
    one, two = (step_masks(torch.tensor(key), [((200_000,), 0.7)], like)[0] for key in (3, 4))
    assert one is not None and two is not None  # noqa: PT018 -- for the type checker
    assert one.mean().item() == pytest.approx(1, abs=0.01)
    both = ((one > 0) & (two > 0)).float().mean().item()
    assert both == pytest.approx(0.49, abs=0.01), "independent"


def test_without_a_key_each_forward_pass_draws_from_the_global_generator(tokens: Tensor) -> None:
    model = build(config_of("gru", embedding_keep=0.5, weight_keep=0.5))
    model.mask_key = None
    arguments = window(model, tokens)
    torch.manual_seed(3)
    losses = [model.loss(*arguments)[0].item() for _ in range(2)]
    torch.manual_seed(3)
    again = [model.loss(*arguments)[0].item() for _ in range(2)]
    assert losses[0] != losses[1]
    assert again == losses


@pytest.mark.parametrize("arch", list(CONFIGS))
def test_nothing_more_is_drawn_where_nothing_is_dropped(arch: str, tokens: Tensor) -> None:
    model = build(CONFIGS[arch])
    model.mask_key = None
    arguments = window(model, tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seqlm.models.language_model.step_masks", lambda *_: pytest.fail("drawn"))
        model.loss(*arguments)
        dropping = build(config_of("gru", weight_keep=0.5)).eval()
        dropping.loss(*window(dropping, tokens))


# -- what is dropped -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", list(CONFIGS))
def test_dropped_words_are_rows_of_the_embedding_matrix_that_are_zero(arch: str, tokens: Tensor) -> None:
    model = build(config_of(arch, embedding_keep=0.5))
    plain = build(config_of(arch))
    (mask,) = step_masks(KEY, [((VOCAB_SIZE,), 0.5)], model.output.weight)
    assert mask is not None
    assert 0 < int((mask[tokens.unique()] == 0).sum()) < len(tokens.unique())
    arguments = window(model, tokens)
    with torch.no_grad():
        plain.embedding.weight.mul_(mask.unsqueeze(1))
    found, wanted = model.loss(*arguments), plain.loss(*arguments)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    parameters, others = list(model.parameters()), list(plain.parameters())
    gradients, expected = (torch.autograd.grad(loss[0], of) for loss, of in ((found, parameters), (wanted, others)))
    names = [name for name, _ in model.named_parameters()]
    for name, gradient, other in zip(names, gradients, expected, strict=True):
        by_row = other * mask.unsqueeze(1) if name == "embedding.weight" else other
        torch.testing.assert_close(gradient, by_row, rtol=0, atol=1e-10)


@RECURRENT
def test_dropped_weights_are_zero_in_every_time_step_and_get_no_gradient(arch: str, tokens: Tensor) -> None:
    model = build(config_of(arch, weight_keep=0.5))
    plain = build(config_of(arch))
    names = {"rnn": ["W_h"], "gru": ["U_rz", "U_h"]}[arch]
    weights = {
        f"layers.{n}.{name}.weight": plain.get_parameter(f"layers.{n}.{name}.weight")
        for n in range(3)
        for name in names
    }
    masks = step_masks(KEY, [(weight.shape, 0.5) for weight in weights.values()], model.output.weight)
    factors = dict(zip(weights, masks, strict=True))
    with torch.no_grad():
        for name, weight in weights.items():
            assert set(factors[name].unique().tolist()) == {0.0, 2.0}
            weight.mul_(factors[name])
    arguments = window(model, tokens)
    found, wanted = model.loss(*arguments), plain.loss(*arguments)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    gradients = torch.autograd.grad(found[0], list(model.parameters()))
    expected = torch.autograd.grad(wanted[0], list(plain.parameters()))
    for (name, _), gradient, other in zip(model.named_parameters(), gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other * factors.get(name, 1), rtol=0, atol=1e-10)


# -- tied embeddings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", list(CONFIGS))
def test_a_tied_model_is_one_whose_two_matrices_are_equal_and_its_gradient_is_their_sum(
    arch: str, tokens: Tensor
) -> None:
    tied = build(config_of(arch, tied=True))
    free = build(dataclasses.replace(config_of(arch, tied=True), tied=False))
    free.load_state_dict({**tied.state_dict(), "output.weight": tied.embedding.weight})
    arguments = window(tied, tokens)
    found, wanted = tied.loss(*arguments), free.loss(*arguments)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    found[0].backward()
    wanted[0].backward()
    of_tied, of_free = (dict(model.named_parameters()) for model in (tied, free))
    assert of_free.keys() - of_tied.keys() == {"output.weight"}
    for name, parameter in of_tied.items():
        gradient = of_free[name].grad
        assert gradient is not None
        if name == "embedding.weight":
            gradient = gradient + of_free["output.weight"].grad
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-10)
    torch.testing.assert_close(tied(*arguments[::2]), free(*arguments[::2]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("arch", list(CONFIGS))
def test_copies_and_other_types_of_a_tied_model_stay_tied(arch: str) -> None:
    model = build(config_of(arch, tied=True))
    for other in (copy.deepcopy(model), copy.deepcopy(model).float()):
        assert other.output.weight is other.embedding.weight
        assert other.output.weight is not model.output.weight
        assert list(other.state_dict()) == list(model.state_dict())
    assert not [name for name, _ in model.named_parameters() if name == "output.weight"]

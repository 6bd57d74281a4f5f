from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from seqlm.architectures import RecurrentConfig
from seqlm.models import build_model
from seqlm.models.dropout import Dropout


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

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from seqlm.config import RunConfig
from seqlm.errors import UsageError
from seqlm.training.distributed import Rank
from seqlm.training.step import micro_batches_from
from tests.seqlm.training.ranks import steps_file, take_steps
from tests.seqlm.training.studies import make_config, make_run, write_text
from tests.seqlm.training.test_distributed import run_ranks

ARCHITECTURES = ("rnn", "gru", "transformer")
PARTS = (2, 3, 4)


def assert_same(found: dict[str, Any], wanted: dict[str, Any], state: Tensor) -> None:
    """Losses, gradients and validation agree to 1e-10; ``state`` is the carried state over all columns."""
    for pair in zip(found["results"], wanted["results"], strict=True):  # loss, gradient norm
        assert pair[0] == pytest.approx(pair[1], rel=1e-10)
    assert found["valid"] == pytest.approx(wanted["valid"], rel=1e-10)
    assert found["gradients"].keys() == wanted["gradients"].keys()
    for name, gradient in found["gradients"].items():
        torch.testing.assert_close(gradient, wanted["gradients"][name], rtol=1e-10, atol=1e-14)
    assert state.shape == wanted["state"].shape
    torch.testing.assert_close(state, wanted["state"], rtol=1e-10, atol=1e-14)


def dropping(arch: str) -> RunConfig:
    """A run whose masks are shared by all columns of a step, with an optimizer that has a velocity."""
    changes: dict[str, Any] = {"tied": True, "embedding_keep": 0.7}
    if arch != "transformer":
        changes |= {"embedding_size": 16, "weight_keep": 0.6}
    return make_config(arch, optim={"momentum": 0.9, "warmup_steps": 5}, **changes)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_parts_of_a_batch_have_the_same_words_and_weights_dropped(tmp_path: Path, arch: str) -> None:
    text = write_text(tmp_path / "text")
    run = make_run(tmp_path / arch, dropping(arch))
    whole = take_steps(run.path, text, Rank())
    found = take_steps(run.path, text, Rank(), 3)
    assert_same(found, whole, found["state"])


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_parts_of_a_batch_give_its_losses_gradients_and_state(tmp_path: Path, arch: str) -> None:
    text = write_text(tmp_path / "text")
    run = make_run(tmp_path / arch, make_config(arch))
    whole = take_steps(run.path, text, Rank())
    assert all(gradient.abs().sum() > 0 for gradient in whole["gradients"].values())
    for parts in PARTS:
        found = take_steps(run.path, text, Rank(), parts)
        assert_same(found, whole, found["state"])


@pytest.mark.process
def test_two_ranks_in_parts_give_what_one_rank_gives_at_once(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text")
    runs = [make_run(tmp_path / arch, make_config(arch)) for arch in ARCHITECTURES]
    runs += [make_run(tmp_path / f"{arch}-dropping", dropping(arch)) for arch in ARCHITECTURES]
    run_ranks([run.path for run in runs], text, 2, micro_batches="1,2,3,4")
    for run in runs:
        whole = take_steps(run.path, text, Rank())
        for parts in (1, *PARTS):
            ranks = [torch.load(steps_file(run.path, 2, rank, parts), weights_only=True) for rank in range(2)]
            state = torch.cat([steps["state"] for steps in ranks], dim=1)
            for steps in ranks:
                assert_same(steps, whole, state)


@pytest.mark.parametrize("text", ["0", "3.5", "-1", "two", "4"])
def test_a_number_of_parts_that_no_rank_can_have_is_told_with_what_is_valid(text: str) -> None:
    with pytest.raises(UsageError, match=f'SEQLM_MICRO_BATCHES: expected a whole number from 1 to 3, .*, got "{text}"'):
        micro_batches_from({"SEQLM_MICRO_BATCHES": text}, 11, 3)  # columns: 4, 4, 3
    assert micro_batches_from({"SEQLM_MICRO_BATCHES": "3"}, 11, 3) == 3
    assert micro_batches_from({}, 11, 3) == 1

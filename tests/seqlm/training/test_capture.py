"""Captured steps and windows on a CPU, with :mod:`tests.seqlm.training.graphs` in place of CUDA graphs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from seqlm.architectures import CustomConfig
from seqlm.config import RunConfig
from seqlm.data.corpus import load_corpus
from seqlm.models import build_model
from seqlm.optimizers import OptimConfig
from seqlm.rundir import RunDirectory
from seqlm.training.attempt import StopRequested
from seqlm.training.capture import WARM_UP_CALLS, Captured, is_captured
from seqlm.training.distributed import Rank
from seqlm.training.optimizers import build_optimizer, set_learning_rate, step_key
from seqlm.training.step import TrainingStep
from tests.outcome import outcome
from tests.seqlm.check_model.faulty import COUNTS, write_model
from tests.seqlm.training.graphs import Graph
from tests.seqlm.training.studies import Attempt, make_config, make_run, write_text
from tests.seqlm.training.test_step import ARCHITECTURES, BATCH, OPTIMIZERS, VOCAB, everything, kept, make_step, windows

pytestmark = pytest.mark.usefixtures("cuda_graphs")


@pytest.mark.parametrize(("device", "ranks", "expected"), [("cuda", 1, True), ("cuda", 2, False), ("cpu", 1, False)])
def test_one_rank_on_a_gpu_is_captured(device: str, ranks: int, expected: bool) -> None:
    assert is_captured(Rank(world_size=ranks, device=torch.device(device))) == expected


@pytest.mark.parametrize("arch", ["rnn", "gru", "transformer"])
def test_replays_follow_the_rate_and_the_masks_of_each_step(arch: str) -> None:
    """Both are tensors on the device that are written between two replays."""
    model_keys: dict[str, Any] = {"tied": True, "embedding_keep": 0.7}
    if arch != "transformer":
        model_keys |= {"weight_keep": 0.7, "embedding_size": 16}
    schedule = {"schedule": "cosine", "decay_epochs": 9, "warmup_steps": 4, "momentum": 0.9}
    config = make_config(arch, optim=schedule, **model_keys)
    found = []
    for capture in (False, True):
        torch.manual_seed(1)
        model = build_model(config.model, VOCAB, 5)
        optimizer = build_optimizer(config.optim, model.parameters())
        optimizer.param_groups[0]["lr"] = torch.tensor(config.optim.lr)  # as on a GPU
        model.mask_key = torch.zeros((), dtype=torch.int64)
        step = TrainingStep(model, optimizer, clip_norm=0.1, tokens_per_step=5 * BATCH, capture=capture)
        state, seen, losses = model.initial_state(BATCH), [], []
        inputs, targets = windows(1)[0]
        for taken in range(8):
            set_learning_rate(optimizer, config.optim.learning_rate(taken // 4, taken % 4, 4))
            model.mask_key.fill_(step_key(config.seed, taken // 4, taken % 4))
            result = step(inputs, targets, state)
            losses.append(result.loss_nats.item())
            seen += [result.loss_nats.clone(), *kept(step)]
        assert len(set(losses)) == 8
        found.append(seen)
    for plain, captured in zip(*found, strict=True):
        assert torch.equal(plain, captured)


@everything
def test_a_warm_up_leaves_nothing_behind(arch: str, optim: OptimConfig) -> None:
    step, model = make_step(arch, optim)
    before = [tensor.detach().clone() for tensor in (*model.parameters(), torch.get_rng_state())]
    for inputs, targets in windows(2):
        step._warm_up(inputs, targets, model.initial_state(BATCH))
        for now, then in zip((*model.parameters(), torch.get_rng_state()), before, strict=True):
            assert torch.equal(now, then)
        assert not any(v.any() for entry in step.optimizer.state.values() for v in entry.values()), (
            "zero, as at the start"
        )
        assert all(parameter.grad is None for parameter in model.parameters())


ASSIGNS = (COUNTS[0], ("# hidden", "self.steps = self.steps + self.training; h = h * 0.9**self.steps"))


@pytest.mark.parametrize("changes", [COUNTS, ASSIGNS], ids=["in place", "assigned"])
def test_a_warm_up_changes_no_buffer(tmp_path: Path, changes: tuple[tuple[str, str], ...]) -> None:
    write_model(tmp_path, *changes)
    found = []
    for warms_up in (False, True):
        torch.manual_seed(1)
        model = build_model(CustomConfig(arch="custom", source="model.py:Model"), VOCAB, 5, folder=tmp_path).train()
        optimizer = build_optimizer(OPTIMIZERS[0], model.parameters())
        step = TrainingStep(model, optimizer, clip_norm=0.1, tokens_per_step=5 * BATCH)
        state, losses = model.initial_state(BATCH), []
        for inputs, targets in windows(3):
            if warms_up:
                step._warm_up(inputs, targets, state)
            result = step(inputs, targets, state)
            state = result.state
            losses.append(result.loss_nats.item())
        buffers = dict(model.named_buffers())
        assert [count.item() for name, count in buffers.items() if name.endswith("steps")] == [3]
        found.append(losses)
    assert found[0] == found[1]


def test_each_set_of_shapes_has_a_capture_of_its_own(cuda_graphs: list[Graph]) -> None:
    total = Captured(torch.sum)
    for _ in range(2):
        assert [total(torch.arange(float(n))).item() for n in (3, 4)] == [3, 6]
    assert len(cuda_graphs) == 2


def test_an_allocation_that_fails_in_a_capture_is_no_recording() -> None:
    calls: list[Tensor] = []

    def fails_once(x: Tensor) -> Tensor:
        calls.append(x)
        if len(calls) == WARM_UP_CALLS + 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return x + 1

    captured = Captured(fails_once)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        captured(torch.zeros(1))
    assert captured(torch.zeros(1)).item() == 1


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_captured_evaluation_gives_what_the_plain_one_gives_while_the_model_trains(
    arch: str, micro_batches: int, tmp_path: Path, cuda_graphs: list[Graph]
) -> None:
    config = make_config(arch, keep=0.5)
    corpus = load_corpus(config.data, write_text(tmp_path / "text", train_lines=60))
    trainer = Attempt(make_run(tmp_path / "run", config), corpus, micro_batches=micro_batches).trainer
    plain, captured = trainer.model.loss, Captured(trainer.model.loss)
    losses = []
    for _, event in zip(range(3), trainer.events(1), strict=False):
        trainer.window_loss = plain
        losses.append(trainer.evaluate("valid").loss_nats)
        trainer.window_loss = captured
        assert trainer.evaluate("valid").loss_nats == losses[-1], event
        trainer.model.train()
    assert len(set(losses)) == 3, "each evaluation sees other parameters"
    assert len(cuda_graphs) == (1 if micro_batches == 1 else 2), "eight columns in three parts have two sizes"


def attempt_at(folder: Path, config: RunConfig, *, capture: bool, steps: int = 0) -> Attempt:
    """An attempt that receives a stop request in the last of these steps."""
    corpus = load_corpus(config.data, write_text(folder / "text", train_lines=60))
    attempt = Attempt(make_run(folder / "run", config), corpus)
    trainer = attempt.trainer
    if capture:  # as the trainer does on a GPU
        trainer.take_step._captured = Captured(trainer.take_step._eager, warm_up=trainer.take_step._warm_up)
        trainer.window_loss = Captured(trainer.model.loss)
    return attempt.stop_after(steps)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_captured_run_that_is_stopped_and_resumed_ends_in_the_weights_of_one_that_was_not(
    tmp_path: Path, optimizer: str
) -> None:
    config = make_config("gru", optimizer=optimizer, lr=0.01, keep=0.5)
    plain, quiet, stopped = (tmp_path / name for name in ("plain", "quiet", "stopped"))
    attempt_at(plain, config, capture=False).train()
    attempt_at(quiet, config, capture=True).train()
    for steps in (2, 3):  # in the middle of the first epoch, twice
        with pytest.raises(StopRequested):
            attempt_at(stopped, config, capture=True, steps=steps).train()
    attempt_at(stopped, config, capture=True).train()
    first, second, third = (outcome(RunDirectory(folder / "run")) for folder in (plain, quiet, stopped))
    assert first == second == third

"""Captured steps and windows on a CPU, with :mod:`tests.seqlm.training.graphs` in place of CUDA graphs."""

import contextlib
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from seqlm.architectures import CustomConfig
from seqlm.config import RunConfig
from seqlm.data.corpus import load_corpus
from seqlm.model_files import read_model_files
from seqlm.models import build_model
from seqlm.optimizers import OptimConfig, build_optimizer, set_learning_rate
from seqlm.records.runs import Provenance
from seqlm.rundir import RunDirectory
from seqlm.training.attempt import StopRequested
from seqlm.training.capture import Captured, CaptureError, generators, is_captured
from seqlm.training.distributed import Rank
from seqlm.training.failure import failure_kind
from seqlm.training.step import TrainingStep
from seqlm.training.trainer import step_key
from tests.outcome import Outcome, outcome
from tests.seqlm.check_model.faulty import COUNTS, write_model
from tests.seqlm.training.graphs import Device, Graph
from tests.seqlm.training.studies import Attempt, make_config, make_run, write_text
from tests.seqlm.training.test_step import ARCHITECTURES, BATCH, OPTIMIZERS, VOCAB, everything, kept, make_step, windows

pytestmark = pytest.mark.usefixtures("cuda_graphs")


@pytest.mark.parametrize(
    ("device", "ranks", "variable", "expected"),
    [("cuda", 1, "", True), ("cuda", 2, "", False), ("cuda", 2, "1", True), ("cpu", 1, "1", False)],
)
def test_one_rank_on_a_gpu_is_captured_and_several_are_on_request(
    device: str, ranks: int, variable: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEQLM_CAPTURE_RANKS", variable)
    assert is_captured(Rank(world_size=ranks, device=torch.device(device))) == expected


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> Rank:
    """The first of two ranks. The other one gives the same in every reduction."""
    monkeypatch.setenv("SEQLM_CAPTURE_RANKS", "1")
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, src: None)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.mul_(2))
    return Rank(world_size=2)


@pytest.mark.parametrize("micro_batches", [1, 3])
@everything
def test_captured_gradients_of_a_rank_are_plain_ones(
    arch: str, optim: OptimConfig, micro_batches: int, two_ranks: Rank
) -> None:
    found = []
    for capture in (False, True):
        step, model = make_step(arch, optim, capture=capture, micro_batches=micro_batches, rank=two_ranks, flat=True)
        state, seen = model.initial_state(BATCH), []
        for number, (inputs, targets) in enumerate(windows(6)):
            set_learning_rate(step.optimizer, 0.01 / (1 + number))
            result = step(inputs, targets, state)
            state = result.state
            seen += [result.loss_nats.clone(), result.grad_norm.clone(), *kept(step)]
        found.append(seen)
    assert all(map(torch.equal, *found))


def test_no_rank_is_captured_if_another_cannot_be(
    tmp_path: Path, two_ranks: Rank, cuda_graphs: list[Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("gru")
    monkeypatch.setattr("seqlm.training.trainer.is_captured", lambda rank: True)
    monkeypatch.setattr(Rank, "from_rank", lambda self, source, value: value if source == 0 else "no capture there")
    corpus = load_corpus(config.data, write_text(tmp_path / "text", train_lines=60))
    trainer = Attempt(make_run(tmp_path / "run", config), corpus, rank=two_ranks).trainer
    assert "no capture there" in (trainer.prepare() or "")
    captures = len(cuda_graphs)
    assert captures
    list(itertools.islice(trainer.events(1), 4))
    assert len(cuda_graphs) == captures
    assert not any(graph.replays for graph in cuda_graphs)


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


def test_what_a_model_draws_on_the_cpu_for_its_gpu_is_undone_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second generator replaces the GPU's. A checkpoint keeps the states of both."""
    own = torch.Generator().manual_seed(5)
    monkeypatch.setattr(torch.cuda, "default_generators", (own,))
    drawn = generators(torch.device("cuda", 0))
    states = [generator.get_state() for generator in drawn]
    first = torch.rand(3), torch.rand(3, generator=own)
    for generator, state in zip(drawn, states, strict=True):
        generator.set_state(state)
    second = torch.rand(3), torch.rand(3, generator=own)
    assert all(map(torch.equal, first, second))


@everything
def test_to_record_a_step_changes_nothing(arch: str, optim: OptimConfig) -> None:
    step, model = make_step(arch, optim, capture=True)
    before = [tensor.detach().clone() for tensor in (*model.parameters(), torch.get_rng_state())]
    inputs, targets = windows(1)[0]
    step.prepare(inputs, targets, model.initial_state(BATCH))
    for now, then in zip((*model.parameters(), torch.get_rng_state()), before, strict=True):
        assert torch.equal(now, then)
    assert not any(v.any() for entry in step.optimizer.state.values() for v in entry.values()), "zero, as at the start"


ASSIGNS = (COUNTS[0], ("# hidden", "self.steps = self.steps + self.training; h = h * 0.9**self.steps"))


def own_step(folder: Path, *changes: tuple[str, str], capture: bool) -> TrainingStep:
    """The step of a user's own model."""
    write_model(folder, *changes)
    torch.manual_seed(1)
    model = build_model(CustomConfig(arch="custom", source="model.py:Model"), VOCAB, 5, folder=folder).train()
    optimizer = build_optimizer(OPTIMIZERS[0], model.parameters())
    return TrainingStep(model, optimizer, clip_norm=0.1, tokens_per_step=5 * BATCH, capture=capture)


@pytest.mark.parametrize("changes", [COUNTS, ASSIGNS], ids=["in place", "assigned"])
def test_to_record_a_step_changes_no_buffer(tmp_path: Path, changes: tuple[tuple[str, str], ...]) -> None:
    step = own_step(tmp_path, *changes, capture=True)
    before = {name: (buffer, buffer.clone()) for name, buffer in step.model.named_buffers()}
    is_refused = changes is ASSIGNS  # a replay would not assign
    with pytest.raises(CaptureError, match="assigns") if is_refused else contextlib.nullcontext():
        step.prepare(*windows(1)[0], step.model.initial_state(BATCH))
    for name, buffer in step.model.named_buffers():
        assert buffer is before[name][0]
        assert torch.equal(buffer, before[name][1])


WRITES = (("outputs = []", "outputs = []; given = state"), ("# logits", "given.copy_(state.detach())"))
"""A ``forward`` that writes into the state that it was given."""


def test_a_model_that_writes_into_its_state_starts_its_first_captured_step_from_the_state_that_it_is_given(
    tmp_path: Path,
) -> None:
    first = own_step(tmp_path, *WRITES, capture=False)(*windows(1)[0], torch.zeros(BATCH, 8))
    captured = own_step(tmp_path, *WRITES, capture=True)(*windows(1)[0], torch.zeros(BATCH, 8))
    assert captured.loss_nats.item() == first.loss_nats.item()
    assert torch.equal(captured.state, first.state)


def test_an_evaluation_of_such_a_model_is_captured_without_a_change_of_its_state(tmp_path: Path) -> None:
    model = own_step(tmp_path, *WRITES, capture=False).model
    state = torch.zeros(BATCH, 8)
    with torch.no_grad():
        captured = Captured(model.loss, model)(*windows(1)[0], state)[0].item()
        assert not state.any()
        assert captured == model.loss(*windows(1)[0], state)[0].item()


def test_each_set_of_shapes_has_a_capture_of_its_own(cuda_graphs: list[Graph]) -> None:
    total = Captured(torch.sum, torch.nn.Module())
    for _ in range(2):
        assert [total(torch.arange(float(n))).item() for n in (3, 4)] == [3, 6]
    assert len(cuda_graphs) == 2


def fails_in_a_capture(error: Exception) -> Captured[Tensor]:
    """A function that draws, and of which the capture fails after it has begun."""

    def draw(x: Tensor) -> Tensor:
        drawn = x + torch.rand(3)
        if torch.cuda.is_current_stream_capturing():
            raise error
        return drawn

    return Captured(draw, torch.nn.Module())


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "oom"),
        (RuntimeError("CUDA error: an unsupported operation"), "code"),
    ],
)
def test_a_capture_that_fails_leaves_the_process_as_it_was(cuda_device: Device, error: Exception, kind: str) -> None:
    generator = torch.get_rng_state()
    with pytest.raises((CaptureError, RuntimeError)) as caught:
        fails_in_a_capture(error).record(torch.zeros(3))
    assert failure_kind(caught.value) == kind
    if kind == "code":
        assert isinstance(caught.value, CaptureError)
        assert str(error) in str(caught.value)
    else:
        assert not isinstance(caught.value, CaptureError), "no reason to go on without a capture"
    assert torch.equal(torch.get_rng_state(), generator)
    assert (cuda_device.stream, cuda_device.pools, cuda_device.can_draw) == (cuda_device.default_stream, set(), True)


def test_what_waits_for_the_device_is_refused_before_a_capture_begins(cuda_device: Device) -> None:
    with pytest.raises(CaptureError, match="synchronizing"):
        Captured(lambda x: x + len(x.nonzero()), torch.nn.Module()).record(torch.zeros(3))
    assert not cuda_device.graphs
    assert Captured(torch.sum, torch.nn.Module())(torch.ones(3)).item() == 3, "no capture has failed"


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_captured_evaluation_gives_what_the_plain_one_gives_while_the_model_trains(
    arch: str, micro_batches: int, tmp_path: Path, cuda_graphs: list[Graph]
) -> None:
    config = make_config(arch, keep=0.5)
    corpus = load_corpus(config.data, write_text(tmp_path / "text", train_lines=60))
    trainer = Attempt(make_run(tmp_path / "run", config), corpus, micro_batches=micro_batches).trainer
    plain, captured = trainer.model.loss, Captured(trainer.model.loss, trainer.model)
    losses = []
    for _, event in zip(range(3), trainer.events(1), strict=False):
        trainer.window_loss = plain
        losses.append(trainer.evaluate("valid").loss_nats)
        trainer.window_loss = captured
        assert trainer.evaluate("valid").loss_nats == losses[-1], event
        trainer.model.train()
    assert len(set(losses)) == 3, "each evaluation sees other parameters"
    assert len(cuda_graphs) == (1 if micro_batches == 1 else 2), "eight columns in three parts have two sizes"


def attempt_at(
    folder: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, *, capture: bool, steps: int = 0
) -> Attempt:
    """An attempt of its own process, captured as on a GPU, that receives a stop request in the last of these steps.

    A user's own model is in the folder of ``folder``.
    """
    monkeypatch.setattr("seqlm.training.trainer.is_captured", lambda rank: capture)
    corpus = load_corpus(config.data, write_text(folder / "text", train_lines=60))
    run = RunDirectory(folder / "run")
    own = isinstance(config.model, CustomConfig)
    run.create(
        config, Provenance(name="run"), model_files=read_model_files(config.model, folder.parent) if own else None
    )
    return Attempt(run, corpus).stop_after(steps)


def outcomes(folder: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> list[Outcome]:
    """What a plain run ends in, one that is to be captured, and one of these that is stopped twice."""
    plain, quiet, stopped = (folder / name for name in ("plain", "quiet", "stopped"))
    attempt_at(plain, config, monkeypatch, capture=False).train()
    attempt_at(quiet, config, monkeypatch, capture=True).train()
    for steps in (2, 3):  # in the middle of the first epoch
        with pytest.raises(StopRequested):
            attempt_at(stopped, config, monkeypatch, capture=True, steps=steps).train()
    attempt_at(stopped, config, monkeypatch, capture=True).train()
    return [outcome(RunDirectory(place / "run")) for place in (plain, quiet, stopped)]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_captured_run_that_is_stopped_and_resumed_ends_in_the_weights_of_one_that_was_not(
    tmp_path: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("gru", optimizer=optimizer, lr=0.01, keep=0.5)
    first, second, third = outcomes(tmp_path, config, monkeypatch)
    assert first == second == third


DROPS = ("# hidden", "h = nn.functional.dropout(h, 0.3, self.training)")
WAITS = "h = h + 0 * len(h.nonzero())"
FAILS = "if torch.cuda.is_current_stream_capturing(){}: raise RuntimeError('an unsupported operation')"


@pytest.mark.parametrize(
    "line", [WAITS, FAILS.format(""), FAILS.format(" and not self.training")], ids=["waits", "fails", "in evaluation"]
)
def test_a_model_that_cannot_be_captured_trains_without_and_says_so(
    tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path, DROPS, ("# logits", line))
    model = CustomConfig(arch="custom", source="model.py:Model")
    model = replace(model, sha256=read_model_files(model, tmp_path).sha256)
    config = replace(make_config(optimizer="adam", lr=0.02), model=model)
    ends = outcomes(tmp_path, config, monkeypatch)
    assert ends[0] == ends[1] == ends[2]
    lines = [text for text in capfd.readouterr().out.splitlines() if "CUDA graph" in text]
    assert len(lines) == 4, "one for each attempt on the device"
    assert all(("synchronizing" if line == WAITS else "an unsupported operation (model.py:") in text for text in lines)

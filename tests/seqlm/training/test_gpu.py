"""What only a GPU does differently: captured steps and its memory. Each body also runs on the CPU.

On a GPU a step is captured as a CUDA graph and replayed; on a CPU the same lines run each time. Run the GPU's part
with ``python -m pytest -m gpu``.
"""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from seqlm.architectures import ModelConfig
from seqlm.data.corpus import Corpus, load_corpus
from seqlm.models import LanguageModel, build_model, build_reference
from seqlm.rundir import RunDirectory
from seqlm.training.attempt import StopRequested
from seqlm.training.distributed import Rank
from seqlm.training.failure import failure_kind
from seqlm.training.train import run_canary
from tests import commands
from tests.seqlm.training.studies import Attempt, make_config, make_run, write_text
from tests.seqlm.training.test_step import BATCH, OPTIMIZERS, make_step, windows

on_each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
gpu = [pytest.param("cuda", arch, marks=pytest.mark.gpu) for arch in ("rnn", "gru", "transformer")]
each_arch = pytest.mark.parametrize(("device", "arch"), [("cpu", "rnn"), *gpu])
ROOT = Path(__file__).parents[3]
BEFORE_REPLAYS = 4
"""Steps by which a captured step has been recorded, whatever runs before that."""


@pytest.mark.slow
@each_arch
def test_an_evaluation_between_replays_disturbs_nothing_and_sees_the_new_parameters(
    device: str, arch: str, tmp_path: Path
) -> None:
    config = make_config(arch, keep=0.5)
    corpus = load_corpus(config.data, write_text(tmp_path / "text"))
    run, exact = make_run(tmp_path / "run", config), Attempt(make_run(tmp_path / "exact", config), corpus).trainer
    losses, found = [], []
    for look in (False, True):
        trainer = attempt_at(run, corpus, device).trainer
        taken = []
        for number, _ in zip(range(BEFORE_REPLAYS + 6), trainer.events(1, read_each=True), strict=False):
            taken.append(trainer.total.loss_nats)
            if look:
                found.append(trainer.evaluate("valid").mean)
                if number >= BEFORE_REPLAYS:
                    assert found[-1] != found[-2], "the parameters have moved"
                exact.model.load_state_dict(trainer.model.state_dict())
                exact.model.double()
                assert found[-1] == pytest.approx(exact.evaluate("valid").mean, rel=1e-4)
                trainer.model.train()
        losses.append(taken)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def kind_of_a_capture_without_memory(device: str) -> str:
    """Return the kind of failure of a step that finds no memory where a GPU captures it."""
    step, model = make_step("gru", OPTIMIZERS[1], device=device, capture=device == "cuda")
    features = model.features

    def hungry(*arguments: Any) -> Any:
        if device == "cpu" or torch.cuda.is_current_stream_capturing():
            torch.empty(2**50, device=device)  # four pebibytes
        return features(*arguments)

    model.features = hungry  # type: ignore[method-assign]
    with pytest.raises(RuntimeError) as caught:
        [step(*window, model.initial_state(BATCH)) for window in windows(BEFORE_REPLAYS, device)]
    return failure_kind(caught.value)


@on_each_device
@pytest.mark.process  # what a failed capture leaves is nothing for other tests
def test_a_capture_that_finds_no_memory_is_a_failure_of_kind_oom(device: str) -> None:
    program = f"from tests.seqlm.training.test_gpu import *; print(kind_of_a_capture_without_memory({device!r}))"
    answer = commands.run([sys.executable, "-c", program], cwd=ROOT)
    assert answer.stdout == "oom\n", answer.stderr


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return load_corpus(make_config().data, write_text(tmp_path / "text"))


def attempt_at(run: RunDirectory, corpus: Corpus, device: str) -> Attempt:
    rank = Rank(device=torch.device(device, 0) if device == "cuda" else torch.device("cpu"))
    return Attempt(run, corpus, rank=rank)


@pytest.mark.slow
@on_each_device
def test_a_canary_holds_little_more_memory_than_its_tensors_need(device: str, tmp_path: Path, corpus: Corpus) -> None:
    config = make_config("gru", hidden_size=512, batch_size=16, seq_len=20, optimizer="adam", lr=1e-3)
    if device == "cuda":  # of this canary alone
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    run = make_run(tmp_path / "study" / "canary" / "run", config)
    attempt = attempt_at(run, corpus, device)
    record = run_canary(attempt.trainer, attempt.made, 12)
    parameters = sum(4 * math.prod(shape) for shape in [(512, 512 * 3)] * 3)
    assert record.peak_memory_bytes > 4 * parameters, "parameters, gradients, two moments"
    if device == "cpu":
        assert record.reserved_memory_bytes is None
    else:
        held, peak = record.reserved_memory_bytes, record.peak_memory_bytes
        assert peak <= held < 2 * peak + 64 * 2**20, "the capture shares the memory of the steps before it"
        assert held < record.device_memory_bytes


@pytest.mark.slow
@each_arch
def test_a_run_ends_like_the_equations_on_a_cpu(
    device: str, arch: str, tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_equations(config: ModelConfig, *sizes: Any, **options: Any) -> LanguageModel:
        return build_reference(build_model(config, *sizes, **options), config)

    histories = []
    config = make_config(arch, optimizer="adam", lr=0.003)
    for place, build in (("cpu", by_equations), (device, build_model)):
        monkeypatch.setattr("seqlm.training.trainer.build_model", build)
        attempt = attempt_at(make_run(tmp_path / build.__name__, config), corpus, place)
        result = attempt.train()
        assert attempt.run.read_result() is not None
        histories.append(
            [*(e[key] for e in attempt.trainer.history for key in ("train_loss", "val_loss")), result.test_loss]
        )
    assert histories[1] == pytest.approx(histories[0], rel=1e-3)
    assert histories[1][3] < histories[1][1] < math.log(len(corpus.vocabulary)) * 1.1, "it learns"


@pytest.mark.slow
@each_arch
def test_a_run_that_is_stopped_and_resumed_ends_like_a_quiet_one(
    device: str, arch: str, tmp_path: Path, corpus: Corpus
) -> None:
    config = make_config(arch, optimizer="adam", lr=0.01, epochs=2, keep=0.7)
    quiet = attempt_at(make_run(tmp_path / "quiet", config), corpus, device)
    quiet.train()
    stopped = attempt_at(make_run(tmp_path / "stopped", config), corpus, device)
    with pytest.raises(StopRequested):
        stopped.stop_after(quiet.trainer.steps + 7).train()
    resumed = attempt_at(stopped.run, corpus, device)
    resumed.train()
    losses = [[epoch["val_loss"] for epoch in attempt.trainer.history] for attempt in (resumed, quiet)]
    if device == "cpu":
        assert losses[0] == losses[1]
    else:  # bit for bit only in deterministic mode: benchmarks.gpu compares that, with real kills
        assert losses[0] == pytest.approx(losses[1], rel=2e-3)

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from benchmarks.graph_nodes import DTYPES, META, Nodes, like_a_gpu
from seqlm.config import Precision
from seqlm.models import LanguageModel, build_model
from seqlm.optimizers import AdamWConfig, OptimConfig, SgdConfig, build_optimizer, set_learning_rate
from seqlm.training.distributed import Rank
from seqlm.training.step import GPU_STEPS, READING_SECONDS, StepResult, StepResults, TrainingStep
from tests.seqlm.training.studies import make_config

ARCHITECTURES = ("rnn", "gru", "transformer")
OPTIMIZERS: tuple[OptimConfig, ...] = (
    AdamWConfig(optimizer="adamw", lr=0.01, weight_decay=0.1),
    SgdConfig(optimizer="sgd", lr=0.5),
    SgdConfig(optimizer="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
)
EVERYTHING = list(zip(ARCHITECTURES, OPTIMIZERS, strict=True))
everything = pytest.mark.parametrize(("arch", "optim"), EVERYTHING)
VOCAB, BATCH = 13, 4


def make_step(
    arch: str,
    optim: OptimConfig,
    *,
    device: str = "cpu",
    capture: bool = False,
    keep: float = 0.7,
    micro_batches: int = 1,
    dtype: torch.dtype | None = None,
    **ranks: Any,
) -> tuple[TrainingStep, LanguageModel]:
    torch.manual_seed(1)
    model = build_model(make_config(arch, keep=keep).model, VOCAB, 5, dtype).to(device)
    step = TrainingStep(
        model,
        build_optimizer(optim, model.parameters()),
        clip_norm=0.1,
        tokens_per_step=5 * BATCH,
        capture=capture,
        micro_batches=micro_batches,
        **ranks,
    )
    return step, model


def windows(count: int, device: str = "cpu") -> list[tuple[Tensor, Tensor]]:
    ids = torch.randint(VOCAB, (count * 5 + 1, BATCH), generator=torch.Generator().manual_seed(2)).to(device)
    return [(ids[5 * i : 5 * i + 5], ids[5 * i + 1 : 5 * i + 6]) for i in range(count)]


@pytest.mark.parametrize(("micro_batches", "precision"), [(1, "fp32"), (3, "bf16")])
@everything
def test_a_step_on_a_gpu_reads_nothing_back_and_does_the_same_operations_each_time(
    arch: str, optim: OptimConfig, micro_batches: int, precision: Precision
) -> None:
    """Tensors without values stand in for those of a GPU: to read one back is an error."""
    seen = []
    with like_a_gpu(), META:
        step, model = make_step(arch, optim, device="meta", micro_batches=micro_batches, dtype=DTYPES[precision])
        state = model.initial_state(BATCH)
        window = torch.zeros(5, BATCH, dtype=torch.int64)
        for _ in range(3):
            with Nodes() as nodes:
                state = step(window, window, state).state
            seen.append(nodes)
    assert len(seen[1].operations) > 30
    assert seen[1].operations == seen[2].operations, "after the first, in which the optimizer makes its state"
    assert {*seen[0].devices, *seen[2].devices} == {"meta"}, "no tensor of the CPU"


@pytest.mark.parametrize(("arch", "most"), [("rnn", 4), ("gru", 13)])
def test_a_time_step_of_a_layer_adds_few_nodes_to_the_graph_of_a_step(arch: str, most: int) -> None:
    """A product and what is point-wise, forward and backward; the GRU has two products."""
    counts = []
    with like_a_gpu(), META:
        step, model = make_step(arch, OPTIMIZERS[1], device="meta")
        for length in (12, 13):
            window = torch.zeros(length, BATCH, dtype=torch.int64)
            with Nodes() as nodes:
                step(window, window, model.initial_state(BATCH))
            counts.append(len(nodes.operations))
    assert (counts[1] - counts[0]) / len(model.layers) <= most  # type: ignore[arg-type]


def kept(step: TrainingStep) -> list[Tensor]:
    """Return copies of all parameters and of all that the optimizer keeps."""
    moments = [v for entry in step.optimizer.state.values() for v in entry.values() if isinstance(v, Tensor)]
    return [tensor.detach().clone() for tensor in (*step.model.parameters(), *moments)]


@pytest.mark.parametrize("on", ["plain", "graphs", pytest.param("cuda", marks=pytest.mark.gpu)])
@everything
def test_a_step_that_is_not_finite_moves_no_parameter_and_no_moment(
    arch: str, optim: OptimConfig, on: str, request: pytest.FixtureRequest
) -> None:
    if on == "graphs":
        request.getfixturevalue("cuda_graphs")
    device = "cuda" if on == "cuda" else "cpu"
    step, model = make_step(arch, optim, device=device, capture=on != "plain")
    first, second, third = windows(3, device)
    state = step(*first, model.initial_state(BATCH)).state.clone()
    good = kept(step)
    with torch.no_grad():
        bias = model.output.bias[0].item()
        model.output.bias[0] = torch.nan
    result = step(*second, state)
    assert not torch.isfinite(result.loss_nats + result.grad_norm)
    with torch.no_grad():
        model.output.bias[0] = bias
    for now, before in zip(kept(step), good, strict=True):
        assert torch.equal(now, before)
    assert torch.isfinite(step(*third, state).loss_nats)
    assert not all(map(torch.equal, kept(step), good)), "the next step moves on"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "optim", "micro_batches"),
    [(*pair, parts) for pair, parts in zip(EVERYTHING, (1, 3, 1), strict=True)],
)
def test_captured_steps_are_plain_steps_from_the_first_one_on(
    arch: str, optim: OptimConfig, micro_batches: int, captures: str
) -> None:
    """Bit for bit with the stand-in. Seeds and rates change between replays."""
    device, found = "cuda" if captures == "cuda" else "cpu", []
    for capture in (False, True):
        step, model = make_step(arch, optim, device=device, capture=capture, micro_batches=micro_batches)
        for group in step.optimizer.param_groups:
            group["lr"] = torch.tensor(optim.lr, device=device)
        state = model.initial_state(BATCH)
        torch.manual_seed(3)
        seen: list[Tensor] = []
        for number, (inputs, targets) in enumerate(windows(12, device)):
            if number == 4:
                torch.manual_seed(4)
            if number == 8:
                set_learning_rate(step.optimizer, 0.001)
            result = step(inputs, targets, state)
            state = result.state
            seen += [result.loss_nats.clone(), result.grad_norm.clone(), state.clone(), *kept(step)]
        found.append(seen if captures == "cuda" else [*seen, torch.get_rng_state()])
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if captures == "cuda" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(found[1], found[0], **tolerance)


def test_the_result_is_the_summed_loss_and_the_norm_before_clipping() -> None:
    step, model = make_step("gru", OPTIMIZERS[1], keep=1.0)
    ((inputs, targets),) = windows(1)
    before = [p.detach().clone() for p in model.parameters()]
    loss, _ = model.loss(inputs, targets, model.initial_state(BATCH))
    gradients = torch.autograd.grad(loss / (5 * BATCH), list(model.parameters()))
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    result = step(inputs, targets, model.initial_state(BATCH))
    assert result.loss_nats.item() == pytest.approx(loss.item(), rel=1e-6)
    assert result.grad_norm.item() == pytest.approx(norm.item(), rel=1e-5)
    assert norm > 0.1, "the limit must matter here"
    for parameter, old, gradient in zip(model.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(parameter, old - 0.5 * gradient * 0.1 / norm, rtol=1e-4, atol=1e-6)
    assert not result.state.requires_grad


RESULT = StepResult(torch.tensor(3.0), torch.tensor(4.0), torch.zeros(0))


def steps_between(results: StepResults, clock: Mock, step_seconds: float) -> int:
    """Take steps of a given length until they are to be read, and read them."""
    count = 0
    while not results.are_full:
        results.add(RESULT)
        clock.perf_counter.return_value += step_seconds
        count += 1
    losses, flags = results.read(True, False)
    world_size = results._rank.world_size
    assert losses == [(3.0 * world_size, 4.0)] * count
    assert flags == [True, False]
    return count


@pytest.mark.parametrize("step_seconds", [1e-4, 0.03, 0.5, 1.5, 19.0])
def test_readings_of_steps_are_two_seconds_or_a_step_apart(
    step_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Mock(perf_counter=Mock(return_value=7.0))
    monkeypatch.setattr("seqlm.training.step.time", clock)
    results = StepResults(Rank(), most=GPU_STEPS)
    assert steps_between(results, clock, 30.0) == 1, "the first step of a process takes long"
    steps_between(results, clock, step_seconds)
    for _ in range(2):
        count = steps_between(results, clock, step_seconds)
        assert count == max(1, min(GPU_STEPS, int(READING_SECONDS / step_seconds)))


def test_ranks_of_unlike_speed_read_after_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    meeting, given = threading.Barrier(2), {}

    def sum_of_both(self: Rank, tensor: Tensor) -> Tensor:
        given[self.index] = tensor
        meeting.wait()
        total = given[0] + given[1]
        meeting.wait()
        return total

    monkeypatch.setattr(Rank, "sum", sum_of_both)
    clocks = [Mock(perf_counter=Mock(return_value=0.0)) for _ in range(2)]
    number = threading.local()
    monkeypatch.setattr("seqlm.training.step.time", Mock(perf_counter=lambda: clocks[number.rank].perf_counter()))

    def counts(index: int) -> list[int]:
        number.rank = index
        results = StepResults(Rank(index=index, world_size=2), most=GPU_STEPS)
        return [steps_between(results, clocks[index], (0.09, 0.23)[index]) for _ in range(4)]

    with ThreadPoolExecutor(2) as ranks:
        first, second = ranks.map(counts, range(2))
    assert first == second
    assert 1 < first[-1] < GPU_STEPS


@pytest.mark.gpu
@everything
def test_a_gpu_step_gives_what_a_cpu_step_gives(arch: str, optim: OptimConfig) -> None:
    losses = []
    for device in ("cpu", "cuda"):
        step, model = make_step(arch, optim, device=device, keep=1.0)
        state = model.initial_state(BATCH)
        for inputs, targets in windows(6, device):
            result = step(inputs, targets, state)
            state = result.state
        losses.append(result.loss_nats.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)

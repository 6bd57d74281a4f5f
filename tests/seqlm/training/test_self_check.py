"""The self-check finds planted faults and nothing else, changes no run, and is repeated for another kind of device."""

import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from seqlm import machine
from seqlm.architectures import ModelConfig, RecurrentConfig, TransformerConfig
from seqlm.config import Precision, RunConfig
from seqlm.errors import EXIT_FAILED, SelfCheckError
from seqlm.models import LanguageModel, language_model, output_loss, products, recurrent, transformer
from seqlm.models.dropout import drop
from seqlm.models.language_model import FusedModel
from seqlm.models.output_loss import fused_output_loss
from seqlm.models.products import LinearMap
from seqlm.models.reference import TiedOutput
from seqlm.rundir import RunDirectory
from seqlm.training import self_check, worker
from seqlm.training.checkpoint import load_checkpoint
from seqlm.training.distributed import Rank
from seqlm.training.self_check import Case, cases, check_case, check_device
from tests.facts import failure_of
from tests.seqlm.training.graphs import Graph
from tests.seqlm.training.studies import make_config, make_run, write_text

WIDE = 1028
needs_bf16 = pytest.mark.skipif(not machine.has_bf16(), reason="this processor has no bf16 instructions")


def model_config(arch: str, hidden_size: int = 64, **options: Any) -> ModelConfig:
    if arch == "transformer":
        return TransformerConfig(arch="transformer", hidden_size=hidden_size, **options)
    return RecurrentConfig(arch=arch, hidden_size=hidden_size, **options)  # type: ignore[arg-type]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("SEQLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The checks that were computed, not found in the cache."""
    calls: list[tuple[Any, ...]] = []
    real = self_check.check_case

    def compute(*arguments: Any) -> float:
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(self_check, "check_case", compute)
    return calls


@pytest.fixture
def equations_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute what the equations give once for all tests whose faults are in fused operations."""
    compute = self_check._compute

    def compute_once(model: LanguageModel, case: Case, *, captured: bool) -> dict[str, Tensor]:
        if isinstance(model, FusedModel):
            return compute(model, case, captured=captured)
        if case not in _by_equations:
            _by_equations[case] = compute(model, case, captured=captured)
        return _by_equations[case]

    monkeypatch.setattr(self_check, "_compute", compute_once)


_by_equations: dict[Case, dict[str, Tensor]] = {}
"""The parameters and masks of a case are drawn with the same seed always."""


# -- what it finds -------------------------------------------------------------------------------------------------

EVERY = [
    *(("rnn", size, {}) for size in (64, 500, 1500)),
    *(("gru", size, {}) for size in (64, 501, 1500)),
    *(("transformer", 512, options) for options in ({}, {"mlp_size": 7})),
]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
@pytest.mark.parametrize(("arch", "hidden_size", "options"), EVERY)
def test_fused_operations_are_well_within_their_bounds(
    cache: Path, precision: Precision, arch: str, hidden_size: int, options: dict[str, Any]
) -> None:
    for case in cases(model_config(arch, hidden_size, **options)):
        assert 0 < check_case(case, precision, Rank()) < 0.5


def test_a_wide_recurrent_model_is_checked_with_the_product_that_only_wide_ones_have() -> None:
    (narrow,) = cases(model_config("gru", 1023))
    again, wide = cases(model_config("gru", 1500))
    assert (narrow.model.hidden_size, again.model.hidden_size, wide.model.hidden_size) == (71, 68, WIDE)
    assert products._can_be_packed(torch.empty(wide.model.hidden_size, wide.model.hidden_size))
    assert wide.steps >= products.MANY_STEPS
    assert wide.columns <= products.PACKED_ROWS


FAULTS = [
    *((recurrent.FusedRNN, "rnn", place) for place in (0, 2, 3, 4)),
    *((recurrent.FusedGRU, "gru", place) for place in (0, 2, 3, 4, 5)),
    *((transformer.NormLinear, "transformer", place) for place in (0, 1, 2, 3, 4)),
    (transformer.Attention, "transformer", 0),
    *((transformer.LinearResidual, "transformer", place) for place in (0, 1, 2, 3)),
    *((output_loss._OutputLoss, arch, place) for arch in ("rnn", "gru", "transformer") for place in (0, 1, 2)),
]
"""Each fused operation, and the place of each gradient that it returns to the training step."""


def plant(
    monkeypatch: pytest.MonkeyPatch, function: Any, place: int, change: Callable[[Tensor], Tensor | None]
) -> None:
    """Change one gradient that ``function.backward`` returns."""
    real = function.backward

    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        found = list(real(ctx, *gradients))
        found[place] = change(found[place])
        return tuple(found)

    monkeypatch.setattr(function, "backward", staticmethod(backward))


def too_small(gradient: Tensor) -> Tensor:
    return 0.85 * gradient


def one_entry_off(gradient: Tensor) -> Tensor:
    wrong = gradient.clone()
    wrong.view(-1)[gradient.numel() // 2] += 0.1 * gradient.abs().max()
    return wrong


def one_entry_nan(gradient: Tensor) -> Tensor:
    wrong = gradient.clone()
    wrong.view(-1)[-1] = math.nan
    return wrong


@pytest.mark.usefixtures("equations_once")
@pytest.mark.parametrize(
    ("function", "arch", "place", "precision"),
    [
        *((*fault, "fp32") for fault in FAULTS),
        *(pytest.param(*fault, "bf16", marks=needs_bf16) for fault in FAULTS[::4]),
    ],
)
def test_a_fault_in_any_gradient_of_any_fused_operation_is_found(
    cache: Path, monkeypatch: pytest.MonkeyPatch, function: Any, arch: str, place: int, precision: Precision
) -> None:
    plant(monkeypatch, function, place, too_small)
    with pytest.raises(SelfCheckError, match=f"{arch}, the gradient by .* in {precision}: .*found 0"):
        check_case(cases(model_config(arch))[0], precision, Rank())
    assert not cache.exists(), "a check that has failed is not kept"


@pytest.mark.usefixtures("equations_once")
@pytest.mark.parametrize("change", [one_entry_off, one_entry_nan])
@pytest.mark.parametrize(("function", "arch", "place"), FAULTS[::6])
def test_a_single_wrong_entry_is_found(
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: Any,
    arch: str,
    place: int,
    change: Callable[[Tensor], Tensor],
) -> None:
    plant(monkeypatch, function, place, change)
    what = "[0-9]" if change is one_entry_off else "(nan|inf)"
    with pytest.raises(SelfCheckError, match=f"{arch}, the gradient.*found {what}"):
        check_case(cases(model_config(arch))[0], "fp32", Rank())


def test_a_wrong_forward_pass_is_reported_before_the_gradients_that_it_ruins(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = recurrent.FusedRNN.forward
    monkeypatch.setattr(recurrent.FusedRNN, "forward", staticmethod(lambda *given: 1.2 * real(*given)))
    with pytest.raises(SelfCheckError, match="rnn, the state "):
        check_case(cases(model_config("rnn"))[0], "fp32", Rank())
    real_loss = output_loss._OutputLoss.forward
    monkeypatch.setattr(recurrent.FusedRNN, "forward", staticmethod(real))
    monkeypatch.setattr(output_loss._OutputLoss, "forward", staticmethod(lambda *given: math.nan * real_loss(*given)))
    with pytest.raises(SelfCheckError, match=r"rnn, the loss, in fp32: .* found nan"):
        check_case(cases(model_config("rnn"))[0], "fp32", Rank())


def without_words(embedded: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
    """No word is dropped."""
    return embedded


def without_weights(x: Tensor, mask: Tensor | None) -> Tensor:
    """No weight is dropped: weights have two axes, hidden states three."""
    return x if x.dim() == 2 else drop(x, mask)


def with_tied_gradients_lost(output: LinearMap, *arguments: Any) -> Tensor:
    """The matrix gets no gradient from a tied output layer."""
    if isinstance(output, TiedOutput):
        free = nn.Linear(1, 1, device="meta")
        free.weight, free.bias = nn.Parameter(output.weight.detach()), output.bias
        output = free
    return fused_output_loss(output, *arguments)


MODULES = {"rnn": recurrent, "gru": recurrent, "transformer": transformer}
VARIANTS = [
    *((arch, {"embedding_keep": 0.9}, MODULES[arch], "drop_words", without_words) for arch in MODULES),
    *((arch, {"weight_keep": 0.9}, MODULES[arch], "drop", without_weights) for arch in ("rnn", "gru")),
    *((arch, {"tied": True}, language_model, "fused_output_loss", with_tied_gradients_lost) for arch in MODULES),
]
"""Architecture, key of the variant, and an operation that goes wrong only with it."""


@pytest.mark.parametrize("hidden_size", [64, pytest.param(1600, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("arch", "keys", "module", "operation", "fault"), VARIANTS)
def test_a_fault_in_a_variant_of_a_model_is_found_where_a_run_uses_it(
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    arch: str,
    keys: dict[str, Any],
    module: Any,
    operation: str,
    fault: Any,
    hidden_size: int,
) -> None:
    if "tied" in keys and arch != "transformer":
        keys = {**keys, "embedding_size": hidden_size}
    monkeypatch.setattr(module, operation, fault)
    for case in cases(model_config(arch, hidden_size)):
        check_case(case, "fp32", Rank())
    for case in cases(model_config(arch, hidden_size, **keys)):
        with pytest.raises(SelfCheckError, match=f"{arch}, "):
            check_case(case, "fp32", Rank())


class RoundedProducts(TorchDispatchMode):
    """Products of float32 whose operands are cut to the ten bits of TF32."""

    FIRST_OPERAND: ClassVar = {"mm": 0, "bmm": 0, "addmm": 1, "addmm_": 1, "baddbmm": 1}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").partition(".")[0]
        first = self.FIRST_OPERAND.get(name)
        if first is not None:
            args = (*args[:first], *map(self._cut, args[first : first + 2]), *args[first + 2 :])
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _cut(tensor: Tensor) -> Tensor:
        if tensor.dtype != torch.float32:
            return tensor
        return (tensor.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


@pytest.fixture
def no_gpu_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, by the operations that a GPU has."""
    monkeypatch.setattr(products, "fp32_library", lambda: "blas")
    monkeypatch.setattr(self_check, "use_precision", lambda precision, device: None)


@pytest.mark.slow
@pytest.mark.usefixtures("no_gpu_needed")
@pytest.mark.parametrize("arch", ["rnn", "gru", "transformer"])
def test_tf32_emulated_is_well_within_its_bounds_and_far_beyond_those_of_fp32(cache: Path, arch: str) -> None:
    case = cases(model_config(arch))[0]
    with RoundedProducts():
        assert 0.02 < check_case(case, "tf32", Rank()) < 0.5
        with pytest.raises(SelfCheckError, match=f"{arch}, .* in fp32"):
            check_case(case, "fp32", Rank())


def test_the_captured_step_is_compared_after_its_replays(
    cache: Path, monkeypatch: pytest.MonkeyPatch, cuda_graphs: list[Graph]
) -> None:
    monkeypatch.setattr(self_check, "is_captured", lambda rank: True)
    replay, replays = Graph.replay, list[Graph]()

    def wrong_the_second_time(graph: Graph) -> None:
        replay(graph)
        replays.append(graph)
        if len(replays) == self_check.REPLAYS:
            for tensor in itertools.chain(*(made for *_, made in graph.operations)):
                if tensor.is_floating_point() and tensor.is_contiguous():
                    tensor.mul_(0.5)

    monkeypatch.setattr(Graph, "replay", wrong_the_second_time)
    with pytest.raises(SelfCheckError, match=r"^self-check on .*: gru as a CUDA graph, .* found"):
        check_case(cases(model_config("gru"))[0], "fp32", Rank())
    assert len(replays) == self_check.REPLAYS > 1


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "hidden_size", "options"), EVERY[::3])
def test_a_step_that_is_recorded_and_replayed_passes(
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    cuda_graphs: list[Graph],
    arch: str,
    hidden_size: int,
    options: dict[str, Any],
) -> None:
    monkeypatch.setattr(self_check, "is_captured", lambda rank: True)
    case = cases(model_config(arch, hidden_size, **options))[0]  # the second one is for a CPU alone
    assert 0 < check_case(case, "fp32", Rank()) < 0.5
    assert len(cuda_graphs) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize(("arch", "hidden_size", "options"), EVERY)
def test_a_gpu_computes_what_the_equations_say_captured_too_and_keeps_no_memory(
    cache: Path, precision: Precision, arch: str, hidden_size: int, options: dict[str, Any]
) -> None:
    rank = Rank(device=torch.device("cuda", 0))
    before = torch.cuda.get_rng_state(rank.device), torch.cuda.memory_reserved(rank.device)
    for case in cases(model_config(arch, hidden_size, **options)):
        assert 0 < check_case(case, precision, rank) < 0.5
    assert torch.equal(torch.cuda.get_rng_state(rank.device), before[0])
    assert torch.cuda.memory_reserved(rank.device) <= before[1]


@pytest.mark.gpu
def test_a_fault_on_a_gpu_is_found_too(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, recurrent.FusedGRU, 5, too_small)
    with pytest.raises(SelfCheckError, match="gru, the gradient by"):
        check_case(cases(model_config("gru"))[0], "fp32", Rank(device=torch.device("cuda", 0)))


# -- what it is kept for -------------------------------------------------------------------------------------------


def test_a_check_that_has_passed_is_not_repeated_until_its_record_is_damaged(cache: Path, computed: list[Any]) -> None:
    for _ in range(2):
        check_device(make_config("rnn"), Rank())
    assert len(computed) == 1
    (index,) = cache.glob("self-check/*/index.json")
    facts = json.loads(index.read_text())["facts"]
    assert (facts["device"], facts["precision"], facts["torch"]) == (Rank().device_name, "fp32", torch.__version__)
    assert 0 < facts["largest_error"] < facts["bound"]
    index.write_text(index.read_text()[:-20])
    check_device(make_config("rnn"), Rank())
    assert len(computed) == 2


def test_every_size_with_the_same_alignment_shares_its_check(cache: Path, computed: list[Any]) -> None:
    for size in (16, 32, 512):
        check_device(make_config("gru", hidden_size=size, num_layers=3, keep=0.7), Rank())
    assert len(computed) == 1
    check_device(make_config("gru", hidden_size=17), Rank())
    assert len(computed) == 2


@pytest.mark.parametrize("arch", ["gru", "transformer"])
def test_each_variant_is_checked_once_whatever_it_keeps(cache: Path, computed: list[Any], arch: str) -> None:
    keeps = ["embedding_keep"] if arch == "transformer" else ["embedding_keep", "weight_keep"]
    variants = [{}, {"tied": True}, *({name: keep} for name in keeps for keep in (0.7, 0.9)), dict.fromkeys(keeps, 0.5)]
    for _ in range(2):
        for variant in variants:
            widths = {"embedding_size": 16} if arch == "gru" else {}
            check_device(make_config(arch, **widths, **variant), Rank())
    different = [{}, {"tied"}, *({name} for name in keeps), *([set(keeps)] if len(keeps) > 1 else [])]
    assert len(computed) == len(different)


def test_another_torch_processor_device_or_code_is_checked_anew(
    cache: Path, computed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[tuple[Any, str, Any]] = [
        (Rank, "matmul", "another"),
        (torch, "__version__", "2.99"),
        (torch.backends.cpu, "get_cpu_capability", lambda: "another"),
        (torch, "are_deterministic_algorithms_enabled", lambda: True),
        (Rank, "device_name", "another"),
        (Path, "read_bytes", lambda path: path.name.encode()),
    ]
    check_device(make_config("rnn"), Rank())
    for other in others:
        with monkeypatch.context() as changed:
            changed.setattr(*other)
            check_device(make_config("rnn"), Rank())
    check_device(make_config("rnn"), Rank())
    assert len(computed) == 1 + len(others)


def test_a_cache_that_cannot_be_written_costs_the_check_and_nothing_else(
    tmp_path: Path, computed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEQLM_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        check_device(make_config("rnn"), Rank())
    assert len(computed) == 2


def test_only_the_first_rank_checks(cache: Path, computed: list[Any]) -> None:
    check_device(make_config("rnn"), Rank(index=1, world_size=2))
    assert computed == []
    check_device(make_config("rnn"), Rank(index=0, world_size=2))
    assert len(computed) == 1


# -- what it leaves ------------------------------------------------------------------------------------------------


def test_random_generators_are_where_they_were(cache: Path, computed: list[Any]) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    check_device(make_config("transformer"), Rank())
    assert len(computed) == 1
    assert torch.equal(torch.get_rng_state(), before)


def worker_run(folder: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[RunDirectory, int]:
    """A run of the worker in this process, and its exit code."""
    monkeypatch.setenv("SEQLM_DATA", str(write_text(folder / "text", train_lines=60)))
    monkeypatch.setenv("SEQLM_DEVICE", "cpu")
    monkeypatch.setattr(worker.StopSignal, "install", lambda self: None)  # the handlers of this process stay
    run = make_run(folder / "study" / "run", config)
    return run, worker.main([str(run.path)])


@pytest.mark.slow
def test_a_run_is_bit_equal_with_and_without_the_check(
    tmp_path: Path, cache: Path, computed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("gru", keep=0.5, epochs=1)
    trained = []
    for name in ("checked", "kept", "without"):
        if name == "without":
            monkeypatch.setattr(worker, "check_device", lambda *_: None)
        run, code = worker_run(tmp_path / name, config, monkeypatch)
        assert code == 0
        trained.append(load_checkpoint(run.last_checkpoint, config.fingerprint()))
    assert len(computed) == 1
    for name, parameter in trained[-1].model.items():
        assert all(torch.equal(other.model[name], parameter) for other in trained), name
    assert len({other.history[0]["train_loss"] for other in trained}) == 1


@pytest.mark.slow
def test_a_run_on_a_device_that_computes_wrongly_fails_as_code_with_one_line_and_trains_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(monkeypatch, recurrent.FusedGRU, 5, too_small)
    run, code = worker_run(tmp_path, make_config("gru"), monkeypatch)
    assert code == EXIT_FAILED
    failure = failure_of(run)
    assert failure is not None
    assert failure["kind"] == "code"
    assert re.fullmatch(
        r"self-check on .*: gru, the gradient by layers\.\d\.U_h\.weight, in fp32: expected an error of at most "
        r"\S+ of the largest entry, found 0\.15; use another device, .*SEQLM_SELF_CHECK=warn.*",
        failure["message"],
    )
    assert capsys.readouterr().err == f"error: {failure['message']}\n"
    assert not run.metrics_file.exists()
    assert worker_run(tmp_path / "other", make_config("rnn"), monkeypatch)[1] == 0


def test_a_run_whose_self_check_may_only_warn_trains_and_is_checked_again_the_next_time(
    tmp_path: Path,
    cache: Path,
    computed: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plant(monkeypatch, recurrent.FusedGRU, 5, too_small)
    monkeypatch.setenv("SEQLM_SELF_CHECK", "warn")
    for times in (1, 2):
        run, code = worker_run(tmp_path / str(times), make_config("gru", epochs=1), monkeypatch)
        assert code == 0
        assert run.read_result() is not None
        assert len(computed) == times
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "self-check" in line]
        assert re.search(r"gru, the gradient by .* found 0\.15.*SEQLM_SELF_CHECK", line)
    monkeypatch.setenv("SEQLM_SELF_CHECK", "stop")
    assert worker_run(tmp_path / "stopped", make_config("gru"), monkeypatch)[1] == EXIT_FAILED

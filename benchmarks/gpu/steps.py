"""Training steps, in a process of its own: hidden synchronisations, times, kernels, memory, and other variants."""

from __future__ import annotations

import functools
import gc
import itertools
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import card
from benchmarks.gpu.folder import Budget, Results
from benchmarks.implementations import Step, build_step, draw_windows
from benchmarks.interleave import interleave
from benchmarks.measurement import Settings, StepTurn, measure_shape
from benchmarks.models import WARMUP_ROUNDS
from benchmarks.names import LITERAL, PRECISIONS, builtin, ours
from benchmarks.peak_memory import measure_peak_memory
from benchmarks.shapes import Shape, published, select, tiny
from jobs.plan.estimate import flops_per_token
from seqlm.architectures import TransformerConfig
from seqlm.config import Precision
from seqlm.errors import BackendError
from seqlm.models import build_model
from seqlm.training.optimizers import build_optimizer
from seqlm.training.precision import use_precision
from seqlm.training.step import TrainingStep

STUDIED = ("rnn-2x1500-b20", "gru-2x1500-b20", "transformer-2x512-b128", "transformer-6x512-b128")
"""The shapes of most published runs: what is not worth measuring at all of them is measured at these."""
UNCHECKED_STEPS = 5
"""Steps before those: libraries set themselves up, and the step is captured and replayed once."""
CHECKED_STEPS = 10
"""Steps that are checked for synchronisations."""
SECONDS = 6.0
"""Time of the rounds of a shape."""
SECONDS_OF_A_SHAPE = 25.0
"""Least time that has to be left for another shape: models are built, profiled and measured for memory as well."""
ROOT = Path(__file__).resolve().parents[2]

Say = Callable[[str], None]


def run_part(part: str, results: Results, budget: Budget, device: torch.device, document: dict[str, Any]) -> None:
    """Measure a part and write its file as it goes. ``document`` holds what the file says of the circumstances.

    Raises:
        FileError: the file cannot be written.
    """
    work = {"synchronisations": synchronisations, "steps": steps, "variants": variants}[part]
    work(document, lambda: results.write(part, document), budget, device)
    results.write(part, document)


def _say(text: str) -> None:
    print(text, flush=True)


# -- hidden synchronisations ---------------------------------------------------------------------------------------


def synchronisations(document: dict[str, Any], save: Callable[[], None], budget: Budget, device: torch.device) -> None:
    """Run steps of each architecture, precision and kind of capture while every wait for the device is an error."""
    on_gpu = device.type == "cuda"
    document["checked"] = on_gpu  # there is nothing to wait for on a CPU
    shapes = select(STUDIED[:3]) if on_gpu else list(tiny())
    shapes += [_with_sdpa(shape) for shape in shapes if isinstance(shape.config.model, TransformerConfig)]
    document["cases"] = []
    for shape, precision, capture in itertools.product(shapes, PRECISIONS, (True, False)):
        name = f"{shape.name}{_attention(shape)} {precision} {'captured' if capture else 'eager'}"
        try:
            error = _first_synchronisation(shape, precision, device, capture=capture and on_gpu)
        except BackendError:
            continue  # no such precision here
        document["cases"].append({"name": name, "error": error})
        _say(f"{name}: {error or 'no synchronisation'}")
    document["complete"] = True
    document["failures"] = [f"{case['name']}: {case['error']}" for case in document["cases"] if case["error"]]


def _first_synchronisation(shape: Shape, precision: Precision, device: torch.device, *, capture: bool) -> str | None:
    """Return where a step waits for the device, and why; ``None`` if no step does."""
    config = shape.config
    model = build_model(config.model, shape.vocab_size, config.train.seq_len, use_precision(precision, device))
    model.to(device)
    step = TrainingStep(
        model,
        build_optimizer(config.optim, model.parameters()),
        clip_norm=config.train.clip_norm,
        tokens_per_step=shape.tokens,
        capture=capture,
    )
    windows = draw_windows(shape, device, UNCHECKED_STEPS + CHECKED_STEPS)
    state = model.initial_state(config.train.batch_size)
    for inputs, targets in windows[:-CHECKED_STEPS]:
        state = step(inputs, targets, state).state
    try:
        with _synchronising_is_an_error(device):
            for inputs, targets in windows[-CHECKED_STEPS:]:
                state = step(inputs, targets, state).state
    except RuntimeError as error:
        own = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(ROOT / "seqlm")]
        where = f"{Path(own[-1].filename).relative_to(ROOT)}:{own[-1].lineno}: " if own else ""
        return f"{where}{_line(error)}"
    finally:
        use_precision("fp32", device)
    return None


@contextmanager
def _synchronising_is_an_error(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# -- times, kernels, memory ----------------------------------------------------------------------------------------


def steps(document: dict[str, Any], save: Callable[[], None], budget: Budget, device: torch.device) -> None:
    """Measure every published shape (a tiny one of each architecture on a CPU), those measured already left out."""
    shapes = _by_use(published()) if device.type == "cuda" else list(tiny())
    document.setdefault("peaks", None)
    if document["peaks"] is None:
        document["peaks"] = card.peaks(device)
        save()
    settings = _settings(device, SECONDS)
    _each_shape(document, save, budget, shapes, lambda shape: _measure(shape, settings, document["peaks"]))


def _by_use(shapes: tuple[Shape, ...]) -> list[Shape]:
    """Return the shapes of most published runs first: time may run out."""
    return sorted(shapes, key=lambda shape: STUDIED.index(shape.name) if shape.name in STUDIED else len(STUDIED))


def _settings(device: torch.device, seconds: float) -> Settings:
    on_gpu = device.type == "cuda"
    return Settings(
        seconds=seconds if on_gpu else 0.0,
        least_rounds=5 if on_gpu else 2,
        warmup_rounds=WARMUP_ROUNDS[device.type],
        precisions=PRECISIONS,
        threads=torch.get_num_threads(),
        device=device,
        peak_memory=False,  # in processes of their own; torch's own count needs none
    )


def _each_shape(
    document: dict[str, Any],
    save: Callable[[], None],
    budget: Budget,
    shapes: list[Shape],
    measure: Callable[[Shape], dict[str, Any]],
) -> None:
    """Measure what is missing of ``shapes`` while there is time; one that fails is tried again by the next call."""
    done: dict[str, Any] = document.setdefault("shapes", {})
    for shape in shapes:
        if done.get(shape.name, {}).get("error", "missing") is None:
            continue
        if budget.seconds_left < SECONDS_OF_A_SHAPE:
            break
        try:
            done[shape.name] = {**measure(shape), "error": None}
        except RuntimeError as error:  # of CUDA: a card that is too small for a shape may do for the next one
            done[shape.name] = {"name": shape.name, "error": _line(error)}
            _say(f"{shape.name}: {_line(error)}")
        _release()
        save()
    document["complete"] = all(done.get(shape.name, {}).get("error", "missing") is None for shape in shapes)
    document["failures"] = [f"{name}: {record['error']}" for name, record in done.items() if record["error"]]


def _measure(shape: Shape, settings: Settings, peaks: dict[str, Any]) -> dict[str, Any]:
    device = settings.device
    record = measure_shape(shape, settings, lambda text: _say(f"{shape.name}: {text}"))
    measured = [name for name, spread in record["step_ms"].items() if spread is not None]
    profiles, megabytes = {}, {}
    for name in measured:
        _say(f"{shape.name}: kernels and memory of {name}")
        if name != LITERAL:  # thousands of kernels, which say nothing new
            profiles[name] = card.profile(_repeated(build_step(name, shape, device), shape, settings), device)
        _release()
        megabytes[name] = round(measure_peak_memory(name, shape, device).bytes / 1e6, 1)
        _release()
    shares = {}
    for precision in settings.precisions:
        if ours(precision) in measured:
            seconds = record["step_ms"][ours(precision)]["median"] / 1e3
            gflop = (flops_per_token(shape.config, shape.vocab_size) or 0) * shape.tokens / 1e9
            traffic = card.least_traffic_bytes(shape) / 1e9
            shares[ours(precision)] = {
                "gemm": round(gflop / seconds / peaks["gemm_gflops"][precision], 4),
                "bandwidth": round(traffic / seconds / peaks["copy_gbytes_per_second"], 4),
            }
    return {**record, "profiles": profiles, "peak_memory_mb": megabytes, "share_of_card": shares}


def _repeated(step: Step, shape: Shape, settings: Settings) -> Callable[[], object]:
    """Return a call that takes one more step, of a step that has been warmed up."""
    windows = itertools.cycle(draw_windows(shape, settings.device, 2))
    for _ in range(settings.warmup_rounds):
        step(*next(windows))
    return lambda: step(*next(windows))


def _release() -> None:
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


# -- variants ------------------------------------------------------------------------------------------------------


def variants(document: dict[str, Any], save: Callable[[], None], budget: Budget, device: torch.device) -> None:
    """Time ``torch.compile`` of torch.nn's models and our Transformer with sdpa, beside the same without.

    On a CPU the models go through TorchDynamo alone (``backend="eager"``): there is no need for a compiler.
    """
    on_gpu = device.type == "cuda"
    document["torch_compile_backend"] = backend = "inductor" if on_gpu else "eager"
    settings = _settings(device, SECONDS)
    shapes = select(STUDIED) if on_gpu else list(tiny())
    _each_shape(document, save, budget, shapes, lambda shape: _measure_variants(shape, settings, backend))


def _measure_variants(shape: Shape, settings: Settings, backend: str) -> dict[str, Any]:
    device = settings.device
    windows = draw_windows(shape, device, 8)
    turns: dict[str, StepTurn] = {}
    refused: dict[str, str] = {}
    torch._dynamo.reset()
    for name, build in _variants_of(shape, settings, backend).items():
        _say(f"{shape.name}: {name}")
        try:
            turn = StepTurn(build(), windows, device)
            turn()  # where torch.compile compiles
        except Exception as error:  # of TorchDynamo, Inductor, Triton or a compiler, or no such precision here
            refused[name] = _line(error)
            continue
        turns[name] = turn
    rounds = interleave(
        turns,
        seconds=settings.seconds,
        least_rounds=settings.least_rounds,
        warmup_rounds=settings.warmup_rounds,
    )
    pairs = [(fast, plain) for plain in turns for fast in (f"{plain} compiled", f"{plain} sdpa")]
    pairs += [(ours(p), f"{builtin(p)} compiled") for p in settings.precisions]
    return {
        "name": shape.name,
        "step_ms": {name: asdict(rounds.spread(name)) for name in turns},
        "times_as_fast": {
            f"{fast} / {slow}": asdict(rounds.ratio(slow, fast)) for fast, slow in pairs if {fast, slow} <= turns.keys()
        },
        "refused": refused,
    }


def _variants_of(shape: Shape, settings: Settings, backend: str) -> dict[str, Callable[[], Step]]:
    """Return what builds each variant and what it is compared with."""
    device = settings.device
    found: dict[str, Callable[[], Step]] = {}

    for precision in settings.precisions:
        for name in (builtin(precision), ours(precision)):
            found[name] = functools.partial(build_step, name, shape, device)
        found[f"{builtin(precision)} compiled"] = functools.partial(
            build_step, builtin(precision), shape, device, backend
        )
        if isinstance(shape.config.model, TransformerConfig):
            found[f"{ours(precision)} sdpa"] = functools.partial(build_step, ours(precision), _with_sdpa(shape), device)
    return found


def _with_sdpa(shape: Shape) -> Shape:
    model = shape.config.model
    assert isinstance(model, TransformerConfig)
    return replace(shape, config=replace(shape.config, model=replace(model, attention="sdpa")))


def _attention(shape: Shape) -> str:
    model = shape.config.model
    return " sdpa" if isinstance(model, TransformerConfig) and model.attention == "sdpa" else ""

"""Training steps: hidden synchronisations, times, kernels, memory, and other variants.

Each case is measured in a process of its own: CUDA cannot be used any more after some errors, such as a failed capture.
"""

from __future__ import annotations

import functools
import gc
import itertools
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import card
from benchmarks.gpu.choices import choice_cases
from benchmarks.gpu.folder import Results
from benchmarks.implementations import Step, build_step, draw_windows
from benchmarks.interleave import interleave
from benchmarks.measurement import Settings, StepTurn, measure_shape
from benchmarks.models import WARMUP_ROUNDS
from benchmarks.names import PRECISIONS, REFERENCE, builtin, ours
from benchmarks.peak_memory import measure_peak_memory
from benchmarks.ranks import measure
from benchmarks.shapes import Shape, published, select, tiny
from jobs.plan.estimate import flops_per_token
from seqlm.config import Precision
from seqlm.models import build_model
from seqlm.models.products import use_precision
from seqlm.optimizers import build_optimizer
from seqlm.training.step import TrainingStep

STUDIED = ("rnn-2x1500-b20", "gru-2x1500-b20", "transformer-2x512-b128", "transformer-6x512-b128")
"""The shapes of most published runs: what is not worth measuring at all of them is measured at these."""
UNCHECKED_STEPS = 5
"""Steps before those: libraries set themselves up, and the step is captured and replayed once."""
CHECKED_STEPS = 10
"""Steps that are checked for synchronisations."""
RANKS = 2
ROUNDS_OF_RANKS = {"cuda": 100, "cpu": 2}
SECONDS = 6.0
"""Time of the rounds of a shape."""
SECONDS_OF_A_CASE = 25.0
"""Least time that has to be left for another case: models are built, profiled and measured for memory as well."""
ROOT = Path(__file__).resolve().parents[2]


def cases(part: str, document: dict[str, Any], device: torch.device) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what measures each case of a part, by name. Each is to be called in a process of its own.

    ``document`` is the part's file; a case may add to it what all cases need.
    """
    on_gpu = device.type == "cuda"
    settings = _settings(device, SECONDS)
    match part:
        case "synchronisations":
            return dict(_synchronisation_cases(document["device"]["precisions"], device))
        case "steps":
            shapes = _by_use(published()) if on_gpu else list(tiny())
            return {shape.name: functools.partial(_measure, shape, settings, document) for shape in shapes}
        case "choices":
            return dict(choice_cases(document["device"]["precisions"], device))
        case "ranks":
            if on_gpu and document["device"]["visible_devices"] < RANKS:
                document["needs"] = f"{RANKS} GPUs"
                return {}
            shapes = select(STUDIED) if on_gpu else list(tiny())
            return {shape.name: functools.partial(_measure_ranks, shape, device) for shape in shapes}
        case "variants":
            shapes = select(STUDIED) if on_gpu else list(tiny())
            return {shape.name: functools.partial(_measure_variants, shape, settings) for shape in shapes}
    raise AssertionError(f"{part} has no cases")


def run_case(part: str, name: str, results: Results, device: torch.device) -> None:
    """Measure a case and put its record into the part's file. What CUDA refuses is the case's error.

    Raises:
        FileError: the file cannot be written.
    """
    document = results.read(part)
    try:
        record = {**cases(part, document, device)[name](), "error": None}
    except RuntimeError as error:
        record = {"name": name, "error": _line(error)}
    document["cases"][name] = record
    results.write(part, document)


def _say(text: str) -> None:
    print(text, flush=True)


# -- hidden synchronisations ---------------------------------------------------------------------------------------


def _synchronisation_cases(
    precisions: Sequence[Precision], device: torch.device
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield steps of each architecture, precision and kind of capture, in which a wait for the device is an error.

    On a CPU there is nothing to wait for and nothing to capture.
    """
    on_gpu = device.type == "cuda"
    shapes = select(STUDIED[:3]) if on_gpu else list(tiny())
    for shape, precision, capture in itertools.product(shapes, precisions, (True, False) if on_gpu else (False,)):
        name = f"{shape.name} {precision} {'captured' if capture else 'eager'}"
        yield name, functools.partial(_synchronises, name, shape, precision, device, capture)


def _synchronises(name: str, shape: Shape, precision: Precision, device: torch.device, capture: bool) -> dict[str, Any]:
    where = _first_synchronisation(shape, precision, device, capture=capture)
    _say(f"{name}: {where or 'no synchronisation'}")
    return {"name": name, "waits_at": where}


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


def _measure(shape: Shape, settings: Settings, document: dict[str, Any]) -> dict[str, Any]:
    """Return times, kernels and memory of a shape. The first one also measures the card's peaks."""
    device = settings.device
    if document.get("peaks") is None:
        document["peaks"] = card.peaks(device)
    peaks = document["peaks"]
    record = measure_shape(shape, settings, lambda text: _say(f"{shape.name}: {text}"))
    measured = [name for name, spread in record["step_ms"].items() if spread is not None]
    profiles, megabytes, of_device = {}, {}, {}
    for name in measured:
        _say(f"{shape.name}: kernels and memory of {name}")
        if name != REFERENCE:  # thousands of kernels, which say nothing new
            profiles[name] = card.profile(_repeated(build_step(name, shape, device), shape, settings), device)
        _release()
        peak = measure_peak_memory(name, shape, device)
        megabytes[name] = round(peak.bytes / 1e6, 1)
        of_device[name] = None if peak.device_bytes is None else round(peak.device_bytes / 1e6, 1)
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
    memory = {"peak_memory_mb": megabytes, "device_memory_mb": of_device}
    return {**record, "profiles": profiles, **memory, "share_of_card": shares}


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


# -- several ranks -------------------------------------------------------------------------------------------------


def _measure_ranks(shape: Shape, device: torch.device) -> dict[str, Any]:
    """Time a step of two ranks, each on a card of its own, in both ways, and of one rank."""
    found = measure(shape, RANKS, ROUNDS_OF_RANKS[device.type], [25], device.type)
    figures = ", ".join(f"{name} {spread['median']} ms" for name, spread in found["milliseconds"].items())
    _say(f"{shape.name}: {figures}")
    return {"name": shape.name, **found}


# -- variants ------------------------------------------------------------------------------------------------------


def _measure_variants(shape: Shape, settings: Settings) -> dict[str, Any]:
    """Time ``torch.compile`` of torch.nn's models, and those without it.

    On a CPU the models go through TorchDynamo alone (``backend="eager"``): there is no need for a compiler.
    """
    device = settings.device
    backend = "inductor" if device.type == "cuda" else "eager"
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
    pairs = [(f"{plain} compiled", plain) for plain in turns]
    pairs += [(ours(p), f"{builtin(p)} compiled") for p in settings.precisions]
    return {
        "name": shape.name,
        "torch_compile_backend": backend,
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
    return found

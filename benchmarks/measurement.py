"""One shape, measured: times in turns, then memory in processes of their own."""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from benchmarks.device import synchronize
from benchmarks.gemm_peak import GemmPeak
from benchmarks.implementations import Step, build_step, draw_windows
from benchmarks.interleave import Rounds, Spread, Turn, interleave
from benchmarks.names import PRECISIONS, REFERENCE, builtin, compared_with, compiled, implementation_names, ours
from benchmarks.peak_memory import measure_in_child
from benchmarks.shapes import Shape, built_in
from jobs.plan.estimate import flops_per_token
from seqlm.config import Precision
from seqlm.errors import BackendError, RunError

WINDOWS = 8
"""Windows of random ids that every implementation trains on, round and round."""


SECONDS_BETWEEN_LINES = 10.0
"""Least time between two lines of progress about rounds."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to measure, the same for every shape."""

    seconds: float
    least_rounds: int
    warmup_rounds: int
    precisions: tuple[Precision, ...]
    threads: int
    device: torch.device
    peak_memory: bool
    compiled: bool = False


@final
class StepTurn:
    """A turn of one training step; measures seconds."""

    def __init__(
        self,
        step: Step,
        windows: Sequence[tuple[Tensor, Tensor]],
        device: torch.device,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._step = step
        self._windows = itertools.cycle(windows)
        self._device = device
        self._clock = clock
        self._loss: Tensor | None = None

    @property
    def last_loss(self) -> float | None:
        """Of the last step, nats per token; none before the first, and where it is not a finite number."""
        loss = math.nan if self._loss is None else self._loss.item()
        return _rounded(loss) if math.isfinite(loss) else None

    def __call__(self) -> float:
        inputs, targets = next(self._windows)
        synchronize(self._device)
        start = self._clock()
        self._loss = self._step(inputs, targets)
        synchronize(self._device)
        return self._clock() - start


def measure_shape(shape: Shape, settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything about one shape, in the form of the JSON document. ``say`` is called with lines of progress."""
    record = {**_facts(shape), **_measure_times(shape, settings, say)}
    gc.collect()  # the models are gone before the next shape's come
    if settings.device.type == "cuda":
        torch.cuda.empty_cache()
    if settings.peak_memory:
        measured = [name for name, milliseconds in record["step_ms"].items() if milliseconds is not None]
        record |= _measure_memory(measured, shape, settings, say)
    return record


def _facts(shape: Shape) -> dict[str, Any]:
    model, train = built_in(shape.config), shape.config.train
    return {
        "name": shape.name,
        "runs": list(shape.runs),
        "arch": model.arch,
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "keep": model.keep,
        "batch_size": train.batch_size,
        "seq_len": train.seq_len,
        "vocab_size": shape.vocab_size,
        "optimizer": shape.config.optim.optimizer,
        "parameters": model.parameter_count(shape.vocab_size),
        "flops_per_token": flops_per_token(shape.config, shape.vocab_size),
    }


# -- time ----------------------------------------------------------------------------------------------------------


def _measure_times(shape: Shape, settings: Settings, say: Callable[[str], None]) -> dict[str, Any]:
    windows = draw_windows(shape, settings.device, WINDOWS)
    steps: dict[str, StepTurn] = {}
    names = implementation_names(settings.precisions, with_compiled=settings.compiled)
    for name in names:
        try:
            step = build_step(name, shape, settings.device)
        except BackendError as error:  # no such precision here
            say(f"{name}: {error}")
            continue
        steps[name] = StepTurn(step, windows, settings.device)
    # The first step compiles; what it takes beside that is little.
    compile_seconds = {name: _rounded(turn()) for name, turn in steps.items() if name.startswith("torch.compile")}

    peaks = {gemm(p): GemmPeak(shape, settings.device, p) for p in settings.precisions if ours(p) in steps}
    turns: dict[str, Turn] = {**steps, **peaks}
    rounds = interleave(
        turns,
        seconds=settings.seconds,
        least_rounds=settings.least_rounds,
        warmup_rounds=settings.warmup_rounds,
        on_round=_round_speaker(settings.seconds, say),
    )
    losses = {name: turn.last_loss for name, turn in steps.items()}
    record = times_record(rounds, settings.precisions, shape) | {"last_loss": losses}
    return record | ({"compile_seconds": compile_seconds} if settings.compiled else {})


def _round_speaker(seconds: float, say: Callable[[str], None]) -> Callable[[int, float], None]:
    """Return a function that reports a round if the last report is long ago. Small shapes have hundreds of rounds."""
    told = -math.inf

    def on_round(number: int, elapsed: float) -> None:
        nonlocal told
        if number > 0 and elapsed - told >= SECONDS_BETWEEN_LINES:
            say(f"round {number} ({elapsed:.0f} of {seconds:.0f} s)")
            told = elapsed

    return on_round


def gemm(precision: Precision) -> str:
    """Name of the turn that measures the fastest product of a precision."""
    return f"gemm-{precision}"


def times_record(rounds: Rounds, precisions: Sequence[Precision], shape: Shape) -> dict[str, Any]:
    """What the rounds say about each implementation in these precisions; what was not measured is null."""
    measured = rounds.values.keys()
    gflop = (flops_per_token(shape.config, shape.vocab_size) or 0) * shape.tokens / 1e9
    speedup: dict[str, Any] = {}
    peak: dict[str, Any] = {}
    share: dict[str, Any] = {}
    for precision in precisions:
        name, fastest = ours(precision), gemm(precision)
        speedup[name] = peak[precision] = share[precision] = None
        if name in measured:
            speedup[name] = {o: _plain(rounds.ratio(o, name)) for o in compared_with(name) if o in measured}
            peak[precision] = _plain(rounds.spread(fastest))
            share[precision] = _plain(rounds.combined(lambda seconds, of: gflop / seconds / of, name, fastest))
    return {
        "rounds": rounds.count,
        "step_ms": {
            name: _plain(Spread.of([1000 * s for s in rounds.values[name]])) if name in measured else None
            for name in implementation_names(precisions, with_compiled=compiled(precisions[0]) in measured)
        },
        "speedup": speedup,
        "gemm_peak_gflops": peak,
        "share_of_gemm_peak": share,
    }


def _plain(spread: Spread) -> dict[str, float]:
    return {"median": _rounded(spread.median), "min": _rounded(spread.least), "max": _rounded(spread.most)}


def _rounded(value: float) -> float:
    """To five digits: no clock is better than that."""
    return float(f"{value:.5g}")


# -- memory --------------------------------------------------------------------------------------------------------


def _measure_memory(
    names: Sequence[str], shape: Shape, settings: Settings, say: Callable[[str], None]
) -> dict[str, Any]:
    megabytes: dict[str, float | None] = {}
    counters: set[str] = set()
    for name in names:
        say(f"peak memory of {name}")
        try:
            peak = measure_in_child(name, shape, threads=settings.threads, device=settings.device)
        except RunError as error:
            say(str(error))
            megabytes[name] = None
            continue
        megabytes[name] = _rounded(peak.bytes / 1e6)
        counters.add(peak.counter)
    return {
        "peak_memory_mb": megabytes,
        "peak_memory_counter": counters.pop() if counters else None,
        "memory_ratio": memory_ratios(megabytes),
    }


def memory_ratios(megabytes: Mapping[str, float | None]) -> dict[str, dict[str, float]]:
    """Ours over the reference's and over torch.nn's in the same precision, where both are known."""
    return {
        name: {b: _rounded(of_ours / theirs) for b in (REFERENCE, builtin(precision)) if (theirs := megabytes.get(b))}
        for precision in PRECISIONS
        if (of_ours := megabytes.get(name := ours(precision))) is not None
    }

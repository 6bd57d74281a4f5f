"""A canary: the first steps of a run on its real text, batch and device, to see that it fits and trains."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch

from seqlm.environment import CANARY
from seqlm.files import Guard, unguarded, write_json
from seqlm.reading import timestamp
from seqlm.rundir import RunDirectory
from seqlm.training.attempt import StopRequested, StopSignal
from seqlm.training.records import require_perplexity
from seqlm.training.trainer import StepsDone, Trainer

VALID_WINDOWS = 2
"""Windows of the validation text that a canary looks at: evaluating needs memory of its own."""
UNTIMED_STEPS = 4
"""Steps at the beginning whose time says nothing: memory is new and, on a GPU, the first one records the graph."""


def canary_steps(run: RunDirectory, env: Mapping[str, str]) -> int | None:
    """Return how many steps this worker trains as a canary. ``None``: it trains an ordinary run.

    A canary needs both the folder of one and ``SEQLM_CANARY``, so that a variable left in a shell cuts no run short.

    Raises:
        UsageError: the variable is not a valid number of steps.
    """
    if not run.is_canary:
        return None
    expected = f"a whole number above {UNTIMED_STEPS}"
    return CANARY.read(env, is_valid=lambda steps: (steps or 0) > UNTIMED_STEPS, expected=expected)


def run_canary(
    trainer: Trainer, run: RunDirectory, steps: int, *, stop: StopSignal, guard: Guard = unguarded
) -> dict[str, Any]:
    """Train ``steps`` steps, of as many epochs as that needs, evaluate a little, and write ``canary.json``.

    Memory is that of the rank that needs most. On a GPU ``reserved_memory_bytes`` is what the process holds of it for
    tensors, a little more than their peak, and ``graph_memory_bytes`` what the steps took besides: recorded graphs and
    libraries' workspaces (too much if another process took memory meanwhile). CUDA's own context comes on top.

    Raises:
        DivergedError: a loss or gradient norm is not finite.
        StopRequested: the worker was asked to stop.
        FileError: the file cannot be written.
    """
    rank = trainer.rank
    on_gpu = rank.device.type == "cuda"
    before = _besides_tensors(rank.device) if on_gpu else 0
    seconds: list[float] = []
    started = time.perf_counter()
    for event in trainer.events(steps, asks=lambda: (stop.received, False), read_each=True):
        if isinstance(event, StepsDone):
            seconds.append(time.perf_counter() - started)
            if event.stop:
                raise StopRequested
            if len(seconds) == steps:
                break
        started = time.perf_counter()
    require_perplexity(trainer.evaluate("valid", most=VALID_WINDOWS), f"after {steps} steps")
    step_seconds = statistics.median(seconds[UNTIMED_STEPS:])
    record = {
        "steps": steps,
        "step_seconds": step_seconds,
        "train_tokens_per_second": trainer.tokens_per_step / step_seconds,
        "peak_memory_bytes": rank.highest(rank.peak_memory_bytes()),
        "reserved_memory_bytes": rank.highest(torch.cuda.max_memory_reserved(rank.device)) if on_gpu else None,
        "graph_memory_bytes": rank.highest(max(0, _besides_tensors(rank.device) - before)) if on_gpu else None,
        "device": rank.device_name,
        "device_memory_bytes": torch.cuda.get_device_properties(rank.device).total_memory if on_gpu else None,
        "ranks": rank.world_size,
        "threads": torch.get_num_threads(),
        "attempt": trainer.attempt,
        "finished_at": timestamp(),
    }
    if rank.is_first:
        write_json(run.canary_file, record, guard=guard)
        print(f"canary: {steps} steps, {step_seconds:.3g} s each; it fits and trains", flush=True)
    return record


def _besides_tensors(device: torch.device) -> int:
    """Return the memory of the GPU that is taken, by any process, less what this one holds for tensors."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)

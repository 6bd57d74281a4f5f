"""A canary: the first steps of a run on its real text, batch and device, to see that it fits and trains."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import torch

from seqlm.environment import CANARY
from seqlm.files import write_json
from seqlm.rundir import RunDirectory
from seqlm.training.trainer import Trainer

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


def run_canary(trainer: Trainer, steps: int) -> dict[str, Any]:
    """Train ``steps`` steps and write ``canary.json``; returns what it holds.

    Memory is that of the rank that needs most. On a GPU ``reserved_memory_bytes`` is what the process holds of it for
    tensors, a little more than their peak; what CUDA itself takes comes on top.

    Raises:
        DivergedError: a loss or gradient norm is not finite.
        StopRequested: the worker was asked to stop.
        FileError: the file cannot be written.
    """
    rank, train = trainer.rank, trainer.config.train
    step_seconds = statistics.median(trainer.try_steps(steps, VALID_WINDOWS)[UNTIMED_STEPS:])
    on_gpu = rank.device.type == "cuda"
    record = {
        "steps": steps,
        "step_seconds": step_seconds,
        "train_tokens_per_second": train.seq_len * train.batch_size / step_seconds,
        "peak_memory_bytes": rank.highest(rank.peak_memory_bytes()),
        "reserved_memory_bytes": rank.highest(torch.cuda.max_memory_reserved(rank.device)) if on_gpu else None,
        "device": rank.device_name,
        "device_memory_bytes": torch.cuda.get_device_properties(rank.device).total_memory if on_gpu else None,
        "ranks": rank.world_size,
        "threads": torch.get_num_threads(),
        "attempt": trainer.attempt,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if rank.is_first:
        write_json(trainer.run.canary_file, record, guard=trainer.guard)
        trainer.progress.say(f"canary: {steps} steps, {step_seconds:.3g} s each; it fits and trains")
    return record

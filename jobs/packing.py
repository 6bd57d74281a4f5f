"""Shares of a GPU: whether the memory that a run needs fits into the share that it asks for."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jobs import terminal
from jobs.spec import Resources
from seqlm.errors import BackendError
from seqlm.machine import CUDA_BYTES


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A run, with what a canary like it has measured."""

    name: str
    resources: Resources
    scale: float
    """Estimated memory of the run over that of the canary."""
    canary: dict[str, Any]
    """Its ``canary.json``."""

    def needs(self) -> float:
        """Bytes of the GPU."""
        held = self.canary.get("reserved_memory_bytes") or self.canary["peak_memory_bytes"]
        return float(held * self.scale + CUDA_BYTES)


def require_room(runs: Iterable[Packed]) -> None:
    """Several runs on one GPU must not meet at its end, hours from now.

    Raises:
        BackendError: a run needs more memory than its share of the GPU has; of several the one that lacks most.
    """
    lacking = [run for run in runs if _lack(run) > 0]
    if not lacking:
        return
    run = max(lacking, key=_lack)
    card = run.canary["device_memory_bytes"]
    share = math.ceil(100 * run.needs() / card) / 100
    others = f"; {len(lacking) - 1} more need more than their share" if len(lacking) > 1 else ""
    raise BackendError(
        f"{run.name} needs {terminal.memory(run.needs())}, but its share of {run.canary['device']} is "
        f"{run.resources.gpus:g}, {terminal.memory(run.resources.gpus * card)}; "
        f"use resources.gpus = {min(share, 1):g} or more{others}"
    )


def _lack(run: Packed) -> float:
    """Bytes that a run needs beyond its share of a GPU; for a run that does not share one, nothing."""
    gpus, card = run.resources.gpus, run.canary.get("device_memory_bytes")
    if not gpus or gpus == 1 or card is None:
        return 0.0
    return run.needs() - gpus * float(card)

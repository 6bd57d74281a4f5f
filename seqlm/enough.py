"""What would have been enough for a run: one answer for ``why``, the report and ``fit_limits`` of schedulers."""

import math
from dataclasses import dataclass

TIME, MEMORY, SPARE_GB = 1.25, 1.3, 1
"""How many times the time and the memory that were used are enough, and by how much memory more."""
JITTER = 1.05
"""Cores up to this many times a whole number count as that number, since measured times differ by so much."""


@dataclass(frozen=True, kw_only=True)
class Enough:
    """What to ask for."""

    cpus: int
    """Cores of each rank."""
    mem_gb: int
    """Memory of each node."""
    timeout_min: int


def enough(*, cores: float = 0, had: int | None = None, memory_bytes: float = 0, seconds: float = 0) -> Enough:
    """Return what is enough for a run that used these cores in each rank, this memory of a node and this time.

    ``had``: cores of each rank, which were enough whatever was measured. ``None``: not known.
    """
    cpus = math.ceil(cores / JITTER)
    return Enough(
        cpus=cpus if had is None else min(cpus, had),
        mem_gb=math.ceil(MEMORY * memory_bytes / 2**30 + SPARE_GB),
        timeout_min=math.ceil(TIME * seconds / 60),
    )

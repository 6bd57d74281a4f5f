"""The memory allocator's settings of a run's workers, which the benchmark gives itself and all it measures."""

from __future__ import annotations

import os
import sys

from jobs.attempt.supervisor import KEEP_MEMORY

__all__ = ["KEEP_MEMORY", "restart_with_kept_memory"]


def restart_with_kept_memory() -> None:
    """Begin this very process again with the settings, unless it has them: glibc reads them once, at its start."""
    if any(os.environ.get(name) != value for name, value in KEEP_MEMORY.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **KEEP_MEMORY})

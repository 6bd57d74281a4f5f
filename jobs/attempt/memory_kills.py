"""Find out whether the system killed a process because it was out of memory: SIGKILL has no visible sender.

Linux counts such kills for each control group. Containers, systemd and SLURM put the processes that they start into
groups with a limit.
"""

import contextlib
from pathlib import Path
from typing import final

from seqlm.machine import own_groups

COUNTS = ("memory.events", "memory.oom_control")
"""The kernel's files with the number of kills in a group, of versions 2 and 1 of control groups."""


def kill_count(files: list[Path]) -> int:
    """Return the number of out-of-memory kills so far, from the first file that holds it; 0 if none does."""
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            for line in file.read_text("utf-8").splitlines():
                name, _, number = line.partition(" ")
                if name == "oom_kill":
                    return int(number)
    return 0


def own_kill_count() -> int:
    """Return the number of out-of-memory kills so far in the group of this process."""
    return kill_count([group / name for group in own_groups() for name in COUNTS])


@final
class MemoryKills:
    """The kills on this node. Each explains one killed rank of those that this process has started."""

    def __init__(self) -> None:
        self._explained = 0

    def explain_one(self, before: int) -> bool:
        """Return whether a process ended by SIGKILL because the node was out of memory. Uses up one kill.

        ``before``: the kills that had been counted when the process started.
        """
        explained = max(self._explained, before)
        if own_kill_count() <= explained:
            return False
        self._explained = explained + 1
        return True

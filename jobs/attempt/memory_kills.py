"""Find out whether the system killed a process because it was out of memory: SIGKILL has no visible sender.

Linux counts such kills for each control group. Containers, systemd and SLURM put the processes that they start into
groups with a limit.
"""

import contextlib
from pathlib import Path
from typing import final


def groups_files(membership: str, root: Path = Path("/sys/fs/cgroup")) -> list[Path]:
    """Return the files with the kernel's count of kills in this process's group, from ``/proc/self/cgroup``.

    Version 2 has one line ``0::/path``, version 1 has one for each controller: ``4:memory:/path``. In a container the
    path may be that of the host, and the group's own files are at the root.
    """
    files = []
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        inside = path.lstrip("/")
        if not controllers:
            files += [root / inside / "memory.events", root / "memory.events"]
        elif "memory" in controllers.split(","):
            files += [root / "memory" / inside / "memory.oom_control", root / "memory" / "memory.oom_control"]
    return files


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
    with contextlib.suppress(OSError):
        return kill_count(groups_files(Path("/proc/self/cgroup").read_text("utf-8")))
    return 0


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

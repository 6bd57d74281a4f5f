"""What a whole test run leaves on the machine: processes, mounts, network namespaces, shared memory."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.waiting import POLL_SECONDS, processes

SETTLE_SECONDS = 60.0
"""How long what is ending anyway may take: agents of a Ray that has ended, jobs that were cancelled."""


@dataclass(frozen=True)
class Machine:
    """What is there that a killed process does not take along."""

    mounts: frozenset[str]
    shared_memory: frozenset[str]

    @classmethod
    def look(cls) -> Machine:
        if sys.platform != "linux":
            return cls(frozenset(), frozenset())
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        memory = [f"/dev/shm/{path.name}" for path in Path("/dev/shm").glob("*")]
        segments = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
        return cls(
            frozenset(mounts), frozenset([*memory, *(f"System V segment {line.split()[1]}" for line in segments)])
        )


def left_since(before: Machine) -> list[str]:
    """Describe what is there and was not, or lives with the mark of this session, one line each.

    A network or mount namespace lasts as long as a process in it or a mount of it, and is found with that.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        now = Machine.look()
        left = [
            f"process {process.pid}: {process.words[:200]}" for process in processes() if process.pid != os.getpid()
        ]
        left += [f"mount {path}" for path in sorted(now.mounts - before.mounts)]
        left += [f"shared memory {name}" for name in sorted(now.shared_memory - before.shared_memory)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(POLL_SECONDS)

"""End what a killed launcher leaves of its embedded Ray: ``python ray_watchdog.py IDENTITY ...``, with a pipe as stdin.

The pipe's other end is the launcher's. When that is gone, Ray's servers end by themselves, but its agents wait for
them, for ever. Standard library alone; started as a file, so that it takes next to no memory while it waits.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path


def identity(pid: int) -> str | None:
    """Return ``PID:START``, which names one process even after its number is used again; ``None``: no such process."""
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            return None
        # The command's name stands in parentheses and may hold anything; the start, in clock ticks, is field 22.
        return f"{pid}:{stat.rpartition(')')[2].split()[19]}"
    answer = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    started = answer.stdout.strip()
    return f"{pid}:{started}" if started else None


def main() -> None:
    """Wait for the end of the launcher, then end the processes."""
    sys.stdin.read()
    for name in sys.argv[1:]:
        pid = int(name.partition(":")[0])
        if identity(pid) == name:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()

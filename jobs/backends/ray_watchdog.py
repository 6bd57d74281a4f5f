"""End what a killed launcher has left of its embedded Ray: ``python ray_watchdog.py FOLDER IDENTITY ...``.

Its stdin is a pipe from the launcher. When the launcher ends, Ray's servers end by themselves, but its agents wait for
them forever. Standard library only, and started as a file without site-packages, so that it takes next to no memory
while it waits.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

REMOVALS = 100
"""Number of tries to remove the folder."""


def identity(pid: int) -> str | None:
    """Return ``PID:START``, which names one process even after its number is used again; ``None``: no such process."""
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            return None
        # The command's name is in parentheses and may hold anything; the start, in clock ticks, is field 22.
        return f"{pid}:{stat.rpartition(')')[2].split()[19]}"
    answer = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    started = answer.stdout.strip()
    return f"{pid}:{started}" if started else None


def main() -> None:
    """Wait for the end of the launcher, then end the processes and remove their folder."""
    sys.stdin.read()
    folder, *names = sys.argv[1:]
    for name in names:
        pid = int(name.partition(":")[0])
        if identity(pid) == name:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    for _ in range(REMOVALS):
        shutil.rmtree(folder, ignore_errors=True)
        if not Path(folder).exists():
            return
        time.sleep(0.1)  # other processes of Ray still write their last lines


if __name__ == "__main__":
    main()

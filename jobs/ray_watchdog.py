"""Ends what a killed launcher's embedded Ray leaves behind: ``python ray_watchdog.py PID ...``, with a pipe as stdin.

The pipe's other end is the launcher's. When that is gone, Ray's servers end by themselves, but its agents wait for
them, for ever. Standard library alone; started as a file, so that it takes next to no memory while it waits.
"""

import contextlib
import os
import signal
import subprocess
import sys


def is_rays(pid: str) -> bool:
    """Whether a process is one of Ray's, and not another that got its number since."""
    answer = subprocess.run(["ps", "-o", "command=", "-p", pid], capture_output=True, text=True, check=False)
    return "ray" in answer.stdout


def main() -> None:
    """Wait for the end of the launcher, then end the processes."""
    sys.stdin.read()
    for pid in filter(is_rays, sys.argv[1:]):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


if __name__ == "__main__":
    main()

"""One turn: a command, its seconds and its memory. ``python -m benchmarks.command_turn TURN.json``, from others.

Small, and fresh for each turn: the kernel counts what a process has at its start, before it becomes the command.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def main() -> int:
    turn = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    print(json.dumps(run(turn["argv"], turn["env"], turn["cwd"])))
    return 0


def run(argv: list[str], env: dict[str, str], cwd: str) -> dict[str, Any]:
    """Seconds of the whole command, memory of its largest process at its peak, and what it printed."""
    start = time.perf_counter()
    done = subprocess.run(argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        sys.exit(f"{argv[1]} ended with exit code {done.returncode}: {last}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    return {"seconds": seconds, "peak_memory_mb": peak, "stdout": done.stdout}


if __name__ == "__main__":
    sys.exit(main())

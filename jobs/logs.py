"""Reading the logs of runs: the last lines, or everything as it comes."""

from __future__ import annotations

import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, TextIO

from jobs.scheduler import Scheduler
from jobs.settling import Settling
from jobs.study import ObservedRun, at_work, observe_run

FOLLOW_SECONDS = 0.2


def print_log(run: ObservedRun, lines: int, stream: TextIO) -> dict[str, Any]:
    """Print the last ``lines`` lines of what the latest attempt wrote on stdout and stderr; returns them as data."""
    attempt = run.run.last_attempt()
    record: dict[str, Any] = {"name": run.name, "id": run.run.id, "attempt": None, "stdout": [], "stderr": []}
    if not attempt:
        print(f"== {run.name}: no attempt yet", file=stream)
        return record
    record["attempt"] = attempt
    print(f"== {run.name}, attempt {attempt}: {run.run.attempt_dir(attempt)}", file=stream)
    for name, path in (("stdout", run.run.stdout_log(attempt)), ("stderr", run.run.stderr_log(attempt))):
        record[name] = _last_lines(path, lines)
        for line in record[name]:
            print(line if name == "stdout" else f"stderr: {line}", file=stream)
    return record


def follow_logs(run: ObservedRun, lines: int) -> None:
    """Print the log of a run as it grows, across attempts, until the run is over and stays so."""
    attempt = 0
    positions: dict[Path, int] = {}
    settling = Settling()
    scheduler = Scheduler()
    while True:
        newest = run.run.last_attempt()
        work = at_work(run.run.path.parent, scheduler)
        over = settling.is_over(run.run.id, observe_run(run.run, work), work)
        if newest > attempt:
            attempt = newest
            print_log(run, lines, sys.stdout)
            files = (run.run.stdout_log(attempt), run.run.stderr_log(attempt))
            positions = {path: path.stat().st_size if path.exists() else 0 for path in files}
        for path, position in positions.items():
            positions[path] = _print_from(path, position)
        if over:
            return
        sys.stdout.flush()
        time.sleep(FOLLOW_SECONDS)


def _last_lines(path: Path, lines: int) -> list[str]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return [line.rstrip("\n") for line in deque(file, maxlen=lines)]
    except FileNotFoundError:
        return []


def _print_from(path: Path, position: int) -> int:
    try:
        with path.open("rb") as file:
            file.seek(position)
            sys.stdout.write(file.read().decode("utf-8", errors="replace"))
            return file.tell()
    except FileNotFoundError:
        return position

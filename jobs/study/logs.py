"""Print the logs of runs: the last lines, or everything as it is written.

Control characters are escaped, so that no log can control the terminal. Of a line that a progress bar has overwritten
with carriage returns, only the last state is printed.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from jobs.study.folder import ObservedRun, Observer
from jobs.study.squeue import Scheduler
from seqlm.errors import printable
from seqlm.reading import LARGEST_HASHED, open_regular
from seqlm.rundir import RunDirectory

FOLLOW_SECONDS = 1.0
"""Interval at which a followed log and the state of its run are polled, as with ``tail -f``."""
LARGEST_TAIL = 4 * 2**20
"""Bytes read from the end of a log to find its last lines. Longer lines are cut."""


def print_log(run: ObservedRun, lines: int, stream: TextIO) -> tuple[dict[str, Any], dict[Path, int]]:
    """Print the last ``lines`` lines that the latest attempt wrote to stdout and stderr.

    Returns them as data, and the positions up to which the logs were read.
    """
    folder, name = run.run, run.name
    if not folder.last_attempt():
        canary = RunDirectory.canary(folder.path.parent, folder.id)
        folder, name = (canary, f"{name}, canary") if canary.last_attempt() else (folder, name)
    attempt, positions = folder.last_attempt(), dict[Path, int]()
    record: dict[str, Any] = {"name": name, "id": folder.id, "attempt": attempt or None, "stdout": [], "stderr": []}
    if not attempt:
        why = run.observation.reason
        print(printable(f"== {name}: no attempt yet{f': {why}' if why else ''}"), file=stream)
        return record, positions
    print(printable(f"== {name}, attempt {attempt}: {folder.attempt_dir(attempt)}"), file=stream)
    for output, path in (("stdout", folder.stdout_log(attempt)), ("stderr", folder.stderr_log(attempt))):
        raw, positions[path] = _tail(path)
        record[output] = _lines(raw)[-lines:]
        for line in record[output]:
            print(printable(line if output == "stdout" else f"stderr: {line}"), file=stream)
    return record, positions


def follow_logs(run: ObservedRun, lines: int) -> None:
    """Print the log of a run as it grows, across attempts, until the state of the run is final."""
    attempt = 0
    positions: dict[Path, int] = {}
    scheduler = Scheduler()
    while True:
        newest = run.run.last_attempt()
        observer = Observer(run.run.path.parent, scheduler, [run.run.id])
        over = observer.is_over(observer.observe(run.run))
        if newest > attempt:
            record, positions = print_log(run, lines, sys.stdout)
            attempt = record["attempt"]
        for path, position in positions.items():
            positions[path] = _print_from(path, position, rest=over)
        if over:
            return
        sys.stdout.flush()
        time.sleep(FOLLOW_SECONDS)


def _tail(path: Path) -> tuple[bytes, int]:
    """Return the end of a log, and the position after it."""
    with contextlib.suppress(FileNotFoundError), open_regular(path, largest=LARGEST_HASHED) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - LARGEST_TAIL))
        return file.read(LARGEST_TAIL), file.tell()
    return b"", 0


def _lines(raw: bytes) -> list[str]:
    """Return the lines of a log, each as a terminal would show it after carriage returns."""
    text = raw.decode("utf-8", errors="replace")
    return [line.rstrip("\r").rpartition("\r")[2] for line in text.removesuffix("\n").split("\n")] if text else []


def _print_from(path: Path, position: int, *, rest: bool) -> int:
    """Print the complete lines after ``position``, with ``rest`` also an incomplete one. Return the new position."""
    with contextlib.suppress(FileNotFoundError), open_regular(path, largest=LARGEST_HASHED) as file:
        file.seek(position)
        while raw := file.read(LARGEST_TAIL):
            end = raw.rfind(b"\n") + 1
            if not end and (rest or len(raw) == LARGEST_TAIL):
                end = len(raw)
            if not end:
                break
            for line in _lines(raw[:end]):
                print(printable(line))
            position += end
            file.seek(position)
    return position

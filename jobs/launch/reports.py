"""What the dispatcher reports besides events: files that cannot be read or written, and which runs wait."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import final

from jobs.plan.planned import PlannedRun
from jobs.plan.queue import Queue
from seqlm.errors import FileError
from seqlm.rundir import RunDirectory

QUEUE_SECONDS = 1.0
"""Least time between two reports of the queue."""


@contextmanager
def files_of(run: RunDirectory) -> Iterator[None]:
    """Turn an ``OSError`` in the block into one line about the run.

    Raises:
        FileError: the block raised an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise FileError.from_os_error("read or write", error.filename or run.path, error) from None


@final
class Warnings:
    """Warnings about files that cannot be read or written. Each line is reported once."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._reported: set[str] = set()

    def add(self, line: str) -> None:
        """Report a line unless it was reported before."""
        if line not in self._reported:
            self._reported.add(line)
            self._report(f"warning: {line}")

    @contextmanager
    def instead_of_errors(self, item: PlannedRun) -> Iterator[None]:
        """Report an error in reading or writing the files of a run, and go on. The caller does the block again."""
        try:
            with files_of(item.run):
                yield
        except FileError as error:
            self.add(f"{item.spec.name}: {error}")


@final
class QueueReports:
    """Reports which runs wait, and why, whenever that changes, but at most once in ``QUEUE_SECONDS``."""

    def __init__(self, report: Callable[[Mapping[str, str]], None], warnings: Warnings) -> None:
        self._report = report
        self._warnings = warnings
        self._reported: dict[str, str] | None = None
        self._reported_at = -math.inf
        self._has_failed = False

    def update(self, queue: Queue, *, at_once: bool = False) -> None:
        """Report the queue if it has changed. ``at_once``: even if the last report was a moment ago."""
        if queue.reasons == self._reported:
            return
        now = time.monotonic()
        is_due = now - self._reported_at >= QUEUE_SECONDS
        if not (at_once or is_due or not (queue or self._has_failed)):
            return
        reasons, self._reported_at = dict(queue.reasons), now
        try:
            self._report(reasons)
        except FileError as error:
            self._has_failed = True
            self._warnings.add(f"{error}; status shows an older queue")
            return
        self._reported, self._has_failed = reasons, False

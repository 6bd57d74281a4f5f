"""One attempt of a run, as its launcher or job follows it: the same on every backend."""

import functools
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final

from jobs.attempt.supervisor import Ended, cause
from jobs.spec import Submission
from seqlm.ends import most_micro_batches
from seqlm.environment import HUNG_MINUTES, MICRO_BATCHES, PROGRESS_SECONDS
from seqlm.errors import EXIT_BUSY, EXIT_RUNG, EXIT_UNPRINTED, STOPPED_EXITS
from seqlm.files import json_text, make_directory, write_once
from seqlm.reading import exists, timestamp
from seqlm.rundir import RunDirectory
from seqlm.state import FailureKind

LOOKS = 40
"""Number of looks at the files of a worker in the time after which it counts as hung."""
MOST_SECONDS = 15.0
"""Longest time between two looks."""
MISSING = (math.inf, math.inf, math.inf)
"""The state of a file that does not exist or cannot be read."""


def micro_batches(run: RunDirectory, batch_size: int, ranks: int) -> int:
    """Return the number for the next attempt. It doubles after each attempt that ran out of memory.

    A run that needed four keeps them for the rest of its life, in every launch. A canary gets the number of its run. A
    behaviour job takes no steps and gets one.

    Raises:
        FileError: the run's earlier failures cannot be read.
    """
    if exists(run.task_file):
        return 1
    if run.is_canary:
        run = RunDirectory(run.path.parents[1] / run.id)
    doubled = (2 * failed.micro_batches for failed in reversed(run.failures()) if failed.kind == "oom")
    return min(next(doubled, 1), most_micro_batches(batch_size, ranks))


@final
class Attempt:
    """An attempt that its launcher or its job follows."""

    def __init__(self, submission: Submission, where: str) -> None:
        """``where``: who follows it, for the records of failures of which the worker writes nothing."""
        self.run = RunDirectory(submission.run_dir)
        self.number = submission.attempt
        self._submission = submission
        self._where = where

    @functools.cached_property
    def heartbeat(self) -> "Heartbeat":
        """Whether its worker makes progress. It is watched from the first use on."""
        return Heartbeat(self.run, self.number, hung_seconds({**os.environ, **self._submission.env}))

    def record_start(self, launch: Mapping[str, Any]) -> None:
        """Write ``start.json`` before the ranks are started. ``launch``: who starts them.

        Raises:
            FileError: it cannot be written.
        """
        submission = self._submission
        record = {
            **launch,
            "resources": submission.resources.to_dict(),
            "micro_batches": MICRO_BATCHES.read(submission.env),
            "argv": list(submission.argv),
            "code": str(submission.cwd),
            "started_at": timestamp(),
        }
        make_directory(self.run.attempt_dir(self.number))
        write_once(self.run.start_file(self.number), json_text(record).encode())

    def record(self, kind: FailureKind | None, message: str, **more: Any) -> None:
        """Record how the attempt ended, if that adds something to what its ranks have recorded.

        Raises:
            FileError: a file of the run cannot be read or written.
        """
        parts = MICRO_BATCHES.read(self._submission.env)
        known = {"kind": kind, "message": message, "where": self._where, "micro_batches": parts}
        self.run.write_exit(self.number, {**known, **more})

    def record_exit(self, ended: Ended, *, was_asked: bool) -> None:
        """Record how the ranks ended, if that adds something to what they have recorded.

        Nothing is recorded of an attempt that ended well, left at a rung of a search, or found another worker at the
        run. One that stopped as asked (``was_asked``) has not failed. If a signal killed a rank, its node has failed.

        Raises:
            FileError: the run's files cannot be read or written.
        """
        run, code = self.run, ended.exit_code
        if code in (0, EXIT_BUSY, EXIT_RUNG) or run.is_done():
            return
        kind, message = cause(ended, run.stderr_log(self.number))
        if run.is_cancelled() or (was_asked and code in (*STOPPED_EXITS, EXIT_UNPRINTED)):
            self.record(None, ended.message, exit_code=code)
        else:
            self.record(kind, message, exit_code=code, node=ended.node if code < 0 else None)


# -- hangs ---------------------------------------------------------------------------------------------------------


def hung_seconds(env: Mapping[str, str]) -> float:
    """Return after how many seconds without a change a worker is hung: ``SEQLM_HUNG_MINUTES``.

    It is at least three times ``SEQLM_PROGRESS_SECONDS``, during which a worker writes nothing.

    Raises:
        UsageError: that variable, or ``SEQLM_PROGRESS_SECONDS``, is not a number above 0.
    """
    silent = PROGRESS_SECONDS.read(env) if PROGRESS_SECONDS.is_set(env) else 0.0
    return max(60 * HUNG_MINUTES.read(env), 3 * silent)


@final
class Heartbeat:
    """Detects from outside that a live worker makes no progress: a hang raises no error and ends no process.

    A rank may be stopped, its file system may not answer, or its GPU may have fallen off the bus. The process lives,
    and may go on renewing its lease. But its files no longer change.

    A sign of life is a change of ``progress.json`` (written during steps and validations), ``metrics.jsonl``,
    ``checkpoints/`` or the attempt's logs. Times are on the watcher's own clock, from the creation of the logs: time in
    the queue of a cluster does not count. Reading the corpus, compiling and meeting the other ranks may take as long as
    a step. A behaviour job writes nothing while it works, and never counts as hung.
    """

    def __init__(
        self, run: RunDirectory, attempt: int, hung_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._hung_seconds = hung_seconds
        self._every = min(hung_seconds / LOOKS, MOST_SECONDS)
        self._clock = clock
        self._is_behaviour = exists(run.task_file)
        logs = (run.stdout_log(attempt), run.stderr_log(attempt))
        self._files = (run.progress_file(attempt), run.metrics_file, run.last_checkpoint.parent, *logs)
        self._seen = [_state(path) for path in self._files]
        self._looked_at = clock()
        self._silent = 0.0
        self._has_begun = False

    def is_hung(self) -> bool:
        """Look at the files, unless that was done a moment ago. Return whether nothing has changed for too long.

        Of a long time between two looks, only twice the planned time counts: the watcher itself may have been stopped,
        or its machine may have slept.
        """
        now = self._clock()
        if now - self._looked_at >= self._every:
            seen = [_state(path) for path in self._files]
            self._has_begun = self._has_begun or seen[-2:] != [MISSING, MISSING]  # the logs
            if seen == self._seen and self._has_begun:
                self._silent += min(now - self._looked_at, 2 * self._every)
            else:
                self._seen, self._silent = seen, 0.0
            self._looked_at = now
        return self._silent >= self._hung_seconds and not self._is_behaviour

    @property
    def message(self) -> str:
        """What to record for a worker that hung."""
        return f"no step for {self._hung_seconds / 60:g} min; its worker hung and was killed"


def _state(path: Path) -> tuple[float, float, float]:
    """Return what changes if a file, or the list of files in a folder, changes."""
    try:
        state = path.stat()
    except OSError:
        return MISSING
    return (state.st_mtime_ns, state.st_ino, state.st_size)

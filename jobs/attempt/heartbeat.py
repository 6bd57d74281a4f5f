"""Detect from outside that a live worker makes no progress: a hang raises no error and ends no process.

A rank may be stopped, its file system may not answer, or its GPU may have fallen off the bus. The process lives, and
may go on renewing its lease. But its files no longer change.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import final

from seqlm.environment import HUNG_MINUTES, PROGRESS_SECONDS
from seqlm.rundir import RunDirectory

LOOKS = 40
"""Number of looks at the files in that time."""
MOST_SECONDS = 15.0
"""Longest time between two looks."""
MISSING = (math.inf, math.inf, math.inf)
"""The state of a file that does not exist or cannot be read."""


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
    """Watches one attempt of one run.

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
        self._is_behaviour = run.task_file.exists()
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

"""Whether a live worker makes progress, seen from outside: a hang raises no error and ends no process.

A rank that was stopped, a file system that does not answer, a card that has fallen off its bus: the process lives, so
its heartbeat in the lease may go on, and nobody is told. What tells is that its files no longer change.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

from seqlm.rundir import RunDirectory
from seqlm.variables import positive_number

HUNG_MINUTES = 10.0
"""How long, by default, nothing of a run may change before its worker is taken for hung."""
PROGRESS_VARIABLE = "SEQLM_PROGRESS_SECONDS"
"""How often, at most, a worker writes ``progress.json``."""
LOOKS = 40
"""How often the files are looked at in that time."""
MOST_SECONDS = 15.0
"""How long it is between two looks at most."""
MISSING = (math.inf, math.inf, math.inf)
"""The state of a file that is not there, or cannot be looked at."""


def hung_seconds(env: Mapping[str, str]) -> float:
    """How long nothing of a run may change: ``SEQLM_HUNG_MINUTES``, but at least three times what a run may be silent.

    Raises:
        UsageError: that variable, or ``SEQLM_PROGRESS_SECONDS``, is not a number above 0.
    """
    limit = 60 * positive_number(env, "SEQLM_HUNG_MINUTES", HUNG_MINUTES, "minutes")
    silent = positive_number(env, PROGRESS_VARIABLE, limit, "seconds") if env.get(PROGRESS_VARIABLE) else 0.0
    return max(limit, 3 * silent)


@final
class Heartbeat:
    """Watches one attempt of one run.

    Signs of life are a change of ``progress.json`` (written while steps and validations go by), ``metrics.jsonl``,
    ``checkpoints/`` or the attempt's logs, on the watcher's own clock. It begins with the worker's process, which the
    logs tell: waiting for a place on a cluster counts for nothing, while reading the corpus, compiling and meeting the
    other ranks have the same time as a step. A behaviour job tells nothing while it works, and is never taken for hung.
    """

    def __init__(
        self, run: RunDirectory, attempt: int, hung_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._attempt = attempt
        self._hung_seconds = hung_seconds
        self._every = min(hung_seconds / LOOKS, MOST_SECONDS)
        self._clock = clock
        self._is_behaviour = run.task_file.exists()
        self._logs = (run.stdout_log(attempt), run.stderr_log(attempt))
        self._files = (run.progress_file(attempt), run.metrics_file, run.last_checkpoint.parent, *self._logs)
        self._seen = [_state(path) for path in self._files]
        self._looked_at = clock()
        self._silent = 0.0
        self._has_begun = False

    def is_hung(self) -> bool:
        """Look, unless that was done a moment ago; whether nothing has changed for too long.

        The time between two looks counts as twice what it should be at most: a watcher that was itself stopped, or
        whose machine slept, has not watched.
        """
        now = self._clock()
        if now - self._looked_at >= self._every:
            self._look(now)
        return self._silent >= self._hung_seconds and not self._is_behaviour

    def _look(self, now: float) -> None:
        seen = [_state(path) for path in self._files]
        self._has_begun = self._has_begun or any(log != MISSING for log in seen[-len(self._logs) :])
        if seen == self._seen and self._has_begun:
            self._silent += min(now - self._looked_at, 2 * self._every)
        else:
            self._seen, self._silent = seen, 0.0
        self._looked_at = now

    def failure(self, where: str) -> dict[str, Any]:
        """The content of ``failure.json`` for a worker that hung; of a kind that is tried again."""
        minutes = self._hung_seconds / 60
        return {
            "kind": "node",
            "message": f"no step for {minutes:g} min; its worker hung and was killed",
            "where": where,
            "attempt": self._attempt,
            "failed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def _state(path: Path) -> tuple[float, float, float]:
    """What changes when a file or the files of a folder do."""
    try:
        state = path.stat()
    except OSError:
        return MISSING
    return (state.st_mtime_ns, state.st_ino, state.st_size)

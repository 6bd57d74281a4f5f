"""Whether a run has stopped making progress, and which of its ranks is to blame.

The launcher or job that follows an attempt kills a worker that hangs. Shortly before, each rank writes where it is into
``hang-N.json`` (:mod:`seqlm.training.witness`). Standard library alone.
"""

import contextlib
import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import final

from seqlm.environment import HUNG_MINUTES, PROGRESS_SECONDS
from seqlm.errors import FileError
from seqlm.reading import exists, listed, read_tail, status
from seqlm.records.attempts import HangFile, Worker
from seqlm.rundir import RunDirectory

LOOKS = 40
"""Number of looks at the files of a worker in the time after which it counts as hung."""
MOST_SECONDS = 15.0
"""Longest time between two looks."""
MISSING = (math.inf, math.inf, math.inf)
"""The state of a file that does not exist or cannot be read."""
LARGEST_DUMP = 2**16
"""Most bytes read of the stacks that a rank has left whose interpreter was held."""


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
        self._run, self._attempt = run, attempt
        self._hung_seconds = hung_seconds
        self._every = min(hung_seconds / LOOKS, MOST_SECONDS)
        self._clock = clock
        self._is_behaviour = exists(run.task_file)
        self._seen = self._look()
        self._looked_at = clock()
        self._silent = 0.0
        self._has_begun = False

    def is_hung(self) -> bool:
        """Look at the files, unless the last look is recent. Return whether nothing has changed for too long.

        Of a long time between two looks, only twice the planned time counts: the watcher itself may have been stopped,
        or its machine may have slept.
        """
        now = self._clock()
        if now - self._looked_at >= self._every:
            seen = self._look()
            self._has_begun = self._has_begun or any(state != MISSING for state in seen[1])
            if seen == self._seen and self._has_begun:
                self._silent += min(now - self._looked_at, 2 * self._every)
            else:
                self._seen, self._silent = seen, 0.0
            self._looked_at = now
        return self._silent >= self._hung_seconds and not self._is_behaviour

    def _look(self) -> tuple[list[tuple[float, float, float]], list[tuple[float, float, float]]]:
        """Return the states of the files that change while a worker lives, and those of its logs."""
        run = self._run
        files = (run.progress_file(self._attempt), run.metrics_file, run.last_checkpoint.parent)
        return [_state(path) for path in files], [_state(path) for path in run.logs(self._attempt)]

    @property
    def message(self) -> str:
        """What to record for a worker that hung."""
        why = explain(self._run, self._attempt) or "its worker hung and was killed"
        return f"no step for {self._hung_seconds / 60:g} min; {why}"


def _state(path: Path) -> tuple[float, float, float]:
    """Return what changes if a file, or the list of files in a folder, changes."""
    try:
        state = status(path)
    except (OSError, FileError):
        return MISSING
    return (state.st_mtime_ns, state.st_ino, state.st_size)


# -- which rank ----------------------------------------------------------------------------------------------------


GONE = "stopped, or its machine is gone"
"""Where a rank is that has left nothing."""


def explain(run: RunDirectory, attempt: int) -> str:
    """Return which rank of a silent attempt keeps the others waiting, and where it is. Empty: no rank has left that.

    It is a rank that has left nothing, or whose interpreter a call of C holds; else the one that has come to fewer
    collective operations than others.
    """
    left, worker = _left_by_ranks(run, attempt), Worker()
    ranks = len(left)
    if all(where == GONE for _, where, _ in left):
        return ""
    rank = min(range(ranks), key=lambda one: left[one][0])
    came, where, _ = left[rank]
    if ranks == 1:
        return f"its worker was {where}"
    awaited = min((call for number, _, call in left if call and number > came), default=None)
    operation = f"{awaited[1]} {awaited[0]}" if awaited else "the others"
    with contextlib.suppress(FileError):
        worker = run.read_worker(attempt, rank)
    who = f"rank {rank} of {ranks} ({worker.node or worker.host or 'unknown host'})"
    if all(number == came for number, _, _ in left):
        return f"all {ranks} ranks came to the same operation; {who} was {where}"
    return f"{who} did not come to {operation}; it was {where}"


def waiting_ranks(run: RunDirectory, attempt: int) -> str:
    """Return which ranks of a silent attempt waited for another one, and where. Empty: none has left that."""
    places = dict[str, list[str]]()
    for rank, (_, where, call) in enumerate(_left_by_ranks(run, attempt)):
        if call is not None:
            places.setdefault(f"in {call[1]}, {where.rpartition(', ')[2]}", []).append(str(rank))
    return "; ".join(f"rank{'s' if len(ranks) > 1 else ''} {', '.join(ranks)} {at}" for at, ranks in places.items())


def _left_by_ranks(run: RunDirectory, attempt: int) -> list[tuple[int, str, tuple[int, str] | None]]:
    """Return :func:`_left` of each rank that has begun."""
    with contextlib.suppress(FileError):
        return [_left(run, attempt, rank) for rank in range(len(listed(run.attempt_dir(attempt), "worker*.json")))]
    return []


def _left(run: RunDirectory, attempt: int, rank: int) -> tuple[int, str, tuple[int, str] | None]:
    """Return what a rank has left: the number of its last operation, where it is, and what it waits for, if anything.

    The number of a rank whose interpreter is held is -2, of one that has left nothing or a damaged file -1.
    """
    note = run.hang_file(attempt, rank)
    with contextlib.suppress(FileError, OSError):
        record = HangFile.read_file(note)
        if record is not None and record.where is not None:
            waits = [(number, name) for number, name, is_over in record.collectives if not is_over]
            last = max((number for number, _, _ in record.collectives), default=0)
            return last, f"in {record.where}", min(waits, default=None)
        dump = read_tail(note.with_suffix(".txt"), LARGEST_DUMP).decode(errors="replace")
        main = dump.rpartition("(most recent call first):")[2]  # faulthandler lists the main thread last
        if frame := re.search(r'File "([^"]*)", line (\d+) in (.*)', main):
            return -2, f"in {frame[3]}, {Path(frame[1]).name}:{frame[2]}, which holds the interpreter", None
    return -1, GONE, None

"""The trace of a run, ``steps.f32``: loss, gradient norm and time of every step. Standard library alone.

A step has a row of three little-endian float32. Its place is its number, ``epoch * steps + step``, with the steps of an
epoch. So a step that is taken once more overwrites its row, and an extended run goes on behind its last one. The rows
up to a checkpoint are on disk before it takes its place, and a worker that resumes forgets those behind it. So an
interrupted run has the losses and norms of an uninterrupted one, bit for bit.

The learning rate has no column: it is a function of that number
(:meth:`seqlm.optimizers.OptimizerConfig.learning_rate`).
"""

import contextlib
import math
import os
import sys
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import FileIO
from typing import TypeAlias, final, overload

from seqlm.errors import DamagedFileError, file_errors
from seqlm.files import Guard, open_at, replacing
from seqlm.reading import exists, open_regular, read_bytes
from seqlm.records.attempts import ProgressFile
from seqlm.rundir import RunDirectory

StepRow: TypeAlias = tuple[float, float, float]
"""Loss (nats per predicted token), gradient norm over all parameters before clipping, seconds."""
COLUMNS = 3
ROW_BYTES = 4 * COLUMNS


@final
class Rows(Sequence[StepRow]):
    """The rows of a trace, in the memory that the file takes. A step that nobody has recorded is three NaN."""

    def __init__(self, numbers: "array[float]") -> None:
        self.numbers = numbers
        """The columns of each row after those of the row before. The time of a step that is not recorded is 0."""

    def __len__(self) -> int:
        return len(self.numbers) // COLUMNS

    @overload
    def __getitem__(self, place: int) -> StepRow: ...
    @overload
    def __getitem__(self, place: slice) -> "Rows": ...
    def __getitem__(self, place: int | slice) -> "StepRow | Rows":
        if isinstance(place, slice):
            first, end, step = place.indices(len(self))
            assert step == 1, "rows follow each other"
            return Rows(self.numbers[first * COLUMNS : end * COLUMNS])
        start = range(len(self))[place] * COLUMNS
        loss, norm, seconds = self.numbers[start : start + COLUMNS]
        return (loss, norm, seconds) if seconds else (math.nan, math.nan, math.nan)


@final
@dataclass(frozen=True, kw_only=True)
class Trace:
    """The steps of a run, as far as they are written."""

    rows: Rows
    """By the number of the step."""
    steps: int
    """Steps of an epoch."""
    covered: int
    """How many of the rows belong to steps that the run's checkpoint or result holds: they are not taken again."""


def read_trace(run: RunDirectory) -> Trace | None:
    """Return the trace of a run; ``None``: it has none, or does not say how many steps an epoch has.

    Raises:
        FileError: a file cannot be read.
    """
    if not exists(run.trace_file):
        return None
    steps = _steps_of_an_epoch(run)
    if steps < 1:
        return None
    epoch, step = run.progress()
    try:
        content = read_bytes(run.trace_file)
    except FileNotFoundError:
        return None
    numbers = array("f")
    numbers.frombytes(memoryview(content)[: len(content) // ROW_BYTES * ROW_BYTES])
    del content  # both are large
    if sys.byteorder == "big":
        numbers.byteswap()
    rows = Rows(numbers)
    return Trace(rows=rows, steps=steps, covered=min(len(rows), epoch * steps + step))


def _steps_of_an_epoch(run: RunDirectory) -> int:
    """Return how many steps an epoch of a run has; 0 if it does not say."""
    metrics, _ = run.read_metrics()
    if metrics:
        steps = metrics[-1].get("steps")
        return steps if type(steps) is int else 0
    for attempt in reversed(run.attempts()):
        with contextlib.suppress(DamagedFileError):
            progress = ProgressFile.read(run.attempt_dir(attempt))
            if progress is not None and progress.steps is not None:
                return progress.steps
    return 0


@final
class TraceWriter:
    """Writes the rows of the one process that owns the run. Keeps them in memory between two checkpoints.

    Each writer makes a file of its own, and puts it in the place of the one before. So one that has lost the run writes
    into a file that has no name any more, however late it learns of its loss.
    """

    def __init__(self, run: RunDirectory, guard: Guard) -> None:
        self._path, self._guard = run.trace_file, guard
        self._place, self._rows = 0, array("f")
        self._file: FileIO | None = None

    def begin(self, number: int) -> None:
        """Forget what is written of the step with this number and those after it.

        Raises:
            FileError: the file cannot be written.
            LeaseLostError: the run is another worker's by now.
        """
        self.close()
        self._place, self._rows = number * ROW_BYTES, array("f")
        with replacing(self._path, guard=self._guard) as temporary:
            self._file = FileIO(open_at(temporary, os.O_WRONLY), "wb")
            _write_all(self._file, 0, self._written(self._place))
            self._file.truncate(self._place)

    def _written(self, most: int) -> bytes:
        """Return the first bytes of the file that there is, at most so many."""
        with contextlib.suppress(FileNotFoundError), open_regular(self._path, largest=sys.maxsize) as file:
            return file.read(most)
        return b""

    def add(self, rows: Iterable[StepRow]) -> None:
        """Keep the rows of the next steps."""
        for row in rows:
            self._rows.extend(row)

    def take(self) -> Callable[[], None]:
        """Return a function, for any thread, that writes the rows kept so far and waits until they are on disk.

        It raises as :meth:`begin`, which has been called.
        """
        place, rows = self._place, self._rows
        self._place, self._rows = place + len(rows) // COLUMNS * ROW_BYTES, array("f")
        if sys.byteorder == "big":
            rows.byteswap()
        return lambda: self._write(place, rows.tobytes())

    def _write(self, place: int, content: bytes) -> None:
        """Put ``content`` at ``place``, and let the file end behind it."""
        assert self._file is not None, "begin comes first"
        self._guard()
        with file_errors("write", self._path):
            self._file.truncate(place)
            _write_all(self._file, place, content)
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file. Nothing is written after this, unless the trace begins again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _write_all(file: FileIO, place: int, content: bytes) -> None:
    """Write ``content`` at ``place``. A single call of the system may write less."""
    file.seek(place)
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]

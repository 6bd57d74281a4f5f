"""One attempt of a run, as its launcher or job follows it: the same on every backend."""

import functools
import os
from dataclasses import replace
from typing import Any, final

from jobs.attempt.supervisor import Ended, cause
from jobs.spec import Submission
from seqlm.ends import most_micro_batches
from seqlm.environment import MICRO_BATCHES
from seqlm.errors import EXIT_BUSY, EXIT_RUNG, EXIT_UNPRINTED, STOPPED_EXITS
from seqlm.files import make_directory
from seqlm.hang import Heartbeat, hung_seconds
from seqlm.lease import last_sign_of, live_owner
from seqlm.reading import exists, timestamp
from seqlm.records.attempts import Exit, ProgressFile, Start
from seqlm.rundir import RunDirectory
from seqlm.state import FailureKind


def micro_batches(run: RunDirectory, batch_size: int, ranks: int, memory_mb: int | None = None) -> int:
    """Return the number for the next attempt. It doubles after each attempt that ran out of memory in a batch.

    A run on a GPU that was killed for the memory of its node keeps its number if the job now has more memory
    (``memory_mb``). A run that needed four keeps them for the rest of its life, in every launch. A canary gets the
    number of its run. A behaviour job takes no steps and gets one.

    Raises:
        FileError: the run's earlier failures cannot be read.
    """
    if exists(run.task_file):
        return 1
    if run.is_canary:
        run = RunDirectory(run.path.parents[1] / run.id)
    if (failed := run.last_out_of_memory()) is None:
        return 1
    has_more = failed.memory_mb is not None and (memory_mb or 0) > failed.memory_mb
    factor = 1 if has_more or failed.before_batch else 2
    return min(factor * failed.micro_batches, most_micro_batches(batch_size, ranks))


def end_left(run: RunDirectory, where: str) -> None:
    """Record that the newest attempt with a worker has failed if that is gone and has recorded no end.

    Its node has failed, or all of its job was killed. So it counts, and the node can be avoided. ``where``: who found
    that. Attempts before the newest request are left alone: a person has launched the run again.

    Raises:
        FileError: the run's files cannot be read or written.
    """
    begun = [one for one in run.attempts() if exists(run.start_file(one)) and exists(run.worker_file(one))]
    if not begun or begun[-1] < run.first_attempt():
        return
    number = begun[-1]
    if not run.end(number).has_ended and live_owner(run.lease_dir) is None:
        sign = last_sign_of(ProgressFile.read(run.attempt_dir(number)), None)
        ended_at = run.read_worker(number).started_at if sign is None else timestamp(sign)
        # The time is that of its last sign of life, which is what it has cost, not when it was found.
        message = "its worker is gone and has recorded no end"
        run.write_exit(number, Exit(kind="node", message=message, where=where, ended_at=ended_at))


def record_unstarted(run: RunDirectory, start: Start, record: Exit) -> None:
    """Record that an attempt could not even be started, unless another process has started it meanwhile.

    Its number is the next one. ``start``: who would have followed it.

    Raises:
        FileError: the run's files cannot be read or written.
    """
    number = run.last_attempt() + 1
    folder = run.attempt_dir(number)
    make_directory(folder)
    if replace(start, started_at=timestamp()).write(folder, once=True):
        run.write_exit(number, record)


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
    def heartbeat(self) -> Heartbeat:
        """Whether its worker makes progress. It is watched from the first use on."""
        return Heartbeat(self.run, self.number, hung_seconds({**os.environ, **self._submission.env}))

    def record_start(self, start: Start) -> bool:
        """Write ``start.json`` before the ranks are started. ``start`` says who starts them.

        Returns whether this process was the first to start the attempt.

        Raises:
            FileError: it cannot be written.
        """
        submission = self._submission
        whole = replace(
            start,
            resources=submission.resources,
            micro_batches=MICRO_BATCHES.read(submission.env),
            argv=submission.argv,
            code=str(submission.cwd),
            started_at=timestamp(),
        )
        folder = self.run.attempt_dir(self.number)
        make_directory(folder)
        return whole.write(folder, once=True)

    def record(self, kind: FailureKind | None, message: str, **more: Any) -> None:
        """Record how the attempt ended, if that adds something to what its ranks have recorded.

        Raises:
            FileError: a file of the run cannot be read or written.
        """
        parts = MICRO_BATCHES.read(self._submission.env)
        record = Exit(kind=kind, message=message, where=self._where, micro_batches=parts, **more)
        self.run.write_exit(self.number, record)

    def _has_begun(self) -> bool:
        """Return whether a rank has recorded anything.

        One that has not may have found no interpreter, no code or no device, which says nothing of the run.
        """
        ranks = range(self._submission.resources.ranks)
        files = [file(self.number, rank) for rank in ranks for file in (self.run.worker_file, self.run.end_file)]
        return any(map(exists, files))

    def record_exit(self, ended: Ended, *, was_asked: bool) -> None:
        """Record how the ranks ended, if that adds something to what they have recorded.

        Nothing is recorded of an attempt that ended well or left at a rung of a search. One that found another worker
        at the run, or stopped as asked (``was_asked``), has not failed. If a signal killed a rank, its node has failed.
        If no rank has begun, the failure is of kind ``start``.

        Raises:
            FileError: the run's files cannot be read or written.
        """
        run, code = self.run, ended.exit_code
        if code in (0, EXIT_RUNG) or run.is_done():
            return
        if code == EXIT_BUSY:
            self.record(None, "not started: another worker has the run")
            return
        if ended.taken is not None:
            self.record(None, f"not started: {ended.taken}")
            return
        kind, message = cause(ended, run.stderr_log(self.number, ended.first_rank))
        if kind == "code" and not self._has_begun():
            kind = "start"
        if run.is_cancelled() or (was_asked and code in (*STOPPED_EXITS, EXIT_UNPRINTED)):
            self.record(None, ended.message, exit_code=code)
        else:
            self.record(kind, message, exit_code=code, node=ended.node if code < 0 else None)

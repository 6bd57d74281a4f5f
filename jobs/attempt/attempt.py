"""One attempt of a run, from its submission to the decision about its failure: the same on every backend."""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from jobs.attempt import retry
from jobs.attempt.supervisor import Ended, cause, failure_record
from jobs.manifests.policy import Policy
from jobs.spec import Resources, Submission
from seqlm.environment import ATTEMPT, HUNG_MINUTES, MICRO_BATCHES, PROGRESS_SECONDS
from seqlm.errors import EXIT_BUSY, EXIT_RUNG, EXIT_UNPRINTED, STOPPED_EXITS
from seqlm.files import write_json
from seqlm.reading import exists
from seqlm.rundir import RunDirectory

LOOKS = 40
"""Number of looks at the files of a worker in the time after which it counts as hung."""
MOST_SECONDS = 15.0
"""Longest time between two looks."""
MISSING = (math.inf, math.inf, math.inf)
"""The state of a file that does not exist or cannot be read."""


def prepare(
    run: RunDirectory,
    number: int,
    *,
    argv: Sequence[str],
    env: Mapping[str, str],
    code: Path,
    batch_size: int,
    resources: Resources,
) -> Submission:
    """Return what starts attempt ``number`` (from 1) of a run.

    ``argv`` is the worker's command line without the folder, and ``code`` the folder of the code that it runs.

    Raises:
        FileError: the run's earlier failures cannot be read.
        UsageError: ``SEQLM_HUNG_MINUTES`` is not a number above 0.
    """
    hung_seconds({**os.environ, **env})
    run_dir = run.path.absolute()
    parts = retry.micro_batches(run, batch_size, resources.ranks)
    return Submission(
        run_dir=run_dir,
        attempt=number,
        argv=(*argv, str(run_dir)),
        env={**env, ATTEMPT.name: str(number), MICRO_BATCHES.name: str(parts)},
        cwd=code,
        resources=resources,
    )


@final
class Attempt:
    """An attempt that its launcher or its job follows."""

    def __init__(self, submission: Submission, policy: Policy) -> None:
        self.run = RunDirectory(submission.run_dir)
        self.number = submission.attempt
        self.micro_batches = MICRO_BATCHES.read(submission.env)
        """Parts in which its workers take a step."""
        self._submission = submission
        self._policy = policy

    @functools.cached_property
    def _heartbeat(self) -> Heartbeat:
        return Heartbeat(self.run, self.number, hung_seconds({**os.environ, **self._submission.env}))

    def is_hung(self) -> bool:
        """Look at the files now and then; return whether its worker makes no progress. Call it repeatedly.

        Raises:
            FileError: the run's files cannot be read; the next call tries again.
        """
        return self._heartbeat.is_hung()

    def record_hang(self, where: str) -> None:
        """Write ``failure.json`` for a worker that hangs, before it is killed: the kill is not the cause.

        Raises:
            FileError, OSError: it cannot be written.
        """
        self.run.write_failure_once(self.failure("node", self._heartbeat.message, where=where))

    def failure(self, kind: str, message: str, *, where: str, node: str | None = None) -> dict[str, Any]:
        """Return the content of a ``failure.json`` that is not the worker's own. ``node``: the one that failed."""
        record = failure_record(kind, message, where=where, attempt=self.number, micro_batches=self.micro_batches)
        return record if node is None else {**record, "node": node}

    def record_exit(self, ended: Ended, *, was_asked: bool, where: str) -> None:
        """Write ``failure.json`` for a worker that failed without writing one.

        Nothing is written for an attempt that ended well, left at a rung of a search, stopped as asked (``was_asked``),
        or found another worker at the run. An existing failure stays, unless the system killed a rank for its memory:
        the other ranks may have recorded only that they lost it. If a signal killed a rank, its node has failed.

        Raises:
            FileError, OSError: the run's files cannot be read or written.
        """
        run = self.run
        if ended.exit_code in (0, EXIT_BUSY, EXIT_RUNG) or run.is_done() or exists(run.stopped_file):
            return
        if run.is_cancelled():
            return
        earlier = run.read_failure()
        for_memory = ended.out_of_memory and (earlier is None or earlier.get("kind") == "node")
        if earlier is not None and not for_memory:
            return
        if was_asked and ended.exit_code in (*STOPPED_EXITS, EXIT_UNPRINTED):
            return
        kind, message = cause(ended, run.stderr_log(self.number))
        failed_node = ended.node if kind == "node" and ended.exit_code < 0 else None
        failure = self.failure(kind, message, where=where, node=failed_node)
        if for_memory:
            write_json(run.failure_file, failure)
        else:
            run.write_failure_once(failure)

    def decide(self, failure: Mapping[str, Any], uncounted: Sequence[retry.Failed] = ()) -> retry.Decision:
        """Decide whether the run is tried again after this attempt has failed.

        ``failure`` is the record of the failure, or only its ``kind``; ``uncounted`` are failures of earlier attempts
        that the run's files do not record.

        Raises:
            FileError: the run's files cannot be read.
        """
        if failure.get("kind") not in retry.RETRIED:
            return retry.Decision()  # even if the run's files cannot be read
        failed = replace(retry.failed_of(failure, retry.progress_of(self.run)), micro_batches=self.micro_batches)
        batch_size = self.run.read_config().train.batch_size
        most = retry.most_micro_batches(batch_size, self._submission.resources.ranks)
        return retry.decide(self._policy, [*retry.history(self.run), *uncounted], failed, most_micro_batches=most)


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

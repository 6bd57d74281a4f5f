"""One attempt of a run, from its submission to the decision about its failure: the same on every backend."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from jobs.attempt.heartbeat import Heartbeat, hung_seconds
from jobs.attempt.retry import (
    RETRIED,
    Decision,
    Failed,
    decide,
    failed_of,
    history,
    micro_batches,
    most_micro_batches,
    progress_of,
)
from jobs.attempt.supervisor import Ended, cause, failure_record
from jobs.manifests.policy import Policy
from jobs.spec import Resources, Submission
from seqlm.environment import ATTEMPT, MICRO_BATCHES
from seqlm.errors import EXIT_BUSY, EXIT_RUNG, EXIT_UNPRINTED, STOPPED_EXITS
from seqlm.files import write_json
from seqlm.rundir import RunDirectory


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
    parts = micro_batches(run, batch_size, resources.ranks)
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
        """Look at the files now and then; return whether its worker makes no progress. Call it repeatedly."""
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

    def record_exit(self, ended: Ended, *, was_asked: bool, where: str, node: str | None = None) -> None:
        """Write ``failure.json`` for a worker that failed without writing one.

        Nothing is written for an attempt that ended well, left at a rung of a search, stopped as asked (``was_asked``),
        or found another worker at the run. An existing failure stays, unless the system killed a rank for its memory:
        the other ranks may have recorded only that they lost it. If a signal killed a rank, ``node`` has failed.

        Raises:
            FileError, OSError: the run's files cannot be read or written.
        """
        run = self.run
        if ended.exit_code in (0, EXIT_BUSY, EXIT_RUNG) or run.is_done() or run.stopped_file.exists():
            return
        earlier = run.read_failure()
        for_memory = ended.out_of_memory and (earlier is None or earlier.get("kind") == "node")
        if earlier is not None and not for_memory:
            return
        if was_asked and ended.exit_code in (*STOPPED_EXITS, EXIT_UNPRINTED):
            return
        kind, message = cause(ended, run.stderr_log(self.number))
        failed_node = node if kind == "node" and ended.exit_code < 0 else None
        failure = self.failure(kind, message, where=where, node=failed_node)
        if for_memory:
            write_json(run.failure_file, failure)
        else:
            run.write_failure_once(failure)

    def decide(self, failure: Mapping[str, Any], uncounted: Sequence[Failed] = ()) -> Decision:
        """Decide whether the run is tried again after this attempt has failed.

        ``failure`` is the record of the failure, or only its ``kind``; ``uncounted`` are failures of earlier attempts
        that the run's files do not record.

        Raises:
            FileError: the run's files cannot be read.
        """
        if failure.get("kind") not in RETRIED:
            return Decision()  # even if the run's files cannot be read
        failed = replace(failed_of(failure, progress_of(self.run)), micro_batches=self.micro_batches)
        batch_size = self.run.read_config().train.batch_size
        most = most_micro_batches(batch_size, self._submission.resources.ranks)
        return decide(self._policy, [*history(self.run), *uncounted], failed, most_micro_batches=most)

"""One attempt of a run, from its start to the decision about its failure, whatever starts its ranks.

A launcher (with the local backend or Ray) and the task of a SLURM job take the same steps:

    prepare                 what starts the workers: command line, variables, code (:class:`jobs.spec.Submission`)
    Supervisor              the processes on a node (:mod:`jobs.attempt.supervisor`)
    is_hung, record_hang    a live worker that makes no progress (:mod:`jobs.attempt.heartbeat`)
    record_exit             ``failure.json`` for a worker that wrote none (:mod:`jobs.attempt.outcome`)
    decide                  whether the run is tried again, and when (:mod:`jobs.attempt.retry`)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

from jobs.attempt.heartbeat import Heartbeat, hung_seconds
from jobs.attempt.outcome import Ended, cause, failure_record
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
from jobs.manifests.policy import Policy
from jobs.spec import Resources, Submission
from seqlm.environment import ATTEMPT, MICRO_BATCHES
from seqlm.errors import EXIT_BUSY, EXIT_UNPRINTED, STOPPED_EXITS
from seqlm.files import write_json
from seqlm.rundir import RunDirectory


@final
class Attempt:
    """One attempt of a run."""

    def __init__(self, run: RunDirectory, number: int, *, policy: Policy, resources: Resources) -> None:
        self.run = run
        self.number = number
        """From 1."""
        self.micro_batches = 1
        """Parts in which its workers take a step; known once it is prepared."""
        self._policy = policy
        self._resources = resources
        self._heartbeat: Heartbeat | None = None

    def prepare(self, argv: Sequence[str], *, env: Mapping[str, str], code: Path) -> Submission:
        """Return what starts the attempt. Its files are watched from now on.

        Args:
            argv: the worker's command line without the folder.
            env: variables of the worker.
            code: the folder of the code that the worker runs.

        Raises:
            FileError: the run's configuration or its earlier failures cannot be read.
            UsageError: ``SEQLM_HUNG_MINUTES`` is not a number above 0.
        """
        self.micro_batches = micro_batches(self.run, self._batch_size(), self._resources.ranks)
        run_dir = self.run.path.absolute()
        submission = Submission(
            run_dir=run_dir,
            attempt=self.number,
            argv=(*argv, str(run_dir)),
            env={**env, ATTEMPT.name: str(self.number), MICRO_BATCHES.name: str(self.micro_batches)},
            cwd=code,
            resources=self._resources,
        )
        self._heartbeat = Heartbeat(self.run, self.number, hung_seconds({**os.environ, **submission.env}))
        return submission

    def is_hung(self) -> bool:
        """Look at the files now and then; return whether its worker makes no progress. Call it repeatedly."""
        return self._heartbeat is not None and self._heartbeat.is_hung()

    def record_hang(self, where: str) -> None:
        """Write ``failure.json`` for a worker that hangs, before it is killed: the kill is not the cause.

        Raises:
            FileError, OSError: it cannot be written.
        """
        assert self._heartbeat is not None, "only a prepared attempt hangs"
        self.run.write_failure_once(self.failure("node", self._heartbeat.message, where=where))

    def failure(self, kind: str, message: str, *, where: str, node: str | None = None) -> dict[str, Any]:
        """Return the content of a ``failure.json`` that is not the worker's own. ``node``: the one that failed."""
        record = failure_record(kind, message, where=where, attempt=self.number, micro_batches=self.micro_batches)
        return record if node is None else {**record, "node": node}

    def record_exit(self, ended: Ended, *, was_asked: bool, where: str, node: str | None = None) -> None:
        """Write ``failure.json`` for a worker that failed without writing one.

        Nothing is written for an attempt that ended well, that this launcher or job asked to stop, or that found
        another worker at the run. An existing failure stays, with one exception: if the system killed a rank for its
        memory, the other ranks may have recorded only that they lost it.

        Args:
            ended: how its ranks ended.
            was_asked: whether its launcher or its job had asked it to stop.
            where: the author of the record.
            node: the node of the ranks; recorded as the one that failed if a signal killed a rank.

        Raises:
            FileError, OSError: the run's files cannot be read or written.
        """
        run = self.run
        if ended.exit_code in (0, EXIT_BUSY) or run.result_file.exists():
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

        Args:
            failure: the record of the failure, or only its ``kind``.
            uncounted: failures of earlier attempts that the run's files do not record.

        Raises:
            FileError: the run's files cannot be read.
        """
        if failure.get("kind") not in RETRIED:
            return Decision()  # even if the run's files cannot be read
        failed = replace(failed_of(failure, progress_of(self.run)), micro_batches=self.micro_batches)
        most = most_micro_batches(self._batch_size(), self._resources.ranks)
        return decide(self._policy, [*history(self.run), *uncounted], failed, most_micro_batches=most)

    def _batch_size(self) -> int:
        return self.run.read_config().train.batch_size

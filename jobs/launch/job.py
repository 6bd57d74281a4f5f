"""A run that is under way, as its launcher follows it: what the backend was handed, and the record of it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.attempt.heartbeat import Heartbeat
from jobs.attempt.outcome import Ended, record_exit
from jobs.attempt.retry import (
    VARIABLE,
    Decision,
    Failed,
    decide,
    history,
    micro_batches,
    most_micro_batches,
    progress_of,
    put_failure_aside,
    timestamp,
)
from jobs.manifests.policy import Policy
from jobs.plan.planned import Planned
from jobs.plan.queue import Waiting
from jobs.spec import Submission
from jobs.study.kept_code import Code
from seqlm.rundir import FailureKind, Observation, RunDirectory, State, write_json


@dataclass(kw_only=True)
class Job:
    """An attempt that the backend has taken."""

    waiting: Waiting
    planned: Planned
    submission: Submission
    started: float
    """When it was submitted, on the monotonic clock."""
    heartbeat: Heartbeat
    record: dict[str, Any] | None
    """The content of ``job.json`` until it is written."""
    stop_asked: float | None = None
    """When it was asked to stop because the run was cancelled, on the monotonic clock."""

    @property
    def run(self) -> RunDirectory:
        return self.planned.run

    @property
    def micro_batches(self) -> int:
        return micro_batches_of(self.submission)

    def write_record(self) -> None:
        """Write ``job.json`` unless it is written.

        Raises:
            FileError, OSError: it cannot be written; the next call tries again.
        """
        if self.record is not None:
            write_json(self.run.job_file, self.record)
            self.record = None

    def observe_end(self, ended: Ended) -> Observation:
        """Return the state of the run whose ranks have ended. A worker that wrote no ``failure.json`` gets one.

        A failure counts although ``worker.lock`` may still be held: if a node is lost, the backend reports it before
        the last process there is gone.

        Raises:
            FileError, OSError: the run's files cannot be read or written.
        """
        record_exit(
            self.run,
            ended,
            was_asked=self.stop_asked is not None,
            where="outside the worker's own code",
            attempt=self.submission.attempt,
            micro_batches=self.micro_batches,
        )
        observation = self.run.observe()
        failure = self.run.read_failure() if observation.state == "running" else None
        if failure is None:
            return observation
        kind = failure.get("kind", "code")
        state: State = "cancelled" if kind == "cancelled" else "failed"
        return replace(observation, state=state, reason=f"{kind}: {failure.get('message')}", kind=kind)

    def decide(self, policy: Policy, kind: FailureKind | None, uncounted: Sequence[Failed]) -> Decision:
        """Decide whether the run is tried again after this attempt.

        ``uncounted``: failures of earlier attempts that the run's files do not record.
        """
        run, ranks = self.run, self.submission.resources.ranks
        failed = Failed(kind=kind, progress=progress_of(run), micro_batches=self.micro_batches)
        most = most_micro_batches(self.planned.spec.config.train.batch_size, ranks)
        return decide(policy, [*history(run), *uncounted], failed, most_micro_batches=most)


def put_aside_unless_cancelled(run: RunDirectory) -> None:
    """Put a failure aside that could not be read before, unless it is a cancellation that was written meanwhile.

    Raises:
        FileError: it cannot be read or moved.
    """
    if (run.read_failure() or {}).get("kind") != "cancelled":
        put_failure_aside(run)


def next_submission(
    waiting: Waiting,
    item: Planned,
    *,
    argv: Sequence[str],
    code: Code,
    env: Mapping[str, str],
    data_path: Path | None,
) -> Submission:
    """Return the next attempt of a run, for a backend.

    Args:
        waiting: the run, with its resources resolved.
        item: the same run.
        argv: the worker's command without the folder.
        code: what the worker runs.
        env: variables of every worker of this launch.
        data_path: the corpus. ``None``: the worker finds it.

    Raises:
        FileError: the run's earlier failures cannot be read.
    """
    attempt = item.run.last_attempt() + 1
    run_dir = item.run.path.absolute()
    batch_size = item.spec.config.train.batch_size
    variables = {
        **env,
        "PYTHONUNBUFFERED": "1",
        "SEQLM_ATTEMPT": str(attempt),
        VARIABLE: str(micro_batches(item.run, batch_size, waiting.spec.resources.ranks)),
    }
    if data_path is not None:
        variables["SEQLM_DATA"] = str(data_path.absolute())
    return Submission(
        run_dir=run_dir,
        attempt=attempt,
        argv=(*argv, str(run_dir)),
        env=variables,
        cwd=code.path,
        resources=waiting.spec.resources,
    )


def job_record(backend: str, job_id: str, submission: Submission) -> dict[str, Any]:
    """Return the content of ``job.json``."""
    return {
        "backend": backend,
        "job_id": job_id,
        "launcher": {"pid": os.getpid(), "host": socket.gethostname()},
        "resources": submission.resources.to_dict(),
        "attempt": submission.attempt,
        "micro_batches": micro_batches_of(submission),
        "argv": list(submission.argv),
        "code": str(submission.cwd),
        "submitted_at": timestamp(),
    }


def micro_batches_of(submission: Submission) -> int:
    """Return the number of micro-batches that an attempt was given."""
    return int(submission.env[VARIABLE])

"""A run that is under way, as its launcher follows it, and the record of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from jobs.attempt.attempt import Attempt
from jobs.attempt.outcome import Ended
from jobs.attempt.retry import put_failure_aside, timestamp
from jobs.plan.planned import Planned
from jobs.plan.queue import Waiting
from jobs.spec import Submission
from jobs.study.folder import this_launcher
from seqlm.rundir import Observation, RunDirectory, State, write_json


@dataclass(kw_only=True)
class Job:
    """An attempt that the backend has taken."""

    waiting: Waiting
    planned: Planned
    attempt: Attempt
    started: float
    """When it was submitted, on the monotonic clock."""
    record: dict[str, Any] | None
    """The content of ``job.json`` until it is written."""
    stop_asked: float | None = None
    """When it was asked to stop because the run was cancelled, on the monotonic clock."""

    @property
    def run(self) -> RunDirectory:
        return self.planned.run

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
        was_asked = self.stop_asked is not None
        self.attempt.record_exit(ended, was_asked=was_asked, where="outside the worker's own code")
        observation = self.run.observe()
        failure = self.run.read_failure() if observation.state == "running" else None
        if failure is None:
            return observation
        kind = failure.get("kind", "code")
        state: State = "cancelled" if kind == "cancelled" else "failed"
        return replace(observation, state=state, reason=f"{kind}: {failure.get('message')}", kind=kind)


def put_aside_unless_cancelled(run: RunDirectory) -> None:
    """Put a failure aside that could not be read before, unless it is a cancellation that was written meanwhile.

    Raises:
        FileError: it cannot be read or moved.
    """
    if (run.read_failure() or {}).get("kind") != "cancelled":
        put_failure_aside(run)


def job_record(backend: str, job_id: str, submission: Submission, micro_batches: int) -> dict[str, Any]:
    """Return the content of ``job.json``."""
    return {
        "backend": backend,
        "job_id": job_id,
        "launcher": this_launcher(),
        "resources": submission.resources.to_dict(),
        "attempt": submission.attempt,
        "micro_batches": micro_batches,
        "argv": list(submission.argv),
        "code": str(submission.cwd),
        "submitted_at": timestamp(),
    }

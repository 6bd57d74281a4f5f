"""An attempt as its launcher follows it: the submission, the record of it, and how it ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jobs.attempt.attempt import Attempt
from jobs.attempt.outcome import Ended
from jobs.attempt.retry import put_failure_aside, timestamp
from jobs.manifests.policy import Policy
from jobs.plan.planned import PlannedRun
from jobs.spec import Submission
from jobs.study.folder import this_launcher
from jobs.study.kept_code import Code
from seqlm.environment import DATA, MICRO_BATCHES
from seqlm.files import write_json
from seqlm.rundir import Observation, RunDirectory, State


@dataclass(kw_only=True, eq=False)
class Job:
    """An attempt that the backend has taken, until its end has been recorded."""

    id: str
    """The backend's id."""
    planned: PlannedRun
    attempt: Attempt
    started: float
    """When it was submitted, on the monotonic clock."""
    record: dict[str, Any] | None
    """The content of ``job.json`` until it is written."""
    stop_asked: float | None = None
    """When it was asked to stop because the run was cancelled, on the monotonic clock."""
    ended: Ended | None = None
    """``None``: it is queued or running."""
    looks: int = 0
    """How often reading or writing the run's files has failed since the job ended."""
    look_at: float = -math.inf
    """When to look at the files of the ended job, on the monotonic clock."""

    @property
    def run(self) -> RunDirectory:
        return self.planned.run

    @property
    def expected_end(self) -> float | None:
        """Expected end, on the monotonic clock. ``None``: unknown."""
        seconds = self.planned.seconds
        return None if seconds is None else self.started + seconds

    def write_record(self) -> None:
        """Write ``job.json`` unless it is written.

        Raises:
            FileError, OSError: it cannot be written; the next call tries again.
        """
        if self.record is not None:
            write_json(self.run.job_file, self.record)
            self.record = None

    def observe_end(self) -> Observation:
        """Return the state of the run whose ranks have ended. A worker that wrote no ``failure.json`` gets one.

        A failure counts although ``worker.lock`` may still be held: if a node is lost, the backend reports it before
        the last process there is gone.

        Raises:
            FileError, OSError: the run's files cannot be read or written.
        """
        assert self.ended is not None, "asked of ended jobs only"
        was_asked = self.stop_asked is not None
        self.attempt.record_exit(self.ended, was_asked=was_asked, where="outside the worker's own code")
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


def next_attempt(
    item: PlannedRun, *, policy: Policy, argv: Sequence[str], code: Code, env: Mapping[str, str]
) -> tuple[Attempt, Submission]:
    """Return the next attempt of a run, and what starts it.

    Args:
        item: the run.
        policy: decides whether the run is tried again after it.
        argv: the worker's command without the folder.
        code: what the worker runs.
        env: variables of every worker of this launch.

    Raises:
        FileError: the run's configuration or its earlier failures cannot be read.
        UsageError: ``SEQLM_HUNG_MINUTES`` is not a number above 0.
    """
    spec = item.spec
    attempt = Attempt(item.run, item.run.last_attempt() + 1, policy=policy, resources=spec.resources)
    data = {} if spec.data_path is None else {DATA.name: str(spec.data_path.absolute())}
    return attempt, attempt.prepare(argv, env={**env, "PYTHONUNBUFFERED": "1", **data}, code=code.path)


def job_record(backend: str, job_id: str, submission: Submission, *, has_launcher: bool = True) -> dict[str, Any]:
    """Return the content of ``job.json``. ``has_launcher``: whether this process goes on to watch the job."""
    return {
        "backend": backend,
        "job_id": job_id,
        "launcher": this_launcher() if has_launcher else None,
        "resources": submission.resources.to_dict(),
        "attempt": submission.attempt,
        "micro_batches": int(submission.env[MICRO_BATCHES.name]),
        "argv": list(submission.argv),
        "code": str(submission.cwd),
        "submitted_at": timestamp(),
    }

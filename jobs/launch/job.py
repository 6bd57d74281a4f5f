"""The options of a launch, and an attempt as its launcher follows it: submission, record, and how it ended."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs import terminal
from jobs.attempt.attempt import Attempt, prepare
from jobs.attempt.supervisor import KILL_SECONDS, Ended, worker_variables
from jobs.backends.base import Executor
from jobs.launch.background import STOP_SECONDS, Interrupts
from jobs.manifests.policy import Policy
from jobs.plan.planned import PlannedRun
from jobs.spec import Submission
from jobs.study.folder import this_launcher
from jobs.study.kept_code import Code
from seqlm.ends import Verdict
from seqlm.environment import DATA
from seqlm.errors import FileError
from seqlm.rundir import RunDirectory
from seqlm.search import Search
from seqlm.state import FailureKind

POLL_SECONDS = 0.1
"""Time between two polls of the backend."""


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """The options of a launch, apart from its runs."""

    study_dir: Path
    """The folder that holds the job folders."""
    worker: tuple[str, ...] = ("-m", "seqlm.training.worker")
    """The worker's command line, without the interpreter and the job's folder."""
    code_dir: Path | None = None
    """The study folder that keeps the code. ``None`` means ``study_dir``."""
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Run id -> content of ``task.json``, for jobs that do not train. They run again, however they ended before."""
    live_code: bool = False
    """Run workers from the working tree instead of the copy kept with the study."""
    untracked: Sequence[str] = ()
    """Files to keep with the code although git does not track them."""
    retry: bool = False
    """Also launch runs that failed, were cancelled, or were stopped by a search."""
    max_parallel: int | None = None
    """Maximum number of runs at once. ``None`` means as many as the backend has room for."""
    policy: Policy = field(default_factory=Policy)
    """How often failed runs are retried automatically, and how often runs save checkpoints."""
    search: Search | None = None
    """When runs are compared and stopped. ``None`` means never."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables for the workers."""
    canary: bool | None = None
    """Whether canaries run before the grid. ``None`` means that the number of runs decides."""
    record: Mapping[str, Any] | None = None
    """What to write about the manifest in ``study.json``. ``None`` means that no manifest is known."""
    request: int | None = None
    """The request that this launch serves. A run that a later one names is left to that. ``None``: there is none."""


@dataclass(frozen=True, kw_only=True)
class Again:
    """A run that has failed and is tried again after the dispatcher has ended, by a requeued job."""

    kind: FailureKind
    message: str
    verdict: Verdict


class Host:
    """The process in which a dispatcher runs: a launcher, unless a subclass says otherwise."""

    stop_seconds = STOP_SECONDS
    """How long workers may take to stop before they are killed."""
    where = "outside the worker's own code"
    """Where a failure happened of which the worker wrote nothing."""

    def tries_again(self, kind: str | None, number: int) -> bool:
        """Return whether a run that failed with ``kind`` is tried again by this dispatcher.

        ``number`` counts the attempts in a row that found another worker at the run.
        """
        return True

    def stopped(self) -> tuple[FailureKind, str] | None:
        """Return kind and message of the failure of runs that were stopped with this process. ``None``: no failure."""
        return None


@dataclass(kw_only=True, eq=False)
class Job:
    """An attempt that the backend has taken, until its end has been recorded."""

    id: str
    """The backend's id."""
    planned: PlannedRun
    attempt: Attempt
    started: float = field(default_factory=time.monotonic)
    """When it was submitted. This and the other times are on the monotonic clock."""
    stop_asked: float | None = None
    """When it was asked to stop because the run was cancelled or the budget is spent."""
    killed: float | None = None
    """When it was first killed."""
    ended: Ended | None = None
    """``None``: it is queued or running."""
    looks: int = 0
    """How often reading or writing the run's files has failed since the job ended."""
    look_at: float = -math.inf
    """When to look at the files of the ended job."""

    @property
    def expected_end(self) -> float | None:
        """Expected end. ``None``: unknown."""
        seconds = self.planned.seconds
        return None if seconds is None else self.started + seconds


@contextlib.contextmanager
def files_of(run: RunDirectory) -> Iterator[None]:
    """Turn an ``OSError`` in the block into one line about the run.

    Raises:
        FileError: the block raised an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise FileError.from_os_error("read or write", error.filename or run.path, error) from None


def next_submission(item: PlannedRun, options: LaunchOptions, code: Code) -> Submission:
    """Return what starts the next attempt of a run.

    Raises:
        FileError: the earlier failures of the run cannot be read.
        UsageError: ``SEQLM_HUNG_MINUTES`` is not a number above 0.
    """
    spec = item.spec
    data = {} if spec.data_path is None else {DATA.name: str(spec.data_path.absolute())}
    return prepare(
        item.run,
        item.run.last_attempt() + 1,
        argv=(sys.executable, *options.worker),
        env={**options.env, **worker_variables(options.policy, options.search), "PYTHONUNBUFFERED": "1", **data},
        code=code.path,
        batch_size=spec.config.train.batch_size,
        resources=spec.resources,
    )


def launch_of(executor: Executor, request: int | None) -> dict[str, Any]:
    """Return what the record of an attempt's start says of the launch that makes it."""
    return {
        "request": request,
        "backend": executor.name,
        "job_id": executor.job,
        "node": executor.node,
        "restart": os.environ.get("SLURM_RESTART_COUNT"),
        "launcher": this_launcher(),
    }


# -- the end of a launch -------------------------------------------------------------------------------------------


def stop_all(live: list[Job], executor: Executor, interrupts: Interrupts, seconds: float) -> list[Job]:
    """Ask every worker to stop between two steps. One more Ctrl-C, or ``seconds``, kills them.

    The jobs that have ended are removed from ``live`` and returned.
    """
    if not live:
        return []
    before = list(live)
    interrupts.request()
    try:
        workers = f"{len(live)} run{'s' if len(live) > 1 else ''}"
        terminal.tell(f"stopping {workers} between two steps; once more ends them at once")
        for job in live:
            executor.stop(job.id, force=False)
        _wait_for_ends(live, executor, seconds, lambda: interrupts.kill)
    finally:
        for job in live:
            executor.stop(job.id, force=True)
        _wait_for_ends(live, executor, KILL_SECONDS)
        for job in live:
            terminal.tell(f"warning: {unkillable(job)}")
    return [job for job in before if job not in live]


def _wait_for_ends(
    live: list[Job], executor: Executor, seconds: float, is_enough: Callable[[], bool] = lambda: False
) -> None:
    """Wait until no worker lives, at most ``seconds``, and no longer than until ``is_enough``."""
    deadline = time.monotonic() + seconds
    while True:
        for job in list(live):
            job.ended = executor.poll(job.id)
            if job.ended is not None:
                live.remove(job)
        if not live or is_enough() or time.monotonic() >= deadline:
            return
        executor.wait(POLL_SECONDS)


def unkillable(job: Job) -> str:
    """Return a line about a worker that has not ended ``KILL_SECONDS`` after it was killed."""
    return (
        f"{job.planned.spec.name}: its worker (job {job.id}) has not ended {KILL_SECONDS:g} s after SIGKILL; "
        "it may wait for a device or a file system that does not answer"
    )

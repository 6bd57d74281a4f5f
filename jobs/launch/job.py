"""What a study is to its launches, what a launch is asked for, its process, and what starts an attempt of a run."""

import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jobs.attempt.attempt import micro_batches
from jobs.attempt.supervisor import worker_variables
from jobs.backends.base import Executor
from jobs.launch.background import STOP_SECONDS, Interrupts
from jobs.manifests.decide import Decide
from jobs.manifests.policy import Notify, Policy
from jobs.plan.capacity import Capacity
from jobs.plan.planned import PlannedRun
from jobs.spec import RunSpec, Submission
from jobs.study.kept_code import Code
from seqlm.ends import End, Verdict
from seqlm.environment import ATTEMPT, CANARY, DATA, LAUNCHED, MICRO_BATCHES
from seqlm.records.studies import StudyFile, TaskFile
from seqlm.rundir import Observation, RunDirectory
from seqlm.search import Search
from seqlm.state import FailureKind

CANARY_STEPS = 8
"""Steps of a canary: three to warm up, one captured on a GPU (``seqlm.training.step``), and four that are timed."""
MARGIN_SECONDS = 45.0
"""A worker that does not stop is killed this long before its machine is taken away: before the time limit of its job.
If less than twice this time is left when the signal comes, it is killed halfway."""


def stop_seconds(most: float, ends_at: float | None) -> float:
    """Return how long workers may take to stop, so that their end can still be recorded.

    ``most``: however far the end of the job is; ``ends_at``: that end in seconds since 1970, if it is known. One that
    has passed says nothing: somebody has raised the time limit since, or a clock is wrong.
    """
    left = -1.0 if ends_at is None else ends_at - time.time()
    if left < 0:
        return most
    return min(most, max(left - MARGIN_SECONDS, left / 2))


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """What holds for all runs of a study, wherever they run: launchers and jobs of a scheduler have it."""

    path: Path
    """The folder that holds the run folders."""
    policy: Policy = field(default_factory=Policy)
    """How often failed runs are retried automatically, and how often runs save checkpoints."""
    notify: Notify | None = None
    """Who gets messages. ``None`` means nobody."""
    search: Search | None = None
    """When runs are compared and stopped. ``None`` means never."""
    worker: tuple[str, ...] = ("-m", "seqlm.training.worker")
    """The worker's command line, without the interpreter and the run's folder."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a launch is asked to do. The launcher alone has it: it ends in :mod:`jobs.launch.prepare`."""

    specs: Sequence[RunSpec]
    """The runs."""
    record: StudyFile | None = None
    """What to write about the manifest in ``study.json``. ``None`` means that no manifest is known."""
    decides: Sequence[Decide] | None = None
    """The comparisons of the manifest. ``None``: no manifest is known, or not all of its runs are to be launched."""
    tasks: Mapping[str, TaskFile] = field(default_factory=dict)
    """Run id -> content of ``task.json``, for jobs that do not train. They run again, however they ended before."""
    retry: bool = False
    """Also launch runs that failed, were cancelled, or were stopped by a search or comparison."""
    oversized: bool = False
    """Whether runs start that need more memory than there is."""
    canary: bool | None = None
    """Whether canaries run before the grid. ``None`` means that the number of runs decides."""
    live_code: bool = False
    """Run workers from the working tree instead of the copy kept with the study."""
    then_report: bool = False
    """Let a scheduler write the report once the last run has ended."""
    behaviour: bool | None = None
    """Whether to compute the behaviour of the models for that report. ``None``: of those that this user launched."""


class Host:
    """The process in which a dispatcher runs: a launcher, unless a subclass says otherwise."""

    interrupts: Interrupts
    """The signals that end it."""
    stop_seconds = STOP_SECONDS
    """How long workers may take to stop before they are killed."""
    where = "outside the worker's own code"
    """Where a failure happened of which the worker wrote nothing."""
    job_start: str | None = None
    """The start of a scheduler's job (:attr:`seqlm.records.attempts.Start.job_start`). ``None``: it is no such job."""

    def __init__(self) -> None:
        self.interrupts = Interrupts()

    def tries_again(self, failure: End | None, found: Verdict, number: int) -> bool:
        """Return whether a run that failed is tried again by this dispatcher. ``found`` says that it is tried again.

        ``None``: it has not failed, but found another worker at the run, ``number`` times in a row.
        """
        return True

    def may_start(self, run: RunDirectory, seen: Observation) -> bool:
        """Return whether a run whose turn has come is started.

        Raises:
            FileError: a file of the run cannot be read.
        """
        return seen.state != "cancelled"

    def saw(self, run: RunDirectory, attempt: int) -> None:
        """Look at an attempt of this process, again and again and once more at its end.

        Raises:
            FileError: its files cannot be read or written.
        """

    def next_run(self, free: Capacity, *, is_idle: bool, but: Collection[str]) -> PlannedRun | None:
        """Return one more run to start, which fits into what is ``free``, but none of these ids.

        ``is_idle``: no run is live.
        """
        return None

    def stopped(self) -> tuple[FailureKind, str] | None:
        """Return kind and message of the failure of runs that were stopped with this process. ``None``: no failure."""
        return None


def next_submission(item: PlannedRun, study: StudySettings, code: Code, executor: Executor) -> Submission:
    """Return what starts the next attempt of a run on ``executor``.

    Raises:
        FileError: the earlier failures of the run cannot be read, or the code cannot be unpacked again.
    """
    spec, run_dir, attempt = item.spec, item.run.path.absolute(), item.run.last_attempt() + 1
    env = {**executor.env, **worker_variables(study.policy, study.search), "PYTHONUNBUFFERED": "1"}
    if item.run.is_canary:
        env[CANARY.name] = str(CANARY_STEPS)
    if spec.data_path is not None:
        env[DATA.name] = str(spec.data_path.absolute())
    env[ATTEMPT.name] = str(attempt)
    env[LAUNCHED.name] = ",".join(spec.may_run())
    parts = micro_batches(item.run, spec.config.train.batch_size, spec.resources.ranks, executor.memory_mb)
    env[MICRO_BATCHES.name] = str(parts)
    return Submission(
        run_dir=run_dir,
        attempt=attempt,
        argv=(sys.executable, *study.worker, str(run_dir)),
        env=env,
        cwd=code.ready(),
        resources=spec.resources,
    )

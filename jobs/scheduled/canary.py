"""Canaries on a cluster, with nobody waiting: the arrays of a grid depend on the array of its canaries.

A launch whose canary has failed is withdrawn, and one that was killed before all its jobs were submitted: a mark says
that its jobs count no more, and they are cancelled. A job that starts all the same looks for the mark first.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from jobs.launch.canary import Canaries, of_canaries
from jobs.launch.job import LaunchOptions
from jobs.scheduled.settings import ScheduledTable
from jobs.scheduled.submission import JobPlan, plan_jobs
from jobs.study.kept_code import Code
from jobs.study.scheduler import Scheduler
from seqlm.reading import exists, listed, timestamp
from seqlm.records.batch import Submitted, Withdrawn
from seqlm.rundir import CANARY_FOLDER

MINUTES = 30
"""The longest time limit of a canary. A short one may start sooner."""


def plan_canaries(
    canaries: Canaries, grid: JobPlan, settings: ScheduledTable, options: LaunchOptions, code: Code
) -> JobPlan:
    """Return what the jobs of canaries do. ``grid``: the plan that depends on them; the rest as in ``plan_jobs``."""
    short = replace(settings, timeout_min=min(settings.timeout_min, MINUTES))
    options = replace(of_canaries(options), study_dir=options.study_dir / CANARY_FOLDER, notify=None)
    request = canaries.request.number
    plan = plan_jobs(canaries.items, options, short, code, scheduler=grid.scheduler, request=request)
    return replace(plan, grid=grid.folder)


def withdraw(folders: Collection[Path], scheduler: Scheduler) -> None:
    """Mark requests as withdrawn, and cancel their waiting jobs.

    Raises:
        BackendError: the scheduler does not answer. The jobs are marked, and a launch tries again.
    """
    for folder in folders:
        Withdrawn(at=timestamp()).write(folder, once=True)
    scheduler.cancel(scheduler.waiting_in(folders))


def withdraw_stuck(study_dir: Path, scheduler: Scheduler) -> None:
    """Withdraw what can never start: launches that were killed before all was submitted, or before they withdrew.

    The caller owns the study.

    Raises:
        BackendError: the scheduler does not answer.
    """
    launches = [*listed(study_dir / "launches"), *listed(study_dir / CANARY_FOLDER / "launches")]
    stuck = {
        job.folder
        for job in scheduler.waiting_in(launches)
        if job.is_stuck or exists(job.folder / Withdrawn.FILE) or not exists(job.folder / Submitted.FILE)
    }
    if stuck:
        withdraw(stuck, scheduler)

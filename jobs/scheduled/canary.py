"""Canaries on a cluster, with nobody waiting: the arrays of a grid start once those of its canaries have ended.

However these have ended, such as by the scheduler or a person: a job of the grid looks what has come of them before it
does anything. A job whose canary fails for good does not leave that to the grid, which may have to wait for its room.

A launch whose canary has failed is withdrawn, and one that was killed before all its jobs were submitted: a mark says
that its jobs count no more, and they are cancelled. A job that starts all the same looks for the mark first.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from jobs.attempt.attempt import end_left, record_unstarted
from jobs.launch.canary import Canaries, of_canaries
from jobs.launch.job import StudySettings
from jobs.scheduled.again import look_again, wait_for_other_nodes, wait_for_request
from jobs.scheduled.settings import ScheduledTable
from jobs.scheduled.share import is_over
from jobs.scheduled.submission import JobPlan, plan_jobs
from jobs.study.kept_code import Code
from jobs.study.scheduler import Scheduler
from seqlm.reading import exists, listed, timestamp
from seqlm.records.attempts import Exit, Start
from seqlm.records.batch import Batch, Submitted, Withdrawn
from seqlm.rundir import CANARY_FOLDER, RunDirectory

MINUTES = 30
"""The longest time limit of a canary. A short one may start sooner."""


def plan_canaries(
    canaries: Canaries, grid: JobPlan, settings: ScheduledTable, study: StudySettings, code: Code
) -> JobPlan:
    """Return what the jobs of canaries do. ``grid``: the plan that waits for them; the rest as in ``plan_jobs``."""
    short = replace(settings, timeout_min=min(settings.timeout_min, MINUTES))
    request = canaries.request.number
    plan = plan_jobs(canaries.items, of_canaries(study), short, code, scheduler=grid.scheduler, request=request)
    return replace(plan, grid=grid.folder)


def withdraw(folders: Collection[Path], place: Scheduler) -> None:
    """Mark requests as withdrawn, and cancel their waiting jobs.

    Raises:
        BackendError: the scheduler does not answer. The jobs are marked, and a launch tries again.
    """
    for folder in folders:
        Withdrawn(at=timestamp()).write(folder, once=True)
    place.cancel(place.waiting_in(folders))


def withdraw_stuck(study_dir: Path, place: Scheduler) -> None:
    """Withdraw what can never start: launches that were killed before all was submitted, or before they withdrew.

    The caller owns the study.

    Raises:
        BackendError: the scheduler does not answer.
    """
    launches = [*listed(study_dir / "launches"), *listed(study_dir / CANARY_FOLDER / "launches")]
    stuck = {
        job.folder
        for job in place.waiting_in(launches)
        if exists(job.folder / Withdrawn.FILE) or not exists(job.folder / Submitted.FILE)
    }
    if stuck:
        withdraw(stuck, place)


def have_passed(canaries: Path, name: str) -> bool:
    """Return whether all canaries of a request have passed, whose jobs have ended.

    ``name``: that of the scheduler. A canary whose job has ended and has recorded nothing is recorded as failed.

    Raises:
        FileError: a file cannot be read or written.
    """
    wait_for_request(canaries)
    runs = look_again(_wanted, canaries)

    def is_decided() -> bool:
        seen = [look_again(run.observe) for run in runs]
        has_failed = any(is_over(one) and one.state != "done" for one in seen)
        return has_failed or all(one.state == "done" for one in seen)

    wait_for_other_nodes(is_decided)
    if all(look_again(run.observe).state == "done" for run in runs):
        return True
    for run in runs:
        _record_end(run, int(canaries.name), name)
    return False


def _wanted(canaries: Path) -> list[RunDirectory]:
    """Return the canaries of a request that no later launch has asked for again."""
    batch = Batch.read(canaries) or Batch()
    runs = [RunDirectory(canaries.parents[1] / run_id) for array in batch.arrays for run_id in array.runs]
    newest = {run: run.request() for run in runs}
    return [run for run, request in newest.items() if request is not None and request.number == int(canaries.name)]


def _record_end(run: RunDirectory, request: int, name: str) -> None:
    """Record that a canary has failed, if its job has ended and has recorded nothing of it."""
    where, message = "the job that waited for the canaries", "its job was ended from outside"
    end_left(run, where)
    attempt = run.last_attempt()
    if attempt < run.first_attempt():
        record = Exit(kind="node", message=message, where=where)
        record_unstarted(run, Start(request=request, backend=name), record)
    elif not run.end(attempt).has_ended and not exists(run.worker_file(attempt)):
        start = Start.read(run.attempt_dir(attempt)) or Start()
        run.write_exit(attempt, Exit(kind="node", message=message, where=where, ended_at=start.started_at))

"""Canaries on a cluster, with nobody waiting: the arrays of a grid depend on the array of its canaries.

A job that has trained a canary says what comes of it. The scheduler or a person may end it before that. So a small job
follows the canaries, however they have ended: ``python -m jobs.scheduled.canary SCHEDULER CANARIES GRID``, with the
folders of the two requests.

A launch whose canary has failed is withdrawn, and one that was killed before all its jobs were submitted: a mark says
that its jobs count no more, and they are cancelled. A job that starts all the same looks for the mark first.
"""

import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from jobs.attempt.attempt import record_unstarted
from jobs.launch.canary import Canaries, of_canaries
from jobs.launch.job import StudySettings
from jobs.registry import scheduler
from jobs.scheduled.again import look_again
from jobs.scheduled.settings import ScheduledTable
from jobs.scheduled.submission import JobPlan, plan_jobs
from jobs.study.kept_code import Code
from jobs.study.scheduler import Scheduler
from seqlm.errors import SeqlmError
from seqlm.reading import confine, exists, listed, timestamp
from seqlm.records.attempts import Exit, Start
from seqlm.records.batch import Batch, Submitted, Withdrawn
from seqlm.rundir import CANARY_FOLDER, RunDirectory

MINUTES = 30
"""The longest time limit of a canary. A short one may start sooner."""


def plan_canaries(
    canaries: Canaries, grid: JobPlan, settings: ScheduledTable, study: StudySettings, code: Code
) -> JobPlan:
    """Return what the jobs of canaries do. ``grid``: the plan that depends on them; the rest as in ``plan_jobs``."""
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
        if job.is_stuck or exists(job.folder / Withdrawn.FILE) or not exists(job.folder / Submitted.FILE)
    }
    if stuck:
        withdraw(stuck, place)


def follow(canaries: Path, grid: Path, name: str) -> bool:
    """Withdraw the request ``grid`` unless all its ``canaries`` have passed; return whether they have.

    ``name``: that of the scheduler. Of a canary that has recorded nothing it is recorded that its job has ended.

    Raises:
        BackendError: the scheduler does not answer. The jobs are marked, and a launch tries again.
        FileError: a file cannot be read or written.
    """
    batch = Batch.read(canaries) or Batch()
    number = int(canaries.name)
    has_passed = True
    for run_id in (run_id for array in batch.arrays for run_id in array.runs):
        run = RunDirectory(canaries.parents[1] / run_id)
        newest = run.request()
        if newest is None or newest.number != number:
            continue  # canaries of a later launch
        state = run.observe().state
        has_passed = has_passed and state == "done"
        if state == "pending":
            _record_end(run, number, name)
    if not has_passed:
        withdraw([grid], scheduler(name))
    return has_passed


def _record_end(run: RunDirectory, request: int, name: str) -> None:
    """Record that a canary has failed, since its job has ended and has recorded nothing of it."""
    record = Exit(kind="node", message="its job was ended from outside", where="the job that follows the canaries")
    attempt = run.last_attempt()
    if attempt >= run.first_attempt() and not run.end(attempt).has_ended:
        run.write_exit(attempt, record)
    else:
        record_unstarted(run, Start(request=request, backend=name), record)


def main() -> int:
    """Look what has come of canaries, and withdraw their grid unless all have passed; return the exit code."""
    name, canaries, grid = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    confine(grid.parents[1])
    try:
        has_passed = look_again(follow, canaries, grid, name)
    except SeqlmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print("all canaries have passed" if has_passed else "a canary has not passed; its grid is withdrawn")
    return 0


if __name__ == "__main__":
    sys.exit(main())

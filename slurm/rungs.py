"""What a job does at a rung of a search in mode ``sync``: decide about its runs, and take on those that go on.

The jobs of a rung are submitted at the launch and start when all jobs before them have ended. So all runs of the study
have come to the rung by then, or cannot any more, and every job compares the same values.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path

from jobs.attempt.retry import may_go_on
from jobs.study.folder import submission_of
from seqlm.errors import FileError
from seqlm.files import read_json, write_json
from seqlm.reading import exists
from seqlm.rundir import RunDirectory
from seqlm.search import decide, decision_at, rung_of_waiting
from slurm.control import look_again
from slurm.job import JobPlan, Signals, SlurmContext

POLL_SECONDS = 0.2


def attempts_from_rung(plan: JobPlan, folder: Path, context: SlurmContext, signals: Signals) -> Mapping[str, int]:
    """Return the runs that this start of a job trains on from its rung: run id -> number of the attempt.

    The first rank decides and writes the numbers into ``folder``, that of the job's array. The other ranks wait for
    them, since they must agree.

    Raises:
        FileError, OSError: files cannot be read or written.
    """
    assert plan.rung is not None, "the job belongs to a rung"
    path = folder / f"rung-{context.number}-{context.restarts}.json"
    if context.rank == 0:
        found: dict[str, int] = {}
        for first in plan.runs:
            attempt = look_again(_attempt_from, RunDirectory(first.run_dir), plan, plan.rung)
            if attempt is not None:
                found[first.run_dir.name] = attempt
        if plan.resources.ranks > 1:
            look_again(write_json, path, found)
        return found
    while not signals.stop:
        with contextlib.suppress(FileError):
            numbers = read_json(path)
            if numbers is not None:
                return numbers
        time.sleep(POLL_SECONDS)
    return {}


def _attempt_from(run: RunDirectory, plan: JobPlan, rung: int) -> int | None:
    """Decide about a run, and return the number of its next attempt. ``None``: it is not to be trained by this job.

    After a restart of the job the decision is made already, and a run that goes on may wait at a later rung.
    """
    failed = exists(run.failure_file) and not may_go_on(run)
    if submission_of(run) != plan.submission or run.is_done() or exists(run.stopped_file) or failed:
        return None
    assert plan.search is not None, "its study is a search"
    if rung_of_waiting(run, plan.search) == rung:
        if decide(run, plan.search, rung) == "stopped":
            print(f"{run.id} stops here: see {run.stopped_file}", flush=True)
            return None
    elif decision_at(run, rung) != "goes on" or rung_of_waiting(run, plan.search) is not None:
        return None
    return run.last_attempt() + 1

"""Which runs of its array a job takes.

Job ``k`` of ``N`` first has the runs ``k``, ``k + N``, ... of its array. In a pool a job with room then takes those of
the other jobs that none of them has. A run belongs to the job that has started its newest attempt, as
long as that job runs. If two jobs start the same attempt, the one that writes its ``start.json`` goes on with the run.
"""

import contextlib
import math
import os
import time
from collections.abc import Collection, Mapping
from typing import final

from jobs.plan.capacity import Capacity
from jobs.study.squeue import ask
from seqlm.errors import BackendError, FileError
from seqlm.records.attempts import Start
from seqlm.rundir import Observation, RunDirectory
from slurm.allocation import SlurmContext
from slurm.submission import JobPlan

LOOK_SECONDS = 10.0
"""Time between two looks at the runs of the other jobs, and between two questions to SLURM."""


@final
class Share:
    """The runs of a job."""

    def __init__(self, plan: JobPlan, number: int, context: SlurmContext) -> None:
        """``number``: of the array."""
        self.array = plan.arrays[number]
        self._context, self._request = context, plan.options.request
        self._every = every = [RunDirectory(plan.options.study_dir / run_id) for run_id in self.array.runs]
        self.own = every[context.index :: context.jobs]
        self.runs = [*self.own, *(run for run in every if run not in self.own)] if self.array.is_pool else self.own
        """The runs that the job may take, in the order in which it takes them, without those seen to be over."""
        self._states: Mapping[str, str] = {}
        self._asked_at = self._looked_at = -math.inf
        self._attempts: dict[str, int] = {}
        """Run id -> its newest attempt when SLURM was last asked."""

    def may_take(self, run: RunDirectory, seen: Observation) -> bool:
        """Return whether this job may start the next attempt of a run.

        Raises:
            FileError: the record of the last attempt cannot be read.
        """
        if is_over(seen):
            return False
        attempt, start = self._newest(run) if self.array.is_pool else (0, Start())
        job = start.job_id
        if job in (None, self._context.job):
            return True
        if seen.state == "running" or self.job_states().get(job) == "RUNNING":
            return False
        # A job that has begun the attempt since the last answer has come to run since. Otherwise the answer holds: if
        # that job runs by now, the first of the two to write `start.json` of the next attempt goes on with the run.
        state = self.job_states(at_once=self._attempts.get(run.id) != attempt).get(job)
        # A node that failed needs time, which its own job gives to the run.
        return state is None or (state == "PENDING" and seen.kind != "node")

    def next_run(
        self, free: Capacity, *, is_idle: bool, but: Collection[str] = ()
    ) -> tuple[RunDirectory, Observation] | None:
        """Return a run that no job has and that fits, but none of these ids.

        ``is_idle``: the job ends unless there is one.
        """
        now = time.monotonic()
        if not self.array.is_pool or (now - self._looked_at < LOOK_SECONDS and not is_idle):
            return None
        for run in [one for one in self.runs if one.id not in but and free.place(self.array.runs[one.id]) is not None]:
            self._looked_at = now
            with contextlib.suppress(FileError, OSError):  # the next look is soon
                seen = run.observe()
                if is_over(seen):
                    self.runs.remove(run)
                elif not self.has_begun(run) and self.may_take(run, seen):
                    if not is_named_by(run, self._request):
                        self.runs.remove(run)
                        continue
                    self._looked_at = -math.inf
                    return run, seen
        return None

    def has_begun(self, run: RunDirectory) -> bool:
        """Return whether this start of the job has started the newest attempt of a run, as far as it can be read."""
        start = Start()
        with contextlib.suppress(FileError):
            _, start = self._newest(run)
        return (start.job_id, start.restart) == (self._context.job, os.environ.get("SLURM_RESTART_COUNT"))

    def begun(self) -> list[RunDirectory]:
        """Return the runs that the job is to answer for: its own, or in a pool those it has started."""
        return [run for run in self._every if self.has_begun(run)] if self.array.is_pool else list(self.own)

    def _newest(self, run: RunDirectory) -> tuple[int, Start]:
        """Return the newest attempt of a run, 0 before the first, and its record if it is of this job's request."""
        attempt = run.last_attempt()
        start = Start.read(run.attempt_dir(attempt)) if attempt else None
        is_of_request = start is not None and start.request == self._request
        return attempt, start if start is not None and is_of_request else Start()

    def job_states(self, *, at_once: bool = False) -> Mapping[str, str]:
        """Return the states of the jobs of the array that wait or run. Those that are ending are left out.

        ``at_once``: ask SLURM even if its last answer is recent. While it does not answer, all of them may run.
        One answer serves all runs whose newest attempts had begun before.
        """
        now = time.monotonic()
        if at_once or now - self._asked_at >= LOOK_SECONDS:
            self._asked_at, self._attempts = now, {}
            for run in self.runs:
                with contextlib.suppress(FileError):  # SLURM is then asked again for this run
                    self._attempts[run.id] = run.last_attempt()
            array, states = self._context.job.partition("_")[0], "PENDING,RUNNING,SUSPENDED"
            try:
                text = ask("squeue", "-h", "-r", "-t", states, "-o", "%i|%T", "-j", array)
                self._states = dict(line.split("|", 1) for line in text.split() if "|" in line)
            except BackendError:
                self._states = {f"{array}_{index}": "RUNNING" for index in range(self._context.jobs)}
        return self._states

    def has_others(self) -> bool:
        """Return whether another job can take over the runs of this one, as SLURM says now."""
        return self.array.is_pool and any(job != self._context.job for job in self.job_states(at_once=True))


def is_named_by(run: RunDirectory, request: int | None) -> bool:
    """Return whether a request is the newest that names a run. Else the jobs of a later one have it.

    Raises:
        FileError: a request cannot be read.
    """
    newest = run.request()
    return newest is None or newest.number == request


def is_over(seen: Observation) -> bool:
    """Return whether nothing is to be done for a run."""
    return seen.state in ("done", "stopped", "cancelled") or (seen.state == "failed" and seen.is_final)

"""Which runs of its array a job takes.

Job ``k`` of ``N`` first has the runs ``k``, ``k + N``, ... of its array. In a pool a job with room then takes those of
the other jobs that none of them has. A run belongs to the job that has started its newest attempt, as long as that job
gives signs of life (:mod:`jobs.scheduled.slot`). The scheduler is not asked: a container may not have its commands. If
two jobs start the same attempt, the one that writes its ``start.json`` goes on with the run.
"""

import contextlib
import math
import time
from collections.abc import Collection
from dataclasses import replace
from typing import final

from jobs.plan.capacity import Capacity
from jobs.scheduled import slot
from jobs.scheduled.submission import JobPlan
from jobs.study.scheduler import Allocation
from seqlm.ends import End, Verdict
from seqlm.errors import FileError
from seqlm.reading import moment
from seqlm.records.attempts import Start
from seqlm.rundir import Observation, RunDirectory

LOOK_SECONDS = 10.0
"""Time between two looks at the runs that wait."""
SOON_SECONDS = 5.0
"""A run that is to wait no longer than this is tried again at once: the clocks of nodes differ."""


@final
class Share:
    """The runs of a job."""

    def __init__(self, plan: JobPlan, number: int, context: Allocation, start: slot.Start) -> None:
        """``number``: of the array."""
        self.array = plan.arrays[number]
        self._plan, self._start = plan, start
        self._every = every = [RunDirectory(plan.options.study_dir / run_id) for run_id in self.array.runs]
        self.own = every[context.index :: context.jobs]
        own = {run.id for run in self.own}
        others = [run for run in every if run.id not in own] if self.array.is_pool else []
        self.runs = [*self.own, *others]
        """The runs that the job may take, in the order in which it takes them, without those seen to be over."""
        self._looked_at = -math.inf

    def may_take(self, run: RunDirectory, seen: Observation) -> bool:
        """Return whether this job may start the next attempt of a run.

        Raises:
            FileError: the record of the last attempt, or the folder of its job, cannot be read.
        """
        if is_over(seen):
            return False
        begun = self._newest(run).job_start
        if begun is None or begun.partition("/")[0] == self._start.name.partition("/")[0]:
            return True
        return seen.state != "running" and not slot.is_alive(self._plan.folder, begun)

    def failure(self, run: RunDirectory, seen: Observation) -> tuple[End, Verdict] | None:
        """Return the failure after which a run is tried again, and in how many seconds. ``None``: there is none.

        Raises:
            FileError: a file of the run cannot be read.
        """
        failures = run.failures(run.first_attempt()) if seen.state == "failed" and not seen.is_final else []
        if not failures:
            return None
        found = run.verdict(self._plan.options.policy.to_dict(), failures)
        failed_at = moment(failures[-1].at)
        if found.delay is not None and failed_at is not None:
            has_waited = max(0.0, time.time() - failed_at)
            found = replace(found, delay=max(0.0, found.delay - has_waited))
        return failures[-1], found

    def is_due(self, run: RunDirectory, seen: Observation) -> bool:
        """Return whether a run that is not over can be tried again now.

        Raises:
            FileError: a file of the run cannot be read.
        """
        failed = self.failure(run, seen)
        if failed is None:
            return True
        _, found = failed
        return found.delay is not None and found.delay <= SOON_SECONDS

    def next_run(
        self, free: Capacity, *, is_idle: bool, but: Collection[str] = ()
    ) -> tuple[RunDirectory, Observation] | None:
        """Return a run that no job has and that fits, but none of these ids.

        ``is_idle``: the job ends unless there is one.
        """
        now = time.monotonic()
        if now - self._looked_at < LOOK_SECONDS and not is_idle:
            return None
        for run in [one for one in self.runs if one.id not in but and free.place(self.array.runs[one.id]) is not None]:
            self._looked_at = now
            with contextlib.suppress(FileError, OSError):  # the next look is soon
                seen = run.observe()
                if is_over(seen):
                    self.runs.remove(run)
                elif not self.has_begun(run) and self.may_take(run, seen) and self.is_due(run, seen):
                    if not is_named_by(run, self._plan.options.request):
                        self.runs.remove(run)
                        continue
                    self._looked_at = -math.inf
                    return run, seen
        return None

    def has_begun(self, run: RunDirectory) -> bool:
        """Return whether this start of the job has started the newest attempt of a run, as far as it can be read."""
        with contextlib.suppress(FileError):
            return self._newest(run).job_start == self._start.name
        return False

    def begun(self) -> list[RunDirectory]:
        """Return the runs that the job is to answer for: its own, or in a pool those it has started."""
        return [run for run in self._every if self.has_begun(run)] if self.array.is_pool else list(self.own)

    def _newest(self, run: RunDirectory) -> Start:
        """Return the record of the newest attempt of a run. Empty: it has none, or it is not of this job's request."""
        attempt = run.last_attempt()
        start = Start.read(run.attempt_dir(attempt)) if attempt else None
        return start if start is not None and start.request == self._plan.options.request else Start()


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

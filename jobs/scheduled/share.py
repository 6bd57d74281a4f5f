"""Which runs of its array a job takes.

Job ``k`` of ``N`` first has the runs ``k``, ``k + N``, ... of its array. Then it takes those of the other jobs that
none of them has. A run belongs to the job that has started its newest attempt, as long as that job gives signs of life
(:mod:`jobs.scheduled.slot`). The scheduler is not asked: a container may not have its commands. If two jobs start the
same attempt, the one that writes its ``start.json`` goes on with the run.

A run whose own job has never started is taken only if this job has as much time left as its longest run has taken: the
own job will have all of its time. A run whose own job has started waits for other runs of that job, or the job was
lost.
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
from seqlm.errors import DamagedFileError, FileError
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
        """``number``: of the array. ``start`` is now."""
        self.array = plan.arrays[number]
        self._plan, self._number, self._context, self._start = plan, number, context, start
        self._every = every = [RunDirectory(plan.study.path / run_id) for run_id in self.array.runs]
        self._index_of = {run.id: place % context.jobs for place, run in enumerate(every)}
        """Run id -> the index of its own job."""
        self.own = every[context.index :: context.jobs]
        # Jobs start in their order, so that runs wait after those that live now.
        others = [*every[context.index :], *every[: context.index]]
        self.runs = [*self.own, *(run for run in others if not self.is_own(run))]
        """The runs that the job may take, in the order in which it takes them, without those seen to be over."""
        self._kinds = set(self.array.runs.values())
        self._looked_at = -math.inf
        left = 0.0 if context.end_time is None else context.end_time - time.time()
        self._ends_at = time.monotonic() + (left if left > 0 else 60 * self.array.timeout_min)
        """When the job's time is over, on the monotonic clock."""
        self._seen_at: dict[str, float] = {}
        """Run id -> when this start of the job has first seen its own attempt of the run."""
        self._longest = 0.0
        """Seconds that the longest run of this start of the job has taken so far."""

    def is_own(self, run: RunDirectory) -> bool:
        """Return whether the job is the run's own."""
        return self._index_of[run.id] == self._context.index

    def saw(self, run: RunDirectory) -> None:
        """Note that this start of the job trains a run, or has just seen its end."""
        now = time.monotonic()
        self._longest = max(self._longest, now - self._seen_at.setdefault(run.id, now))

    def may_take(self, run: RunDirectory, seen: Observation) -> bool:
        """Return whether this job may start the next attempt of a run.

        Raises:
            FileError: the record of the last attempt, or the folder of its job, cannot be read.
        """
        if is_over(seen):
            return False
        begun = self._newest(run).job_start
        if begun is None or self._is_of_this_job(begun):
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
        found = run.verdict(self._plan.study.policy.to_dict(), failures)
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
        fitting = {resources for resources in self._kinds if free.place(resources) is not None}
        if not fitting:
            return None
        self._looked_at = now
        for run in [one for one in self.runs if one.id not in but and self.array.runs[one.id] in fitting]:
            with contextlib.suppress(FileError, OSError):  # the next look is soon
                if self._ends_at - now < self._longest and not self.has_own_job_started(run):
                    continue
                seen = run.observe()
                if is_over(seen):
                    self.runs.remove(run)
                elif not self.has_begun(run) and self.may_take(run, seen) and self.is_due(run, seen):
                    if not is_named_by(run, self._plan.request):
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

    def mine(self) -> list[RunDirectory]:
        """Return the runs for which the job is to answer: its own, and those whose newest attempt it has started."""
        found = [*self.own]
        for run in self._every:
            if self.is_own(run):
                continue
            try:
                if self._is_of_this_job(self._newest(run).job_start):
                    found.append(run)
            except DamagedFileError:  # `status` says so
                continue
            except FileError:
                return [*found, run]  # the next start of the job looks on
        return found

    def has_own_job_started(self, run: RunDirectory) -> bool:
        """Return whether the own job of a run has ever been started.

        Raises:
            FileError: the folder of the launch cannot be read.
        """
        return self.is_own(run) or slot.has_started(self._plan.folder, self._number, self._index_of[run.id])

    def _is_of_this_job(self, job_start: str | None) -> bool:
        return job_start is not None and job_start.partition("/")[0] == self._start.name.partition("/")[0]

    def _newest(self, run: RunDirectory) -> Start:
        """Return the newest record of a start of a run. Empty: it has none, or it is not of this job's request.

        An attempt without a record has not begun, such as on a full disk: the job of the attempt before answers for it.
        """
        starts = (Start.read(run.attempt_dir(attempt)) for attempt in reversed(run.attempts()))
        start = next(filter(None, starts), None)
        return start if start is not None and start.request == self._plan.request else Start()


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

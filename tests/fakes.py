"""A fake machine room: a backend without processes, whose jobs do to the run's files what the test says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import final

from jobs.backend import Backend, Ended
from jobs.spec import Resources, RunSpec, Submission
from seqlm.errors import BackendError

Work = Callable[[Submission], int]
"""What a job does when it ends; returns its exit code."""


@final
class FakeBackend(Backend):
    """``slots`` jobs at once; each ends at its second poll, when ``work`` is done with it."""

    name = "fake"

    def __init__(self, work: Work, *, slots: int = 2) -> None:
        self._work = work
        self._slots = slots
        self._live: dict[str, tuple[Submission, int]] = {}
        self.submissions: list[Submission] = []
        self.most_at_once = 0
        self.stopped: list[tuple[str, bool]] = []
        self.obeys = True

    def describe(self) -> str:
        return f"a fake machine ({self._slots} slots)"

    def resolve(self, spec: RunSpec, runs: int) -> Resources:
        resources = spec.resources
        if resources.ranks > self._slots:
            raise BackendError(f"never fits: needs {resources.ranks} slots, there are {self._slots}")
        return replace(resources, cpus=resources.cpus or 1, gpus=resources.gpus or 0)

    def has_room(self, resources: Resources) -> bool:
        return len(self._live) < self._slots

    def submit(self, submission: Submission) -> str:
        self.submissions.append(submission)
        (submission.run_dir / "attempts" / f"{submission.attempt:04d}").mkdir(parents=True)
        job_id = str(len(self.submissions))
        self._live[job_id] = (submission, 0)
        self.most_at_once = max(self.most_at_once, len(self._live))
        return job_id

    def poll(self, job_id: str) -> Ended | None:
        submission, polls = self._live[job_id]
        stopped = [force for stopped_id, force in self.stopped if stopped_id == job_id]
        if stopped:
            if not self.obeys and not any(stopped):
                return None
            del self._live[job_id]
            return Ended(exit_code=143, message="stopped")
        if polls == 0:
            self._live[job_id] = (submission, 1)
            return None
        code = self._work(submission)
        del self._live[job_id]
        return Ended(exit_code=code, message=f"ended with {code}")

    def stop(self, job_id: str, *, force: bool) -> None:
        self.stopped.append((job_id, force))

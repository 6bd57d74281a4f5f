"""A fake machine room: a backend without processes, whose jobs do to the run's files what the test says."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import final

from jobs.attempt.supervisor import Ended
from jobs.backends.base import Backend, Executor, Room
from jobs.plan.capacity import Capacity, Node
from jobs.plan.estimate import Estimate
from jobs.plan.planned import PlannedRun, plan
from jobs.spec import RunSpec, Submission
from jobs.study.kept_code import Code
from seqlm.resources import Resources
from seqlm.rundir import Observation, RunDirectory
from tests.facts import make_folder

Work = Callable[[Submission], int]
"""What a job does when it ends; returns its exit code."""


def make_estimate(seconds: float | None = None, *, flops: float = 0.0, memory_bytes: int = 5) -> Estimate:
    """An estimate of a run with so much left."""
    return Estimate(
        parameters=7,
        flops_per_token=6,
        memory_bytes=memory_bytes,
        measured_memory_bytes=None,
        disk_bytes=4,
        flops=flops,
        seconds=seconds,
    )


def make_planned(spec: RunSpec, seconds: float | None = None, *, flops: float = 0.0) -> PlannedRun:
    """A run that is to start, without files."""
    unseen = Observation(state="pending", epoch=None, best_val_ppl=None, reason=None, kind=None)
    return PlannedRun(
        spec=spec,
        run=RunDirectory(Path(spec.name)),
        observation=unseen,
        action="start",
        reason=None,
        estimate=make_estimate(seconds, flops=flops),
    )


def make_fresh(study_dir: Path, spec: RunSpec) -> PlannedRun:
    """A run that is to start, with its folder."""
    run = make_folder(study_dir, spec)
    return plan(spec, run, run.observe(), has_checkpoint=False, retry=False)


@final
class FakeBackend(Backend, Executor):
    """``slots`` jobs at once; each ends at its second poll, when ``work`` is done with it, or only when stopped."""

    name = "fake"

    def __init__(self, work: Work, *, slots: int = 2, ends: bool = True) -> None:
        super().__init__()
        self._work = work
        self._ends = ends
        self._slots = slots
        self._live: dict[str, tuple[Submission, int]] = {}
        self.submissions: list[Submission] = []
        self.most_at_once = 0
        self.stopped: list[tuple[str, bool]] = []
        self.obeys = True
        self.can_be_killed = True
        self.out_of_memory = False
        """What jobs that a signal kills are said to have been."""
        self.memory_bytes: float | None = None
        """What a rank can have."""
        self.is_open = False
        self.when_started: Callable[[Submission], object] = lambda submission: None
        """Called when a job has been submitted."""
        self.ended: list[Submission] = []
        """The jobs that have ended, in that order."""

    def describe(self) -> str:
        return f"a fake machine ({self._slots} slots)"

    def capacity(self) -> Capacity:
        return Capacity([Node(name="fake", cpus=self._slots, gpus={})], where="the fake machine")

    def resolve(self, spec: RunSpec, at_most: int) -> Resources:
        resources = spec.resources
        return self.capacity().resolve(replace(resources, cpus=resources.cpus or 1), at_most)

    def room(self, resources: Resources) -> Room | None:
        return None if self.memory_bytes is None else Room(self.memory_bytes, "the fake machine")

    def executor(self, study_dir: Path) -> Executor:
        return self

    def open(self, code: Code) -> None:
        self.is_open = True

    def close(self) -> None:
        self.is_open = False

    def free(self) -> Capacity:
        free = self.capacity()
        for submission, _ in self._live.values():
            free.take(free.place(submission.resources) or [])
        return free

    def wait(self, seconds: float) -> None:
        pass

    def submit(self, submission: Submission) -> str:
        self.submissions.append(submission)
        with contextlib.suppress(FileExistsError):  # its launcher has made it
            (submission.run_dir / "attempts" / f"{submission.attempt:04d}").mkdir(parents=True)
        job_id = str(len(self.submissions))
        self._live[job_id] = (submission, 0)
        self.most_at_once = max(self.most_at_once, len(self._live))
        self.when_started(submission)
        return job_id

    def poll(self, job_id: str) -> Ended | None:
        submission, polls = self._live[job_id]
        stopped = [force for stopped_id, force in self.stopped if stopped_id == job_id]
        if stopped:
            if (not self.obeys and not any(stopped)) or not self.can_be_killed:
                return None
            self.ended.append(self._live.pop(job_id)[0])
            return Ended(exit_code=143, message="stopped")
        if polls == 0 or not self._ends:
            self._live[job_id] = (submission, 1)
            return None
        code = self._work(submission)
        self.ended.append(self._live.pop(job_id)[0])
        killed = code < 0 and self.out_of_memory
        return Ended(exit_code=code, message=f"ended with {code}", out_of_memory=killed)

    def stop(self, job_id: str, *, force: bool) -> None:
        self.stopped.append((job_id, force))

"""What every backend can do. Launching never asks which one it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from jobs.attempt.outcome import Ended
from jobs.plan.capacity import Allocation, Capacity
from jobs.spec import Resources, RunSpec, Submission
from jobs.study.kept_code import Code


class Target(ABC):
    """Where runs can go, and what they would get there. Asking starts nothing."""

    name: str

    @abstractmethod
    def describe(self) -> str:
        """A few words: where runs go."""

    @abstractmethod
    def capacity(self) -> Capacity:
        """All that there is, as if nothing ran.

        Raises:
            BackendError: the backend cannot be reached.
        """

    @abstractmethod
    def resolve(self, spec: RunSpec, at_most: int) -> Resources:
        """The resources of a run with every open choice made, where ``at_most`` such runs go at once.

        Raises:
            BackendError: the run can never fit here, or its precision does not exist here.
        """


class Backend(Target):
    """Runs submissions somewhere, while a launcher waits. Only "queued" and "running" are asked of it.

    ``open`` and ``close`` enclose ``submit``, ``poll``, ``stop`` and ``wait``.
    """

    @abstractmethod
    def open(self, code: Code) -> None:
        """Get ready to take submissions of runs whose workers run ``code``.

        Raises:
            BackendError: the backend cannot be reached or started.
        """

    @abstractmethod
    def close(self) -> None:
        """Leave nothing running that ``open`` or ``submit`` started; safe to call at any time."""

    @abstractmethod
    def free(self) -> Capacity:
        """What is free now, for the caller to try things on. A submission that fits into it starts."""

    @abstractmethod
    def held(self, job_id: str) -> Sequence[Allocation]:
        """What a live job holds."""

    @abstractmethod
    def submit(self, submission: Submission) -> str:
        """Start or queue it; returns the backend's job id.

        Raises:
            BackendError, FileError: it cannot be started.
        """

    @abstractmethod
    def poll(self, job_id: str) -> Ended | None:
        """How the job ended, or none while it is queued or running."""

    @abstractmethod
    def stop(self, job_id: str, *, force: bool) -> None:
        """Ask the job's ranks to stop between two steps, or with ``force`` end them at once."""

    @abstractmethod
    def wait(self, seconds: float) -> None:
        """Return after so many seconds, or sooner when a job has ended."""


Level: TypeAlias = Literal["ok", "note", "bad"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing looked at."""

    level: Level
    """``bad``: runs will fail here; ``note``: worth knowing."""
    subject: str
    text: str

"""What every backend can do. Launching never asks which one it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.capacity import Capacity, Share
from jobs.code_snapshot import Code
from jobs.spec import Resources, RunSpec, Submission


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a job ended, as its backend saw it. What it achieved is read from the run directory."""

    exit_code: int
    """Exit code of the worst rank; negative: the signal that killed it, or would have (its node is gone)."""
    message: str
    """The same for a person, such as ``rank 1 was killed by SIGKILL``."""
    out_of_memory: bool = False
    """Whether the system killed a rank because it was out of memory, as the machine where the rank ran counts it."""


class Site(ABC):
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


class Backend(Site):
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
    def held(self, job_id: str) -> Sequence[Share]:
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

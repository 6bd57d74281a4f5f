"""The interface of a backend. The dispatcher works with any of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from jobs.attempt.supervisor import Ended
from jobs.plan.capacity import Allocation, Capacity
from jobs.spec import Resources, RunSpec, Submission
from jobs.study.kept_code import Code


class Target(ABC):
    """Where runs can go, and what they would get there. Its methods start nothing."""

    name: str

    @abstractmethod
    def describe(self) -> str:
        """Return a few words about where runs go."""

    @abstractmethod
    def capacity(self) -> Capacity:
        """Return everything that the target has, as if nothing ran.

        Raises:
            BackendError: the backend cannot be reached.
        """

    @abstractmethod
    def resolve(self, spec: RunSpec, at_most: int) -> Resources:
        """Return the resources of a run with every default filled in. ``at_most``: such runs at once.

        Raises:
            BackendError: the run can never fit here, or its precision does not exist here.
        """


class Backend(Target):
    """Runs submissions while a launcher waits. What they achieve is read from their run directories.

    Call ``submit``, ``poll``, ``stop`` and ``wait`` between ``open`` and ``close``.
    """

    @abstractmethod
    def open(self, code: Code) -> None:
        """Prepare for submissions whose workers run ``code``.

        Raises:
            BackendError: the backend cannot be reached or started.
        """

    @abstractmethod
    def close(self) -> None:
        """End everything that ``open`` or ``submit`` started. Safe to call at any time."""

    @abstractmethod
    def free(self) -> Capacity:
        """Return what is free now, as a copy. A submission that fits into it starts."""

    @abstractmethod
    def held(self, job_id: str) -> Sequence[Allocation]:
        """Return what a live job holds."""

    @abstractmethod
    def submit(self, submission: Submission) -> str | None:
        """Start or queue an attempt; return the backend's job id. ``None``: the room that :meth:`free` showed is gone.

        Raises:
            BackendError, FileError: it cannot be started.
        """

    @abstractmethod
    def poll(self, job_id: str) -> Ended | None:
        """Return how the job ended. ``None``: it is queued or running, as of the last :meth:`wait`."""

    @abstractmethod
    def stop(self, job_id: str, *, force: bool) -> None:
        """Ask the job's ranks to stop between two steps; with ``force``, kill them."""

    @abstractmethod
    def wait(self, seconds: float) -> None:
        """Return after ``seconds``, or sooner if a job has ended."""


Level: TypeAlias = Literal["ok", "note", "bad"]


@dataclass(frozen=True)
class Finding:
    """One result of a check."""

    level: Level
    """``bad``: runs will fail here; ``note``: worth knowing."""
    subject: str
    text: str

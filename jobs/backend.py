"""What every backend can do. Launching never asks which one it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jobs.spec import Resources, RunSpec, Submission


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a job ended, as its backend saw it. What it achieved is read from the run directory."""

    exit_code: int
    """Exit code of the worst rank; negative: the signal that killed it."""
    message: str
    """The same for a person, such as ``rank 1 was killed by SIGKILL``."""


class Backend(ABC):
    """Runs submissions somewhere. Only "queued" and "running" are asked of it."""

    name: str

    @abstractmethod
    def describe(self) -> str:
        """One line: where runs go, and how many at once."""

    @abstractmethod
    def resolve(self, spec: RunSpec, runs: int) -> Resources:
        """The resources of a run with every open choice made, for a launch of ``runs`` runs.

        Raises:
            BackendError: the run can never fit here, or its precision does not exist here.
        """

    @abstractmethod
    def has_room(self, resources: Resources) -> bool:
        """Whether a submission with these (resolved) resources would start now."""

    @abstractmethod
    def submit(self, submission: Submission) -> str:
        """Start or queue it; returns the backend's job id.

        Raises:
            BackendError: it cannot be started.
        """

    @abstractmethod
    def poll(self, job_id: str) -> Ended | None:
        """How the job ended, or none while it is queued or running."""

    @abstractmethod
    def stop(self, job_id: str, *, force: bool) -> None:
        """Ask the job's ranks to stop between two steps, or with ``force`` end them at once."""

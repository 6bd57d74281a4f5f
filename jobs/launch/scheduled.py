"""The interface of a backend whose jobs need no launcher: a scheduler queues them and starts them again."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

from jobs.backends.base import Backend
from jobs.launch.job import LaunchOptions
from jobs.plan.planned import PlannedRun
from jobs.study.cancel import Cancelled
from jobs.study.kept_code import Code
from seqlm.requests import Request


class ScheduledBackend(Backend):
    """Submits the jobs of a launch. The ids of its jobs are in the folder of the request (:mod:`jobs.study.folder`)."""

    @abstractmethod
    def check(self, study_dir: Path) -> None:
        """Check what would make a submission impossible, before the first file is written.

        Raises:
            UsageError: the study's folder cannot be used, or a variable named by ``env_pass`` is not set.
        """

    @abstractmethod
    def submit(self, todo: Sequence[PlannedRun], options: LaunchOptions, code: Code, request: Request) -> list[str]:
        """Submit prepared runs, and return the ids of the jobs. The caller holds the study's lock.

        Raises:
            BackendError: a job was rejected. Those before it are submitted and recorded; the message says so.
        """

    @abstractmethod
    def scripts(self, planned: Sequence[PlannedRun], options: LaunchOptions) -> list[str]:
        """Return the scripts that :meth:`submit` would submit."""

    @abstractmethod
    def submit_report(
        self, study_dir: Path, folder: Path, jobs: Sequence[str], code: Code, *, behaviour: bool | None = None
    ) -> str:
        """Submit a job that writes the report once all of ``jobs`` have ended, however they ended. Return its id.

        Unless ``behaviour`` is false, the job then computes the behaviour of the models and writes the report again.
        If it is true, it computes the behaviour in another user's study as well. Script and log go to ``folder``, that
        of the request.
        """

    @classmethod
    @abstractmethod
    def cancel(cls, study_dir: Path, marked: Sequence[Cancelled]) -> list[Cancelled]:
        """Cancel the jobs of runs that were marked as cancelled, and return the runs that have none.

        If that fails, the ``problem`` of a run says so.
        """

"""The interface of a scheduler, which queues and starts jobs itself: what seqlm asks it, and how its answers are kept.

:data:`jobs.registry.SCHEDULERS` names each class. docs/project/schedulers.md says how to write one.

The id of a job in the files of a study is a claim (:class:`Claim`). In a copied study, on another cluster, or after a
reset of the scheduler's ids, it is the id of another job. A claim counts only if the scheduler's own record of the job
has the working directory that the submission gave it: the folder of the request. :meth:`Scheduler.cancel` takes only
jobs (:class:`Job`) that were found that way.
"""

import contextlib
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, final

from jobs.registry import scheduler
from seqlm.errors import BackendError
from seqlm.state import View

EVERY_SECONDS = 10.0
"""Minimum interval between queries for callers that poll."""


class TooManyJobsError(BackendError):
    """The scheduler takes fewer jobs of this user now, or in one array."""


@final
@dataclass(frozen=True)
class Claim:
    """A job (``12_3``) or an array (``12``) as the files of a study name it."""

    id: str
    folder: Path
    """The folder of its request, in which its jobs work."""
    scheduler: str
    """The name of its scheduler."""

    @property
    def array(self) -> "Claim":
        """The array of the job, or itself."""
        return replace(self, id=self.id.partition("_")[0])


@final
@dataclass(frozen=True)
class Job:
    """A live job or array of this user that works in the folder of a request. Only schedulers make one."""

    id: str
    folder: Path


@final
@dataclass(frozen=True, kw_only=True)
class Waiting:
    """What a scheduler says of a job that waits."""

    job: str
    text: str
    """Why it waits."""
    action: str
    """What can be done."""
    place: str
    """Its place in the queue, such as ``14th of 62 in gpu``."""
    starts_at: float | None
    """When it is expected to start, in seconds since 1970. ``None``: nobody says."""
    sooner: tuple[int, float] | None = None
    """A shorter time limit (minutes), and when the run would start with it. ``None``: nothing is gained."""


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The job and the node of this process."""

    job: str
    """The id that the scheduler's commands accept."""
    number: str
    """Another id of it, if the scheduler has one for each job alone."""
    array: str
    """The id of its array, which the submission returned."""
    index: int
    """The place of this job in its array."""
    jobs: int
    """The number of jobs of the array."""
    end_time: float | None
    """When the time limit ends, in seconds since 1970. ``None``: unknown."""
    devices: tuple[str, ...]
    """GPUs of this job on this node."""
    host: str
    nodes: int
    """The number of nodes of the job."""
    node_rank: int
    """The place of this node among them."""
    memory_mb: int | None
    """The memory of this job on each node. ``None``: unknown, or all that the node has."""


class Scheduler(ABC):
    """A scheduler. Whatever asks it raises ``BackendError`` if it does not answer, or refuses.

    On a login node: ``submit``, ``release``, ``cancel``, ``live``, ``waiting_in``, ``views`` and ``waiting``. In the
    script of a job: ``SHELL``. In the program of a job: ``allocation``, and what follows it; these may have no answer,
    since a container may lack the scheduler's commands.
    """

    name: ClassVar[str]
    """That of its backend."""
    title: ClassVar[str]
    """Its name for a person."""
    SHELL: ClassVar[str]
    """Functions of bash for the script of a job (:mod:`jobs.scheduled.script`)."""
    PASSED: ClassVar[tuple[str, ...]] = ()
    """Patterns of the names of its own variables, which jobs inherit from the shell of a launch."""
    TOKEN: ClassVar[str | None] = None
    """A variable with a secret that its commands may need. Scripts unset it. ``None``: there is none."""
    CANCELLED: ClassVar[str] = "its job was cancelled"
    """What is said of a job that a user has cancelled with the scheduler's own command."""
    THROTTLE: ClassVar[str] = ""
    """How a user has at most ``{most}`` jobs of an array run at once. Empty: it is not known."""
    NO_GPUS: ClassVar[str] = ""
    """What to look at if a job has fewer GPUs than it asked for. Empty: nothing is known."""

    # -- on a login node -------------------------------------------------------------------------------------------

    @abstractmethod
    def submit(self, script: Path, environ: Mapping[str, str], *, is_held: bool = False) -> str:
        """Submit a script, and return the id of its job or array.

        ``environ``: the variables that the job inherits. A job that ``is_held`` waits until it is released.

        Raises:
            TooManyJobsError: there are too many jobs.
        """

    @abstractmethod
    def release(self, ids: Collection[str]) -> None:
        """Let jobs start that were submitted as held."""

    @abstractmethod
    def cancel(self, jobs: Iterable[Job]) -> None:
        """End jobs, whether they wait or run. None is no error."""

    @abstractmethod
    def live(self, claims: Collection[Claim]) -> list[Job]:
        """Return those of the claimed jobs that wait or run, and are this user's."""

    @abstractmethod
    def waiting_in(self, folders: Collection[Path]) -> list[Job]:
        """Return the waiting jobs of this user that work in the folders of requests."""

    @abstractmethod
    def views(self, claims: Collection[Claim]) -> Mapping[Claim, View]:
        """Return the state of each job, or of an array as a run that waits in it sees it. Raises nothing.

        The jobs of an array share out its runs, so a job that has ended is as its array while others of that are live.
        A job that works in another folder than that of its request is ``gone``. Of one whose state cannot be asked now,
        it is ``unknown``.
        """

    def waiting(self, claims: Mapping[str, Claim]) -> Mapping[str, Waiting]:
        """Return the jobs that wait, by run id as ``claims``. None is no error: not every scheduler plans ahead.

        For a single run, look for a time limit that starts it sooner.
        """
        return {}

    # -- in a job --------------------------------------------------------------------------------------------------

    @abstractmethod
    def allocation(self, environ: Mapping[str, str]) -> Allocation:
        """Return what this process has, from the variables of its job. No command is called."""

    def is_cancelled(self, allocation: Allocation) -> bool:
        """Return whether a job ends because a user has cancelled it, as far as is known."""
        return False

    def has_other_jobs(self, allocation: Allocation) -> bool:
        """Return whether other jobs of the array of a job wait or run. While nobody answers, they may."""
        return True

    def clock_ahead_s(self) -> float:
        """Return the seconds by which the scheduler's clock is ahead of this machine's; 0 if it is not known."""
        return 0.0


@final
class Views:
    """Asks schedulers for the states of jobs, and keeps the answers for :data:`EVERY_SECONDS`."""

    def __init__(self) -> None:
        self._asked_at = -EVERY_SECONDS
        self._answers: dict[Claim, View] = {}

    def of(self, claims: Iterable[Claim]) -> dict[Claim, View]:
        """Return the state of each job. This asks each scheduler once about all of its jobs."""
        wanted = frozenset(claims)
        if not wanted:
            return {}
        now = time.monotonic()
        if now - self._asked_at >= EVERY_SECONDS or not wanted <= self._answers.keys():
            by_name = defaultdict[str, list[Claim]](list)
            for claim in wanted:
                by_name[claim.scheduler].append(claim)
            self._asked_at, self._answers = now, {}
            for name, its in by_name.items():
                self._answers |= scheduler(name).views(its)
        return {claim: self._answers[claim] for claim in wanted}


def works_in(directory: str, folder: Path) -> bool:
    """Return whether a working directory that a scheduler has recorded is the folder of a request, or a link to it."""
    if Path(directory).parts[-2:] != folder.parts[-2:]:  # ``launches/000001``
        return False
    with contextlib.suppress(OSError):  # one of the two is not here
        return Path(directory).samefile(folder)
    return Path(directory).resolve() == folder.resolve()

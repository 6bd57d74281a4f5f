"""The interfaces of a backend: where runs go, and how a launcher starts them there."""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeAlias

from jobs.attempt.supervisor import Ended, progress_variables
from jobs.manifests import secrets
from jobs.plan.capacity import Capacity
from jobs.spec import RunSpec, Submission
from jobs.study.kept_code import Code
from jobs.study.scheduler import Waiting
from seqlm import machine
from seqlm.resources import Resources
from seqlm.schema import Count, NotNegative, Table, Valid, read, show

# -- settings ----------------------------------------------------------------------------------------------------------

VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"


def _variables(name: str, value: Any) -> Iterator[str]:
    for key, text in value.items():
        if not re.fullmatch(VARIABLE, key):
            yield f"{name}: expected names of letters, digits and underscores, got {show(key)}"
        if "\0" in text:
            yield f"{name}.{key}: expected a text without NUL, got {show(text)}"


Seconds = Annotated[float, Valid("a number of seconds above 0", above=0)]


@dataclass(frozen=True, kw_only=True)
class BackendTable(Table):
    """The keys that every ``[backend.*]`` has. No part of a run's identity."""

    SCHEMA: ClassVar[Mapping[str, Mapping[str, Any]]] = {"env": {"propertyNames": {"pattern": VARIABLE}}}
    """Key -> what its JSON Schema has besides type and bounds."""

    max_parallel: Count | None = None
    """Most runs at once. Default: as many as fit. `--max-parallel` overrides it."""
    retries: NotNegative | None = None
    """Overrides `policy.max_stalled_retries`; `--max-stalled-retries` overrides both."""
    env: Annotated[
        Mapping[str, str], Valid('a table of texts, such as {NCCL_SOCKET_IFNAME = "eth0"}', check=_variables)
    ] = field(default_factory=dict)
    """Variables for the workers: `env.NCCL_SOCKET_IFNAME = "eth0"`. They are kept with the study: no secrets here."""
    env_pass: Annotated[
        tuple[Annotated[str, Valid(pattern=VARIABLE)], ...],
        Valid('a list of names of variables, such as ["HF_TOKEN"]'),
    ] = ()
    """Variables of your shell that workers get too: `["HF_TOKEN"]`. No file has their values."""
    progress_s: Seconds | None = None
    """Seconds between updates of `progress.json`, a run's position within its epoch; default 1. A higher number means
    less load on shared file systems (Lustre, NFS)."""


@dataclass(frozen=True, kw_only=True)
class SharedTable(BackendTable):
    """The keys of backends whose GPUs several launches share without a scheduler."""

    leave_gpus: NotNegative = 0
    """GPUs that this launch leaves free for others, whichever they are."""


# -- a backend ---------------------------------------------------------------------------------------------------------

Level: TypeAlias = Literal["ok", "note", "bad"]


@dataclass(frozen=True)
class Finding:
    """One result of a check."""

    level: Level
    """``bad``: runs will fail here; ``note``: worth knowing."""
    subject: str
    text: str


MARK = "seqlm doctor"
PROGRAM = f"""
import json, platform, socket, sys
def tell(*found):
    print(json.dumps(["{MARK}", *found]), flush=True)
tell(socket.gethostname(), platform.python_version(), sys.executable)
try:
    import torch
    cards = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    tell(torch.__version__, [(card.name, (card.major, card.minor)) for card in cards], torch.cuda.get_arch_list())
except Exception as error:
    tell(f"{{type(error).__name__}}: {{error}}".splitlines()[0])
"""
"""What ``doctor`` runs here and on a node, with any Python 3. It prints two lists, since importing torch may take long.

Both begin with :data:`MARK`. The first says where it runs, the second is for :func:`torch_finding`.
"""


def torch_finding(subject: str, found: Sequence[Any], *, gpus: str | None, advice: str) -> Finding:
    """Return what the second line of :data:`PROGRAM` means. ``gpus`` says that it should see some, ``None``: none."""
    if len(found) == 1:
        return Finding("bad", subject, f"cannot be imported ({found[0]}); {advice}")
    version, devices, built_for = found
    if gpus and not devices:
        return Finding("bad", subject, f"{version} sees no CUDA device, yet {gpus}; install a CUDA build of torch")
    if lacking := machine.lacking_code(devices, built_for):
        return Finding("bad", subject, f"{version} {lacking}")
    sees = ", ".join(dict.fromkeys(name for name, _ in devices)) or "no CUDA device"
    return Finding("ok", subject, f"{version}, sees {sees}")


class Room(NamedTuple):
    """The most memory that one rank of a run can have."""

    bytes: float
    where: str
    """Who has it, such as ``this machine``."""


class Backend(ABC):
    """Where runs go: its settings, what it has, and what runs would get there. Its methods start nothing.

    A launcher starts the runs of a backend through its :meth:`executor`. A scheduler that queues jobs itself is
    ``is_scheduled``, and has the methods ``carry`` and ``cancel`` of :class:`jobs.scheduled.backend.ScheduledBackend`
    in place of that. :data:`jobs.registry.BACKENDS` names each class.
    """

    name: ClassVar[str]
    TABLE: ClassVar[type[Any]] = BackendTable
    """Dataclass of its ``[backend.*]`` table, with at least the keys of :class:`BackendTable`."""
    is_scheduled: ClassVar[bool] = False
    """Whether its jobs need no launcher."""
    is_here: bool = False
    """Whether its runs use this machine alone."""
    why: str = ""
    """Why runs go there, for a person."""
    stand_in: "Backend | None" = None
    """Where runs go if it cannot be started. ``None``: nowhere."""

    def __init__(self, settings: Any = None) -> None:
        self.settings = self.TABLE() if settings is None else settings

    @classmethod
    def read(cls, table: Mapping[str, Any], *, where: str) -> Any:
        """Return the settings of a valid ``[backend.*]`` table of the file ``where``.

        Raises:
            ManifestError: another file that the settings come from is wrong.
        """
        return read(cls.TABLE, table)

    @classmethod
    def doctor(
        cls, *, runs_dir: Path, is_asked: bool, wait_s: float, site: Path | None = None, record: Path | None = None
    ) -> list[Finding]:
        """Return what ``doctor`` says of it. Only ``is_asked``, as by ``--backend``, may start a job.

        ``wait_s`` is the longest wait for that job. A scheduler writes ``site``, the settings that suit it, and
        ``record``, what it says of itself.
        """
        return []

    @classmethod
    def waiting(cls, study_dir: Path, run_ids: Collection[str]) -> dict[str, Waiting]:
        """Return the waiting jobs of these runs in the queue of a scheduler, by run id, if that answers."""
        return {}

    @abstractmethod
    def describe(self) -> str:
        """Return a few words about where runs go."""

    @abstractmethod
    def capacity(self) -> Capacity:
        """Return everything that the backend has, as if nothing ran.

        Raises:
            BackendError: the backend cannot be reached.
        """

    @abstractmethod
    def resolve(self, spec: RunSpec, at_most: int) -> Resources:
        """Return the resources of a run with every default filled in. ``at_most``: such runs at once.

        Raises:
            BackendError: the run can never fit here, or its precision does not exist here.
        """

    def room(self, resources: Resources) -> Room | None:
        """Return the memory that each rank of a run with resolved resources can have. ``None``: it is not known."""
        return None

    def worker_env(self) -> dict[str, str]:
        """Return the variables that the settings give to workers which this process starts.

        Raises:
            UsageError: a variable named by ``env_pass`` is not set.
        """
        settings = self.settings
        passed = secrets.passed(settings.env_pass, os.environ, f"backend.{self.name}.env_pass")
        return {**settings.env, **passed, **progress_variables(settings.progress_s)}

    def check(self, study_dir: Path) -> None:
        """Check what would make a launch impossible, before the first file is written.

        Raises:
            UsageError: the study's folder cannot be used, or a variable named by ``env_pass`` is not set.
        """
        self.worker_env()

    def tidy(self, study_dir: Path) -> None:
        """End what launches of a study have left that can never start. The caller owns the study."""
        return

    def executor(self, study_dir: Path) -> "Executor":
        """Return what starts the runs of a study. Nothing is started yet."""
        raise NotImplementedError

    def scripts(self, todo: Any, study: Any) -> list[str]:
        """Return the scripts that a launch of these runs of a study would submit to a scheduler."""
        return []

    def summary(self, todo: Any) -> str:
        """Return a line about the jobs that a launch of these runs would submit. Empty: nothing to add."""
        return ""

    def where(self) -> str:
        """Return a few words about where runs go and how many at once."""
        limit = self.settings.max_parallel
        return f"{self.describe()}{f', at most {limit} at once' if limit else ''}"


class Executor(ABC):
    """Runs submissions while a launcher waits. What they achieve is read from their run directories.

    Call ``submit``, ``poll``, ``stop`` and ``wait`` between ``open`` and ``close``.
    """

    name: ClassVar[str]
    """Name of the backend."""
    job: str | None = None
    """The scheduler's job in which all of it runs. ``None``: the ids that :meth:`submit` returns are of jobs."""
    node: str | None = None
    """The node to name if a run fails. ``None``: not known, or one of several."""
    memory_mb: int | None = None
    """The memory of that job on each node. ``None``: not known."""
    ends_at: float | None = None
    """When all that runs there is ended, in seconds since 1970. ``None``: not known."""
    env: Mapping[str, str] = MappingProxyType({})
    """Variables of the workers. Those that seqlm sets override them."""
    max_parallel: int | None = None
    """Maximum number of runs at once. ``None``: as many as there is room for."""

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

    def ask_for_room(self, waiting: Sequence[Resources]) -> None:
        """Ask a cluster that grows for room for runs with these resources, which wait. Empty: none waits."""
        return

    def waits(self, wanted: Sequence[Resources]) -> None:
        """Note what waiting runs need for which there is no room, so that other launches make room. Empty: none."""
        return

    @abstractmethod
    def submit(self, submission: Submission) -> str:
        """Start or queue an attempt that fits into what :meth:`free` has just shown; return the backend's job id.

        Raises:
            BackendError, FileError: it cannot be started.
            TakenError: another launch has taken its place since. It can be tried again.
        """

    @abstractmethod
    def poll(self, job_id: str) -> Ended | None:
        """Return how the job ended. ``None``: it is queued or running, as of the last :meth:`wait`."""

    def why_waits(self, job_id: str) -> str:
        """Return why a live job has not started. Empty: it has, as far as is known."""
        return ""

    @abstractmethod
    def stop(self, job_id: str, *, force: bool) -> None:
        """Ask the job's ranks to stop between two steps; with ``force``, kill them."""

    @abstractmethod
    def wait(self, seconds: float) -> None:
        """Return after ``seconds``, or sooner if a job has ended."""

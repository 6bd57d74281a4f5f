"""The files of a submission to a scheduler, in the folder of its request: ``launches/000001/``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from seqlm.records.base import Record
from seqlm.resources import Resources
from seqlm.schema import NotNegative, Valid


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Limits(Record):
    """What a job asks for."""

    timeout_min: int
    mem_gb: float | None = None
    """Memory of each node. ``None``: the cluster's default."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ArrayPlan(Record):
    """An array: equal jobs, which share out its runs (:mod:`jobs.scheduled.share`)."""

    runs: Mapping[str, Resources]
    """Run id -> its resources, in the order in which the runs start."""
    jobs: NotNegative
    """The number of jobs. 0: it is not submitted."""
    nodes: int
    """Nodes of each job. A job with several nodes has one run at a time."""
    cpus: int
    """Cores of each node. Likewise ``gpus``."""
    gpus: int
    accelerator_type: str | None = None
    """The type of the GPUs, as the scheduler has it. ``None``: any."""
    at_once: int | None
    """Maximum number of runs of a job at once. ``None``: as many as there is room for."""
    most_runs: int | None = None
    """Maximum number of runs of all its jobs at once. ``None``: any number."""
    timeout_min: int
    mem_gb: float | None = None
    """Memory of each node. ``None``: the cluster's default."""
    most: Limits | None = None
    """The most that a job may ask for after one of its limits has ended it. ``None``: no more."""
    job: Annotated[str, Valid("the id of a job", pattern="^[0-9]{1,18}$")] | None = None
    """The id of the array. ``None``: it is not submitted."""
    why: str = ""
    """Why it is not, although the others are."""

    @property
    def priority(self) -> int:
        return max(resources.priority for resources in self.runs.values())


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Joint(Record):
    """``joint-K.json`` in the folder of a start of a job: the K-th attempt whose ranks each of its nodes starts."""

    run: str
    """The id of the run."""
    attempt: NotNegative
    micro_batches: NotNegative


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Batch(Record):
    """``batch.json``: what the jobs of a submission do. The arrays are as the scheduler has taken them."""

    FILE: ClassVar[str] = "batch.json"
    OPTIONAL: ClassVar[frozenset[str]] = frozenset({"canaries"})

    options: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the study and the launch (:class:`jobs.scheduled.submission.Options`), as plain data."""
    arrays: tuple[ArrayPlan, ...] = ()
    code: str = ""
    """The archive of the code, or the folder of a working tree."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Run id -> the path of its corpus, for runs that have one."""
    launched: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Run id -> the fingerprints of the configurations whose models its worker may run."""
    signal_before_s: int = 0
    """How long before its time limit a job gets a signal."""
    must_have_nodes: bool = False
    """Whether the settings name the nodes of the jobs, so that none can be excluded."""
    scheduler: str = "slurm"
    """The name of the scheduler."""
    grid: str | None = None
    """The folder of the request whose jobs wait for these, which are canaries. ``None``: they are none."""
    canaries: str | None = None
    """The folder of the request of the canaries that must have passed. ``None``: there are none."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Submitted(Record):
    """``submitted.json``: all jobs of a request are submitted. Without this file they count as never submitted."""

    FILE: ClassVar[str] = "submitted.json"

    at: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Withdrawn(Record):
    """``withdrawn.json``: the jobs of a request are cancelled and count no more."""

    FILE: ClassVar[str] = "withdrawn.json"

    at: str | None = None

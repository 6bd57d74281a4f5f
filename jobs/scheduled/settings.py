"""The settings that every scheduler has: how runs become jobs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeAlias

from jobs.backends.base import BackendTable, Seconds
from jobs.plan.capacity import TINY
from seqlm.errors import BackendError
from seqlm.records.batch import Limits
from seqlm.resources import Resources
from seqlm.schema import Count, Line, NotNegative, Table, Valid

Lines: TypeAlias = Annotated[tuple[Line, ...], Valid("a list of texts, each one line")]


@dataclass(frozen=True, kw_only=True)
class Pool(Table):
    """Jobs of one node each that have several runs at once."""

    NAME: ClassVar[str] = "pool"

    jobs: NotNegative = 0
    """Most jobs at once, each on a node of its own. 0: there is no pool."""
    cpus: NotNegative = 0
    """Cores of each job."""
    gpus: NotNegative = 0
    """GPUs of each job."""

    def _conditions(self) -> Iterator[str]:
        if self.jobs and not self.cpus:
            yield f"{self.key('cpus')}: missing, expected a positive whole number"


@dataclass(frozen=True, kw_only=True)
class JobShape:
    """What the jobs of runs that want the same have."""

    nodes: int
    """A job with several nodes has one run at a time."""
    at_once: int | None
    """Maximum number of runs at once. ``None``: it is a job of the pool, with as many as there is room for."""
    cpus: int
    """Cores of each node. Likewise ``gpus``."""
    gpus: int
    accelerator_type: str | None = None
    """The type of its GPUs, as the scheduler has it. ``None``: any."""


@dataclass(frozen=True, kw_only=True)
class ScheduledTable(BackendTable):
    """The keys of the backends that are schedulers."""

    progress_s: Seconds = 10.0
    """Seconds between two updates of `progress.json`, which says where a run is within its epoch. A higher number means
    less load on shared file systems (Lustre, NFS)."""
    timeout_min: Count = 60
    """Time limit of a job in minutes. A run that needs longer is saved and resumed in another job."""
    signal_before_s: Annotated[int, Valid("a whole number from 1 to 65535", least=1, most=65_535)] = 120
    """Seconds before the time limit, or a preemption, at which a run gets the signal to save; at most half the limit. A
    run that has not saved 45 s before the limit is killed, so that its job ends in order."""
    mem_gb: Annotated[float, Valid("a number above 0", above=0)] | None = None
    """Memory of each node in GB. Default: the cluster's."""
    fit_limits: bool = False
    """Ask for the time and memory that earlier runs like this took, and some more, at most `timeout_min` and `mem_gb`:
    short jobs start sooner. If the time was too short, the job continues with `timeout_min`."""
    ranks_per_node: Count | None = None
    """Ranks of a run on each node. Default: all on one node. A run with more ranks gets several nodes, and
    `resources.ranks` must be a multiple of it."""
    pool: Pool = Pool()
    """One-node jobs that share out the runs, several at once: `{ jobs = 4, gpus = 4, cpus = 32 }`, with `gpus` and
    `cpus` of each. A run that needs more gets its own job."""
    setup: Lines = ()
    """Shell lines before a job's command, such as module loads."""
    python: Annotated[Line, Valid('a command that starts Python, such as "apptainer exec image.sif python"')] | None = (
        None
    )
    """Command that starts Python in a job: `"apptainer exec --nv image.sif python"`. Default: the launching Python."""
    stage: bool = False
    """Whether workers read the corpus from a copy in `TMPDIR`, which a node's first worker makes: for file systems that
    are slow to read."""

    @property
    def limits(self) -> Limits:
        """What each job asks for, or the most of that (``fit_limits``)."""
        return Limits(timeout_min=self.timeout_min, mem_gb=self.mem_gb)

    @property
    def warning_s(self) -> int:
        """Seconds before the time limit at which a run gets the signal."""
        return min(self.signal_before_s, 30 * self.timeout_min)

    @property
    def must_have_nodes(self) -> bool:
        """Whether the settings name the nodes of the jobs, so that none can be avoided."""
        return False

    @property
    def may_exceed_limit(self) -> bool:
        """Whether jobs may run for longer than their partition allows."""
        return False

    @property
    def lower_priority(self) -> int:
        """By how much the user lowers the priority of the jobs."""
        return 0

    def require_type(self, accelerator_type: str | None) -> None:
        """Check that jobs can ask for this type of GPUs. ``None``: any.

        Raises:
            BackendError: the settings say otherwise which GPUs there are to be.
        """

    def shape(self, resources: Resources) -> JobShape:
        """Return what a job of runs with these resources has.

        If a job of the pool has room for such a run, and the run may have any GPU, it is one. Otherwise a run with
        fewer ranks than ``ranks_per_node`` gets one node, and as many runs share a job as share a GPU, since
        schedulers allocate whole GPUs.

        Raises:
            BackendError: the ranks cannot be divided equally.
        """
        ranks, cpus, gpus, pool = resources.ranks, resources.cpus or 1, resources.gpus or 0, self.pool
        kind = resources.accelerator_type
        if pool.jobs and kind is None and ranks * cpus <= pool.cpus and ranks * gpus <= pool.gpus + TINY:
            return JobShape(nodes=1, at_once=None, cpus=pool.cpus, gpus=pool.gpus)
        each = min(ranks, self.ranks_per_node or ranks)
        if ranks % each:
            below, above = ranks - ranks % each, ranks - ranks % each + each
            raise BackendError(
                f"resources.ranks: expected a multiple of ranks_per_node = {each}, such as {below} or {above}, "
                f"got {ranks}"
            )
        sharing = int((1 + TINY) / gpus) if 0 < gpus < 1 else 1
        at_once = min(sharing, self.max_parallel or sharing)
        return JobShape(
            nodes=ranks // each,
            at_once=at_once,
            cpus=each * at_once * cpus,
            gpus=math.ceil(each * gpus),
            accelerator_type=kind,
        )

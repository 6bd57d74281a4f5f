"""What a cluster has: a run that can never start there is rejected before submission."""

from dataclasses import dataclass, replace

from jobs.plan.capacity import Card, with_noun
from jobs.scheduled.settings import JobShape, ScheduledTable
from seqlm.errors import BackendError
from seqlm.resources import Resources

FAKE_GPU = "fake"
"""The type of the GPUs of a test cluster."""


@dataclass(frozen=True, kw_only=True)
class NodeKind:
    """A group of equal nodes of a partition."""

    count: int
    cpus: int
    gpus: int
    memory_mb: int
    gpu_types: tuple[str, ...] = ()
    """Of the GPUs, as far as the cluster has types."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A partition, or several partitions that a job may use, combined."""

    name: str
    time_limit_min: int | None
    """Maximum time limit of a job. ``None`` means no limit."""
    max_nodes: int | None
    """Maximum number of nodes of a job. ``None`` means no limit."""
    kinds: tuple[NodeKind, ...]

    @property
    def nodes(self) -> int:
        return sum(kind.count for kind in self.kinds)

    @property
    def has_gpus(self) -> bool:
        """Whether nodes have GPUs that programs can use. Those of a test cluster are none."""
        return any(kind.gpus and FAKE_GPU not in kind.gpu_types for kind in self.kinds)

    @property
    def gpus_per_node(self) -> int:
        """GPUs of the nodes that have most."""
        return max((kind.gpus for kind in self.kinds), default=0)

    def about(self) -> str:
        """Return what the partition has, in a few words."""
        kinds = []
        for kind in self.kinds:
            gpus = f" and {with_noun(kind.gpus, ' '.join([*kind.gpu_types, 'GPU']))}" if kind.gpus else ""
            kinds.append(f"{with_noun(kind.count, 'node')} of {with_noun(kind.cpus, 'core')}{gpus}")
        return ", ".join(kinds)

    def fitting(self, shape: JobShape, mem_gb: float | None) -> list[NodeKind]:
        """Return the kinds of nodes that have what a job needs of each node."""
        memory_mb = 1024 * (mem_gb or 0)
        return [
            kind
            for kind in self.kinds
            if kind.gpus >= shape.gpus
            and kind.cpus >= shape.cpus
            and kind.memory_mb >= memory_mb
            and shape.accelerator_type in (None, *kind.gpu_types)
        ]

    def type_of(self, resources: Resources) -> str | None:
        """Return the type of GPUs, as the scheduler has it, that a run asks for. ``None``: any.

        Raises:
            BackendError: no type or several types have that name, or the run asks for GPUs by their memory.
        """
        there = sorted({name for kind in self.kinds for name in kind.gpu_types})
        types = f"its types are {', '.join(there)}" if there else "its GPUs have no types"
        if resources.gpu_memory_gb is not None:
            raise BackendError(
                "resources.gpu_memory_gb: expected none, since the cluster does not say how much memory a GPU has; set "
                f"resources.gpus or resources.accelerator_type (partition {self.name}: {types})"
            )
        if (wanted := resources.accelerator_type) is None:
            return None
        found = [name for name in there if Card(type=name).is_a(wanted)]
        if wanted not in there and len(found) != 1:
            what = f"stands for {' and '.join(found)}; write more of it" if found else "is none"
            raise BackendError(f"resources.accelerator_type: {wanted} {what} (partition {self.name}: {types})")
        return wanted if wanted in there else found[0]

    def resolve(self, resources: Resources, settings: ScheduledTable) -> Resources:
        """Return a run's resources with no field left ``None``.

        By default each rank gets one GPU if nodes have any. Cores with GPUs: a node's cores divided by its GPUs, and by
        the runs that share a GPU, for the nodes where that is least. Cores without GPUs: one.

        Raises:
            BackendError: the run can never start here.
        """
        limit = self.time_limit_min
        if limit is not None and settings.timeout_min > limit and not settings.may_exceed_limit:
            raise BackendError(
                f"timeout_min: expected at most {limit}, the limit of partition {self.name}, got {settings.timeout_min}"
            )
        pool = settings.pool
        has_gpus = pool.gpus > 0 if pool.jobs else self.gpus_per_node > 0
        kind = self.type_of(resources)
        each_gpus = resources.gpus if resources.gpus is not None else float(has_gpus or kind is not None)
        resolved = replace(resources, gpus=each_gpus, accelerator_type=kind)
        settings.require_type(kind)
        shape = settings.shape(resolved)
        fitting = self.fitting(shape, settings.mem_gb)
        enough = sum(kind.count for kind in fitting)
        if enough < shape.nodes or (self.max_nodes is not None and shape.nodes > self.max_nodes):
            each_has = [with_noun(shape.gpus, f"{kind} GPU" if kind else "GPU")] if shape.gpus else []
            each_has.append(with_noun(shape.cpus, "core"))
            each_has += [f"{settings.mem_gb:g} GB of memory"] if settings.mem_gb else []
            has = f"has {enough} of these" if enough < shape.nodes else f"allows {self.max_nodes} per job"
            needs = f"{with_noun(shape.nodes, 'node')} with {' and '.join(each_has)}"
            raise BackendError(f"never fits: needs {needs}, partition {self.name} {has}")
        shares = [1]
        if each_gpus and shape.at_once is None:
            shares = [int(pool.cpus * each_gpus / pool.gpus)]
        elif each_gpus:
            shares = [kind.cpus // kind.gpus // (shape.at_once or 1) for kind in fitting]
        return replace(resolved, cpus=resources.cpus or max(1, min(shares)))

"""Query a cluster's limits and partitions, so that a run that can never start is rejected before submission.

Each query is one call of a SLURM command. Separate pure functions parse the output. Answers are not cached: a launcher
queries once per launch.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from jobs.plan.capacity import Card, with_noun
from jobs.study.squeue import ask
from seqlm.errors import BackendError, nearest
from seqlm.resources import Resources
from slurm.settings import JobShape, SlurmSettings

FAKE_GPU = "fake"
"""The type of the GPUs of a test cluster."""

PARTITION_FORMAT = "%P|%l|%D|%c|%m|%G|%s"


def max_array_size() -> int:
    """Return the maximum number of tasks of an array; the highest index is one less. 0 means that arrays are disabled.

    Raises:
        BackendError: no answer, or one that cannot be parsed.
    """
    found = re.search(r"^MaxArraySize\s*= (\d+)$", ask("scontrol", "show", "config"), flags=re.MULTILINE)
    if found is None:
        raise BackendError("scontrol show config: expected SLURM's configuration with MaxArraySize, got other output")
    return int(found[1])


# -- partitions ------------------------------------------------------------------------------------------------------


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
class PartitionFacts:
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
        """Return the type of GPUs, as SLURM has it, that a run asks for. ``None``: any.

        Raises:
            BackendError: no type or several types have that name, or the run asks for GPUs by their memory.
        """
        there = sorted({name for kind in self.kinds for name in kind.gpu_types})
        types = f"its types are {', '.join(there)}" if there else "its GPUs have no types"
        if resources.gpu_memory_gb is not None:
            raise BackendError(
                "resources.gpu_memory_gb: expected none, since SLURM does not know how much memory a GPU has; set "
                f"resources.gpus or resources.accelerator_type (partition {self.name}: {types})"
            )
        if (wanted := resources.accelerator_type) is None:
            return None
        found = [name for name in there if Card(type=name).is_a(wanted)]
        if wanted not in there and len(found) != 1:
            what = f"stands for {' and '.join(found)}; write more of it" if found else "is none"
            raise BackendError(f"resources.accelerator_type: {wanted} {what} (partition {self.name}: {types})")
        return wanted if wanted in there else found[0]

    def resolve(self, resources: Resources, settings: SlurmSettings) -> Resources:
        """Return a run's resources with no field left ``None``.

        By default each rank gets one GPU if nodes have any. Cores with GPUs: a node's cores divided by its GPUs, and by
        the runs that share a GPU, for the nodes where that is least. Cores without GPUs: one.

        Raises:
            BackendError: the run can never start here.
        """
        limit = self.time_limit_min
        if limit is not None and settings.timeout_min > limit and settings.qos is None:  # a QOS may allow more
            raise BackendError(
                f"timeout_min: expected at most {limit}, the limit of partition {self.name}, got {settings.timeout_min}"
            )
        pool = settings.pool
        has_gpus = pool.gpus > 0 if pool.jobs else self.gpus_per_node > 0
        kind = self.type_of(resources)
        each_gpus = resources.gpus if resources.gpus is not None else float(has_gpus or kind is not None)
        resolved = replace(resources, gpus=each_gpus, accelerator_type=kind)
        settings.gpu_options(1, kind)  # refused here if the settings have no place for a type
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


def partition_facts(partition: str | None) -> PartitionFacts:
    """Return the facts of a partition, or of several separated by commas. ``None`` means the cluster's default.

    Of several partitions a job uses whichever accepts it, so the widest limit applies.

    Raises:
        BackendError: no answer, or no such partition.
    """
    # Query all partitions in one call, for a hint if a name is misspelt. -e lists unlike nodes separately.
    partitions, default = read_partitions(ask("sinfo", "-h", "-a", "-e", "-o", PARTITION_FORMAT))
    there = f"(there are: {', '.join(partitions)})"
    if partition is None and default is None:
        raise BackendError(f"the cluster has no default partition; set partition {there}")
    names = (partition or default or "").split(",")
    for name in names:
        if name not in partitions:
            raise BackendError(f"the cluster has no partition {name}{nearest(name, partitions)} {there}")
    found = [partitions[name] for name in names]
    return PartitionFacts(
        name=",".join(names),
        time_limit_min=_widest(one.time_limit_min for one in found),
        max_nodes=_widest(one.max_nodes for one in found),
        kinds=tuple(kind for one in found for kind in one.kinds),
    )


def _widest(limits: Iterable[int | None]) -> int | None:
    known = list(limits)
    return None if None in known else max(limit for limit in known if limit is not None)


def read_partitions(text: str) -> tuple[dict[str, PartitionFacts], str | None]:
    """Parse sinfo's output in the format above. Return each partition's facts by name, and the default's name.

    A partition has one line for each kind of node. A partition without nodes has a line of zeros.
    """
    partitions: dict[str, PartitionFacts] = {}
    default = None
    for line in text.splitlines():
        parts = line.strip().split("|")
        if len(parts) != 7:
            raise BackendError(f'sinfo: expected 7 fields separated by "|", got "{line.strip()}"')
        name, limit, nodes, cpus, memory, gres, size = parts
        if name.endswith("*"):
            name = default = name.removesuffix("*")
        kind = NodeKind(
            count=_number(nodes),
            cpus=_number(cpus),
            gpus=count_gpus(gres),
            memory_mb=_number(memory),
            gpu_types=tuple(re.findall(r"(?:^|,)gpu:(\w*[a-zA-Z][\w.-]*)", gres)),
        )
        before = partitions[name].kinds if name in partitions else ()
        largest = size.rpartition("-")[2]  # of "1-infinite", "1-4" or "1"
        partitions[name] = PartitionFacts(
            name=name,
            time_limit_min=read_minutes(limit),
            max_nodes=int(largest) if largest.isdigit() else None,
            kinds=(*before, kind) if kind.count else before,
        )
    return partitions, default


def count_gpus(gres: str) -> int:
    """Return the number of GPUs of all types in a list of generic resources, such as ``gpu:a100:4(S:0-1),nvme:1``."""
    entries = [entry.split(":") for entry in re.sub(r"\([^)]*\)", "", gres).split(",")]
    return sum(int(parts[-1]) if parts[-1].isdigit() else 1 for parts in entries if parts[0] == "gpu")


def read_minutes(text: str) -> int | None:
    """Return a SLURM time (``2-00:00:00``, ``30:00``) in whole minutes, rounded down, or ``None`` for no limit."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, _ = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + minutes


def _number(text: str) -> int:
    """Return a number in sinfo's notation, such as ``64``, ``64+`` or ``1.5K``, as a whole number."""
    match = re.match(r"(\d+(?:\.\d+)?)([KM]?)", text)
    return int(float(match[1]) * {"": 1, "K": 1024, "M": 1024**2}[match[2]]) if match else 0

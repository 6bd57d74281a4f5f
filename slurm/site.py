"""Query a cluster's limits and partitions, so that a run that can never start is rejected before submission.

Each query is one call of a SLURM command. Separate pure functions parse the output. Answers are not cached: a launcher
queries once per launch.
"""

import re
from collections.abc import Iterable

from jobs.scheduled.site import NodeKind, Site
from seqlm.errors import BackendError, nearest
from slurm.scheduler import ask

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


def partition_facts(partition: str | None) -> Site:
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
    return Site(
        name=",".join(names),
        time_limit_min=_widest(one.time_limit_min for one in found),
        max_nodes=_widest(one.max_nodes for one in found),
        kinds=tuple(kind for one in found for kind in one.kinds),
    )


def _widest(limits: Iterable[int | None]) -> int | None:
    known = list(limits)
    return None if None in known else max(limit for limit in known if limit is not None)


def read_partitions(text: str) -> tuple[dict[str, Site], str | None]:
    """Parse sinfo's output in the format above. Return each partition's facts by name, and the default's name.

    A partition has one line for each kind of node. A partition without nodes has a line of zeros.
    """
    partitions: dict[str, Site] = {}
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
        partitions[name] = Site(
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

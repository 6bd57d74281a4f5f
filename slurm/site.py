"""What a cluster says of itself, each thing in one call."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from jobs.spec import Resources
from seqlm.errors import BackendError, nearest
from slurm import control
from slurm.settings import SlurmSettings


@dataclass(frozen=True, kw_only=True)
class Partition:
    """A partition, as ``sinfo`` describes it: what its largest nodes have."""

    name: str
    nodes: int
    cpus_per_node: int
    gpus_per_node: int

    def resolve(self, resources: Resources, settings: SlurmSettings) -> Resources:
        """Make the open choices of a run's resources."""
        gpus = resources.gpus if resources.gpus is not None else float(min(1, self.gpus_per_node))
        share = self.cpus_per_node // self.gpus_per_node if gpus and self.gpus_per_node else 1
        resolved = replace(resources, gpus=gpus, cpus=resources.cpus or max(1, int(share * (gpus or 1))))
        _, each = settings.nodes(resolved)
        if gpus and each * gpus > self.gpus_per_node:
            raise BackendError(
                f"never fits: needs {each} GPUs on one node, partition {self.name} has {self.gpus_per_node}"
            )
        return resolved


def partition_facts(partition: str | None) -> Partition:
    """The partition, the default one for none."""
    found: dict[str, Partition] = {}
    default = None
    for line in control.call("sinfo", "-h", "-o", "%P|%D|%c|%G").splitlines():
        name, nodes, cpus, gres = line.strip().split("|")
        if name.endswith("*"):
            name = default = name[:-1]
        gpus = sum(int(count) for count in re.findall(r"gpu(?::[^:,(]+)?:(\d+)", gres))
        cores = int(cpus.rstrip("+"))
        before = found.get(name)
        found[name] = Partition(
            name=name,
            nodes=int(nodes) + (before.nodes if before else 0),
            cpus_per_node=max(cores, before.cpus_per_node if before else 0),
            gpus_per_node=max(gpus, before.gpus_per_node if before else 0),
        )
    wanted = partition or default or ""
    if wanted not in found:
        raise BackendError(f'no partition "{wanted}"{nearest(wanted, found)} (there are: {", ".join(found)})')
    return found[wanted]


def max_array_size() -> int:
    """Most jobs of an array."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", control.call("scontrol", "show", "config"), re.MULTILINE)
    return int(match[1]) - 1 if match else 1000

"""What a cluster says of itself, so that a run that can never start there is refused before it is submitted.

Each question is one call of SLURM's own programs; what they print is read by functions of text alone. An answer holds
for the moment: a launcher asks once for each launch.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from jobs.spec import Resources
from seqlm.errors import BackendError, nearest
from slurm.settings import SlurmSettings

ANSWER_S = 20.0
"""How long a controller may take to answer."""

_LOGIN_NODE = "launch from a login node of the cluster"
FAKE_GPU = "fake"
"""The type of the GPUs of a test cluster."""

_PARTITION_FORMAT = "%P|%a|%l|%F|%c|%m|%G|%s"


def ask(*command: str, seconds: float = ANSWER_S, environ: Mapping[str, str] | None = None) -> str:
    """What one of SLURM's programs prints.

    It gets ``environ``, else this process's. Variables such as ``SINFO_PARTITION`` are kept from it: they would change
    what it tells.

    Raises:
        BackendError: it is not there, does not answer in time, or says no.
    """
    given = os.environ if environ is None else environ
    environ = {name: value for name, value in given.items() if not name.startswith("SINFO_")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environ, check=True)
    except FileNotFoundError:
        raise BackendError(f"{command[0]} is not on PATH; {_LOGIN_NODE}") from None
    except OSError as error:
        raise BackendError(f"{command[0]} cannot be started: {error.strerror or error}") from None
    except subprocess.TimeoutExpired:
        raise BackendError(f"{command[0]} did not answer within {seconds:g} s; is slurmctld up?") from None
    except subprocess.CalledProcessError as error:
        lines = (error.stderr.strip() or error.stdout.strip() or f"exit code {error.returncode}").splitlines()
        hint = f"; {_LOGIN_NODE}, or set SLURM_CONF" if "configuration source" in lines[-1] else ""
        raise BackendError(f"{command[0]}: {lines[-1].removeprefix(f'{command[0]}: ')}{hint}") from None
    return done.stdout


# -- the controller --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ControllerConfig:
    """Of a controller's configuration what concerns its users."""

    version: str
    max_array_size: int
    """Most tasks of one array: their numbers go up to one less. 0: no arrays."""
    max_job_count: int
    """Most jobs that the controller keeps at once, of all users."""
    accounting: bool
    """Whether ended jobs are kept in a database, which ``sacct`` asks."""


def controller_config() -> ControllerConfig:
    """The controller's configuration.

    Raises:
        BackendError: no answer, or none that makes sense.
    """
    return read_config(ask("scontrol", "show", "config"))


def max_array_size() -> int:
    """Most tasks of one array.

    Raises:
        BackendError: no answer, or none that makes sense.
    """
    return controller_config().max_array_size


def read_config(text: str) -> ControllerConfig:
    """The answer of ``scontrol show config``."""
    found = dict(re.findall(r"^(\w+)\s*= (.*)$", text, flags=re.MULTILINE))
    try:
        return ControllerConfig(
            version=found["SLURM_VERSION"].strip(),
            max_array_size=int(found["MaxArraySize"]),
            max_job_count=int(found["MaxJobCount"]),
            accounting=found["AccountingStorageType"].strip() not in ("(null)", "accounting_storage/none"),
        )
    except (KeyError, ValueError) as error:
        raise BackendError(f"`scontrol show config` says nothing that seqlm understands ({error})") from None


# -- partitions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NodeKind:
    """Nodes of a partition that are alike."""

    count: int
    usable: int
    """Those that are neither down nor drained."""
    cpus: int
    gpus: int
    memory_mb: int
    fakes: bool = False
    """Whether the GPUs are those of a test cluster: no device is behind them."""


@dataclass(frozen=True, kw_only=True)
class PartitionFacts:
    """A partition, or several that a job may go to, taken together."""

    name: str
    up: bool
    """Whether it starts jobs now."""
    time_limit_min: int | None
    """None: no limit."""
    max_nodes: int | None
    """Most nodes of one job; none: no limit."""
    kinds: tuple[NodeKind, ...]

    @property
    def nodes(self) -> int:
        return sum(kind.count for kind in self.kinds)

    @property
    def usable_nodes(self) -> int:
        return sum(kind.usable for kind in self.kinds)

    @property
    def gpus_per_node(self) -> int:
        """Of the nodes with most."""
        return max((kind.gpus for kind in self.kinds), default=0)

    @property
    def has_fake_gpus(self) -> bool:
        """Whether this is a test cluster, whose GPUs are no devices."""
        return any(kind.fakes for kind in self.kinds)

    @property
    def cpus_per_node(self) -> int:
        """Of the nodes with most."""
        return max((kind.cpus for kind in self.kinds), default=0)

    def check_time(self, settings: SlurmSettings) -> None:
        """Refuse a time limit that the partition does not grant; with a QOS, which may grant more, nothing is said.

        Raises:
            BackendError: it is too long.
        """
        limit = self.time_limit_min
        if limit is not None and settings.timeout_min > limit and settings.qos is None:
            raise BackendError(
                f"timeout_min {settings.timeout_min} is above the limit of partition {self.name}, which is {limit}"
            )

    def resolve(self, resources: Resources, settings: SlurmSettings) -> Resources:
        """The resources of a run with every open choice made.

        GPUs: one for each rank where nodes have any. Cores: with GPUs an equal share of a node's for each of its GPUs,
        of the nodes that have fewest; without, one.

        Raises:
            BackendError: the run can never start here.
        """
        self.check_time(settings)
        gpus = resources.gpus if resources.gpus is not None else float(self.gpus_per_node > 0)
        resolved = replace(resources, gpus=gpus)
        nodes, ranks = settings.nodes(resolved)
        runs = settings.runs_per_job(resolved)
        gpus_on_node = math.ceil(ranks * gpus)
        each = resources.cpus or 1
        cpus_on_node = ranks * runs * each
        memory_mb = math.ceil((settings.mem_gb or 0) * 1024)
        parts = f" ({count(ranks, 'rank') if ranks > 1 else count(runs, 'run')} of {each})" if ranks * runs > 1 else ""
        fitting = self._fitting(gpus_on_node, cpus_on_node, memory_mb, nodes, parts)
        if resources.cpus is None:
            shares = [kind.cpus // kind.gpus // runs for kind in fitting] if gpus else [1]
            resolved = replace(resolved, cpus=max(1, min(shares)))
        return resolved

    def _fitting(self, gpus: int, cpus: int, memory_mb: int, nodes: int, parts: str) -> list[NodeKind]:
        """The kinds of nodes that hold so much; an error where they are too few. ``parts``: what the cores are for."""
        has = f"partition {self.name} has"
        if gpus > self.gpus_per_node:
            raise BackendError(f"never fits: needs {count(gpus, 'GPU')} on one node, {has} {self.gpus_per_node}")
        if cpus > self.cpus_per_node:
            raise BackendError(
                f"never fits: needs {count(cpus, 'core')}{parts} on one node, {has} {self.cpus_per_node}"
            )
        most_mb = max((kind.memory_mb for kind in self.kinds), default=0)
        if memory_mb > most_mb:
            needs = f"{memory_mb / 1024:g} GB of memory on one node"
            raise BackendError(f"never fits: needs {needs}, {has} {math.floor(most_mb / 1024 * 10) / 10:g}")
        fitting = [k for k in self.kinds if k.gpus >= gpus and k.cpus >= cpus and k.memory_mb >= memory_mb]
        enough = sum(kind.count for kind in fitting)
        if enough < nodes:
            each = f"{count(gpus, 'GPU')} and {count(cpus, 'core')}" if gpus else count(cpus, "core")
            each += f" and {memory_mb / 1024:g} GB" if memory_mb else ""
            raise BackendError(f"never fits: needs {count(nodes, 'node')} with {each}, {has} {enough} such")
        if self.max_nodes is not None and nodes > self.max_nodes:
            raise BackendError(
                f"never fits: needs {count(nodes, 'node')}, partition {self.name} grants {self.max_nodes} to a job"
            )
        return fitting


def partition_facts(partition: str | None) -> PartitionFacts:
    """Facts of a partition, or of several with commas between; none: the cluster's default.

    Raises:
        BackendError: no answer, or no such partition.
    """
    # All partitions at once, so that one call tells what a misspelt name may have meant; -e keeps unlike nodes apart.
    partitions, default = read_partitions(ask("sinfo", "-h", "-a", "-e", "-o", _PARTITION_FORMAT))
    if partition is None and default is None:
        raise BackendError(f"the cluster has no default partition; set partition (there are: {', '.join(partitions)})")
    found = []
    for name in (partition or default or "").split(","):
        if name not in partitions:
            hint = nearest(name, partitions)
            raise BackendError(f"the cluster has no partition {name}{hint} (there are: {', '.join(partitions)})")
        found.append(partitions[name])
    return _together(found)


def read_partitions(text: str) -> tuple[dict[str, PartitionFacts], str | None]:
    """The answer of sinfo in the format above: each partition's facts by name, and the name of the default.

    A partition has a line for each kind of nodes; one without nodes has a line of zeros.
    """
    partitions: dict[str, PartitionFacts] = {}
    default = None
    for line in text.splitlines():
        parts = line.strip().split("|")
        if len(parts) != 8:
            raise BackendError(f'sinfo says what seqlm does not understand: "{line.strip()}"')
        name, state, limit, by_state, cpus, memory, gres, size = parts
        if name.endswith("*"):
            name = default = name.removesuffix("*")
        _, _, other, every = (_number(number) for number in by_state.split("/"))
        kind = NodeKind(
            count=every,
            usable=every - other,
            cpus=_number(cpus),
            gpus=count_gpus(gres),
            memory_mb=_number(memory),
            fakes=f"gpu:{FAKE_GPU}:" in gres,
        )
        before = partitions[name].kinds if name in partitions else ()
        partitions[name] = PartitionFacts(
            name=name,
            up=state == "up",
            time_limit_min=read_minutes(limit),
            max_nodes=_largest(size),
            kinds=(*before, kind) if every else before,
        )
    return partitions, default


def count_gpus(gres: str) -> int:
    """GPUs in a list of generic resources, such as ``gpu:a100:4(S:0-1),nvme:1``: all types added up."""
    entries = [entry.split(":") for entry in re.sub(r"\([^)]*\)", "", gres).split(",")]
    return sum(int(parts[-1]) if parts[-1].isdigit() else 1 for parts in entries if parts[0] == "gpu")


def read_minutes(text: str) -> int | None:
    """A time as SLURM writes it (``2-00:00:00``, ``30:00``) in whole minutes, rounded down; none: no limit."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, _ = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + minutes


def _together(partitions: Sequence[PartitionFacts]) -> PartitionFacts:
    """Several partitions as one: a job goes to whichever takes it, so that the widest limit holds."""
    return PartitionFacts(
        name=",".join(partition.name for partition in partitions),
        up=any(partition.up for partition in partitions),
        time_limit_min=_widest(partition.time_limit_min for partition in partitions),
        max_nodes=_widest(partition.max_nodes for partition in partitions),
        kinds=tuple(kind for partition in partitions for kind in partition.kinds),
    )


def _widest(limits: Iterable[int | None]) -> int | None:
    known = list(limits)
    return None if None in known else max(limit for limit in known if limit is not None)


def _largest(size: str) -> int | None:
    """Nodes of the largest job, of ``1-infinite``, ``1-4`` or ``1``."""
    last = size.rpartition("-")[2]
    return int(last) if last.isdigit() else None


def _number(text: str) -> int:
    """A whole number as sinfo writes it, ``64+`` and ``1.5K`` among them."""
    match = re.match(r"(\d+(?:\.\d+)?)([KM]?)", text)
    return int(float(match[1]) * {"": 1, "K": 1024, "M": 1024**2}[match[2]]) if match else 0


def count(number: float, noun: str) -> str:
    """``1 GPU``, ``2 GPUs``."""
    return f"{number:g} {noun}{'' if number == 1 else 's'}"

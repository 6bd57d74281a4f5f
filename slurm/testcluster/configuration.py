"""What a test cluster is like, and the files that tell SLURM so."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from seqlm.errors import UsageError
from slurm.site import FAKE_GPU
from slurm.testcluster.slots import MOST_NODES, Slot

CLUSTER_NAME = "lab"
DATABASE_NAME = "accounting"
SOCKET_PATH_BYTES = 100
"""Paths of sockets are limited to 107 bytes by the kernel, less for some that SLURM makes."""


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """The hardware and the rules of a test cluster."""

    nodes: int = 4
    """One slurmd each, about 9 MB."""
    gpus: int = 2
    """Fake GPUs of each node: jobs get CUDA_VISIBLE_DEVICES, and no device."""
    cpus: int = 4
    """Cores of each node, as SLURM counts; they need not exist."""
    memory_mb: int = 2000
    """Memory of each node, as SLURM counts; not enforced."""
    accounting: bool = False
    """With slurmdbd and a database of its own, so that sacct works."""
    preemption: bool = False
    """A second partition, ``urgent``, whose jobs have those of ``main`` signalled and requeued."""
    grace_seconds: int = 5
    """How long a preempted job may take to save; SLURM counts from the signal."""
    min_job_age_seconds: int = 300
    """How long squeue knows a job that has ended, at least (SLURM looks about once a minute); 0 keeps it for ever."""
    max_time_min: int | None = None
    """The longest time limit of partition ``main``; none: no limit. SLURM's shortest limit is one minute."""
    max_array_size: int = 1001
    """One more than the highest index of an array's task; SLURM's own default."""
    extra_lines: Sequence[str] = ()
    """More lines for slurm.conf."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("nodes", 1, MOST_NODES),
            ("gpus", 0, 128),
            ("cpus", 1, 1024),
            ("memory_mb", 1, 10_000_000),
            ("grace_seconds", 0, 3600),
            ("min_job_age_seconds", 0, 100_000),
            ("max_array_size", 2, 4_000_000),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise UsageError(f"test cluster: {name} = {value}; it must be from {least} to {most}")
        if self.max_time_min is not None and self.max_time_min < 1:
            raise UsageError(f"test cluster: max_time_min = {self.max_time_min}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class ClusterFolder:
    """Where a test cluster keeps its files: all of them below one folder."""

    folder: Path
    slot: Slot

    @property
    def slurm_conf(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        return self.folder / "munge.sock"

    @property
    def munge_key(self) -> Path:
        return self.folder / "munge.key"

    @property
    def database(self) -> Path:
        return self.folder / "db"

    @property
    def database_socket(self) -> Path:
        return self.folder / "db.sock"

    @property
    def slurmdbd_conf(self) -> Path:
        """Slurmdbd looks for it beside the slurm.conf it is told of."""
        return self.folder / "slurmdbd.conf"

    def slurmd_log(self, node: str) -> Path:
        """Of a node: "%n" for all."""
        return self.folder / f"slurmd-{node}.log"

    def gpu(self, index: int) -> Path:
        """A character device: with a plain file instead, jobs get an empty CUDA_VISIBLE_DEVICES and no message."""
        return self.folder / "dev" / f"gpu{index}"


def slurm_conf(options: ClusterOptions, place: ClusterFolder) -> str:
    """The text of slurm.conf. What is not SLURM's default is for speed, or to be independent of the machine."""
    folder, host = place.folder, socket.gethostname().split(".")[0]
    lines = [
        f"ClusterName={CLUSTER_NAME}",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmctldPort={place.slot.controller_port}",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        # The short life of credentials is how long a requeued job waits, too.
        f"AuthInfo=socket={place.munge_socket},cred_expire=5",
        "CredType=cred/munge",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool/%n",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmdPidFile={folder}/slurmd-%n.pid",
        f"SlurmctldLogFile={folder}/slurmctld.log",
        f"SlurmdLogFile={place.slurmd_log('%n')}",
        # Without control groups, which belong to the machine's own init.
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/none",
        "MpiDefault=none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "SlurmdParameters=config_overrides",
        "CommunicationParameters=NoCtldInAddrAny",
        "ReturnToService=2",
        "SlurmdTimeout=5",
        "KillWait=2",
        "OverTimeLimit=0",
        f"MinJobAge={options.min_job_age_seconds}",
        f"MaxArraySize={options.max_array_size}",
        "SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1",
    ]
    if options.gpus:
        lines.append("GresTypes=gpu")
    if options.accounting:
        lines += [
            "AccountingStorageType=accounting_storage/slurmdbd",
            "AccountingStorageHost=127.0.0.1",
            f"AccountingStoragePort={place.slot.accounting_port}",
            f"AccountingStoragePass={place.munge_socket}",
        ]
    if options.preemption:
        lines += [
            "PreemptType=preempt/partition_prio",
            "PreemptMode=REQUEUE",
            "PreemptExemptTime=0",
            # Without it a preempted job gets SIGTERM alone, not the signal it asked for with --signal.
            "SlurmctldParameters=preempt_send_user_signal",
        ]
    lines += options.extra_lines
    gres = f" Gres=gpu:{FAKE_GPU}:{options.gpus}" if options.gpus else ""
    for index in range(options.nodes):
        node = place.slot.node(index)
        lines.append(
            f"NodeName={node} NodeHostname={host} NodeAddr={node} Port={place.slot.node_port(index)} "
            f"CPUs={options.cpus} RealMemory={options.memory_mb}{gres} State=UNKNOWN"
        )
    longest = "INFINITE" if options.max_time_min is None else str(options.max_time_min)
    low = f" PriorityTier=1 PreemptMode=REQUEUE GraceTime={options.grace_seconds}" if options.preemption else ""
    lines.append(f"PartitionName=main Nodes=ALL Default=YES MaxTime={longest} State=UP{low}")
    if options.preemption:
        lines.append("PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF")
    return "\n".join([*lines, ""])


def gres_conf(options: ClusterOptions, place: ClusterFolder) -> str:
    """The text of gres.conf; the nodes share their devices, which do nothing anyway."""
    lines = ["AutoDetect=off"]
    if options.gpus:
        file = place.gpu(0) if options.gpus == 1 else f"{place.folder}/dev/gpu[0-{options.gpus - 1}]"
        lines.append(f"Name=gpu Type={FAKE_GPU} File={file}")
    return "\n".join([*lines, ""])


def cgroup_conf() -> str:
    """The text of cgroup.conf."""
    return "CgroupPlugin=disabled\n"


def slurmdbd_conf(place: ClusterFolder) -> str:
    """The text of slurmdbd.conf; the database listens on a socket alone, whose path slurmdbd gets by a variable."""
    lines = [
        "AuthType=auth/munge",
        f"AuthInfo=socket={place.munge_socket}",
        "DbdHost=localhost",
        "DbdAddr=127.0.0.1",
        f"DbdPort={place.slot.accounting_port}",
        "SlurmUser=root",
        f"PidFile={place.folder}/slurmdbd.pid",
        f"LogFile={place.folder}/slurmdbd.log",
        "StorageType=accounting_storage/mysql",
        "StorageHost=localhost",
        "StorageUser=root",
        f"StorageLoc={DATABASE_NAME}",
        "CommitDelay=1",
    ]
    return "\n".join([*lines, ""])

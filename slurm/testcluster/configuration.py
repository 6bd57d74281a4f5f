"""Options of a test cluster, and the SLURM configuration files made from them."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.scheduled.site import FAKE_GPU
from seqlm.errors import UsageError
from slurm.testcluster.slots import MOST_NODES, Slot

CLUSTER_NAME = "lab"
DATABASE_NAME = "accounting"
SOCKET_PATH_BYTES = 100
"""Longest path of a socket. The kernel allows 107 bytes, and SLURM fewer for some of its sockets."""


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Size and rules of a test cluster."""

    nodes: int = 4
    """Number of nodes. Each is a slurmd of about 9 MB."""
    gpus: int = 2
    """Fake GPUs per node: jobs get CUDA_VISIBLE_DEVICES, but no device."""
    cpus: int = 4
    """Cores per node in SLURM's configuration; they need not exist."""
    memory_mb: int = 2000
    """Memory per node in SLURM's configuration; not enforced."""
    accounting: bool = False
    """Whether slurmdbd and a database run, so that sacct works."""
    preemption: bool = False
    """Whether there is a second partition, ``urgent``, whose jobs preempt those of ``main``: signal, then requeue."""
    grace_seconds: int = 5
    """Seconds from the signal until a preempted job is killed."""
    credential_seconds: int = 5
    """Within how many seconds the step of a job must start. A requeued job waits a second longer."""
    min_job_age_seconds: int = 300
    """Minimum time for which squeue lists an ended job (SLURM purges about once a minute). 0 means forever."""
    max_time_min: int | None = None
    """Maximum time limit in partition ``main``, at least 1. ``None`` means no limit."""
    max_array_size: int = 1001
    """Highest index of an array's task, plus one. The default is SLURM's own."""
    extra_lines: Sequence[str] = ()
    """Additional lines of slurm.conf."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("nodes", 1, MOST_NODES),
            ("gpus", 0, 128),
            ("cpus", 1, 1024),
            ("memory_mb", 1, 10_000_000),
            ("grace_seconds", 0, 3600),
            ("credential_seconds", 5, 1000),
            ("min_job_age_seconds", 0, 100_000),
            ("max_array_size", 2, 4_000_000),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise UsageError(f"test cluster: {name}: expected a number from {least} to {most}, got {value}")
        if self.max_time_min is not None and self.max_time_min < 1:
            raise UsageError(f"test cluster: max_time_min: expected at least 1, got {self.max_time_min}")


@dataclass(frozen=True, kw_only=True)
class ClusterFolder:
    """Paths of a test cluster's files, all below one folder."""

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
        """Path of slurmdbd.conf. slurmdbd reads it from the folder of slurm.conf."""
        return self.folder / "slurmdbd.conf"

    def slurmd_log(self, node: str) -> Path:
        """Return the log file of a node. ``%n`` gives the pattern that slurmd fills in."""
        return self.folder / f"slurmd-{node}.log"

    def gpu(self, index: int) -> Path:
        """Return the path of a fake GPU: a character device, since plain files leave CUDA_VISIBLE_DEVICES empty."""
        return self.folder / "dev" / f"gpu{index}"


def slurm_conf(options: ClusterOptions, place: ClusterFolder) -> str:
    """Return the text of slurm.conf. Differences from SLURM's defaults give speed and independence of the machine."""
    folder, host = place.folder, socket.gethostname().split(".")[0]
    lines = [
        f"ClusterName={CLUSTER_NAME}",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmctldPort={place.slot.controller_port}",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        # A requeued job waits until its credentials expire, so keep that short.
        f"AuthInfo=socket={place.munge_socket},cred_expire={options.credential_seconds}",
        "CredType=cred/munge",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool/%n",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmdPidFile={folder}/slurmd-%n.pid",
        f"SlurmctldLogFile={folder}/slurmctld.log",
        f"SlurmdLogFile={place.slurmd_log('%n')}",
        # No control groups, since the machine's init manages them.
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/none",
        "MpiDefault=none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "SlurmdParameters=config_overrides",
        "CommunicationParameters=NoCtldInAddrAny",
        "ReturnToService=2",
        # With 5 s, a busy controller took all nodes of a new cluster for lost, and requeued its first job.
        "SlurmdTimeout=15",
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
            # Otherwise a preempted job gets only SIGTERM, not the signal requested with --signal.
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
    """Return the text of gres.conf. All nodes share the same device files, which do nothing."""
    lines = ["AutoDetect=off"]
    if options.gpus:
        file = place.gpu(0) if options.gpus == 1 else f"{place.folder}/dev/gpu[0-{options.gpus - 1}]"
        lines.append(f"Name=gpu Type={FAKE_GPU} File={file}")
    return "\n".join([*lines, ""])


def cgroup_conf() -> str:
    """Return the text of cgroup.conf."""
    return "CgroupPlugin=disabled\n"


def slurmdbd_conf(place: ClusterFolder) -> str:
    """Return the text of slurmdbd.conf. slurmdbd gets the path of the database's socket from MYSQL_UNIX_PORT."""
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

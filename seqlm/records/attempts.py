"""The files of one attempt of a run, ``attempts/0001/``. What happened is written once and never edited."""

from dataclasses import dataclass, field
from typing import ClassVar

from seqlm.records.base import Record
from seqlm.resources import Resources
from seqlm.schema import Count, NotNegative


@dataclass(frozen=True, kw_only=True)
class LauncherProcess(Record):
    """The process of a launcher or job, as the files of a study name it."""

    pid: int | None = None
    host: str | None = None


@dataclass(frozen=True, kw_only=True)
class Start(Record):
    """``start.json``: who follows an attempt, and with what it starts. An attempt that a user started has none."""

    FILE: ClassVar[str] = "start.json"

    request: int | None = None
    """Number of the request that the attempt is about. ``None``: there is none."""
    backend: str | None = None
    job_id: str | None = None
    """The job of a scheduler. ``None``: none has started the attempt."""
    node: str | None = None
    """The only node of the attempt. ``None``: it has several, or the backend does not name it."""
    memory_mb: int | None = None
    """Memory of each node of the job, in MiB. ``None``: unknown."""
    restart: str | None = None
    """How often SLURM had restarted the job. ``None``: never, or there is no job of SLURM."""
    launcher: LauncherProcess | None = None
    resources: Resources = field(default_factory=Resources)
    micro_batches: Count = 1
    """Parts into which each rank cuts the columns of a step."""
    argv: tuple[str, ...] = ()
    """Command line of a rank."""
    code: str = ""
    """Folder of the code."""
    started_at: str | None = None


@dataclass(frozen=True, kw_only=True)
class RankEnd(Record):
    """``end.json``, ``end-1.json``, ...: how a rank of an attempt ended, in its own words."""

    FILE: ClassVar[str] = "end.json"
    OPTIONAL: ClassVar[frozenset[str]] = frozenset(
        {"progress", "kind", "message", "where", "peer_lost", "node", "micro_batches"}
    )

    rank: NotNegative = 0
    ended_at: str | None = None
    progress: tuple[int, int] | None = None
    """Finished epochs that were saved, then steps of the next one. ``None``: unknown."""
    outcome: str | None = None
    """``done``, ``rung``, ``interrupted`` or ``failed``."""
    kind: str | None = None
    """Kind of failure (:data:`seqlm.state.FailureKind`). ``None``: it has not failed. Likewise the fields below."""
    message: str | None = None
    where: str | None = None
    """Where in the code it failed."""
    peer_lost: bool | None = None
    """Whether the rank only lost another one."""
    node: str | None = None
    """The node that failed. ``None``: unknown."""
    micro_batches: Count | None = None


@dataclass(frozen=True, kw_only=True)
class Exit(Record):
    """``exit.json``: how an attempt ended, as seen from outside, if that adds something to what its ranks say."""

    FILE: ClassVar[str] = "exit.json"
    OPTIONAL: ClassVar[frozenset[str]] = frozenset(
        {"progress", "where", "micro_batches", "exit_code", "node", "stands"}
    )

    ended_at: str | None = None
    progress: tuple[int, int] | None = None
    """As of :class:`RankEnd`."""
    kind: str | None = None
    """Kind of failure (:data:`seqlm.state.FailureKind`). ``None``: it has not failed."""
    message: str = ""
    where: str | None = None
    """Who found that it had ended."""
    micro_batches: Count | None = None
    exit_code: int | None = None
    """Exit code of the rank that explains the others. Negative: the signal that killed it."""
    node: str | None = None
    """The node that failed. ``None``: not recorded, or one of several."""
    stands: bool | None = None
    """Whether the launcher or job has given the run up."""

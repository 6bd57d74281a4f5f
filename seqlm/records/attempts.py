"""The files of one attempt of a run, ``attempts/0001/``. What happened is written once and never edited."""

from dataclasses import dataclass, field
from typing import ClassVar

from seqlm.records.base import Record
from seqlm.resources import Resources
from seqlm.schema import Count


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

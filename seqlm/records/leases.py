"""The files of a lease: which worker owns a run, or which launcher a study (:mod:`seqlm.lease`)."""

from dataclasses import dataclass
from typing import ClassVar

from seqlm.records.base import Record


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LeaseFile(Record):
    """``lease/000001.json``, ...: an owner. A field that is ``None`` is not known."""

    FILE: ClassVar[str] = "000001.json"

    generation: int | None = None
    owner: str | None = None
    """A random text, so that no two records are equal."""
    pid: int | None = None
    process_group: int | None = None
    host: str | None = None
    machine_id: str | None = None
    boot_id: str | None = None
    pid_namespace: str | None = None
    """The kernel's name for the numbering of processes."""
    process_start: int | None = None
    """In clock ticks since boot."""
    attempt: int | None = None
    """Attempt of the worker. ``None``: the owner is a launcher."""
    heartbeat_seconds: float | None = None
    taken_at: str | None = None
    released: bool = False
    """Whether the owner is done."""

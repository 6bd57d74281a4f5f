"""Which process is meant: a record of a process, and whether that process is alive. Standard library alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Host:
    """Where a process runs. Two processes with the same host see each other by their process ids."""

    name: str
    """The host name."""
    machine: str
    """The machine id, or the host name where there is none."""
    boot: str = ""
    """The id that Linux draws at boot. Cloned machines and containers may share it."""
    pid_namespace: str = ""
    """The kernel's name for the numbering of processes. Each container has its own."""


def this_host() -> Host:
    """Where this process runs."""
    name = socket.gethostname()
    return Host(
        name=name,
        machine=_first_line("/etc/machine-id") or name,
        boot=_first_line("/proc/sys/kernel/random/boot_id"),
        pid_namespace=_link("/proc/self/ns/pid"),
    )


def this_process() -> dict[str, Any]:
    """What identifies this process in a lease or a lock file.

    ``pid``, ``process_group``, ``host``, ``machine_id``, ``boot_id``, ``pid_namespace`` and ``process_start``, the
    result of :func:`process_start`.
    """
    host = this_host()
    return {
        "pid": os.getpid(),
        "process_group": os.getpgrp(),
        "host": host.name,
        "machine_id": host.machine,
        "boot_id": host.boot,
        "pid_namespace": host.pid_namespace,
        "process_start": process_start(os.getpid()),
    }


def process_start(pid: int) -> int | None:
    """When a process of this host started, in clock ticks since boot. ``None``: no such process, or not known."""
    fields = _process_fields(pid)
    return int(fields[19]) if fields else None


def _process_fields(pid: int) -> list[str]:
    """``/proc/PID/stat`` from its third field, the state, on. Empty: no such process, or not visible."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return []
    return fields if len(fields) > 19 else []


def is_here(owner: Mapping[str, Any]) -> bool:
    """Whether a recorded process ran where this one runs, so that its process id means something here."""
    host = this_host()
    found = [owner.get(key) for key in ("host", "machine_id", "boot_id", "pid_namespace")]
    return found == [host.name, host.machine, host.boot, host.pid_namespace]


def is_alive(owner: Mapping[str, Any]) -> bool | None:
    """Whether a recorded process (:func:`this_process`) lives. ``None``: it ran elsewhere, so this is not known.

    A process that has the same id and another start time is another process. A record without a start time is
    compared by the id alone.
    """
    pid, started = owner.get("pid"), owner.get("process_start")
    if not is_here(owner) or not isinstance(pid, int) or pid <= 0:
        return None
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass  # it lives, as another user
    except (OSError, OverflowError):
        return False
    fields = _process_fields(pid)
    return not fields or (fields[0] not in "ZX" and started in (None, int(fields[19])))


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text("ascii").strip()
    except (OSError, ValueError):
        return ""


def _link(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError:
        return ""

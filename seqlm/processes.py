"""Which process is meant: a record of a process, and whether that process is alive. Standard library alone."""

import contextlib
import os
import socket
from pathlib import Path
from typing import Any, Protocol


def this_host() -> dict[str, str]:
    """Where this process runs. Two processes with equal values see each other by their process ids.

    ``host``; ``machine_id``, or the host name if there is none; ``boot_id``, which Linux draws at boot, and which
    cloned machines and containers may share; ``pid_namespace``, the kernel's name for the numbering of processes, of
    which each container has its own.
    """
    name = socket.gethostname()
    return {
        "host": name,
        "machine_id": _first_line("/etc/machine-id") or name,
        "boot_id": _first_line("/proc/sys/kernel/random/boot_id"),
        "pid_namespace": _link("/proc/self/ns/pid"),
    }


def this_process() -> dict[str, Any]:
    """What identifies this process in a lease: ``pid``, ``process_group``, ``process_start`` and :func:`this_host`."""
    pid = os.getpid()
    return {"pid": pid, "process_group": os.getpgrp(), **this_host(), "process_start": process_start(pid)}


def process_start(pid: int) -> int | None:
    """When a process of this host started, in clock ticks since boot. ``None``: no such process, or not known."""
    fields = _process_fields(pid)
    return int(fields[19]) if fields else None


def process_parent(pid: int) -> int | None:
    """Return the number of the process that has started a process of this host. ``None``: unknown, or there is none."""
    fields = _process_fields(pid)
    return int(fields[1]) or None if fields else None


def _process_fields(pid: int) -> list[str]:
    """``/proc/PID/stat`` from its third field, the state, on. Empty: no such process, or not visible."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return []
    return fields if len(fields) > 19 else []


class Recorded(Protocol):
    """A record of a process, with what :func:`this_process` says of it. ``None``: unknown."""

    @property
    def pid(self) -> int | None: ...
    @property
    def process_start(self) -> int | None: ...


def is_alive(owner: Recorded) -> bool | None:
    """Whether a recorded process lives. ``None``: unknown.

    A process that has the same id and another start time is another process. Unknown are processes of other hosts, and
    those whose start time is not known.
    """
    pid, started = owner.pid, owner.process_start
    is_here = all(getattr(owner, key) == value for key, value in this_host().items())
    if not is_here or pid is None or pid <= 0:
        return None
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass  # it lives, as another user
    except (OSError, OverflowError):
        return False
    fields = _process_fields(pid)
    return (fields[0] not in "ZX" and started == int(fields[19])) if fields and started is not None else None


def _first_line(path: str) -> str:
    with contextlib.suppress(OSError, ValueError):
        return Path(path).read_text("ascii").strip()
    return ""


def _link(path: str) -> str:
    with contextlib.suppress(OSError):
        return str(Path(path).readlink())
    return ""

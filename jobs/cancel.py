"""Stopping runs from anywhere: from another terminal, from the study's folder alone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from datetime import UTC, datetime
from typing import Any

from jobs.study import ObservedRun, launcher_of
from seqlm.errors import BackendError
from seqlm.lease import Terms, live_elsewhere
from seqlm.rundir import RunDirectory, is_locked, read_lock_holder

STOP_SECONDS = 20.0
"""How long a worker may take to stop between two steps before it is killed."""
LAUNCHER_SECONDS = 90.0
"""How long a launcher may take to have it stopped, which is more than it gives the worker; a worker on another machine
without a launcher as long."""


def cancel(run: ObservedRun, *, has_job: bool = False) -> bool:
    """Cancel a run that is not over; returns whether there was anything to cancel.

    ``has_job``: a scheduler has the run, and the caller has its job cancelled.

    The mark is written first. A launcher that has the run in its queue passes over it; one that runs it, on whatever
    machine, has it stopped. A worker without a launcher is stopped from here where it runs on this machine; on another
    one it sees the mark itself. A run that finishes in the same moment stays done.

    Raises:
        BackendError: the worker does not end.
        FileError: the mark cannot be written.
    """
    if run.observation.state not in ("pending", "queued", "running"):
        return False
    holder = _holder(run.run) if run.observation.state == "running" and not has_job else None
    run.run.write_failure_once(
        {
            "kind": "cancelled",
            "message": "cancelled by the user",
            "where": "launch.py cancel",
            "failed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )
    if holder is None:
        return True
    deadline = time.monotonic() + LAUNCHER_SECONDS
    has_launcher, is_here = _has_launcher(run.run), holder["host"] == socket.gethostname()
    while (has_launcher or not is_here) and _is_held(run.run) and time.monotonic() < deadline:
        time.sleep(0.05)
        has_launcher = has_launcher and _has_launcher(run.run)
    if is_here and not has_launcher:
        _stop(run.run, holder["process_group"])
    elif _is_held(run.run):
        who = "its launcher has not stopped it" if has_launcher else f"its worker on {holder['host']} has not stopped"
        raise BackendError(f"{run.name} is marked as cancelled, but {who} yet; see status")
    return True


def _holder(run: RunDirectory) -> dict[str, Any] | None:
    """Who works on the run: the holder of its lock, or where that is not seen, of its lease."""
    if is_locked(run.worker_lock_file):
        return read_lock_holder(run.worker_lock_file)
    return _holder_elsewhere(run)


def _holder_elsewhere(run: RunDirectory) -> dict[str, Any] | None:
    return live_elsewhere(run.lease_dir, Terms.from_environment(os.environ).stale_seconds)


def _is_held(run: RunDirectory) -> bool:
    return is_locked(run.worker_lock_file) or _holder_elsewhere(run) is not None


def _has_launcher(run: RunDirectory) -> bool:
    launcher = launcher_of(run.path.parent)
    return launcher is not None and (run.read_job() or {}).get("launcher") == launcher.identity


def _stop(run: RunDirectory, process_group: int) -> None:
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process_group, number)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not is_locked(run.worker_lock_file):
                return
            time.sleep(0.05)
    raise BackendError(f"{run.id}: its worker does not end even by SIGKILL")

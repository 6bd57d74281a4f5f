"""Stopping runs from anywhere: from another terminal, from the study's folder alone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from datetime import UTC, datetime

from jobs.study import ObservedRun, launcher_of
from seqlm.errors import BackendError
from seqlm.rundir import RunDirectory, is_locked, read_lock_holder

STOP_SECONDS = 20.0
"""How long a worker may take to stop between two steps before it is killed."""
LAUNCHER_SECONDS = 90.0
"""How long a launcher may take to have it stopped, which is more than it gives the worker."""


def cancel(run: ObservedRun, *, has_job: bool = False) -> bool:
    """Cancel a run that is not over; returns whether there was anything to cancel.

    ``has_job``: a scheduler has the run, and the caller has its job cancelled.

    The mark is written first. A launcher that has the run in its queue passes over it; one that runs it, on whatever
    machine, has it stopped. A worker without a launcher is stopped from here. A run that finishes in the same moment
    stays done.

    Raises:
        BackendError: the worker has no launcher and runs on another machine, or does not end.
        FileError: the mark cannot be written.
    """
    if run.observation.state not in ("pending", "queued", "running"):
        return False
    holder = read_lock_holder(run.run.worker_lock_file) if run.observation.state == "running" else None
    has_launcher = _has_launcher(run.run)
    holder = None if has_job else holder
    if holder is not None and not has_launcher and holder["host"] != socket.gethostname():
        raise BackendError(f"{run.name} runs on {holder['host']} without a launcher; cancel it there")
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
    while has_launcher and is_locked(run.run.worker_lock_file) and time.monotonic() < deadline:
        time.sleep(0.05)
        has_launcher = _has_launcher(run.run)
    if not has_launcher:
        _stop(run.run, holder["process_group"])
    elif is_locked(run.run.worker_lock_file):
        raise BackendError(f"{run.name} is marked as cancelled, but its launcher has not stopped it yet; see status")
    return True


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

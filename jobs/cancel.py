"""Stopping runs from anywhere: from another terminal, from the study's folder alone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from datetime import UTC, datetime

from jobs.study import ObservedRun
from seqlm.errors import BackendError
from seqlm.rundir import RunDirectory, is_locked, read_lock_holder

STOP_SECONDS = 20.0
"""How long a worker may take to stop between two steps before it is killed."""


def cancel(run: ObservedRun) -> bool:
    """Cancel a run that is not over; returns whether there was anything to cancel.

    The mark is written first, so that a launcher that has the run in its queue passes over it, and one that sees the
    worker end knows why. A run that finishes in the same moment stays done.

    Raises:
        BackendError: the worker runs on another machine.
        FileError: the mark cannot be written.
    """
    if run.observation.state not in ("pending", "queued", "running"):
        return False
    holder = read_lock_holder(run.run.worker_lock_file) if run.observation.state == "running" else None
    if holder is not None and holder["host"] != socket.gethostname():
        raise BackendError(f"{run.name} runs on {holder['host']}; cancel it there")
    run.run.write_failure_once(
        {
            "kind": "cancelled",
            "message": "cancelled by the user",
            "where": "launch.py cancel",
            "failed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )
    if holder is not None:
        _stop(run.run, holder["process_group"])
    return True


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

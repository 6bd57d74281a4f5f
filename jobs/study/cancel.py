"""Cancel runs from any terminal, given only the study's folder."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from jobs.study.folder import ObservedRun, launcher_of, this_launcher
from seqlm.errors import FileError
from seqlm.lease import Terms, live_owner, newest_lease
from seqlm.locks import is_locked, read_lock_holder
from seqlm.processes import is_alive
from seqlm.requests import file_request
from seqlm.rundir import RunDirectory

STOP_SECONDS = 20.0
"""Seconds between SIGTERM and SIGKILL, in which a worker may stop between two steps."""
LAUNCHER_SECONDS = 90.0
"""Seconds to wait for a launcher to stop its worker (more than the launcher gives the worker), or for a worker that
this process does not signal."""
LOOK_SECONDS = 0.1
SIGNALS = (signal.SIGTERM, signal.SIGKILL)


@dataclass(kw_only=True, eq=False)
class Cancelled:
    """A run that had not ended when it was marked as cancelled."""

    observed: ObservedRun
    problem: str | None = None
    """Why the run may not have stopped. ``None`` means that it has stopped."""
    sent: list[signal.Signals] = field(default_factory=list)
    """The signals that this process sent to its worker."""
    sent_at: float = 0.0

    @property
    def run(self) -> RunDirectory:
        return self.observed.run


def mark(runs: Iterable[ObservedRun]) -> list[Cancelled]:
    """Mark every run that has not ended as cancelled, and return these runs in the order of ``runs``.

    The mark is one request that names all of them. A launcher or a job on any machine skips a marked run in its queue
    and stops one that is running. Workers check for it as well. A run that finishes at the same moment stays done.

    Raises:
        FileError: the request cannot be written; nothing is cancelled.
    """
    found = [Cancelled(observed=run) for run in runs if run.observation.state in ("pending", "queued", "running")]
    if found:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"kind": "cancel", "at": now, "launcher": this_launcher(), "runs": {one.run.id: {} for one in found}}
        file_request(found[0].run.path.parent, record)
    return found


def wait_until_stopped(marked: Iterable[Cancelled]) -> None:
    """Wait until no worker is running any of these runs. If a worker does not stop, the run's ``problem`` says so.

    A worker with a live launcher is stopped by that launcher. A worker without one gets SIGTERM from this process, and
    SIGKILL 20 s later, if :func:`group_to_signal` identifies it. Any other worker is stopped by the mark alone.
    """
    left = [one for one in marked if one.problem is None]
    deadline = time.monotonic() + LAUNCHER_SECONDS
    while left:
        left = [one for one in left if not _is_over(one, deadline)]
        if left:
            time.sleep(LOOK_SECONDS)


def _is_over(one: Cancelled, deadline: float) -> bool:
    """Return whether to stop waiting: the worker has stopped, or will not."""
    run, now = one.run, time.monotonic()
    is_locked_here = is_locked(run.worker_lock_file)
    if is_locked_here:
        holder = read_lock_holder(run.worker_lock_file)
    else:  # the run's lease may name a worker on a host whose locks are not visible here
        holder = live_owner(run.lease_dir, Terms.from_environment(os.environ).stale_seconds)
        if holder is None:
            return True
    if one.sent and now < one.sent_at + STOP_SECONDS:
        return False
    if len(one.sent) == len(SIGNALS):
        one.problem = "marked as cancelled, but its worker has not ended even after SIGKILL"
        return True
    has_launcher = False
    with contextlib.suppress(FileError):  # then no launcher counts as the one that follows the run
        launcher = launcher_of(run.path.parent)
        has_launcher = launcher is not None and launcher.serves(run)
    group = group_to_signal(run) if is_locked_here and not has_launcher else None
    if group is not None:
        one.sent.append(SIGNALS[len(one.sent)])
        one.sent_at = now
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, one.sent[-1])
    elif now >= deadline:
        cause = "its launcher has not stopped it"
        if not has_launcher:
            cause = f"its worker on {(holder or {}).get('host', 'an unknown host')} has not stopped"
        one.problem = f"marked as cancelled, but {cause} yet; see status"
    return one.problem is not None


def wait_for_locks(files: Sequence[Path], seconds: float) -> None:
    """Wait until no process holds any of these lock files, for at most ``seconds``."""
    deadline = time.monotonic() + seconds
    while any(map(is_locked, files)) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)


# -- which process to signal -----------------------------------------------------------------------------------------


def group_to_signal(run: RunDirectory) -> int | None:
    """Return the process group of a run's worker on this machine, or ``None`` unless all checks below pass.

    Any user who can write to the folder can write ``worker.lock``, so its contents are not trusted. The named process
    must hold this lock, be in the named group, and have started on this boot at the time that the run's lease says.
    File and process must belong to the caller: root does not signal another user's worker. The group must be above 1
    and not the caller's own. Only Linux shows which process holds a lock. On other systems the mark alone stops a
    worker.
    """
    record = read_lock_holder(run.worker_lock_file) or {}
    pid, group = record.get("pid"), record.get("process_group")
    if not (isinstance(pid, int) and isinstance(group, int) and pid > 1 and group > 1):
        return None
    try:
        lock = run.worker_lock_file.lstat()
        status = Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines()
        # User ids of a process: real, effective, saved, and file system.
        users = {int(word) for line in status if line.startswith("Uid:") for word in line.split()[1:]}
        is_certain = (
            lock.st_uid == os.geteuid()
            and users == {os.geteuid()}
            and _holds(pid, lock)
            and os.getpgid(pid) == group != os.getpgrp()
            and all(named.get("pid") != pid or is_alive(named) for named in (record, newest_lease(run.lease_dir)))
        )
    except OSError:  # it has ended, or belongs to another user
        return None
    return group if is_certain else None


def _holds(pid: int, lock: os.stat_result) -> bool:
    """Return whether a process holds an exclusive lock on the file ``lock``, according to its open files in /proc."""
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed since it was listed
            state = handle.stat()
            if (state.st_dev, state.st_ino) == (lock.st_dev, lock.st_ino):
                lines = Path(f"/proc/{pid}/fdinfo/{handle.name}").read_text("ascii").splitlines()
                if any(line.startswith("lock:") and " WRITE " in line for line in lines):
                    return True
    return False

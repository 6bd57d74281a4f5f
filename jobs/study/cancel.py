"""Stopping runs from anywhere: from another terminal, from the study's folder alone."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.study.folder import Launcher, ObservedRun, launch_lock_file, launcher_of
from seqlm.errors import FileError
from seqlm.lease import Terms, live_owner, newest_lease, process_start, this_host
from seqlm.rundir import RunDirectory, is_locked, read_lock_holder

STOP_SECONDS = 20.0
"""How long a worker may take to stop between two steps before it is killed."""
LAUNCHER_SECONDS = 90.0
"""How long a launcher may take to have it stopped, which is more than it gives the worker; a worker that gets no
signal from here as long."""
LOOK_SECONDS = 0.1
SIGNALS = (signal.SIGTERM, signal.SIGKILL)


@dataclass(kw_only=True, eq=False)
class Cancelled:
    """A run that was not over when it was to be cancelled."""

    observed: ObservedRun
    problem: str | None = None
    """Why it may not have stopped; `None` if it has."""
    sent: list[signal.Signals] = field(default_factory=list)
    """The signals that its worker got from here."""
    sent_at: float = 0.0

    @property
    def run(self) -> RunDirectory:
        return self.observed.run


def mark(runs: Iterable[ObservedRun]) -> list[Cancelled]:
    """Mark every run that is not over as cancelled; the result has these in the order of ``runs``.

    The mark is ``failure.json``. A launcher passes over a marked run in its queue, and stops one that it runs, on
    whatever machine. A worker sees the mark as well. A run that finishes in the same moment stays done.

    Runs that wait are marked first, the last in the queue before the others: no slot that becomes free is to be taken
    by a run that is about to be cancelled. A mark that cannot be written is a ``problem`` of its run.
    """
    found = [Cancelled(observed=run) for run in runs if run.observation.state in ("pending", "queued", "running")]
    running_first = sorted(found, key=lambda one: one.observed.observation.state != "running")
    for one in reversed(running_first):
        failure = {
            "kind": "cancelled",
            "message": "cancelled by the user",
            "where": "launch.py cancel",
            "failed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        try:
            one.run.write_failure_once(failure)
            if not one.run.is_cancelled() and not one.run.result_file.exists():
                one.problem = "not marked as cancelled: it has just failed, and may be tried again; cancel it again"
        except (FileError, OSError) as error:
            one.problem = f"not marked as cancelled: {error}"
    return found


def wait_until_stopped(marked: Iterable[Cancelled]) -> None:
    """Wait until no worker is at any of these runs; where one does not stop, its ``problem`` says so.

    A worker of a live launcher is stopped by that launcher. One without a launcher that :func:`group_to_signal` finds
    gets SIGTERM from here, and SIGKILL 20 s later. Every other is left to the mark. All are waited for together.
    """
    left = [one for one in marked if one.problem is None]
    deadline = time.monotonic() + LAUNCHER_SECONDS
    while left:
        launchers = {folder: _launcher(folder) for folder in {one.run.path.parent for one in left}}
        left = [one for one in left if not _is_over(one, launchers[one.run.path.parent], deadline)]
        if left:
            time.sleep(LOOK_SECONDS)


def _is_over(one: Cancelled, launcher: Launcher | None, deadline: float) -> bool:
    """Whether there is nothing more to wait for: the worker has stopped, or will not."""
    run, now = one.run, time.monotonic()
    is_locked_here = is_locked(run.worker_lock_file)
    holder = read_lock_holder(run.worker_lock_file) if is_locked_here else _holder_elsewhere(run)
    if holder is None and not is_locked_here:
        return True
    if one.sent and now < one.sent_at + STOP_SECONDS:
        return False
    if len(one.sent) == len(SIGNALS):
        one.problem = "marked as cancelled, but its worker does not end even by SIGKILL"
        return True
    has_launcher = launcher is not None and _launcher_in_job(run) == launcher.identity
    group = group_to_signal(run) if is_locked_here and not has_launcher else None
    if group is not None:
        one.sent.append(SIGNALS[len(one.sent)])
        one.sent_at = now
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, one.sent[-1])
        return False
    if now < deadline:
        return False
    who = "its launcher has not stopped it"
    if not has_launcher:
        who = f"its worker on {(holder or {}).get('host', 'an unknown host')} has not stopped"
    one.problem = f"marked as cancelled, but {who} yet; see status"
    return True


def _holder_elsewhere(run: RunDirectory) -> dict[str, Any] | None:
    """Who works on the run on a host whose locks are not seen, as its lease says."""
    return live_owner(run.lease_dir, Terms.from_environment(os.environ).stale_seconds)


def _launcher(study_dir: Path) -> Launcher | None:
    with contextlib.suppress(FileError):
        return launcher_of(study_dir)
    return None


def _launcher_in_job(run: RunDirectory) -> Any:
    with contextlib.suppress(FileError):
        return (run.read_job() or {}).get("launcher")
    return None


def wait_for_launcher(study_dir: Path, seconds: float) -> None:
    """Wait until no launcher holds the lock of this study, for at most ``seconds``."""
    deadline = time.monotonic() + seconds
    while is_locked(launch_lock_file(study_dir)) and time.monotonic() < deadline:
        time.sleep(0.05)


def wait_for_workers(runs: Sequence[RunDirectory], seconds: float) -> None:
    """Wait until no worker holds the lock of any of these runs, for at most ``seconds``."""
    deadline = time.monotonic() + seconds
    while any(is_locked(run.worker_lock_file) for run in runs) and time.monotonic() < deadline:
        time.sleep(0.1)


# -- whom to send a signal -------------------------------------------------------------------------------------------


def group_to_signal(run: RunDirectory) -> int | None:
    """The process group of a run's worker on this machine, if that is certain and it is the caller's, else `None`.

    Anybody who can write to the folder can write ``worker.lock``, so that nothing is taken from it unchecked. The
    process that it names must hold this very lock, be in the group that it names, and have started when the run's lease
    says, on this boot. File and process must be the caller's: root sends no signal to somebody else's worker. The
    group is above 1 and not the caller's own. Only Linux shows who holds a lock; elsewhere the mark alone stops a
    worker.
    """
    record = read_lock_holder(run.worker_lock_file) or {}
    pid, group = record.get("pid"), record.get("process_group")
    if not (isinstance(pid, int) and isinstance(group, int) and pid > 1 and group > 1):
        return None
    try:
        lock = run.worker_lock_file.lstat()
        is_certain = (
            lock.st_uid == os.geteuid()
            and _users(pid) == {os.geteuid()}
            and _holds(pid, lock)
            and os.getpgid(pid) == group != os.getpgrp()
            and all(_is_of_process(named, pid) for named in (record, newest_lease(run.lease_dir)))
        )
    except OSError:  # it has ended meanwhile, or is somebody else's
        return None
    return group if is_certain else None


def _users(pid: int) -> set[int]:
    """The users that a process acts for: real, effective, saved, and for files.

    Raises:
        OSError: the process has ended.
    """
    lines = Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines()
    return {int(word) for line in lines if line.startswith("Uid:") for word in line.split()[1:]}


def _holds(pid: int, lock: os.stat_result) -> bool:
    """Whether a process has locked the file ``lock`` for itself, by what the kernel says of its open files."""
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            state = handle.stat()
            if (state.st_dev, state.st_ino) == (lock.st_dev, lock.st_ino):
                lines = Path(f"/proc/{pid}/fdinfo/{handle.name}").read_text("ascii").splitlines()
                if any(line.startswith("lock:") and " WRITE " in line for line in lines):
                    return True
    return False


def _is_of_process(record: Mapping[str, Any], pid: int) -> bool:
    """Whether what a record says of the process ``pid`` is true; a record of another process says nothing."""
    if record.get("pid") != pid:
        return True
    host, start = this_host(), process_start(pid)
    found = {"host": host.name, "machine_id": host.machine, "boot_id": host.boot, "process_start": start}
    return all(record.get(key, value) == value for key, value in found.items())

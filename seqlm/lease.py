"""The lease on a folder: which worker owns a run, and which launcher a study, told by files alone.

Locks of the system die with their process, but not every shared file system shows them to other hosts. ``lease/`` in
the folder of a run or a study has one file for each owner it has had, in their order: ``000001.json``, ``000002.json``,
... The owner is the one with the highest number, its generation.

    claim       a file written beside is linked to the next number: a link is made or refused, so of two claimants at
                the same moment one wins, and one that reads a listing that lags finds the number taken and looks again;
                a file system without links makes the file by exclusive creation (O_EXCL), with the same effect
    heartbeat   the owner sets the time of its file every few seconds; who watches it looks for *change* alone, on a
                clock of its own, so that clocks may differ between hosts, and be set back
    refusal     a lease whose process lives on this host, or whose heart beats
    takeover    a lease whose process on this host has ended, or one of another host without a heartbeat for some
                minutes, is taken over by claiming the next number
    release     the file says so; no file is ever removed, since numbers must neither restart nor have gaps
    check       before each file that it puts in place, an owner asks whether the next number is taken: one that was
                stopped, taken for dead and woken changes nothing of what has become somebody else's

What a check cannot see is a takeover in the instant between it and the renaming that follows. The new owner removes the
temporary files of the old one (:meth:`seqlm.rundir.RunDirectory.sweep`) before it reads a file, so that this renaming
finds nothing to rename; it asks again and learns why.

The generation with its check is the fencing token of Kleppmann, "How to do distributed locking" (2016). Whatever reads
or writes leases raises ``FileError`` if that fails, and ``UsageError`` if a variable of their terms is wrong. Standard
library alone.
"""

import contextlib
import errno
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, final

from seqlm.environment import LEASE_SECONDS, STALE_LEASE_MINUTES
from seqlm.errors import FileError, LeaseLostError, RunBusyError, file_errors
from seqlm.files import make_directory, open_at
from seqlm.processes import is_alive, this_process
from seqlm.reading import at, exists, listed, moment, status, timestamp
from seqlm.records.attempts import Exit, ProgressFile
from seqlm.records.leases import LeaseFile

LOOK_SECONDS = 1.0
"""How often a lease is looked at that may be stale."""
POLL_SECONDS = 2.0
"""How often `kept` calls `poll`, which looks whether the run was cancelled."""
WAIT_SECONDS = 0.1
"""How often somebody who waits for the end of an owner looks for it."""

_GONE = (errno.ENOENT, errno.ESTALE)
_FILE = re.compile(r"[0-9]{6,}\.json")


def stale_seconds() -> float:
    """Return after how many seconds of silence another host's lease is taken over: three heartbeats or more."""
    return max(60 * STALE_LEASE_MINUTES.read(), 3 * LEASE_SECONDS.read())


@final
class Lease:
    """A lease that this process holds, or has held."""

    def __init__(self, folder: Path, generation: int, record: LeaseFile) -> None:
        self._folder = folder
        self._record = record
        self.generation = generation
        self.file = folder / _name(generation)

    def check(self) -> None:
        """Raise ``LeaseLostError`` if another worker has taken the run over: one call of the system."""
        if exists(self._folder / _name(self.generation + 1)):
            owner = newest_lease(self._folder)
            raise LeaseLostError(f"this run was taken over by {_who(owner)} while this worker gave no sign of life")

    def beat(self) -> None:
        """Give a sign of life; a beat that the disk refuses is left out."""
        with contextlib.suppress(OSError, FileError):
            at(self.file, lambda name, folder: os.utime(name, dir_fd=folder))

    def release(self) -> None:
        """Say that the owner is done. One that has lost its lease, or whose disk is full, says nothing."""
        with contextlib.suppress(FileError, LeaseLostError):
            replace(self._record, released=True).write_file(self.file, guard=self.check)


def claim(
    folder: Path,
    *,
    attempt: int | None = None,
    busy: str,
    pause: Callable[[float], None] = time.sleep,
    tell: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.monotonic,
) -> Lease:
    """Become the owner of the run or study whose leases are in ``folder``.

    A live process of this host is refused at once, and the lease of one that has ended is taken over at once. Any other
    owner that has not released its lease is watched first, for :func:`stale_seconds`.

    Args:
        folder: made where it is missing.
        attempt: of this worker, for the record. ``None``: it is a launcher.
        busy: what to say where there is an owner.
        pause: waits for the given seconds, or raises to give up.
        tell: told, in a line, of a takeover and of the wait before it.
        clock: seconds that only go forward.

    Raises:
        RunBusyError: there is a live owner; the text is ``busy``, followed by who it is.
    """
    with file_errors("take the lease in", folder):
        make_directory(folder)
        newest = 0
        while True:
            newest = max(newest, newest_generation(folder))
            owner = _read(folder / _name(newest))
            if newest and not _is_free(owner):
                seen: Literal["beat", "changed", "silent"] = "beat"
                if is_alive(owner) is None:
                    tell(f"{_who(owner)} has not released {folder.parent.name}; watching for a sign of life")
                    seen = _watch(folder, newest, stale_seconds(), pause, clock)
                if seen == "beat":
                    raise RunBusyError(f"{busy} ({_who(owner)})")
                if seen == "changed":
                    continue
                tell(f"taking {folder.parent.name} over from {_who(owner)}, which gives no sign of life")
            newest += 1
            lease = _take(folder, newest, attempt)
            if lease is not None:
                return lease


@contextlib.contextmanager
def kept(lease: Lease, poll: Callable[[], None] = lambda: None) -> Iterator[Lease]:
    """Keep the lease's heart beating while the block runs, then release it.

    A thread of its own beats, so that a long step does not look like death; it keeps no process alive. It also calls
    ``poll`` every two seconds. Errors of the world end neither.
    """
    ended = threading.Event()
    heartbeat_seconds = LEASE_SECONDS.read()

    def live() -> None:
        turn = min(POLL_SECONDS, heartbeat_seconds)
        due = 0.0
        while not ended.wait(turn):
            now = time.monotonic()
            if now >= due:
                due = now + heartbeat_seconds - turn / 2
                lease.beat()
            with contextlib.suppress(OSError, FileError):
                poll()

    thread = threading.Thread(target=live, name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        ended.set()
        thread.join()
        lease.release()


def require_attempt(folder: Path, attempt: int) -> None:
    """The check of the ranks that hold no lease: whether the run's owner is of their own attempt, or an earlier one.

    An earlier one, since they may be here before their first rank. Raises ``LeaseLostError`` if it is of a later one.
    """
    owner = newest_lease(folder)
    if owner.attempt is not None and owner.attempt > attempt:
        raise LeaseLostError(f"this run was taken over by {_who(owner)}; this rank is of an earlier attempt")


def live_owner(folder: Path) -> LeaseFile | None:
    """The lease of an owner that seems to live. ``None``: there is no such owner.

    It is known whether a process of this host lives. Of others, this is a guess from the age of the file by this
    machine's clock and the file system's, which may differ. Costs a listing of the folder; nothing is written.
    """
    generation = _highest_listed(folder)
    path = folder / _name(generation)
    owner = _read(path) if generation else LeaseFile()
    if not generation or _is_free(owner):
        return None
    if is_alive(owner):
        return owner
    with file_errors("read", path), contextlib.suppress(FileNotFoundError):
        age = time.time() - status(path).st_mtime
        return owner if abs(age) < stale_seconds() else None
    return None


def wait_until_free(folders: Sequence[Path], seconds: float) -> None:
    """Wait until no folder has a live owner, for at most ``seconds``."""
    deadline = time.monotonic() + seconds
    while any(live_owner(folder) is not None for folder in folders) and time.monotonic() < deadline:
        time.sleep(WAIT_SECONDS)


def newest_generation(folder: Path) -> int:
    """The number of the run's newest lease, 0 where it has had none.

    A listing may lag behind, so the numbers after it are looked up by name. The link finds what is missing even then.
    """
    generation = _highest_listed(folder)
    while exists(folder / _name(generation + 1)):
        generation += 1
    return generation


def last_beat(folder: Path, attempt: int) -> float | None:
    """Return when the owner of a run last renewed its lease, in seconds since 1970, by the clock of the file system.

    ``None``: the newest lease is not of a worker of this attempt, or cannot be read.
    """
    path = folder / _name(newest_generation(folder))
    with contextlib.suppress(OSError, FileError):
        return status(path).st_mtime if _read(path).attempt == attempt else None
    return None


def last_sign_of(progress: ProgressFile | None, exit_: Exit | None) -> float | None:
    """Return when an attempt last lived, by its progress and its exit, in seconds since 1970. ``None``: unknown."""
    updated = None if progress is None else moment(progress.updated_at)
    ended = None if exit_ is None else moment(exit_.ended_at)
    return max((time for time in (updated, ended) if time is not None), default=None)


def newest_lease(folder: Path) -> LeaseFile:
    """What the run's newest lease says; nothing where it has had none, or it cannot be read."""
    return _read(folder / _name(newest_generation(folder)))


# -- files ---------------------------------------------------------------------------------------------------------


def _name(generation: int) -> str:
    return f"{generation:06d}.json"


def _highest_listed(folder: Path) -> int:
    return max((int(path.stem) for path in listed(folder) if _FILE.fullmatch(path.name)), default=0)


def _read(path: Path) -> LeaseFile:
    """Return the record of a lease. It is empty if the file cannot be read: its owner is then unknown."""
    with contextlib.suppress(FileError):
        return LeaseFile.read_file(path) or LeaseFile()
    return LeaseFile()


def _take(folder: Path, generation: int, attempt: int | None) -> Lease | None:
    """Claim a generation; none where somebody else has it."""
    record = LeaseFile(
        generation=generation,
        owner=secrets.token_hex(8),
        **this_process(),
        attempt=attempt,
        heartbeat_seconds=LEASE_SECONDS.read(),
        taken_at=timestamp(),
    )
    try:
        if record.write_file(folder / _name(generation), once=True):
            return Lease(folder, generation, record)
    except FileError as error:
        if error.errno != errno.ENOENT or not exists(folder):
            raise  # else a process that became the owner at this instant has removed the temporary file
    return None


# -- owners --------------------------------------------------------------------------------------------------------


def _is_free(owner: LeaseFile) -> bool:
    """Whether a lease can be taken over at once: it is released, or its process has ended."""
    return owner.released or is_alive(owner) is False


def _who(owner: LeaseFile) -> str:
    if owner.pid is None or owner.host is None:
        return "another worker"
    return f"pid {owner.pid} on {owner.host}"


def _watch(
    folder: Path, generation: int, seconds: float, pause: Callable[[float], None], clock: Callable[[], float]
) -> Literal["beat", "changed", "silent"]:
    """Watch a lease: ``beat`` at its first sign of life, ``changed`` where it is another's or released, ``silent``.

    The time between two looks counts as twice the pause at most: a watcher that was itself stopped has not watched.
    """
    path = folder / _name(generation)
    first = _state(path)
    watched = 0.0
    while watched < seconds:
        before = clock()
        step = min(LOOK_SECONDS, seconds - watched)
        pause(step)
        now = _state(path)
        if now is None or first is None or exists(folder / _name(generation + 1)) or _is_free(_read(path)):
            return "changed"
        if now != first:
            return "beat"
        watched += min(max(clock() - before, 0.0), 2 * step)
    return "silent"


def _state(path: Path) -> tuple[int, int, int] | None:
    """What changes when a lease's heart beats. The file is opened, which makes a client of NFS ask its server."""
    try:
        handle = open_at(path, os.O_RDONLY)
        try:
            state = os.fstat(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    return state.st_mtime_ns, state.st_ino, state.st_size

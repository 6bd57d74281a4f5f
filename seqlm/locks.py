"""Advisory locks of the system on files that name their holder. Standard library alone."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from seqlm.errors import FileError, RunBusyError, UnfitFileError
from seqlm.processes import is_alive, this_process
from seqlm.reading import LARGEST_HASHED, open_regular, parse_json, read_bytes

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""How a file system without locks refuses one: Lustre mounted without ``flock``, NFS without a lock daemon."""

LOOKS = 5
LOOK_SECONDS = 0.02
"""How often a lock is checked again, and after how long, before it counts as held by another process."""


@contextlib.contextmanager
def exclusive_lock(path: Path, busy: str) -> Iterator[None]:
    """Hold an advisory lock on ``path`` while the block runs. The system releases it when the process dies.

    Meanwhile the file names its holder (:func:`seqlm.processes.this_process`). On a file system without locks, the name
    keeps out later processes of this host and no others; a run has its lease as well.

    Raises:
        RunBusyError: with the text ``busy``, followed by the holder, when another process holds it. If the file names
            no live process, the text says that instead.
        FileError: the file cannot be opened, locked or written.
    """
    try:
        handle = open_lock(path)
    except OSError as error:
        raise FileError.from_os_error("open", path, error) from None
    try:
        try:
            is_locked = _try_lock(handle)
        except OSError as error:
            raise FileError.from_os_error("lock", path, error) from None
        holder = read_lock_holder(path)
        alive = is_alive(holder) if holder else False
        if is_locked is False and (holder is None or alive is False):
            raise RunBusyError(held_by_other_program(path))
        if holder and (is_locked is False or (is_locked is None and alive)):
            raise RunBusyError(f"{busy} (pid {holder.get('pid')} on {holder.get('host')})")
        try:
            os.ftruncate(handle, 0)
            os.write(handle, json.dumps(this_process()).encode())
        except OSError as error:
            raise FileError.from_os_error("write", path, error) from None
        try:
            yield
        finally:
            if is_locked is None:
                with contextlib.suppress(OSError):  # the name of a process that has ended keeps nobody out
                    os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def open_lock(path: Path) -> int:
    """Open a lock file to read and write. Only owner and group may: a process that can read it can hold its lock.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    handle = os.open(path, flags, 0o660)
    state = os.fstat(handle)
    if not stat.S_ISREG(state.st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "expected a regular file; move it away")
    if state.st_uid == os.geteuid() and state.st_mode & 0o007:
        os.fchmod(handle, stat.S_IMODE(state.st_mode) & ~0o007)
    return handle


def held_by_other_program(path: Path) -> str:
    """Return the message for a lock that is held while its file names no live process."""
    advice = f"`fuser {path}` lists the holder: end it, or move the file away"
    return f"{path} is locked, but names no live process; {advice}"


def _try_lock(handle: int) -> bool | None:
    # A reader that asks is_locked holds a shared lock for an instant, so one refusal is not yet an owner.
    for _ in range(4 * LOOKS):
        is_locked = _flock(handle, fcntl.LOCK_EX)
        if is_locked is not False:
            return is_locked
        time.sleep(LOOK_SECONDS)
    return False


def _flock(handle: int, kind: int) -> bool | None:
    """Try to take a lock of the system. ``None``: this file system has none."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        raise
    return True


def is_locked(path: Path) -> bool:
    """Whether a live process holds the lock on ``path``. Leaves no file behind and takes no exclusive lock.

    Without locks: whether the file names a live process of this host. What is no regular file is nobody's lock, and a
    file that this user may not open counts as free.

    Raises:
        FileError: the lock cannot be asked for.
    """
    try:
        file = open_regular(path, largest=LARGEST_HASHED)
    except (FileNotFoundError, UnfitFileError):
        return False
    except FileError as error:
        if error.errno != errno.EACCES:
            raise
        return False
    with file:
        try:
            is_free = _flock(file.fileno(), fcntl.LOCK_SH)
        except OSError as error:
            raise FileError.from_os_error("lock", path, error) from None
    return not is_free if is_free is not None else bool(is_alive(read_lock_holder(path) or {}))


def read_lock_holder(path: Path) -> dict[str, Any] | None:
    """Return the record of the process that wrote the lock file last. Trust it only while the lock is held.

    It has ``pid`` and ``host``. ``None``: the file names no process.

    Raises:
        FileError: the file cannot be read.
    """
    try:
        data = parse_json(read_bytes(path).decode("utf-8"))
    except (FileNotFoundError, UnfitFileError, ValueError):
        return None
    is_holder = isinstance(data, dict) and isinstance(data.get("pid"), int) and isinstance(data.get("host"), str)
    return data if is_holder else None

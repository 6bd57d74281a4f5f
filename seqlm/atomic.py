"""Write beside a place, then take it in one step. Standard library alone.

Modes are left to the system: a new file asks for 0666 and a new folder for 0777, and umask, default ACLs and a setgid
folder decide, as they do for what other programs make. A mode that is set afterwards would take away what they gave.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

NO_FOLDER_FLUSH = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""How a file system refuses to flush a folder."""


@contextlib.contextmanager
def file_beside(path: Path) -> Iterator[Path]:
    """Make a new empty file in the folder of ``path`` and yield its path; remove what is left of it at the end.

    Raises:
        OSError: the file cannot be made.
    """
    temporary = _beside(path)
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666))
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):  # the error that led here says more
            temporary.unlink()


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Make a new folder next to ``path`` and yield its path; remove what is left of it at the end.

    Raises:
        OSError: the folder cannot be made.
    """
    temporary = _beside(path)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def flush(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on disk.

    A folder that the file system cannot flush is left as it is: a crash of the machine may undo what came last.

    Raises:
        OSError: the disk has failed.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FOLDER_FLUSH or not path.is_dir():
            raise
    finally:
        os.close(handle)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")

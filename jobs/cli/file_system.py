"""Test what the file system of a study's folder supports, and report what is unprotected without it."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

LOW_INODES = 10_000
"""With fewer free inodes than this, ``doctor`` reports it."""


def unprotected(folder: Path) -> list[str]:
    """Return a line for each feature that the file system of ``folder`` lacks, with the consequence.

    Whether other hosts see the locks of this host is not tested.

    Raises:
        OSError: nothing can be written in ``folder``.
    """
    lines = []
    with tempfile.TemporaryDirectory(prefix=".seqlm-doctor-", dir=folder) as place:
        for what, attempt, consequence in TRIALS:
            try:
                problem = attempt(Path(place))
            except OSError as error:
                problem = error.strerror or str(error)
            if problem:
                lines.append(f"{what}: {problem}; {consequence}")
    state = os.statvfs(folder)
    if state.f_files and state.f_favail < LOW_INODES:  # some file systems do not count them
        lines.append(f"free inodes: {state.f_favail:,} left; a run needs one for each of its files, some 30")
    return lines


def _lock(folder: Path) -> str | None:
    with (folder / "lock").open("w") as first, (folder / "lock").open("w") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
    return "two at the same time"


def _link(folder: Path) -> None:
    (folder / "one").touch()
    os.link(folder / "one", folder / "other")


def _rename(folder: Path) -> str | None:
    (folder / "old").write_text("old")
    (folder / "new").write_text("new")
    (folder / "new").replace(folder / "old")
    return None if (folder / "old").read_text() == "new" else "the old file stays"


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


TRIALS: tuple[tuple[str, Callable[[Path], str | None], str], ...] = (
    ("locks (flock)", _lock, "only leases keep two workers from one run, and two launchers of a study may both submit"),
    ("hard links", _link, "last.pt is missing for an instant whenever a checkpoint is written"),
    ("renaming over a file", _rename, "no run can be saved"),
    ("flushing a folder (fsync)", _sync, "a crash of the machine may undo the files written last"),
)
"""Feature, its test, and the consequence if it is missing. A test returns or raises its problem."""

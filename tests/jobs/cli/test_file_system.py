"""What ``doctor`` says of file systems that cannot do everything."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.cli import doctor


def refuse(code: int) -> Callable[..., None]:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    return refused


def test_a_file_system_that_can_do_everything_gets_one_good_line_and_nothing_is_left_there(tmp_path: Path) -> None:
    (finding,) = doctor._file_system(tmp_path / "not" / "yet")
    assert (finding.level, finding.subject) == ("ok", "file system")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "code", "line"),
    [
        (
            "fcntl.flock",
            errno.ENOSYS,
            "locks (flock): Function not implemented; only leases keep two workers from one run, and two launchers "
            "of a study may both submit",
        ),
        (
            "os.link",
            errno.EPERM,
            "hard links: Operation not permitted; last.pt is missing for an instant whenever a checkpoint is written",
        ),
        ("pathlib.Path.replace", errno.EPERM, "renaming over a file: Operation not permitted; no run can be saved"),
        (
            "os.fsync",
            errno.EINVAL,
            "flushing a folder (fsync): Invalid argument; a crash of the machine may undo the files written last",
        ),
    ],
)
def test_what_it_cannot_do_is_named_with_what_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, code: int, line: str
) -> None:
    monkeypatch.setattr(place, refuse(code))
    assert doctor.unprotected(tmp_path) == [line]
    assert [(finding.level, finding.text) for finding in doctor._file_system(tmp_path)] == [("note", line)]


def test_locks_that_keep_nobody_out_and_files_that_stay_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda handle, kind: None)
    monkeypatch.setattr(Path, "replace", lambda path, target: target)
    locks, renaming = doctor.unprotected(tmp_path)
    assert locks.startswith("locks (flock): two at the same time; ")
    assert renaming.startswith("renaming over a file: the old file stays; ")


@pytest.mark.parametrize(("files", "free", "said"), [(10**6, 900, True), (10**6, 10**5, False), (0, 0, False)])
def test_inodes_that_run_out_are_told_where_they_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int, free: int, said: bool
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_files=files, f_favail=free))
    lines = doctor.unprotected(tmp_path)
    assert [line.partition(";")[0] for line in lines] == (["free inodes: 900 left"] if said else [])


def test_a_folder_that_cannot_be_written_has_one_line_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.TemporaryDirectory", refuse(errno.EROFS))
    assert doctor._file_system(tmp_path) == []

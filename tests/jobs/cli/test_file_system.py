"""What ``doctor`` says of file systems without locks."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import doctor


def refuse(code: int) -> Callable[..., None]:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    return refused


def test_a_file_system_with_locks_gets_one_good_line_and_nothing_is_left_there(tmp_path: Path) -> None:
    (finding,) = doctor._file_system(tmp_path / "not" / "yet")
    assert (finding.level, finding.subject) == ("ok", "file system")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flock", "problem"),
    [(refuse(errno.ENOSYS), "Function not implemented"), (lambda handle, kind: None, "two at the same time")],
)
def test_locks_that_are_missing_or_keep_nobody_out_are_named_with_what_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: Callable[..., None], problem: str
) -> None:
    monkeypatch.setattr(fcntl, "flock", flock)
    (finding,) = doctor._file_system(tmp_path)
    consequence = "only leases keep two workers from one run, and two launchers of a study may both submit"
    assert (finding.level, finding.text) == ("note", f"locks (flock): {problem}; {consequence}")


def test_a_folder_that_cannot_be_written_has_one_line_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse(errno.EROFS))
    assert doctor._file_system(tmp_path) == []

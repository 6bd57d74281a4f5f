"""What ``doctor`` says of folders."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.cli.doctor import _folder


def refuse(code: int) -> Callable[..., None]:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    return refused


def test_a_folder_gets_one_good_line_and_nothing_is_left_there(tmp_path: Path) -> None:
    assert _folder("runs", tmp_path / "not" / "yet").level == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse(errno.EROFS))
    assert _folder("runs", tmp_path).level == "bad"

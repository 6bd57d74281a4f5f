from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import stat
import sys
from pathlib import Path

import pytest

from seqlm.errors import FileError, LeaseLostError
from seqlm.files import (
    folder_beside,
    read_json,
    replace_folder,
    replacing,
    write_json,
    write_json_lines,
    write_once,
    write_text,
)
from seqlm.rundir import RunDirectory
from tests import commands


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})

    def fail_half_way() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half a fi")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail_half_way()
    assert read_json(path) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]


def test_a_guard_is_asked_when_all_is_written_and_keeps_the_old_file_where_it_refuses(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write_json(run.result_file, {"a": 1})
    write_json_lines(run.metrics_file, [{"epoch": 0}])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    beside = []

    def refuse() -> None:
        beside.extend(path.stat().st_size for path in tmp_path.glob(".*.tmp"))
        raise LeaseLostError("taken over")

    with pytest.raises(LeaseLostError):
        write_json(run.result_file, {"a": 2}, guard=refuse)
    with pytest.raises(LeaseLostError):
        write_json_lines(run.metrics_file, [], guard=refuse)
    with pytest.raises(LeaseLostError):
        write_once(run.config_file, b"{}", guard=refuse)
    assert beside == [len('{\n "a": 2\n}\n'), 0, 2]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_writer_whose_temporary_file_was_swept_away_asks_its_guard_why(tmp_path: Path) -> None:
    asked = []

    def lost_meanwhile() -> None:
        asked.append(len(asked))
        if len(asked) > 1:
            raise LeaseLostError("taken over")
        (beside,) = tmp_path.glob(".*.tmp")
        beside.unlink()  # by the new owner, between the question and the renaming

    with pytest.raises(LeaseLostError):
        write_json(tmp_path / "result.json", {}, guard=lost_meanwhile)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_becomes_read_only_while_a_file_is_written_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def becomes_read_only() -> None:
        monkeypatch.setattr(Path, "replace", refuse)
        monkeypatch.setattr(Path, "unlink", refuse)  # so that the temporary file stays

    with pytest.raises(FileError, match=r"cannot write .*result\.json: Read-only file system"):
        write_json(tmp_path / "result.json", {}, guard=becomes_read_only)


def test_files_are_readable_as_the_umask_says(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "x")
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.EIO])
def test_a_folder_that_cannot_be_flushed_is_no_error_and_a_failing_disk_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fsync = os.fsync

    def refuse(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    with contextlib.nullcontext() if number != errno.EIO else pytest.raises(FileError, match="Input/output error"):
        write_text(tmp_path / "file", "x")


def test_a_folder_in_place_of_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(FileError, match=r"cannot write .*file: Is a directory"):
        write_text(tmp_path / "file", "x")
    with pytest.raises(FileError, match="cannot read"):
        read_json(tmp_path / "file")


def test_a_file_that_exists_is_not_written_once_more(tmp_path: Path) -> None:
    path = tmp_path / "failure.json"
    assert write_once(path, b"first")
    assert not write_once(path, b"second")
    assert path.read_bytes() == b"first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["failure.json"]


def test_a_folder_takes_the_place_of_another_which_comes_back_if_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, rename = tmp_path / "report", Path.rename
    for text in ("first", "second"):
        with folder_beside(old) as new:
            (new / "page").write_text(text)
            replace_folder(new, old)
        assert (old / "page").read_text() == text

    def fail_for_the_new_one(path: Path, target: Path) -> Path:
        if (path / "new").exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with folder_beside(old) as new:
        (new / "new").write_text("third")
        with pytest.raises(OSError, match="Input/output error"):
            replace_folder(new, old)
    assert (old / "page").read_text() == "second"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report"]


def test_a_folder_that_can_be_neither_replaced_nor_put_back_is_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, rename = tmp_path / "report", Path.rename
    old.mkdir()
    (old / "page").write_text("first")

    def only_aside(path: Path, target: Path) -> Path:
        if target == old:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", only_aside)
    with folder_beside(old) as new, pytest.raises(OSError, match="Input/output error"):
        replace_folder(new, old)
    assert [page.read_text() for page in tmp_path.glob(".report.*.tmp/page")] == ["first"]


@pytest.mark.parametrize("content", ["", '{"a": ', "[1]", "\0"])
def test_a_damaged_json_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "job.json").write_text(content)
    with pytest.raises(FileError, match=r"job\.json is damaged"):
        read_json(tmp_path / "job.json")


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "m.jsonl", [{"val_ppl": math.inf, "train_ppl": math.nan, "epoch": 0}])
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"val_ppl": None, "train_ppl": None, "epoch": 0}


def test_a_folder_that_cannot_be_flushed_stops_no_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def refuse_folders(handle: int, code: int = errno.EINVAL) -> None:
        if Path(f"/proc/self/fd/{handle}").resolve().is_dir():
            raise OSError(code, os.strerror(code))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    write_json(tmp_path / "file.json", {"a": 1})
    assert read_json(tmp_path / "file.json") == {"a": 1}
    monkeypatch.setattr(os, "fsync", lambda handle: refuse_folders(handle, errno.EIO))
    with pytest.raises(FileError, match="Input/output error"):
        write_json(tmp_path / "file.json", {"a": 2})


@pytest.mark.process
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount the small file system that this test fills")
def test_a_full_disk_is_one_clear_line_and_the_old_file_stays(tmp_path: Path) -> None:
    program = f"""
import sys
import time
from pathlib import Path
from seqlm.errors import FileError
from seqlm.files import read_json, write_json
path = Path({str(tmp_path)!r}) / "small" / "file.json"
write_json(path, {{"a": 1}})
try:
    write_json(path, {{"a": "x" * 2_000_000}})
except FileError as error:
    print(error)
print(read_json(path), sorted(entry.name for entry in path.parent.iterdir()))
"""
    (tmp_path / "small").mkdir()
    mount = f'mount -t tmpfs -o size=1m none \'{tmp_path}/small\' && exec "$0" -c "$1"'
    shell = ["unshare", "--mount", "sh", "-c", mount, sys.executable, program]
    answer = commands.run(shell)
    if answer.returncode and "mount" in answer.stderr + answer.stdout:
        pytest.skip("mounting is not allowed here")
    assert answer.stderr == ""
    first, second = answer.stdout.splitlines()
    assert first == f"cannot write {tmp_path}/small/file.json: No space left on device"
    assert second == "{'a': 1} ['file.json']"

import contextlib
import errno
import itertools
import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from seqlm.errors import FileError, LeaseLostError
from seqlm.files import (
    folder_beside,
    json_text,
    read_json,
    replace_folder,
    write_json,
    write_json_lines,
    write_once,
    write_text,
)
from seqlm.rundir import RunDirectory
from tests.faults import ChangeFaults


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
    assert beside == [len(json_text({"a": 2})), 0, 2]
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


def write_page(path: Path, content: str) -> None:
    with folder_beside(path) as new:
        (new / "page").write_text(content)
        replace_folder(new, path)


WRITERS: dict[str, Callable[[Path, str], object]] = {
    "text": write_text,
    "JSON": lambda path, content: write_json(path, {"content": content}),
    "once": lambda path, content: write_once(path, content.encode()),
    "folder": write_page,
}


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_writer_whose_nth_call_fails_leaves_the_old_or_the_new_and_says_so_in_one_line(
    tmp_path: Path, kind: str, code: int, lasting: bool
) -> None:
    errors = (OSError,) if kind == "folder" else (FileError,)
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        folder.mkdir()
        WRITERS[kind](folder / "file", "old")
        before = content_of(folder / "file")
        said: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            faults = ChangeFaults(patch, folder, number, lasting=lasting, code=code)
            try:
                WRITERS[kind](folder / "file", "new")
            except errors as error:
                said.append(str(error))
        WRITERS[kind](tmp_path / "expected", "old" if kind == "once" else "new")
        after = content_of(tmp_path / "expected")
        assert all(line.isprintable() and os.strerror(code) in line for line in said)
        assert said or content_of(folder / "file") == after
        whole = [content_of(path) for path in folder.iterdir() if path.name == "file" or kind == "folder"]
        assert set(whole) & {before, after}
        assert lasting or [path.name for path in folder.iterdir()] == ["file"]
        if not faults.has_failed:
            break
    assert number > 1


def content_of(path: Path) -> str:
    return (path / "page" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("content", ["", '{"a": ', "[1]", "\0"])
def test_a_damaged_json_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "job.json").write_text(content)
    with pytest.raises(FileError, match=r"job\.json is damaged"):
        read_json(tmp_path / "job.json")


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "m.jsonl", [{"val_ppl": math.inf, "train_ppl": math.nan, "epoch": 0}])
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"val_ppl": None, "train_ppl": None, "epoch": 0}

"""What exists is known or an error: a file that cannot be looked at is never taken for one that is not there."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from seqlm.errors import FileError
from seqlm.files import read_json
from seqlm.reading import below, exists, is_file, is_folder, is_link, listed

LOOKS = [exists, is_file, is_folder, is_link, listed, below]


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES, errno.ETIMEDOUT])
def test_an_error_of_the_file_system_is_not_the_answer_no(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: object, code: int
) -> None:
    assert callable(look)
    (tmp_path / "file").touch()

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "stat", refuse)
    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(FileError, match=os.strerror(code)):
        look(tmp_path)


@pytest.mark.parametrize("look", LOOKS)
def test_what_is_missing_is_no_error(tmp_path: Path, look: object) -> None:
    assert callable(look)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "none", tmp_path / "none" / "none", tmp_path / "file" / "none"):
        assert not look(path)
    assert not exists(tmp_path / "link")
    assert not exists(tmp_path / "loop")


@pytest.mark.parametrize(
    ("call", "look"), [("stat", exists), ("open", lambda path: read_json(path) == {})], ids=["stat", "open"]
)
def test_a_file_that_another_host_replaces_meanwhile_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, look: Callable[[Path], bool]
) -> None:
    (tmp_path / "file").write_text("{}")
    real, refused, times = getattr(os, call), list[object](), 1

    def stale(*arguments: object, **options: object) -> object:
        refused.append(arguments)
        if len(refused) <= times:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(*arguments, **options)

    monkeypatch.setattr(os, call, stale)
    assert look(tmp_path / "file")
    times = 100
    with pytest.raises(FileError, match="Stale file handle"):
        look(tmp_path / "file")


def test_kinds_and_listings(tmp_path: Path) -> None:
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "inner" / "a.json").touch()
    (tmp_path / ".hidden.json").touch()
    (tmp_path / "link").symlink_to("folder")
    names = ["folder", "link", ".hidden.json"]
    assert [is_folder(tmp_path / name) for name in names] == [True, True, False]
    assert [is_file(tmp_path / name) for name in names] == [False, False, True]
    assert [is_link(tmp_path / name) for name in names] == [False, True, False]
    assert [path.name for path in listed(tmp_path)] == [".hidden.json", "folder", "link"]
    assert listed(tmp_path, "f*") == [tmp_path / "folder"]
    assert below(tmp_path, "*.json") == [tmp_path / ".hidden.json", tmp_path / "folder" / "inner" / "a.json"]


def test_folders_deeper_than_python_recurses_are_listed_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    depth = sys.getrecursionlimit() + 100
    for name in ("a", "c"):
        (tmp_path / name).touch()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    for _ in range(depth):
        Path("d").mkdir()
        os.chdir("d")
    try:
        found = below(tmp_path)
        assert len(found) == depth + 3
        assert [path.name for path in (*found[:2], found[-1])] == ["a", "b", "c"]
    finally:  # no tool of Python deletes so deep a folder
        for _ in range(depth):
            os.chdir("..")
            Path("d").rmdir()

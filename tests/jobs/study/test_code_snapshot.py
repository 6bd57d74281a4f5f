import os
import shutil
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.study import kept_code
from jobs.study.folder import launching
from jobs.study.kept_code import UNUSED_DAYS, Code, keep_code, live_code, unpack
from seqlm.errors import DamagedFileError, FileError
from tests import commands, hostile

pytestmark = pytest.mark.process


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    commands.run(["git", *identity, *words], cwd=folder, check=True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEQLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "code"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small checkout that stands for the place seqlm was imported from."""
    root = tmp_path / "tree"
    (root / "seqlm").mkdir(parents=True)
    (root / "seqlm" / "__init__.py").write_text("version = 1\n")
    (root / ".gitignore").write_text("secret.env\n")
    (root / "secret.env").write_text("TOKEN=1\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    monkeypatch.setattr(kept_code, "source_tree", lambda: root)
    return root


def test_a_clean_checkout_is_kept_under_its_commit_and_only_once(tree: Path, tmp_path: Path) -> None:
    first = keep_code(tmp_path / "study")
    assert first.commit is not None
    assert first.path.name.startswith(f"{first.commit[:12]}-")
    assert (first.dirty, first.live) == (False, False)
    assert (live_code().path, live_code().live, live_code().dirty) == (tree, True, False)
    assert keep_code(tmp_path / "study") == first
    assert list((tmp_path / "study" / "code").iterdir()) == [first.archive]
    second = keep_code(tmp_path / "other")
    assert second.archive != first.archive
    assert second.path == first.path, "it is unpacked once for all studies"


@pytest.mark.parametrize("folder", ["benchmarks", "docs", "tests"])
def test_what_no_run_needs_is_not_kept_and_a_change_of_it_is_no_other_code(
    tree: Path, tmp_path: Path, folder: str
) -> None:
    path = tree / folder / "seqlm" / "other.py"
    path.parent.mkdir(parents=True)
    path.write_text("version = 1\n")
    git(tree, "add", ".")
    git(tree, "commit", "-qm", "second")
    kept = keep_code(tmp_path / "study")
    assert files(kept.path) == [".gitignore", *ADDED, "seqlm/__init__.py"]
    path.write_text("version = 2\n")
    assert keep_code(tmp_path / "study") == kept
    assert live_code().dirty  # benchmarks record it


def archive_of(code: Code) -> Path:
    assert code.archive is not None
    return code.archive


def test_what_a_killed_launcher_had_written_is_gone_with_the_next_one(tree: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    archive = archive_of(keep_code(study))
    archive.with_name(".0123456789ab.fedcba9876543210.tmp").write_text("half of")
    with launching(study):
        pass
    assert list(archive.parent.iterdir()) == [archive]


@pytest.mark.parametrize("file", ["__init__.py", "new.py"])
def test_what_is_edited_or_added_is_kept_anew_and_changes_nothing_in_an_older_copy(
    tree: Path, tmp_path: Path, file: str
) -> None:
    first = keep_code(tmp_path / "study")
    before = files(first.path)
    (tree / "seqlm" / file).write_text("version = 2\n")
    git(tree, "add", ".")
    said: list[str] = []
    second = keep_code(tmp_path / "study", tell=said.append)
    assert (second.dirty, said) == (True, [])
    assert (second.path / "seqlm" / file).read_text() == "version = 2\n"
    assert (first.path / "seqlm" / "__init__.py").read_text() == "version = 1\n"
    assert files(first.path) == before
    (tree / "seqlm" / file).write_text("version = 3\n")
    assert len({first.path, second.path, keep_code(tmp_path / "study").path}) == 3


ADDED = ["__main__.py", "code-origin.json"]
"""What an archive has besides the files of the tree."""


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_git_does_not_track_stays_out_and_a_module_among_it_is_named(tree: Path, tmp_path: Path) -> None:
    (tree / "tests").mkdir()
    for file in ("local_secrets.py", "notes.txt", "tests/test_new.py"):
        (tree / file).write_text("private")
    said: list[str] = []
    kept = keep_code(tmp_path / "study", tell=said.append)
    assert files(kept.path) == [".gitignore", *ADDED, "seqlm/__init__.py"]
    assert not kept.dirty
    assert said == [
        "warning: not kept with the study, since git does not track it: local_secrets.py; `git add` what the runs need"
    ]


def test_an_archive_that_is_not_what_its_name_says_is_an_error(tree: Path, tmp_path: Path) -> None:
    kept = keep_code(tmp_path / "study")
    archive = archive_of(kept)
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("json.py", "")
    with pytest.raises(FileError, match=r"is not the code that its name says \(json\.py differs\); move it away"):
        keep_code(tmp_path / "study")
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(DamagedFileError, match="is damaged"):
        keep_code(tmp_path / "study")
    archive.rename(tmp_path / "away")
    assert keep_code(tmp_path / "study") == kept


DAMAGES: dict[str, Callable[[Path], object]] = {
    "changed": lambda copy: (copy / "seqlm/__init__.py").write_text("version = 3\n"),
    "missing": lambda copy: (copy / "seqlm/__init__.py").unlink(),
    "a link": lambda copy: (copy / "json").symlink_to(copy / "seqlm"),
    "foreign": lambda copy: (copy / "json.py").touch(),
    "compiled": lambda copy: (copy / "json.pyc").touch(),
    "all gone": lambda copy: shutil.rmtree(copy),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_what_was_unpacked_is_unpacked_again_if_it_has_changed(tree: Path, tmp_path: Path, what: str) -> None:
    """Into another folder: a program may still be running from the changed one."""
    kept = keep_code(tmp_path / "study")
    before = files(kept.path)
    DAMAGES[what](kept.path)
    damaged = files(kept.path) if kept.path.exists() else None
    for again in (unpack(archive_of(kept)), unpack(archive_of(kept))):
        assert files(again) == before
        assert (again / "seqlm/__init__.py").read_text() == "version = 1\n"
        assert (files(kept.path) if kept.path.exists() else None) == damaged


@pytest.mark.parametrize("what", ["changed", "missing", "all gone"])
def test_a_start_finds_the_code_after_the_cache_was_cleared(tree: Path, tmp_path: Path, what: str) -> None:
    kept = keep_code(tmp_path / "study")
    before = files(kept.path)
    assert kept.ready() == kept.path
    DAMAGES[what](kept.path)
    if what == "changed":
        (kept.path / "seqlm/__init__.py").write_text("")
    assert files(kept.ready()) == before
    archive_of(kept).unlink()
    kept.ready()  # there may be no way to unpack again, but the start may succeed


def test_code_that_nothing_has_started_from_for_months_is_deleted(tree: Path, tmp_path: Path) -> None:
    kept = []
    for version in ("2", "3", "4"):
        (tree / "seqlm/__init__.py").write_text(f"version = {version}\n")
        kept.append(keep_code(tmp_path / "study"))
        long_ago = time.time() - (UNUSED_DAYS + 1) * 24 * 3600
        os.utime(kept[-1].path.parent, (long_ago, long_ago))
        if version == "2":
            kept[0].ready()  # a start
    assert [code.path.exists() for code in kept] == [True, False, True]
    assert (kept[1].ready() / "seqlm/__init__.py").read_text() == "version = 3\n", "the study has its archive"


def test_processes_that_unpack_at_once_all_run_the_whole_code(tmp_path: Path, cache: Path) -> None:
    archive = archive_of(keep_code(tmp_path / "study"))
    shutil.rmtree(cache)
    argv = [sys.executable, str(archive), "launch", "--help"]
    hostile.put_modules(tmp_path)
    processes = [commands.start(argv, cwd=tmp_path) for _ in range(6)]
    printed = [commands.finish(process) for process in processes]
    assert [process.returncode for process in processes] == [0] * 6, printed
    assert len({stdout for stdout, _ in printed}) == 1
    assert [path.name for path in cache.iterdir()] == [unpack(archive).parent.name]


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can give a folder to somebody else")
def test_a_cache_that_is_not_this_users_own_is_not_used(
    tree: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    keep_code(tmp_path / "study")
    os.chown(cache, 64711, -1)
    second = keep_code(tmp_path / "study")
    assert second.path.is_relative_to(tmp_path / f"seqlm-{os.geteuid()}")
    os.chown(second.path.parent.parent, 64711, -1)
    with pytest.raises(FileError, match="belongs to another user; set SEQLM_CACHE to a folder of your own"):
        keep_code(tmp_path / "study")


def test_a_cache_that_other_users_may_enter_is_not_used(
    tree: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled code in ``__pycache__`` is not compared, so nobody else may put it there."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    first = keep_code(tmp_path / "study")
    cache.chmod(0o770)
    second = keep_code(tmp_path / "study")
    assert second.path.is_relative_to(tmp_path / f"seqlm-{os.geteuid()}")
    (tmp_path / f"seqlm-{os.geteuid()}").chmod(0o777)
    with pytest.raises(FileError, match=r"other users may enter .*; type `chmod 700 "):
        keep_code(tmp_path / "study")
    cache.chmod(0o700)
    assert keep_code(tmp_path / "study") == first


def test_what_python_and_its_libraries_leave_in_the_unpacked_code_is_no_damage(tree: Path, tmp_path: Path) -> None:
    kept = keep_code(tmp_path / "study")
    (kept.path / "seqlm" / "__pycache__").mkdir()
    (kept.path / "seqlm" / "__pycache__" / "__init__.cpython-311.pyc").write_bytes(b"compiled")
    (kept.path / "core.4711").write_bytes(b"core")
    said: list[str] = []
    assert keep_code(tmp_path / "study", tell=said.append) == kept
    assert said == []
    assert (kept.path / "core.4711").exists()


def test_an_archive_belongs_to_the_group_of_its_study_and_the_umask_decides_who_reads_it(
    tree: Path, tmp_path: Path
) -> None:
    (tree / "seqlm" / "__init__.py").chmod(0o600)
    study = tmp_path / "study"
    study.mkdir()
    study.chmod(0o2775)
    before = os.umask(0o002)
    try:
        kept = keep_code(study)
    finally:
        os.umask(before)
    archive = archive_of(kept)
    assert [oct(path.stat().st_mode) for path in (archive.parent, archive)] == [oct(0o42775), oct(0o100664)]


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can give a checkout to somebody else")
def test_the_checkout_of_another_user_is_a_checkout(tree: Path, tmp_path: Path) -> None:
    mine = keep_code(tmp_path / "mine")
    for path in [tree, *tree.rglob("*")]:
        os.chown(path, 4711, 4711)
    assert keep_code(tmp_path / "theirs").commit == mine.commit is not None


def test_a_copy_of_the_code_knows_its_commit_and_is_kept_under_its_name(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "seqlm" / "new.py").write_text("")
    git(tree, "add", "seqlm/new.py")
    first = keep_code(tmp_path / "study")
    copy = shutil.copytree(first.path, tmp_path / "copy")  # as Ray does
    (copy / "sent-along.toml").write_text("")
    monkeypatch.setattr(kept_code, "source_tree", lambda: copy)
    assert keep_code(tmp_path / "study") == first
    second = keep_code(tmp_path / "other")
    assert not (second.path / "sent-along.toml").exists()
    assert (second.commit, second.dirty, second.path.name) == (first.commit, True, first.path.name)
    assert {p.name for p in second.path.rglob("*.py")} == {"__init__.py", "__main__.py", "new.py"}
    assert (live_code().commit, live_code().dirty) == (first.commit, True)


def test_without_git_our_packages_and_the_command_line_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "site-packages"
    (root / "seqlm" / "data").mkdir(parents=True)
    (root / "seqlm" / "data" / "__init__.py").write_text("")
    (root / "seqlm" / "data" / "__init__.pyc").write_text("")
    (root / "analysis" / "templates").mkdir(parents=True)
    (root / "analysis" / "templates" / "page.html").write_text("")
    (root / "launch.py").write_text("")
    (root / "other.py").write_text("")
    (root / "other").mkdir()
    (root / "other" / "__init__.py").write_text("")
    monkeypatch.setattr(kept_code, "source_tree", lambda: root)
    kept = keep_code(tmp_path / "study")
    assert kept.commit is None
    assert kept.path.name.startswith("no-commit-")
    assert files(kept.path) == [
        "__main__.py",
        "analysis/templates/page.html",
        "code-origin.json",
        "launch.py",
        "seqlm/data/__init__.py",
    ]

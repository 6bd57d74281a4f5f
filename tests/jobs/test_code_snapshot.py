from __future__ import annotations

import os
import py_compile
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import code_snapshot
from jobs.code_snapshot import distrust, keep_code, live_code
from tests import commands

pytestmark = pytest.mark.process


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    commands.run(["git", *identity, *words], cwd=folder, check=True)


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
    monkeypatch.setattr(code_snapshot, "source_tree", lambda: root)
    return root


def test_a_clean_checkout_is_kept_under_its_commit_and_only_once(tree: Path, tmp_path: Path) -> None:
    first = keep_code(tmp_path / "study")
    assert first.commit is not None
    assert first.path == tmp_path / "study" / "code" / first.commit[:12]
    assert (first.dirty, first.live) == (False, False)
    assert keep_code(tmp_path / "study") == first
    assert [entry.name for entry in (tmp_path / "study" / "code").iterdir()] == [first.commit[:12]]


def test_an_edit_after_the_launch_changes_nothing_in_the_kept_code(tree: Path, tmp_path: Path) -> None:
    kept = keep_code(tmp_path / "study")
    (tree / "seqlm" / "__init__.py").write_text("version = 2\n")
    assert (kept.path / "seqlm" / "__init__.py").read_text() == "version = 1\n"
    changed = keep_code(tmp_path / "study")
    assert changed.dirty
    assert changed.path != kept.path
    assert (changed.path / "seqlm" / "__init__.py").read_text() == "version = 2\n"


def test_new_modules_travel_and_what_git_ignores_stays(tree: Path, tmp_path: Path) -> None:
    (tree / "seqlm" / "new.py").write_text("")
    (tree / "notes.txt").write_text("private")
    kept = keep_code(tmp_path / "study")
    assert kept.dirty
    assert sorted(str(p.relative_to(kept.path)) for p in kept.path.rglob("*") if p.is_file()) == [
        ".gitignore",
        "code-origin.json",
        "seqlm/__init__.py",
        "seqlm/new.py",
    ]


def test_a_copy_of_the_code_knows_its_commit_and_is_kept_under_its_name(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "seqlm" / "new.py").write_text("")
    first = keep_code(tmp_path / "study")
    monkeypatch.setattr(code_snapshot, "source_tree", lambda: first.path)
    assert keep_code(tmp_path / "study") == first
    second = keep_code(tmp_path / "other")
    assert (second.commit, second.dirty, second.path.name) == (first.commit, True, first.path.name)
    assert {p.name for p in second.path.rglob("*.py")} == {"__init__.py", "new.py"}
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
    monkeypatch.setattr(code_snapshot, "source_tree", lambda: root)
    kept = keep_code(tmp_path / "study")
    assert kept.commit is None
    assert kept.path.name.startswith("no-commit-")
    assert {str(p.relative_to(kept.path)) for p in kept.path.rglob("*") if p.is_file()} == {
        "analysis/templates/page.html",
        "code-origin.json",
        "launch.py",
        "seqlm/data/__init__.py",
    }


def test_live_code_is_the_tree_itself(tree: Path) -> None:
    assert (live_code().path, live_code().live, live_code().dirty) == (tree, True, False)


def test_what_this_code_has_kept_is_trusted_and_so_is_a_study_without_any(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    assert distrust(tmp_path / "study") is None
    kept = keep_code(tmp_path / "study")
    assert distrust(tmp_path / "study") is None
    (tree / "seqlm" / "__init__.py").write_text("version = 2\n")
    (kept.path / "seqlm" / "__init__.py").write_text("version = 2\n")
    assert distrust(tmp_path / "study") is None, "the other copy is not what would run"


@pytest.mark.parametrize(
    ("plant", "named"),
    [
        (lambda kept: (kept / "seqlm/__init__.py").write_text("version = 9\n"), "seqlm/__init__.py"),
        (lambda kept: (kept / "json.py").write_text("version = 9\n"), "json.py"),
        (lambda kept: (kept / "json.pyc").write_text(""), "json.pyc"),
        (lambda kept: (kept / "seqlm/__init__.py").unlink(), "seqlm/__init__.py"),
        (lambda kept: (kept / "json").symlink_to("seqlm"), "json"),
        (lambda kept: (kept / "code-origin.json").write_text("{}"), "code-origin.json"),
        (lambda kept: os.mkfifo(kept / "json.py"), "json.py"),
    ],
)
def test_kept_code_with_another_content_is_not_trusted(
    tree: Path, tmp_path: Path, plant: Callable[[Path], object], named: str
) -> None:
    kept = keep_code(tmp_path / "study").path
    plant(kept)
    assert distrust(tmp_path / "study") == f"{kept / named} is not the code that the folder is named after"


def test_code_of_a_link_or_of_another_user_is_not_trusted(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = keep_code(tmp_path / "study").path
    kept.rename(tmp_path / "elsewhere")
    kept.symlink_to(tmp_path / "elsewhere")
    assert distrust(tmp_path / "study") == f"{kept} is not the code that the folder is named after"
    monkeypatch.setattr("os.geteuid", lambda: (tmp_path / "study").stat().st_uid + 1)
    assert distrust(tmp_path / "study") == f"{tmp_path / 'study'} belongs to another user"


def test_compiled_files_planted_in_trusted_code_do_not_run(tree: Path, tmp_path: Path) -> None:
    kept = keep_code(tmp_path / "study").path
    source = kept / "seqlm" / "__init__.py"
    times = source.stat()
    source.write_text("version = 9\n")
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    py_compile.compile(str(source))
    source.write_text("version = 1\n")
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert distrust(tmp_path / "study") is None
    done = commands.run([sys.executable, "-c", "import seqlm; print(seqlm.version)"], cwd=kept, check=True)
    assert done.stdout == "1\n"

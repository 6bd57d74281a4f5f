from __future__ import annotations

from pathlib import Path

import pytest

from jobs import code_snapshot
from jobs.code_snapshot import keep_code, live_code
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

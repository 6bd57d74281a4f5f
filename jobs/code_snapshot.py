"""The code a study was submitted with, kept beside its runs, so that an edit while jobs wait changes nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import seqlm
from seqlm.errors import FileError
from seqlm.rundir import make_directory, read_json, write_json

PACKAGES = ("analysis", "jobs", "seqlm", "slurm")
"""Of a tree without git, what is kept."""
COMMAND_LINE = "launch.py"
ORIGIN = "code-origin.json"
"""In a copy: the commit it was made from, which git cannot tell there."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """Where a worker's code lies, and which it is."""

    path: Path
    """Folder that holds the package ``seqlm``."""
    commit: str | None
    """Git commit, or none outside a git checkout."""
    dirty: bool
    """Whether tracked files differ from the commit, or new modules stand beside them."""
    live: bool
    """Whether workers run from the working tree itself."""


def source_tree() -> Path:
    """The folder from which this very code was imported."""
    return Path(seqlm.__file__).resolve().parent.parent


def live_code() -> Code:
    """The working tree itself, for ``--live-code``."""
    root = source_tree()
    origin = read_json(root / ORIGIN)
    if origin is not None:
        return Code(path=root, commit=origin["commit"], dirty=origin["dirty"], live=True)
    commit = _commit(root)
    return Code(path=root, commit=commit, dirty=bool(commit and _changes(root)), live=True)


def keep_code(study_dir: Path) -> Code:
    """Copy the code into ``<study>/code/<commit>`` unless the same code is already there.

    Of a git checkout: what git tracks, as it now stands in the working tree, and new Python modules that git does not
    ignore. Outside a checkout: the packages of ours, and the command line. A changed tree gets a folder of its own,
    named after the commit and a digest of the content. What is itself such a copy (on a cluster, say) keeps its name.

    Raises:
        FileError: the copy cannot be written.
    """
    root, files, origin = _to_keep()
    target = study_dir.absolute() / "code" / origin["name"]
    if not target.exists():
        _copy(root, files, target, origin)
    return Code(path=target, commit=origin["commit"], dirty=origin["dirty"], live=False)


def distrust(study_dir: Path) -> str | None:
    """Return why :func:`keep_code` for this study might hand out code of somebody else; ``None``: it does not.

    Folders and files must belong to this user, and the content of the copy must be that of this very code. Compiled
    files in the copy (``__pycache__``) are removed, since Python runs them in place of the sources.

    Raises:
        FileError: the copy cannot be read, or a compiled file not be removed.
    """
    folder = study_dir / "code"
    try:
        for place in (study_dir, folder):
            if place.exists() and place.stat().st_uid != os.geteuid():
                return f"{place} belongs to another user"
        if not folder.exists():
            return None
        root, files, origin = _to_keep()
        target = folder / origin["name"]
        if not os.path.lexists(target):
            return None
        odd = target if target.is_symlink() else _differing(root, files, target, origin)
        if odd is not None:
            return f"{odd} is not the code that the folder is named after"
        for compiled in target.rglob("__pycache__"):
            shutil.rmtree(compiled)
    except OSError as error:
        raise FileError.from_os_error("check", folder, error) from None
    return None


def _differing(root: Path, files: list[Path], target: Path, origin: Mapping[str, Any]) -> Path | None:
    """The first file of a copy that is missing, additional, different or another user's; compiled files aside."""
    expected = {Path(ORIGIN), *files}
    found = {path.relative_to(target): path.lstat() for path in target.rglob("*")}
    if target.lstat().st_uid != os.geteuid():
        return target
    for file in sorted(expected | found.keys()):
        status = found.get(file)
        if "__pycache__" in file.parts or (status is not None and stat.S_ISDIR(status.st_mode)):
            continue
        copy = target / file
        if file not in expected or status is None or not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return copy
        if read_json(copy) != origin if file == Path(ORIGIN) else copy.read_bytes() != (root / file).read_bytes():
            return copy
    return None


def _to_keep() -> tuple[Path, list[Path], Mapping[str, Any]]:
    """The tree that this code comes from, its files from there on, and what ``code-origin.json`` is to say of it."""
    root = source_tree()
    origin = read_json(root / ORIGIN)
    if origin is not None:
        found = (path for path in root.rglob("*") if path.is_file() and path.name != ORIGIN)
        return root, sorted(path.relative_to(root) for path in found), origin
    commit = _commit(root)
    dirty = bool(commit and _changes(root))
    files = _files(root, commit)
    name = commit[:12] if commit else "no-commit"
    if dirty or not commit:
        name += f"-{_digest(root, files)}"
    return root, files, {"name": name, "commit": commit, "dirty": dirty}


def _files(root: Path, commit: str | None) -> list[Path]:
    if commit is None:
        found = [path for package in PACKAGES for path in (root / package).rglob("*") if path.is_file()]
        return sorted(path.relative_to(root) for path in [*found, *root.glob(COMMAND_LINE)] if path.suffix != ".pyc")
    tracked = _git(root, "ls-files", "-z").split("\0")
    fresh = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", "*.py").split("\0")
    return sorted(Path(name) for name in {*tracked, *fresh} if name and (root / name).is_file())


def _digest(root: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        content = (root / file).read_bytes()
        digest.update(f"{file}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:8]


def _copy(root: Path, files: list[Path], target: Path, origin: Mapping[str, Any]) -> None:
    make_directory(target.parent)
    try:
        building = Path(tempfile.mkdtemp(prefix=".building-", dir=target.parent))
    except OSError as error:
        raise FileError.from_os_error("write", target.parent, error) from None
    try:
        for file in files:
            place = building / file
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / file, place)
        write_json(building / ORIGIN, origin)
        mask = os.umask(0)
        os.umask(mask)
        building.chmod(0o777 & ~mask)
        building.rename(target)
    except OSError as error:
        if not target.is_dir():  # else another launch of the same code was first
            raise FileError.from_os_error("write", target, error) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _commit(root: Path) -> str | None:
    """The commit checked out at ``root``, when that is the top of a git checkout with a commit."""
    if shutil.which("git") is None or _git(root, "rev-parse", "--show-toplevel").strip() != str(root):
        return None
    return _git(root, "rev-parse", "--verify", "--quiet", "HEAD").strip() or None


def _changes(root: Path) -> str:
    return _git(root, "status", "--porcelain")


def _git(root: Path, *arguments: str) -> str:
    # core.quotePath and locale do not matter: names are read with -z, and the rest is hexadecimal.
    answer = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    return answer.stdout if answer.returncode == 0 else ""

"""The code a study was launched with, copied into its folder, so that later edits do not affect waiting jobs.

    <study>/code/<commit>-<digest>/    the files, and code-origin.json with their commit and SHA-256 digests

A copy is verified by its content, never by its name.
"""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import seqlm
from seqlm.errors import FileError, file_errors
from seqlm.files import flush, folder_beside, json_text, make_directory, read_json, write_json
from seqlm.reading import below, exists, is_file, is_folder, is_link, listed, read_bytes

PACKAGES = ("analysis", "jobs", "seqlm", "slurm")
"""The packages that are kept from a tree without git."""
COMMAND_LINE = "launch.py"
KEPT = ("--", ".", ":(exclude)benchmarks", ":(exclude)docs", ":(exclude)tests")
"""What is kept of a checkout, in git's terms: everything that runs and reports may need."""
IMPORTABLE = (".py", ".pyc", ".so")
"""Suffixes of foreign files that Python could import from a copy."""
ORIGIN = "code-origin.json"
"""The file in a copy that records its commit, since a copy has no git repository."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """The location and version of a worker's code."""

    path: Path
    """The folder that contains the package ``seqlm``."""
    commit: str | None
    """Git commit. ``None`` outside a git checkout."""
    dirty: bool
    """Whether files of the code differ from the commit."""
    live: bool
    """Whether workers run from the working tree itself."""


def source_tree() -> Path:
    """Return the folder from which the running code was imported."""
    return Path(seqlm.__file__).resolve().parent.parent


def live_code() -> Code:
    """Return the working tree as the workers' code, for ``--live-code``."""
    root = source_tree()
    origin = read_json(root / ORIGIN)
    if origin is None:
        commit = _commit(root)
        origin = {"commit": commit, "dirty": bool(commit and _changes(root))}
    return Code(path=root, commit=origin["commit"], dirty=origin["dirty"], live=True)


def keep_code(study_dir: Path, *, tell: Callable[[str], None] = lambda line: None) -> Code:
    """Copy the code into ``<study>/code/<commit>-<digest>`` unless it is already there, and return the copy.

    From a git checkout, copies the tracked files of ``KEPT`` with their uncommitted changes. Files that git does not
    track are not copied, since they might be secrets; ``tell`` is called with a warning if modules are left out.
    Outside a checkout, copies seqlm's packages and the command line. If the running code is itself a copy, as on a
    cluster, the name of that copy is kept.

    Raises:
        FileError: the copy cannot be read or written, or has other content than its name says.
    """
    root = source_tree()
    origin = read_json(root / ORIGIN)
    commit = _commit(root) if origin is None else None
    names = _names(root, commit) if origin is None else origin["files"]
    with file_errors("read", root, within=True):
        contents = {name: (root / name).read_bytes() for name in sorted(names)}
    files = {name: _sha256(content) for name, content in contents.items()}
    if origin is None:
        digest = _sha256(json.dumps(files).encode())[:8]
        _warn_of_untracked(root, commit, files, tell)
        name = f"{commit[:12] if commit else 'no-commit'}-{digest}"
        dirty = bool(commit and _changes(root, *KEPT))
        origin = {"name": name, "commit": commit, "dirty": dirty, "files": files}
    target = study_dir.absolute() / "code" / origin["name"]
    if not (exists(target) or is_link(target)):
        _copy(contents, target, origin)
    elif (wrong := _difference(target, {**files, ORIGIN: _sha256(json_text(origin).encode())})) is not None:
        raise FileError(f"{target} is not the code that its name says ({wrong}); move it away and launch again")
    return Code(path=target, commit=origin["commit"], dirty=origin["dirty"], live=False)


def distrust(study_dir: Path) -> str | None:
    """Return why what a study keeps is not run without being asked: some of it belongs to another user. Else ``None``.

    That is its folder, its code, and users' own models in the folders of runs.

    Raises:
        FileError: a folder cannot be read.
    """
    kept = [study_dir / "code", *(run / "model" for run in listed(study_dir))]
    with file_errors("check", study_dir, within=True):
        for path in (study_dir, *(path for folder in kept if exists(folder) for path in (folder, *below(folder)))):
            if path.lstat().st_uid != os.geteuid():
                return f"{path} belongs to another user"
    return None


def _names(root: Path, commit: str | None) -> list[str]:
    """Return the paths of the files to keep, relative to ``root``."""
    if commit is not None:
        return [name for name in _listed(root, *KEPT) if is_file(root / name)]
    found = [*(path for package in PACKAGES for path in below(root / package)), *listed(root, COMMAND_LINE)]
    return [str(path.relative_to(root)) for path in found if is_file(path) and path.suffix != ".pyc"]


def _warn_of_untracked(root: Path, commit: str | None, files: Collection[str], tell: Callable[[str], None]) -> None:
    """Warn of the Python files, at the top and in seqlm's packages, that git neither tracks nor ignores."""
    where = [":(glob)*.py", *(f"{package}/*.py" for package in PACKAGES)]
    others = _listed(root, "--others", "--exclude-standard", "--", *where) if commit else []
    if left_out := [other for other in others if other not in files]:
        tell(
            f"warning: not kept with the study, since git does not track it: {', '.join(left_out)}; `git add` what "
            "the runs need"
        )


def _difference(kept: Path, files: Mapping[str, str]) -> str | None:
    """Return the first difference of a copy from the digests of its files, or ``None``.

    A link is a difference, and so is a foreign file that Python could import.
    """
    if is_link(kept):
        return "it is a link"
    for path in below(kept):
        name = str(path.relative_to(kept))
        if is_link(path):
            return f"{name} is a link"
        if name not in files and path.suffix in IMPORTABLE and "__pycache__" not in path.parts:
            return f"{name} is not part of it"
    for name, sha256 in files.items():
        try:
            if _sha256(read_bytes(kept / name)) != sha256:
                return f"{name} has changed"
        except FileNotFoundError:
            return f"{name} is missing"
    return None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _copy(contents: Mapping[str, bytes], target: Path, origin: Mapping[str, Any]) -> None:
    """Write the copy to a temporary folder, flush it, and rename it into place."""
    make_directory(target.parent)
    try:
        with folder_beside(target) as building:
            for name, content in contents.items():
                place = building / name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
            write_json(building / ORIGIN, origin)
            for path in below(building):  # after the last write: the disk takes them together, in half the time
                flush(path)
            building.rename(target)
            flush(target.parent)
    except OSError as error:
        if not is_folder(target):  # otherwise another launch has just made the same copy
            raise FileError.from_os_error("write", target, error) from None


def _commit(root: Path) -> str | None:
    """Return the commit checked out at ``root``, or ``None`` unless ``root`` is the top of a git checkout."""
    if shutil.which("git") is None or _git(root, "rev-parse", "--show-toplevel").strip() != str(root):
        return None
    return _git(root, "rev-parse", "--verify", "--quiet", "HEAD").strip() or None


def _changes(root: Path, *arguments: str) -> str:
    return _git(root, "status", "--porcelain", "--untracked-files=no", *arguments)


def _listed(root: Path, *arguments: str) -> list[str]:
    return [name for name in _git(root, "ls-files", "-z", *arguments).split("\0") if name]


def _git(root: Path, *arguments: str) -> str:
    # safe.directory: git refuses another user's checkout, but its code is running already. core.quotePath and the
    # locale do not matter, since names are read with -z and all other output is hexadecimal.
    words = ["git", "-c", f"safe.directory={root}", "-C", str(root), *arguments]
    answer = subprocess.run(words, capture_output=True, text=True, check=False)
    return answer.stdout if answer.returncode == 0 else ""

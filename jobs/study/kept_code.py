"""The code a study was launched with, copied into its folder, so that later edits do not affect waiting jobs.

    <study>/code/<commit>[-<digest>]/    the files, and code-origin.json with their commit and SHA-256 digests

A copy is verified by its content, never by its name. A copy with other content is moved aside and made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import stat
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import seqlm
from seqlm.errors import FileError
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
    """Copy the code into ``<study>/code/<commit>`` unless the same code is already there, and return the copy.

    From a git checkout, copies the tracked files of ``KEPT`` with their uncommitted changes. Files that git does not
    track are not copied, since they might be secrets. Outside a checkout, copies seqlm's packages and the command line.
    A modified tree gets a separate folder, named by the commit and a digest of the content. If the running code is
    itself a copy, as on a cluster, the name of that copy is kept.

    ``tell`` is called with a warning if modules are left out, or if an existing copy has other content.

    Raises:
        FileError: the copy cannot be read or written.
    """
    root, origin = _to_keep(tell)
    target = study_dir.absolute() / "code" / origin["name"]
    try:
        wrong = _difference(target, origin) if exists(target) or is_link(target) else None
    except OSError as error:
        raise FileError.from_os_error("read", target, error) from None
    if wrong:
        aside = target.with_name(f"{target.name}.damaged-{secrets.token_hex(4)}")
        tell(f"warning: {target} is not the expected code ({wrong}); moved to {aside.name} and copied again")
        try:
            target.rename(aside)
        except OSError as error:
            raise FileError.from_os_error("move away", target, error) from None
    if not exists(target):
        _copy(root, target, origin)
    return Code(path=target, commit=origin["commit"], dirty=origin["dirty"], live=False)


def distrust(study_dir: Path) -> str | None:
    """Return why what a study keeps is not run without being asked: some of it belongs to another user. Else ``None``.

    That is its folder, its code, and users' own models in the folders of runs.

    Raises:
        FileError: a folder cannot be read.
    """
    kept = [study_dir / "code", *(run / "model" for run in listed(study_dir))]
    try:
        for path in (study_dir, *(path for folder in kept if exists(folder) for path in (folder, *below(folder)))):
            if path.lstat().st_uid != os.geteuid():
                return f"{path} belongs to another user"
    except OSError as error:
        raise FileError.from_os_error("check", error.filename or study_dir, error) from None
    return None


def _to_keep(tell: Callable[[str], None]) -> tuple[Path, Mapping[str, Any]]:
    """Return the source tree, and the contents of ``code-origin.json``: files with their digests among them."""
    root = source_tree()
    origin = read_json(root / ORIGIN)
    if origin is not None:
        return root, {**origin, "files": origin.get("files") or _contents(root, _files_below(root))}
    commit = _commit(root)
    if commit is None:
        files = [file for package in PACKAGES for file in _files_below(root, package)]
        files += [path.relative_to(root) for path in listed(root, COMMAND_LINE)]
    else:
        files = [Path(name) for name in _listed(root, *KEPT) if is_file(root / name)]
    contents = _contents(root, files)
    dirty = bool(commit and _changes(root, *KEPT))
    name = commit[:12] if commit else "no-commit"
    if dirty or not commit:
        name += f"-{hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:8]}"
    # The Python files, at the top and in seqlm's packages, that git neither tracks nor ignores.
    where = [":(glob)*.py", *(f"{package}/*.py" for package in PACKAGES)]
    others = _listed(root, "--others", "--exclude-standard", "--", *where) if commit else []
    if left_out := [other for other in others if other not in contents]:
        tell(
            f"warning: not kept with the study, since git does not track it: {', '.join(left_out)}; `git add` what "
            "the runs need"
        )
    return root, {"name": name, "commit": commit, "dirty": dirty, "files": contents}


def _files_below(root: Path, folder: str = "") -> list[Path]:
    """Return the files below a folder, relative to ``root``, without compiled files and ``code-origin.json``."""
    found = [path.relative_to(root) for path in below(root / folder) if is_file(path)]
    return [path for path in found if path.suffix != ".pyc" and path != Path(ORIGIN)]


def _contents(root: Path, files: Sequence[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file, by its path relative to ``root``, sorted by path."""
    try:
        return {str(file): _sha256((root / file).read_bytes()) for file in sorted(set(files))}
    except OSError as error:
        raise FileError.from_os_error("read", error.filename or root, error) from None


def _difference(kept: Path, origin: Mapping[str, Any]) -> str | None:
    """Return the first difference of a copy from the files of ``origin``, or ``None``. Ignores ``__pycache__``.

    A foreign file counts if Python could import it.
    """
    if is_link(kept):
        return "it is a link"
    modes = {path.relative_to(kept): path.lstat().st_mode for path in below(kept)}
    files = {**origin["files"], ORIGIN: _sha256(json_text(origin).encode())}
    expected = {Path(name): sha256 for name, sha256 in files.items()}
    for file in sorted({*expected, *modes}):
        mode, is_expected = modes.get(file, 0), file in expected
        if "__pycache__" in file.parts or (stat.S_ISDIR(mode) and not is_expected):
            continue
        if mode == 0:
            return f"{file} is missing"
        if stat.S_ISLNK(mode):
            return f"{file} is a link"
        if not is_expected and file.suffix in IMPORTABLE:
            return f"{file} is not part of it"
        if is_expected and not stat.S_ISREG(mode):
            return f"{file} is not a regular file"
        if is_expected and _sha256(read_bytes(kept / file)) != expected[file]:
            return f"{file} has changed"
    return None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _copy(root: Path, target: Path, origin: Mapping[str, Any]) -> None:
    """Write the copy to a temporary folder, flush it, and rename it into place."""
    make_directory(target.parent)
    try:
        with folder_beside(target) as building:
            for file, expected in origin["files"].items():
                content = (root / file).read_bytes()
                if _sha256(content) != expected:
                    raise FileError(f"{root / file} has changed since the launch began; launch again")
                place = building / file
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

"""The code a study was launched with, kept in its folder as one file, so that later edits do not affect waiting jobs.

    <study>/code/<commit>-<digest>.zip           the files, and code-origin.json with their commit and SHA-256 digests
    <cache>/code/<digest>/<commit>-<digest>/     the same, unpacked in the cache of the user who runs it

An archive and what is unpacked of it are verified by their content, never by their names. ``python ARCHIVE MODULE ...``
unpacks an archive and runs a module of it.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import seqlm
from seqlm.data.cache import cache_folder, local_folder, own_folder
from seqlm.errors import FileError, file_errors
from seqlm.files import folder_beside, make_directory, remove, write_once
from seqlm.reading import below, exists, is_file, is_link, listed, read_archive, read_bytes
from seqlm.records.studies import CodeOrigin

PACKAGES = ("analysis", "jobs", "seqlm", "slurm")
"""The packages that are kept from a tree without git."""
COMMAND_LINE = "launch.py"
KEPT = ("--", ".", ":(exclude)benchmarks", ":(exclude)docs", ":(exclude)tests")
"""What is kept of a checkout, in git's terms: everything that runs and reports may need."""
IMPORTABLE = (".py", ".pyc", ".so")
"""Suffixes of foreign files that Python could import from an unpacked archive."""
MAIN = "__main__.py"
"""The file in an archive that Python runs."""
MOST_COPIES = 9
"""Folders in the cache with the same code, all but one of them damaged."""
UNUSED_DAYS = 90
"""Time after which unpacked code that nothing has started from is deleted."""


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
    archive: Path | None = None
    """The file that was kept, of which ``path`` is unpacked. ``None``: there is none, as for a working tree."""
    sha256: str | None = None
    """Digest of the content of :attr:`archive`; another one is not unpacked. ``None``: it is not known."""

    def ready(self) -> Path:
        """Return a folder with the code from which a program can start: ``path``, unless it lacks files by now.

        Call it before each start: somebody may clear the cache while a study runs.

        Raises:
            FileError: the archive cannot be read or was changed, or there is no room for its files.
        """
        if self.archive is None or not exists(self.archive) or _is_complete(self.path, self.archive):
            return self.path
        return unpack(self.archive, self.sha256)


def source_tree() -> Path:
    """Return the folder from which the running code was imported."""
    return Path(seqlm.__file__).resolve().parent.parent


def live_code() -> Code:
    """Return the working tree as the workers' code, for ``--live-code``."""
    root = source_tree()
    origin = CodeOrigin.read(root)
    if origin is None:
        commit = _commit(root)
        origin = CodeOrigin(commit=commit, dirty=bool(commit and _changes(root)))
    return Code(path=root, commit=origin.commit, dirty=origin.dirty, live=True)


def running_code(kept: Path) -> Code:
    """Return the code of this process, a scheduler's job, which was started from ``kept``: an archive or a folder."""
    archive = kept if kept.suffix == ".zip" else None
    root = source_tree()
    name = re.fullmatch("([0-9a-f]{64})(-[0-9])?", root.parent.name)  # as :func:`unpack` has it
    sha256 = None if name is None or archive is None else name[1]
    return Code(path=root, commit=None, dirty=False, live=False, archive=archive, sha256=sha256)


def keep_code(study_dir: Path, *, tell: Callable[[str], None] = lambda line: None) -> Code:
    """Write the code to ``<study>/code/<commit>-<digest>.zip`` unless it is already there, and unpack it for this user.

    From a git checkout, keeps the tracked files of ``KEPT`` with their uncommitted changes. Files that git does not
    track are not kept, since they might be secrets; ``tell`` is called with a warning if modules are left out.
    Outside a checkout, keeps seqlm's packages and the command line. If the running code is itself unpacked, as on a
    cluster, the name of its archive is kept.

    Raises:
        FileError: the archive cannot be read, written or unpacked, or has other content than its name says.
    """
    root = source_tree()
    origin = CodeOrigin.read(root)
    commit = _commit(root) if origin is None else None
    names = _names(root, commit) if origin is None else origin.files
    with file_errors("read", root, within=True):
        contents = {name: (root / name).read_bytes() for name in sorted(names)}
    if origin is None:
        files = {name: _sha256(content) for name, content in contents.items()}
        digest = _sha256(json.dumps(files).encode())[:8]
        _warn_of_untracked(root, commit, files, tell)
        name = f"{commit[:12] if commit else 'no-commit'}-{digest}"
        dirty = bool(commit and _changes(root, *KEPT))
        origin = CodeOrigin(name=name, commit=commit, dirty=dirty, files=files)
    contents[CodeOrigin.FILE] = origin.to_text().encode()
    contents[MAIN] = f"from {__name__} import main\n\nmain()\n".encode()
    archive = study_dir.absolute() / "code" / f"{origin.name}.zip"
    make_directory(archive.parent)
    if (exists(archive) or not write_once(archive, _packed(contents))) and (kept := read_archive(archive)) != contents:
        wrong = min(name for name in {**kept, **contents} if kept.get(name) != contents.get(name))
        what = f"is not the code that its name says ({wrong} differs)"
        raise FileError(f"{archive} {what}; move it away and launch again")
    sha256 = contents_sha256(contents)
    path = unpack(archive, sha256)
    return Code(path=path, archive=archive, sha256=sha256, commit=origin.commit, dirty=origin.dirty, live=False)


def _packed(contents: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in contents.items():
            file.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def contents_sha256(contents: Mapping[str, bytes]) -> str:
    """Return the digest of files by their paths and contents, as 64 hex digits."""
    digests = {name: _sha256(content) for name, content in contents.items()}
    return _sha256(json.dumps(digests, sort_keys=True).encode())


def unpack(archive: Path, sha256: str | None = None) -> Path:
    """Return a folder with the files of an archive, in the cache. Several processes may unpack it at once.

    ``sha256``: the digest that its content must have (:func:`contents_sha256`). ``None``: any.

    A folder that lacks files or has other ones stays as it is, since a program may be running from it, and another
    folder is made. What has not been used for ``UNUSED_DAYS`` is deleted.

    Raises:
        FileError: the archive cannot be read or has another digest, there is no room for its files, or the cache is
            open to other users.
    """
    contents = read_archive(archive)
    digest = contents_sha256(contents)
    if sha256 not in (None, digest):
        raise FileError(f"{archive} has changed since its launch; move it away and launch again")
    problem: FileError | None = None
    for cache in (cache_folder, local_folder):
        try:
            root = own_folder(cache() / "code")
            for name in (digest, *(f"{digest}-{number}" for number in range(2, MOST_COPIES + 1))):
                folder = root / name / archive.stem
                if not exists(folder.parent):
                    _unpack(contents, folder)
                    _prune(root)
                if is_same(folder, contents):
                    os.utime(folder.parent)
                    return folder
            raise FileError(f"{root} has {MOST_COPIES} damaged copies of {archive}; delete it")
        except FileError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _unpack(contents: Mapping[str, bytes], folder: Path) -> None:
    """Write the files below ``folder``, whose parent comes into place in one step, unless it is there by then."""
    target = folder.parent
    with file_errors("unpack the code in", target), folder_beside(target) as building:
        for name, content in contents.items():
            place = building / folder.name / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        try:
            building.rename(target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # else another process was faster
                raise


def _prune(root: Path) -> None:
    """Delete what no start has used for ``UNUSED_DAYS``."""
    oldest = time.time() - UNUSED_DAYS * 24 * 3600
    with contextlib.suppress(OSError, FileError):
        remove(path for path in listed(root) if path.lstat().st_mtime < oldest)


def _is_complete(folder: Path, archive: Path) -> bool:
    """Return whether a folder has all files of an archive, by their sizes, and note that it is used."""
    try:
        with zipfile.ZipFile(archive) as file:
            are_there = all((folder / one.filename).stat().st_size == one.file_size for one in file.infolist())
        os.utime(folder.parent)
    except (OSError, zipfile.BadZipFile):
        return False
    return are_there


def main() -> None:
    """Unpack the archive that Python runs, and run a module of it: ``python ARCHIVE MODULE WORD ...``."""
    archive, *words = sys.argv
    try:
        folder = unpack(Path(archive))
    except (FileError, OSError) as error:
        sys.exit(f"error: {error}")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    os.execv(sys.executable, [sys.executable, "-P", "-u", "-m", *words])  # -P: no module of the current folder


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


def is_same(folder: Path, contents: Mapping[str, bytes]) -> bool:
    """Return whether a folder has these files.

    A link is a difference, and so is a foreign file that Python could import.
    """
    for path in (folder, *below(folder)):
        name = str(path.relative_to(folder))
        is_foreign = name not in contents and path.suffix in IMPORTABLE and "__pycache__" not in path.parts
        if is_link(path) or is_foreign:
            return False
    try:
        return all(read_bytes(folder / name) == content for name, content in contents.items())
    except FileNotFoundError:
        return False


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


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

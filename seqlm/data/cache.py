"""Derived files that can be made again at any time, kept so that they need not be.

An entry is a folder ``<cache>/<kind>/<key>/`` with its files and an ``index.json`` that holds the size and SHA-256 of
each. It is written under another name and renamed into place in one step, so a reader sees all of it or none. An entry
that does not match its index is no entry: the caller makes it again. A cache that cannot be written costs time, never a
run.

With ``SEQLM_STAGE``, an entry is read from a copy on the node itself, which the first process there makes.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import mmap
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from seqlm.environment import CACHE, STAGE
from seqlm.errors import FileError, file_errors
from seqlm.files import folder_beside, json_text, make_directory, replace_folder

_INDEX = "index.json"
LOCK_SECONDS = 300
LOCK_SILENT_SECONDS = 5
LOCK_POLL_SECONDS = 0.05


def cache_folder() -> Path:
    """``SEQLM_CACHE``, else ``XDG_CACHE_HOME/seqlm``, else ``~/.cache/seqlm``.

    Raises:
        FileError: none of them is set and there is no home folder.
    """
    if own := CACHE.read():
        return own
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if Path(shared).is_absolute():  # the XDG specification: relative values are to be ignored
        return Path(shared) / "seqlm"
    try:
        return Path.home() / ".cache" / "seqlm"
    except RuntimeError:
        raise FileError(f"there is no home folder for the cache; set {CACHE.name} to a folder") from None


def own_folder(path: Path) -> Path:
    """Make a folder that no other user may enter, unless it is there, and return it.

    Raises:
        FileError: it cannot be made, or another user could change what is read from it.
    """
    with file_errors("make folder", path):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = path.stat()
        if not {path.lstat().st_uid, target.st_uid} == {os.geteuid()}:
            raise FileError(f"{path} belongs to another user; set {CACHE.name} to a folder of your own")
        if target.st_mode & 0o077:
            raise FileError(
                f"other users may enter {path}; type `chmod 700 {path}`, or delete it if they have changed it"
            )
    return path


def local_folder() -> Path:
    """A cache of this user in the folder for temporary files (``TMPDIR``), which is the node's own.

    Raises:
        FileError: it cannot be made, or belongs to another user.
    """
    return own_folder(Path(tempfile.gettempdir(), f"seqlm-{os.geteuid()}"))


def digest_key(parts: Mapping[str, Any]) -> str:
    """A key (64 hex digits) that changes with any of ``parts``."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


Entry: TypeAlias = tuple[dict[str, memoryview], dict[str, Any]]
"""The files of an entry, mapped into memory, and the facts stored with it."""


def find(kind: str, key: str, *, verify: bool = True, root: Path | None = None) -> Entry | None:
    """Return an intact entry. ``None``: there is no such entry.

    ``verify=False`` compares the files' sizes only, not their content, which is enough to read the facts. ``root`` is
    the cache; ``None``: that of the user.
    """
    try:
        folder = (root or cache_folder()) / kind / key
        index = json.loads((folder / _INDEX).read_text("utf-8"))
        files = {}
        for name, expected in index["files"].items():
            with (folder / name).open("rb") as file:
                files[name] = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            if len(files[name]) != expected["bytes"]:
                return None
            if verify and hashlib.sha256(files[name]).hexdigest() != expected["sha256"]:
                return None
        return files, dict(index["facts"])
    except (OSError, FileError, ValueError, KeyError, TypeError, AttributeError):
        return None


def find_here(kind: str, key: str) -> Entry | None:
    """Return an intact entry as :func:`find` does: with ``SEQLM_STAGE``, from a copy on this node."""
    if not STAGE.read():
        return find(kind, key)
    with contextlib.suppress(FileError):
        root = local_folder()
        with one_at_a_time(kind, key, root):
            if (staged := find(kind, key, root=root)) is None and (found := find(kind, key)) is not None:
                store(kind, key, *found, root)
                return find(kind, key, root=root) or found
            return staged
    return find(kind, key)


def store(
    kind: str,
    key: str,
    files: Mapping[str, bytes | memoryview],
    facts: Mapping[str, Any],
    root: Path | None = None,
) -> None:
    """Keep an entry. Failure is logged once as a warning and is not an error."""
    try:
        entry = (root or cache_folder()) / kind / key
        make_directory(entry.parent)
        with folder_beside(entry) as temporary:
            index: dict[str, Any] = {"facts": dict(facts), "files": {}}
            for name, content in files.items():
                (temporary / name).write_bytes(content)
                sha256 = hashlib.sha256(content).hexdigest()
                index["files"][name] = {"bytes": memoryview(content).nbytes, "sha256": sha256}
            (temporary / _INDEX).write_text(json_text(index), "utf-8")
            replace_folder(temporary, entry)
    except (OSError, FileError) as error:
        if find(kind, key, root=root) is None:  # otherwise another process was faster
            _warn_once(str(error))


@contextlib.contextmanager
def one_at_a_time(kind: str, key: str, cache: Path | None = None) -> Iterator[None]:
    """Let one process of this machine at a time into the block that makes an entry.

    All enter if no lock can be made. A process that has waited for ``LOCK_SECONDS`` enters too: in a cache that is
    shared, another user may hold the lock for any time.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, FileError):
            root = (cache or cache_folder()) / kind
            make_directory(root)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            handle = os.open(root / f".{key[:16]}.lock", flags, 0o660)
            stack.callback(os.close, handle)
            _wait_for_lock(handle, f"another process makes the same entry of {root}")
        yield


def _wait_for_lock(handle: int, reason: str) -> None:
    logger, started = logging.getLogger("seqlm"), time.monotonic()
    is_told = False
    while (waited := time.monotonic() - started) < LOCK_SECONDS:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(LOCK_POLL_SECONDS)
        if waited > LOCK_SILENT_SECONDS and not is_told:
            logger.warning("%s; waiting for it, %d minutes at most", reason, LOCK_SECONDS // 60)
            is_told = True
    logger.warning("%s, and has not finished; going on without it", reason)


@cache
def _warn_once(problem: str) -> None:
    logging.getLogger("seqlm").warning("%s; going on without a cache", problem)

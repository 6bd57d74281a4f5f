"""Reading small files of a folder that somebody else may have written: no waiting, no links, no limits exceeded.

What exists is asked here too. :class:`pathlib.Path` takes a file that cannot be looked at for one that does not exist:
``exists`` and its like from Python 3.14 on, ``glob`` from 3.13 on. A run would then start again at its first epoch.

All functions that look at files raise ``FileError`` if that fails. Those that read one raise ``FileNotFoundError`` if
there is none, or a link to nothing, and ``UnfitFileError`` if it is a link, a folder, a pipe or anything else that is
no regular file, or too large.
"""

import errno
import fnmatch
import io
import json
import math
import os
import stat
import sys
import zipfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from seqlm.errors import DamagedFileError, FileError, UnfitFileError
from seqlm.schema import fits, show, words_of

T = TypeVar("T")

LARGEST_TEXT = 64 * 2**20
"""Most bytes of a file that is read into memory."""
LARGEST_HASHED = 64 * 2**30
"""Most bytes of a file that is read for its digest alone: a sparse file may be larger than any disk."""
DEEPEST = 64
"""Lists and tables within one another in a JSON file."""
LARGEST_WHOLE = 2**63 - 1
"""Largest whole number in a JSON file, with either sign."""
MOST_EPOCHS = 10**6
"""Most epochs of a run."""

FIELDS: Mapping[str, Mapping[str, Any]] = {
    "provenance.json": {
        **dict.fromkeys(("name", "entry", "data", "study"), str | None),
        "order": int | None,
        "command": list,
        **dict.fromkeys(("resources", "code", "git", "versions"), dict),
    },
    "start.json": {"launcher": dict | None, "resources": dict, "backend": str},
    "result.json": {"epochs": int | None},
    "queue.json": {"launcher": dict, "waiting": dict},
    "request.json": {"runs": dict[str, dict[str, Any]]},
    "runs.json": {"provenance": dict, "runs": dict[str, dict[str, Any]]},
    "plan.json": {"arrays": list[dict[str, Any]]},
    "note.json": {"runs": list[str], "tags": list[str] | None, "text": str | None},
}
"""Name of a JSON file in a study -> its fields on whose type programs rely. A field of another type is damage."""

STALE_TRIES = 3
"""How often a file is opened that another host replaces meanwhile (``ESTALE`` on NFS)."""


def open_regular(path: Path, *, largest: int, below: Path | None = None) -> BufferedReader:
    """Open a regular file of at most ``largest`` bytes to read it, without waiting and without following a link.

    With ``below``, a folder above ``path``, no folder between the two may be a link either.
    """
    return os.fdopen(_open_regular(path, largest, below)[0], "rb")


def _open_regular(path: Path, largest: int, below: Path | None = None) -> tuple[int, int]:
    """Return the handle of the file that :func:`open_regular` opens, and its size in bytes."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    *folders, name = [os.fspath(path)] if below is None else path.relative_to(below).parts
    opened: list[int] = []
    try:
        if below is not None:
            opened.append(_open(os.fspath(below), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, None))
        for part in folders:
            opened.append(_open(part, flags | os.O_DIRECTORY, opened[-1]))
        handle = _open(name, flags, opened[-1] if opened else None)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno == errno.ELOOP and not exists(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
        if error.errno in _KINDS:
            raise _refused(path, _KINDS[error.errno]) from None
        raise FileError.from_os_error("read", path, error) from None
    finally:
        for folder in opened:
            os.close(folder)
    status = os.fstat(handle)
    kind = _KINDS_OPENED.get(stat.S_IFMT(status.st_mode), "a device")
    if kind == "a file" and status.st_size <= largest:
        return handle, status.st_size
    os.close(handle)
    raise (
        _refused(path, kind)
        if kind != "a file"
        else UnfitFileError(f"cannot read {path}: expected at most {largest:,} bytes, found {status.st_size:,}")
    )


def _open(name: str, flags: int, folder: int | None) -> int:
    return _unless_stale(lambda: os.open(name, flags, dir_fd=folder))


def _unless_stale(read: Callable[[], T]) -> T:
    """What ``read`` returns; it is called again if another host has replaced the file meanwhile."""
    for _ in range(STALE_TRIES - 1):
        try:
            return read()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    return read()


_KINDS = {errno.ELOOP: "a link", errno.ENOTDIR: "a link or a file in place of a folder", errno.ENXIO: "a socket"}
_KINDS_OPENED = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe"}


def _refused(path: Path, found: str) -> UnfitFileError:
    return UnfitFileError(f"cannot read {path}: expected a regular file, found {found}")


def read_bytes(path: Path) -> bytes:
    """The content of a regular file of at most ``LARGEST_TEXT`` bytes."""

    def read() -> bytes:
        handle, left = _open_regular(path, LARGEST_TEXT)
        parts = []
        try:
            while left and (part := os.read(handle, left)):
                parts.append(part)
                left -= len(part)
        finally:
            os.close(handle)
        return b"".join(parts)

    try:
        return _unless_stale(read)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileError.from_os_error("read", path, error) from None


def read_archive(path: Path) -> dict[str, bytes]:
    """The files of a zip file without compression, by their paths in it."""
    content = read_bytes(path)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            if sum(one.file_size for one in file.infolist()) <= len(content):
                return {one.filename: file.read(one) for one in file.infolist()}
        problem = "its files are larger than it is itself"
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError) as error:
        problem = str(error)
    raise DamagedFileError(f"{path} is damaged ({problem}); move it away")


def read_tail(path: Path, most: int, below: Path | None = None) -> bytes:
    """The last bytes of a regular file of any size, ``most`` at most. Raises ``OSError`` if it cannot be read."""
    with open_regular(path, largest=sys.maxsize, below=below) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - most))
        return file.read(most)


def exists(path: Path) -> bool:
    """Return whether there is anything at ``path``. A link to nothing, or to itself, counts as nothing."""
    return _mode(path) != 0


def is_file(path: Path) -> bool:
    """Return whether there is a regular file at ``path``, or a link to one."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Return whether there is a folder at ``path``, or a link to one."""
    return stat.S_ISDIR(_mode(path))


def is_link(path: Path) -> bool:
    """Return whether there is a symbolic link at ``path``."""
    return stat.S_ISLNK(_mode(path, follow=False))


def _mode(path: Path, *, follow: bool = True) -> int:
    """Return type and permissions of what there is at ``path``. 0: there is nothing."""
    try:
        return _unless_stale(lambda: path.stat(follow_symlinks=follow).st_mode)
    except ValueError:  # a NUL in the path
        return 0
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return 0
        raise FileError.from_os_error("read", path, error) from None


def listed(folder: Path, pattern: str = "*") -> list[Path]:
    """Return what is in a folder and has a name that matches ``pattern``, by name. What is no folder is empty."""
    try:
        names = _unless_stale(lambda: os.listdir(folder))  # noqa: PTH208 -- names alone
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise FileError.from_os_error("read", folder, error) from None
    return [folder / name for name in sorted(fnmatch.filter(names, pattern))]


def below(folder: Path, pattern: str = "*") -> list[Path]:
    """Return what has a name that matches ``pattern`` in a folder and those below, at any depth, but behind no link."""
    found = []
    left = listed(folder)[::-1]
    while left:
        path = left.pop()
        if fnmatch.fnmatch(path.name, pattern):
            found.append(path)
        if stat.S_ISDIR(_mode(path, follow=False)):
            left += listed(path)[::-1]
    return found


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: no JSON, nested deeper than ``DEEPEST``, or with a whole number beyond ``LARGEST_WHOLE``.
    """
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError(f"nested more than {DEEPEST} deep") from None
    if text.count("[") + text.count("{") > DEEPEST and isinstance(value, dict | list) and _is_deeper(value, DEEPEST):
        raise ValueError(f"nested more than {DEEPEST} deep")
    return value


def _is_deeper(value: dict[str, Any] | list[Any], levels: int) -> bool:
    """Return whether more lists and tables than ``levels`` are within one another."""
    inner = value.values() if isinstance(value, dict) else value
    return not levels or any(_is_deeper(one, levels - 1) for one in inner if isinstance(one, dict | list))


def wrong_field(name: str, record: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the first field whose type is not that of ``FIELDS`` for a file of this name."""
    for key, kind in FIELDS.get(name, {}).items():
        if key in record and not fits(kind, record[key]):
            return f"{key}: expected {words_of(kind)}, got {show(record[key])}"
    return None


def _whole(digits: str) -> int:
    if len(digits) > 20 or abs(number := int(digits)) > LARGEST_WHOLE:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return number


_DECODER = json.JSONDecoder(parse_int=_whole)


def finite(value: Any) -> float | None:
    """Return a finite number from a file, else ``None``."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def moment(text: Any) -> float | None:
    """An ISO 8601 time as seconds since 1970, without a zone taken as UTC; ``None`` for anything else."""
    try:
        time = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    if not 1970 < time.year < 9999:  # no clock shows this, and time zones cannot be applied at the calendar's ends
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def timestamp(seconds: float | None = None) -> str:
    """Return a time, in seconds since 1970, in the format of the records. ``None``: the current time."""
    now = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return now.isoformat(timespec="seconds")

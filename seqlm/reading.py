"""Reading small files of a folder that somebody else may have written: no waiting, no links, no limits exceeded.

Below a study, which :func:`confine` names, no function here or in :mod:`seqlm.files` follows a link: each opens the
folders between the study and a file one after the other (:func:`at`). The study's folder itself may be a link.

What exists is asked here too. :class:`pathlib.Path` takes a file that cannot be looked at for one that does not exist:
``exists`` and its like from Python 3.14 on, ``glob`` from 3.13 on. A run would then start again at its first epoch.

All functions that look at files raise ``FileError`` if that fails, which is an ``UnfitFileError`` if a link is in the
place of a folder of a study. Those that read one raise ``FileNotFoundError`` if there is none, or a link to nothing,
and ``UnfitFileError`` if it is a link, a folder, a pipe or anything else that is no regular file, or too large.
"""

import contextlib
import errno
import fnmatch
import io
import json
import math
import os
import re
import stat
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from seqlm.errors import DamagedFileError, FileError, UnfitFileError

T = TypeVar("T")

LARGEST_TEXT = 64 * 2**20
"""Most bytes of a file that is read into memory."""
LARGEST_RECORD = 2**20
"""Most bytes of a JSON file, but for those of ``LISTS``."""
LISTS = frozenset(
    {
        *("batch.json", "behaviour.json", "exported.json", "folders.json", "queue.json", "request.json", "study.json"),
        *("plan.json", "jobs.json"),  # of formats 2 and 1
    }
)
"""JSON files that list runs, or values of each step, of at most ``LARGEST_TEXT`` bytes."""
LARGEST_PARSED = 192 * 2**20
"""Most bytes that a JSON text may take in memory: its values can be thirty times as large as it is. With
10,000 runs, ``folders.json`` takes 116 MiB, and ``study.json`` 97."""
LARGEST_TOGETHER = 320 * 2**20
"""Most bytes that the JSON files of a study may take which take more than ``ORDINARY`` each, in one look at it."""
ORDINARY = 16 * 2**10
"""Bytes above the memory that a record of one run takes, by far."""
LARGEST_HASHED = 64 * 2**30
"""Most bytes of a file that is read for its digest alone: a sparse file may be larger than any disk."""
DEEPEST = 64
"""Lists and tables within one another in a JSON file."""
LARGEST_WHOLE = 2**63 - 1
"""Largest whole number in a JSON file, with either sign."""
LEAST_PERPLEXITY = 0.99
LARGEST_NUMBER = 1e100
"""Largest other number, with either sign, so that nothing overflows that is computed from a few. Its inverse is the
least above 0."""
MOST_EPOCHS = 10**6
"""Most epochs of a run."""

STALE_TRIES = 3
"""How often a file is opened that another host replaces meanwhile (``ESTALE`` on NFS)."""


_studies: set[str] = set()
"""The folders that :func:`confine` has named: as given and without links, both absolute."""
_FOLDER_FLAGS = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""``O_PATH``: as with any path, the folder needs no permission to read. macOS lacks that flag."""


def confine(study_dir: Path) -> None:
    """Follow no link below a study's folder from now on, in this process.

    Links above the folder, or in its place, are followed: users put their studies where there is room.
    """
    _studies.update((os.fspath(study_dir.absolute()), os.path.realpath(study_dir)))


def is_confined(path: Path) -> bool:
    """Return whether a path is one below a study that :func:`confine` has named. The study's own folder is not."""
    return bool(_names(path))


def at(path: Path, act: Callable[[str | Path, int | None], T]) -> T:
    """Return what ``act`` returns for the name of ``path`` in its folder and for the folder's handle (``dir_fd``).

    Outside of studies, it is called with ``path`` itself and ``None``. What a link at the name itself means is left to
    ``act``.

    Raises:
        UnfitFileError: below a study, a link is in the place of a folder of ``path``, or there is a ``..`` in it.
        OSError: ``act`` raised it, or a folder cannot be entered.
    """
    names = _names(path)
    if not names:
        return act(path, None)
    folder: int | None = None
    try:
        for place, name in enumerate(names[:-1], start=1 - len(names)):
            inner = _enter(path, place, name, folder)
            if folder is not None:
                os.close(folder)
            folder = inner
        return act(names[-1], folder)
    except OSError as error:
        error.filename = os.fspath(path)
        raise
    finally:
        if folder is not None:
            os.close(folder)


def _names(path: Path) -> list[str]:
    """Return a path below a study as names: the first with the study's own path before it. Empty: it is not below one.

    If studies are within one another, the outermost counts.
    """
    if not _studies:
        return []
    text = os.fspath(path)
    text = text if text.startswith("/") else f"{os.getcwd()}/{text}"  # noqa: PTH109 -- a text
    end, turns_back = text.find("/", 1), False
    while end > 0:
        if text[:end] in _studies:
            first, *others = text[end + 1 :].split("/")
            if ".." not in (first, *others):
                return [f"{text[:end]}/{first}", *others]
            turns_back = first != ".."  # else it leaves the study at once, as a user's ../exported does
        end = text.find("/", end + 1)
    if turns_back:
        raise UnfitFileError(f"{path}: expected a path without .. below a study")
    return []


def _enter(path: Path, place: int, name: str, folder: int | None) -> int:
    """Open the folder ``path.parents[-place - 1]``, which has ``name`` in the open ``folder``."""
    try:
        return os.open(name, _FOLDER_FLAGS, dir_fd=folder)
    except OSError as error:
        is_none = error.errno in (errno.ELOOP, errno.ENOTDIR)
        if is_none and stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            raise _linked(path.parents[-place - 1]) from None
        raise


def _linked(folder: Path) -> UnfitFileError:
    return UnfitFileError(f"{folder}: expected a folder, found a link, which is not followed below a study")


def open_regular(path: Path, *, largest: int) -> BufferedReader:
    """Open a regular file of at most ``largest`` bytes to read it, without waiting and without following a link."""
    return os.fdopen(_open_regular(path, largest)[0], "rb")


def _open_regular(path: Path, largest: int) -> tuple[int, int]:
    """Return the handle of the file that :func:`open_regular` opens, and its size in bytes."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        handle = _unless_stale(lambda: at(path, lambda name, folder: os.open(name, flags, dir_fd=folder)))
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno == errno.ELOOP and not exists(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
        if error.errno in _KINDS:
            raise _refused(path, _KINDS[error.errno]) from None
        raise FileError.from_os_error("read", path, error) from None
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


def _unless_stale(read: Callable[[], T]) -> T:
    """What ``read`` returns; it is called again if another host has replaced the file meanwhile."""
    for _ in range(STALE_TRIES - 1):
        try:
            return read()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    return read()


_KINDS = {errno.ELOOP: "a link", errno.ENOTDIR: "a file in place of a folder", errno.ENXIO: "a socket"}
_KINDS_OPENED = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe"}


def _refused(path: Path, found: str) -> UnfitFileError:
    return UnfitFileError(f"cannot read {path}: expected a regular file, found {found}")


def read_bytes(path: Path, largest: int = LARGEST_TEXT) -> bytes:
    """The content of a regular file of at most ``largest`` bytes."""

    def read() -> bytes:
        handle, left = _open_regular(path, largest)
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
            parts = file.infolist()
            problem = "its files are compressed, or larger than it is itself"
            are_stored = all(part.compress_type == zipfile.ZIP_STORED for part in parts)
            if are_stored and sum(part.file_size for part in parts) <= len(content):
                return {part.filename: file.read(part) for part in parts}
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError) as error:
        problem = str(error)
    raise DamagedFileError(f"{path} is damaged ({problem}); move it away")


def read_tail(path: Path, most: int) -> bytes:
    """The last bytes of a regular file of any size, ``most`` at most. Raises ``OSError`` if it cannot be read."""
    with open_regular(path, largest=sys.maxsize) as file:
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
        return _stat(path, follow=follow).st_mode
    except ValueError:  # a NUL in the path
        return 0
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return 0
        raise FileError.from_os_error("read", path, error) from None


def status(path: Path) -> os.stat_result:
    """Return size, times and owner of what there is at ``path``: of a link itself. Raises ``FileNotFoundError``."""
    try:
        return _stat(path, follow=False)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileError.from_os_error("read", path, error) from None


def is_mine(path: Path) -> bool:
    """Return whether what there is at ``path``, or what a link there leads to, belongs to this user."""
    try:
        return _stat(path, follow=True).st_uid == os.geteuid()
    except OSError:
        return False


def _stat(path: Path, *, follow: bool) -> os.stat_result:
    return _unless_stale(lambda: at(path, lambda name, folder: os.stat(name, dir_fd=folder, follow_symlinks=follow)))


def listed(folder: Path, pattern: str = "*") -> list[Path]:
    """Return what is in a folder and has a name that matches ``pattern``, by name. What is no folder is empty.

    Below a study, a link is no empty folder but an error: a run must not look as if it had no attempts.
    """
    try:
        names = _unless_stale(lambda: _names_in(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise FileError.from_os_error("read", folder, error) from None
    return [folder / name for name in sorted(fnmatch.filter(names, pattern))]


def _names_in(folder: Path) -> list[str]:
    if not is_confined(folder):
        return os.listdir(folder)  # noqa: PTH208 -- names alone
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        handle = at(folder, lambda name, parent: os.open(name, flags, dir_fd=parent))
    except NotADirectoryError:
        if is_link(folder):
            raise _linked(folder) from None
        raise
    try:
        return os.listdir(handle)  # noqa: PTH208
    finally:
        os.close(handle)


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


_taken: ContextVar[dict[Path, int] | None] = ContextVar("taken", default=None)
"""File -> the bytes that it takes, of those larger than ``ORDINARY`` in the present look at a study."""


@contextlib.contextmanager
def one_look() -> Iterator[None]:
    """Within the block, the larger JSON files of a study take at most ``LARGEST_TOGETHER`` bytes, all together."""
    before = _taken.set({})
    try:
        yield
    finally:
        _taken.reset(before)


def read_json_bytes(path: Path, *, is_kept: bool = True) -> bytes:
    """Return the content of a JSON file that is not too large to be parsed.

    ``is_kept``: whether what is parsed is kept for the rest of the look at a study, and counts for it.

    Raises:
        UnfitFileError: it has too many bytes, or takes too many, alone or with others (:func:`one_look`).
    """
    content = read_bytes(path, LARGEST_TEXT if path.name in LISTS or path.suffix == ".jsonl" else LARGEST_RECORD)
    size = parsed_bytes(content)
    if size > LARGEST_PARSED:
        raise UnfitFileError(f"cannot read {path}: expected at most {LARGEST_PARSED:,} bytes in memory; move it away")
    if is_kept:
        _take(path, size)
    return content


def _take(path: Path, size: int) -> None:
    """Count the bytes that a file takes in the present look at a study. Raises ``UnfitFileError``: too many by now."""
    taken = _taken.get()
    if taken is None or size <= ORDINARY:
        return
    others = sum(other for file, other in taken.items() if file != path)
    if others + size > LARGEST_TOGETHER:
        raise UnfitFileError(
            f"cannot read {path}: expected at most {LARGEST_TOGETHER:,} bytes in memory with others of its study; "
            "move it away"
        )
    taken[path] = size


def read_kept_bytes(path: Path, largest: int) -> bytes:
    """The content of a regular file of at most ``largest`` bytes, which is kept for the rest of the look at a study.

    Raises:
        UnfitFileError: with others it takes too many bytes (:func:`one_look`).
    """
    content = read_bytes(path, largest)
    _take(path, len(content))
    return content


def parsed_bytes(content: bytes) -> int:
    """Return the most bytes that a JSON text, or lines of such texts, take in memory with the values in them.

    In CPython a number takes 32 bytes with its place in a list, a short text 56 and its place, and a list or a table of
    one value about 100 and 180. Of texts, each character takes 1, 2 or 4 bytes. ``content``, the text and its parts are
    in memory at the same time.
    """
    width = 1
    if not content.isascii() or b"\\u" in content:
        width = 4 if _WIDE.search(content) else 2 if _WIDER.search(content) else 1
    count = content.count
    values = 96 * count(b"[") + 120 * count(b"{") + 48 * count(b":") + 33 * count(b",") + 28 * count(b'"')
    return values + 64 * count(b"\n") + (1 + 2 * width) * len(content)


_WIDE = re.compile(rb"[\xf0-\xff]|\\u[dD]")
_WIDER = re.compile(rb"[\xc4-\xef]|\\u(?!00)")
"""What makes a text one of 4 bytes for each character, or of 2."""


def parse_json(text: str) -> Any:
    """The value of a JSON text. Numbers beyond ``LARGEST_NUMBER``, NaN and infinities are ``None``.

    Raises:
        ValueError: no JSON, nested deeper than ``DEEPEST``, or with a whole number beyond ``LARGEST_WHOLE``.

    The caller has checked that it is not too large (:func:`read_json_bytes`).
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


def _whole(digits: str) -> int:
    if len(digits) > 20 or abs(number := int(digits)) > LARGEST_WHOLE:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return number


def _real(digits: str) -> float | None:
    size = abs(number := float(digits))
    if size <= LARGEST_NUMBER:
        return number if size >= 1 / LARGEST_NUMBER else 0.0
    return None


_DECODER = json.JSONDecoder(parse_int=_whole, parse_float=_real, parse_constant=lambda _: None)


def finite(value: Any) -> float | None:
    """Return a finite number from a file, else ``None``."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def without_impossible(record: dict[str, Any], perplexities: Iterable[str]) -> dict[str, Any]:
    """Return a record in which the numbers of these keys that are no perplexity are ``None``.

    A perplexity is the exponential of a loss above 0. ``LEAST_PERPLEXITY`` leaves room for rounding.
    """
    for key in perplexities:
        value = finite(record.get(key))
        if value is not None and value < LEAST_PERPLEXITY:
            record[key] = None
    return record


def moment(text: Any) -> float | None:
    """An ISO 8601 time as seconds since 1970, without a zone taken as UTC; ``None`` for anything else."""
    try:
        found = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    if not 1970 < found.year < 9999:  # no clock shows this, and time zones cannot be applied at the calendar's ends
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def timestamp(seconds: float | None = None) -> str:
    """Return a time, in seconds since 1970, in the format of the records. ``None``: the current time."""
    return datetime.fromtimestamp(time.time() if seconds is None else seconds, UTC).isoformat(timespec="seconds")

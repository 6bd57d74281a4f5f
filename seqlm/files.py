"""Write files and folders in one step, and read the JSON files of a run. Standard library alone.

This is the only implementation of atomic writing: a new file is written under a temporary name in the same folder,
flushed to disk, and renamed. A reader sees the old file or the new one, never a part.

Modes are left to the system: a new file asks for 0666 and a new folder for 0777, and umask, default ACLs and a setgid
folder decide, as they do for other programs. A mode that is set afterwards would take away what they gave.

Below a study, nothing is written or deleted behind a link (:func:`seqlm.reading.at`).

What reads or writes a file by its name raises ``FileError`` if that fails. Its parts raise ``OSError``:
:func:`file_beside`, :func:`write_new`, :func:`hard_link`, :func:`rename`, :func:`open_at`, :func:`append_to`,
:func:`make_folder`, :func:`folder_beside`, :func:`replace_folder`, :func:`flush` and :func:`delete`. All raise
``UnfitFileError`` at a link in place of a folder.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from seqlm.errors import DamagedFileError, FileError, file_errors
from seqlm.reading import (
    LARGEST_HASHED,
    at,
    exists,
    is_folder,
    is_link,
    open_regular,
    parse_json,
    read_json_bytes,
    status,
)
from seqlm.schema import show

Guard: TypeAlias = Callable[[], None]
"""Called immediately before a new file takes its place. It raises if this process no longer owns the run."""

MOST_WARNINGS = 100
"""Lines of a file that are named one by one if they are damaged."""
NO_FOLDER_FLUSH = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
"""How a file system refuses to flush a folder."""

NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)
"""How a file system without hard links refuses one: exFAT, SMB, some of FUSE."""


def unguarded() -> None:
    """The guard of files that have only one writer."""


# -- one file ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def file_beside(path: Path) -> Iterator[Path]:
    """Make a new empty file in the folder of ``path`` and yield its path. Remove what is left of it at the end."""
    temporary = _temporary(path)
    os.close(open_at(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    try:
        yield temporary
    finally:
        remove([temporary])  # if that fails, the error that led here says more


@contextlib.contextmanager
def replacing(path: Path, *, sync: bool = True, guard: Guard = unguarded) -> Iterator[Path]:
    """Yield a temporary path to write to, then put the new file in the place of ``path`` in one step.

    ``sync=False`` leaves out the flush to disk, for what a crash of the machine makes worthless anyway. If anything
    goes wrong, or ``guard`` raises when all is written, the old file stays.
    """
    with file_errors("write", path), file_beside(path) as temporary:
        yield temporary
        if sync:
            flush(temporary)
        guard()
        try:
            rename(temporary, path)
        except FileNotFoundError:
            guard()  # a new owner removes the temporary files of the previous one, which learns of it here
            raise
        if sync:
            flush(path.parent)


def write_once(path: Path, content: bytes, *, guard: Guard = unguarded, beside: Path | None = None) -> bool:
    """Write a file in one step unless it exists. Return whether this call has written it.

    ``beside``: a file on the same file system in whose folder a crash may leave a temporary one; ``None``: ``path``.
    On a file system without hard links, readers may see the file empty for an instant, and after a crash for ever.
    """
    with file_errors("write", path), file_beside(beside or path) as temporary:
        temporary.write_bytes(content)
        flush(temporary)
        guard()
        try:
            if not hard_link(temporary, path):
                write_new(path, content)
        except FileExistsError:
            # A client of NFS repeats a request whose answer was lost, and then finds its own link (man 2 open).
            return status(temporary).st_nlink == 2
        flush(path.parent)
    return True


def write_new(path: Path, content: bytes) -> None:
    """Write a file that does not exist yet, under its final name, and flush it."""
    with os.fdopen(open_at(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def hard_link(source: Path, path: Path) -> bool:
    """Make ``path`` a second name of ``source``, unless it exists. Return False if there are no hard links here."""
    try:
        # follow_symlinks: a link gets a second name itself, and not what it leads to
        at(
            source,
            lambda old, old_folder: at(
                path,
                lambda new, folder: os.link(old, new, src_dir_fd=old_folder, dst_dir_fd=folder, follow_symlinks=False),
            ),
        )
    except OSError as error:
        if error.errno in NO_LINKS:
            return False
        raise
    return True


def second_name(source: Path, target: Path) -> None:
    """Make ``target`` a second name of the file ``source``, or a copy if there are no hard links. Raises FileError."""
    with file_errors("write", target):
        if not hard_link(source, target):
            copy_file(source, target)


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of a file to a new one."""
    with (
        file_errors("write", target),
        open_regular(source, largest=LARGEST_HASHED) as old,
        os.fdopen(open_at(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as new,
    ):
        shutil.copyfileobj(old, new)


def rename(source: Path, target: Path) -> None:
    """Put a file or folder in the place of ``target``, or of no file."""
    at(
        source,
        lambda old, old_folder: at(
            target, lambda new, folder: os.replace(old, new, src_dir_fd=old_folder, dst_dir_fd=folder)
        ),
    )


def open_at(path: Path, flags: int, mode: int = 0o666) -> int:
    """Return the handle of a file, opened with ``flags`` without following a link or waiting for a pipe's reader."""
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return at(path, lambda name, folder: os.open(name, flags, mode, dir_fd=folder))


def append_to(path: Path) -> BinaryIO:
    """Open a log to write at its end. A link in its place is removed, and its target is not touched.

    A pipe there that nobody reads is an error, and keeps nobody waiting.
    """
    if is_link(path):
        with contextlib.suppress(FileNotFoundError):
            delete(path)
    return os.fdopen(open_at(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab")


# -- folders -------------------------------------------------------------------------------------------------------


def make_directory(path: Path) -> None:
    """Make a folder and its parents unless they exist."""
    with file_errors("make folder", path):
        try:
            make_folder(path)
        except FileNotFoundError:
            make_directory(path.parent)
            make_directory(path)
        except OSError:
            if not is_folder(path):
                raise
            at(path / "any", lambda name, folder: None)  # raises if it is a link below a study


def make_folder(path: Path) -> None:
    """Make a folder that does not exist yet."""
    at(path, lambda name, folder: os.mkdir(name, dir_fd=folder))


@contextlib.contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Make a new folder next to ``path`` and yield its path. Remove what is left of it at the end."""
    temporary = _temporary(path)
    make_folder(temporary)
    try:
        yield temporary
    finally:
        remove([temporary])


def replace_folder(new: Path, target: Path) -> None:
    """Put the folder ``new`` in the place of ``target``, and delete what was there. If that fails, it comes back."""
    if not exists(target):
        rename(new, target)
        return
    aside = _temporary(target)
    rename(target, aside)
    try:
        rename(new, target)
    except OSError:
        if exists(target):
            remove([aside])
        else:
            rename(aside, target)
        raise
    remove([aside])


# -- flushing and clearing up --------------------------------------------------------------------------------------


def flush(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on disk.

    A folder that the file system cannot flush is left as it is: a crash of the machine may undo what came last.
    """
    handle = at(path, lambda name, folder: os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder))
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FOLDER_FLUSH or not is_folder(path):
            raise
    finally:
        os.close(handle)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def delete(path: Path) -> None:
    """Delete a file, or a folder with all in it. Of a link, and of links in a folder, the targets stay."""

    def act(name: str | Path, folder: int | None) -> None:
        try:
            os.unlink(name, dir_fd=folder)
        except (IsADirectoryError, PermissionError):
            if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                raise
            shutil.rmtree(name, dir_fd=folder)

    at(path, act)


def remove(paths: Iterable[Path]) -> None:
    """Delete files and folders. What cannot be deleted stays."""
    for path in paths:
        with contextlib.suppress(OSError, FileError):
            delete(path)


# -- text and JSON -------------------------------------------------------------------------------------------------


def write_bytes(path: Path, content: bytes, *, sync: bool = True, guard: Guard = unguarded) -> None:
    """Write a file in one step. Arguments and errors as in :func:`replacing`."""
    with replacing(path, sync=sync, guard=guard) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str, *, sync: bool = True, guard: Guard = unguarded) -> None:
    """Write a text file in one step. Arguments and errors as in :func:`replacing`."""
    with replacing(path, sync=sync, guard=guard) as temporary:
        temporary.write_text(text, "utf-8")


def write_json(path: Path, data: Mapping[str, Any], *, sync: bool = True, guard: Guard = unguarded) -> None:
    """Write a JSON file in one step. NaN and infinities become null, since JSON has none."""
    write_text(path, json_text(data), sync=sync, guard=guard)


def write_json_lines(path: Path, records: Sequence[Mapping[str, Any]], *, guard: Guard = unguarded) -> None:
    """Write one JSON object per line, the whole file in one step."""
    lines = [json.dumps(_plain(record), ensure_ascii=False, allow_nan=False) + "\n" for record in records]
    write_text(path, "".join(lines), guard=guard)


def json_text(data: Mapping[str, Any]) -> str:
    """Return an object as the text of a JSON file, a line for each key. NaN and infinities become null, paths texts."""
    encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode  # with indentation, many times as slow
    lines = (f"{encode(str(key))}: {encode(_plain(value))}" for key, value in data.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _plain(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    if isinstance(data, Path):
        return str(data)
    return data


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file. ``None``: there is no file.

    Raises:
        DamagedFileError: it is not a JSON object.
    """
    try:
        content = read_json_bytes(path)
    except FileNotFoundError:
        return None
    try:
        data = parse_json(content.decode("utf-8"))
    except ValueError as error:
        raise DamagedFileError(f"{path} is damaged (not JSON: {_why_no_json(content, error)}); move it away") from None
    if not isinstance(data, dict):
        raise DamagedFileError(f"{path} is damaged (expected a table, got {show(data)}); move it away")
    return data


def _why_no_json(content: bytes, error: ValueError) -> str:
    """Return why a file is no JSON text, given the error about it."""
    if not content:
        return "it is empty"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno} is wrong"
    return str(error)


def read_json_lines(
    path: Path, is_record: Callable[[Any], bool], *, is_kept: bool = True
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the records of a file with one JSON value per line, and one warning for each line that is no record.

    No file has no records. A file that is cut in the middle of a line (a full disk, a copy made too early) loses only
    that line. Beyond ``MOST_WARNINGS``, the last warning counts the other lines. ``is_kept``: as in
    :func:`seqlm.reading.read_json_bytes`.
    """
    try:
        text = read_json_bytes(path, is_kept=is_kept).decode("utf-8", errors="replace").removesuffix("\n")
    except FileNotFoundError:
        return [], []
    if not text:
        return [], []
    with contextlib.suppress(ValueError):
        whole = parse_json(f"[{text.replace(chr(10), ',')}]")  # several times as fast as line by line
        if isinstance(whole, list) and len(whole) == text.count("\n") + 1 and all(map(is_record, whole)):
            return whole, []
    records: list[dict[str, Any]] = []
    damaged: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):  # not at other ends of lines, which a text may hold
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError:
            record = None
        if is_record(record):
            records.append(record)
        else:
            damaged.append(number)
    warnings = [f"{path}: line {number} is cut or damaged and was left out" for number in damaged[:MOST_WARNINGS]]
    if len(damaged) > MOST_WARNINGS:
        warnings.append(f"{path}: {len(damaged) - MOST_WARNINGS:,} more lines are cut or damaged and were left out")
    return records, warnings


def file_sha256(path: Path) -> str | None:
    """Return the SHA-256 of a file's bytes, 64 hex digits. ``None``: there is no file."""
    try:
        with open_regular(path, largest=LARGEST_HASHED) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FileError.from_os_error("read", path, error) from None

"""Files that are slow, fail, or show late what others have done, as on a shared file system: for Python code.

Loaded by ``lies.py``. Of ``control.json``, for files below ``below``:

    slow_seconds        each opening and each renaming takes so much longer
    stale_share         the share of each second in which opening to read fails with ESTALE: another host has put a
                        new file there
    failing             a folder below which each opening fails with EIO
    quota               closing a file that was written fails with EDQUOT, and half of its content is lost
    rename_lag_seconds  what another process puts in place is not seen for so long: the old file is, or none

Code is imported as ever. Locks, links and file times are real.
"""

import builtins
import errno
import io
import itertools
import json
import os
import time
from collections.abc import Callable
from typing import Any

RENAMED = os.path.join(os.environ["SEQLM_TEST_CHAOS"], "renamed.jsonl")  # noqa: PTH118 -- pathlib itself is changed
"""A line for each file that was put in place while renames are seen late."""

_REAL_OPEN, _REAL_OS_OPEN, _REAL_STAT = io.open, os.open, os.stat
_REAL_REPLACE, _REAL_RENAME, _REAL_LINK = os.replace, os.rename, os.link
_numbers = itertools.count(1)
_control: Callable[[], dict[str, Any]] = dict


def install(control: Callable[[], dict[str, Any]]) -> None:
    """Have files behave in this process as ``control`` asks, from now on."""
    global _control
    _control = control
    builtins.open = io.open = _open  # type: ignore[assignment]
    os.open, os.stat = _os_open, _stat  # type: ignore[assignment]
    os.replace, os.rename, os.link = _placing(_REAL_REPLACE), _placing(_REAL_RENAME), _placing(_REAL_LINK)


def install_in_torch() -> None:
    """The same for checkpoints, which PyTorch writes itself. It reports a failed close like this."""
    import torch

    real = torch.save

    def save(content: Any, target: Any, *arguments: Any, **options: Any) -> None:
        real(content, target, *arguments, **options)
        place = _place(target) if isinstance(target, str | os.PathLike) else None
        if place is not None and _control().get("quota"):
            os.truncate(place, _REAL_STAT(place).st_size // 2)
            raise RuntimeError("basic_ios::clear: iostream error")

    torch.save = save


def unseen_names(folder: str) -> set[str]:
    """The names in a folder of which this process sees no file yet."""
    found = {os.path.split(path) for path, old in _unseen().items() if old is None}
    return {name for parent, name in found if parent == folder}


# -- what goes wrong -------------------------------------------------------------------------------------------------


def full(path: Any, folder: int | None) -> Any:
    """A path that a call has given, with the folder whose handle it has given as well."""
    if folder is None or isinstance(path, int):
        return path
    return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fspath(path))  # noqa: PTH115, PTH118


def _place(path: Any) -> str | None:
    """An absolute path if it lies below the folder in which files lie, else none."""
    if isinstance(path, int) or not (below := _control().get("below")):
        return None
    place = os.path.abspath(os.fsdecode(os.fspath(path)))  # noqa: PTH100
    return place if place.startswith(f"{below}/") else None


def _error(number: int, place: str) -> OSError:
    return OSError(number, os.strerror(number), place)


def _arrive(place: str, *, reads: bool) -> None:
    """What happens whenever a file is opened or put in place."""
    asked = _control()
    time.sleep(asked.get("slow_seconds", 0.0))
    if (failing := asked.get("failing")) and place.startswith(f"{failing}/"):
        raise _error(errno.EIO, place)
    if reads and time.monotonic() % 1 < asked.get("stale_share", 0.0):
        raise _error(errno.ESTALE, place)


class _Written(io.FileIO):
    """A file whose last bytes the server refuses when it is closed."""

    def close(self) -> None:
        if self.closed or not _control().get("quota"):
            super().close()
            return
        os.ftruncate(self.fileno(), os.fstat(self.fileno()).st_size // 2)
        super().close()
        raise _error(errno.EDQUOT, str(self.name))


def _open(
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Any = None,
) -> Any:
    place = _place(file)
    if place is None or opener is not None:
        return _REAL_OPEN(file, mode, buffering, encoding, errors, newline, closefd, opener)
    reads = not set(mode) & set("wax+")
    _arrive(place, reads=reads)
    if reads:
        return _REAL_OPEN(_as_seen(place), mode, buffering, encoding, errors, newline)
    raw = _Written(place, mode.replace("b", "").replace("t", ""))
    if buffering == 0:
        return raw
    buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
    if "b" in mode:
        return buffer
    return io.TextIOWrapper(buffer, encoding or "utf-8", errors, newline, line_buffering=buffering == 1)


def _os_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    place = None if flags & os.O_DIRECTORY else _place(full(path, dir_fd))
    if place is not None:
        reads = not flags & (os.O_WRONLY | os.O_RDWR)
        _arrive(place, reads=reads)
        path = _as_seen(place) if reads else place
    return _REAL_OS_OPEN(path, flags, mode, dir_fd=dir_fd)


# -- renames that are seen late --------------------------------------------------------------------------------------


def _placing(real: Callable[..., None]) -> Callable[..., None]:
    """``os.replace`` and its like: has others see the old file for a while."""

    def place_file(source: Any, target: Any, **options: Any) -> None:
        place = _place(full(target, options.get("dst_dir_fd")))
        if place is None:
            real(source, target, **options)
            return
        _arrive(place, reads=False)
        late = _control().get("rename_lag_seconds", 0.0)
        old = _keep_old(place) if late else None
        real(source, target, **options)
        if late:
            line = json.dumps({"path": place, "old": old, "at": time.monotonic(), "pid": os.getpid()})
            handle = _REAL_OS_OPEN(RENAMED, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.write(handle, f"{line}\n".encode())
            os.close(handle)

    return place_file


def _keep_old(place: str) -> str | None:
    """Give the file at ``place`` another name and return it. ``None``: there is no file."""
    folder = os.path.join(_control()["below"], "old")  # noqa: PTH118
    os.makedirs(folder, exist_ok=True)  # noqa: PTH103
    old = os.path.join(folder, f"{os.getpid()}-{next(_numbers)}")  # noqa: PTH118
    try:
        _REAL_LINK(place, old)
    except FileNotFoundError:
        return None
    return old


def _unseen() -> dict[str, str | None]:
    """Path -> the file that this process still sees there, or none; what others have put in place too lately."""
    late = _control().get("rename_lag_seconds", 0.0)
    if not late:
        return {}
    found: dict[str, str | None] = {}
    try:
        with _REAL_OPEN(RENAMED, encoding="utf-8") as file:
            lines = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return {}
    for line in lines:
        made = json.loads(line) if line.endswith("\n") else {"pid": os.getpid()}
        if made["pid"] == os.getpid():
            found.pop(made.get("path"), None)  # what it has put there itself, it sees
        elif time.monotonic() - made["at"] < late:
            found.setdefault(made["path"], made["old"])
    return found


def _as_seen(place: str) -> str:
    old = _unseen().get(place, place)
    if old is None:
        raise _error(errno.ENOENT, place)
    return old


def _stat(path: Any, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
    place = _place(full(path, dir_fd))
    seen = path if place is None else _as_seen(place)
    return _REAL_STAT(seen, dir_fd=dir_fd, follow_symlinks=follow_symlinks)

"""Files that fail, as on a bad disk or beyond a quota: for Python code.

Loaded by ``lies.py``. Of ``control.json``, for files below ``below``:

    failing             a folder below which each opening fails with EIO
    quota               closing a file that was written fails with EDQUOT, and half of its content is lost

Code is imported as ever. Locks, links and file times are real.
"""

import builtins
import errno
import io
import os
from collections.abc import Callable
from typing import Any

_REAL_OPEN, _REAL_OS_OPEN = io.open, os.open
_REAL_REPLACE, _REAL_RENAME, _REAL_LINK = os.replace, os.rename, os.link
_control: Callable[[], dict[str, Any]] = dict


def install(control: Callable[[], dict[str, Any]]) -> None:
    """Have files behave in this process as ``control`` asks, from now on."""
    global _control
    _control = control
    builtins.open = io.open = _open  # type: ignore[assignment]
    os.open = _os_open
    os.replace, os.rename, os.link = _placing(_REAL_REPLACE), _placing(_REAL_RENAME), _placing(_REAL_LINK)


def install_in_torch() -> None:
    """The same for checkpoints, which PyTorch writes itself. It reports a failed close like this."""
    import torch

    real = torch.save

    def save(content: Any, target: Any, *arguments: Any, **options: Any) -> None:
        real(content, target, *arguments, **options)
        place = _place(target) if isinstance(target, str | os.PathLike) else None
        if place is not None and _control().get("quota"):
            os.truncate(place, os.stat(place).st_size // 2)  # noqa: PTH116
            raise RuntimeError("basic_ios::clear: iostream error")

    torch.save = save


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


def _arrive(place: str) -> None:
    """What happens whenever a file is opened or put in place."""
    if (failing := _control().get("failing")) and place.startswith(f"{failing}/"):
        raise _error(errno.EIO, place)


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
    _arrive(place)
    if reads:
        return _REAL_OPEN(place, mode, buffering, encoding, errors, newline)
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
        _arrive(place)
    return _REAL_OS_OPEN(path, flags, mode, dir_fd=dir_fd)


def _placing(real: Callable[..., None]) -> Callable[..., None]:
    """``os.replace`` and its like."""

    def place_file(source: Any, target: Any, **options: Any) -> None:
        if (place := _place(full(target, options.get("dst_dir_fd")))) is not None:
            _arrive(place)
        real(source, target, **options)

    return place_file

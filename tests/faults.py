"""A file system whose N-th call fails, under a Python whose ``pathlib`` takes that for "there is no such file"."""

import abc
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, final

import pytest


class _Faults(abc.ABC):
    """Lets calls about files below a folder fail: the ``number``-th, and with ``lasting`` all that follow."""

    CALLS: ClassVar[tuple[str, ...]]
    """Functions of :mod:`os`."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        folder: Path,
        number: int,
        *,
        lasting: bool = False,
        code: int = errno.EIO,
    ) -> None:
        self._folder = str(folder)
        self._left = number
        self._lasting = lasting
        self._code = code
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self._failing(getattr(os, name)))

    @property
    def has_failed(self) -> bool:
        """Whether the call that was to fail has been made."""
        return self._left <= 0

    @abc.abstractmethod
    def _path(self, what: Any, *, writes: bool | None) -> str | None:
        """Return the path of a call that counts. ``writes``: what opening is for; ``None``: another call."""

    def _failing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        is_open = real is os.open

        def call(what: Any = ".", *arguments: Any, **options: Any) -> Any:
            writes = bool(arguments[0] & (os.O_WRONLY | os.O_RDWR)) if is_open else None
            folder = options.get("dir_fd", options.get("src_dir_fd"))
            full = what if folder is None else f"{os.readlink(f'/proc/self/fd/{folder}')}/{what}"  # noqa: PTH115
            path = self._path(full, writes=writes)
            if path is not None and path.startswith(self._folder):
                self._left -= 1
                if self._left == 0 or (self._lasting and self._left < 0):
                    raise OSError(self._code, os.strerror(self._code), path)
            return real(what, *arguments, **options)

        return call


@final
class LookFaults(_Faults):
    """Of calls that look at or read a file.

    ``Path.exists``, ``is_file`` and ``is_dir`` are those of Python 3.14, and ``Path.glob`` and ``rglob`` those of 3.13:
    for them, what cannot be looked at does not exist.
    """

    CALLS = ("stat", "lstat", "scandir", "listdir", "open")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, number: int, **options: Any) -> None:
        super().__init__(monkeypatch, folder, number, **options)
        for name, look in (("exists", os.path.exists), ("is_file", os.path.isfile), ("is_dir", os.path.isdir)):
            monkeypatch.setattr(Path, name, look)
        for name in ("glob", "rglob"):
            monkeypatch.setattr(Path, name, _swallowing(getattr(Path, name)))

    def _path(self, what: Any, *, writes: bool | None) -> str | None:
        return None if writes or not isinstance(what, str | Path) else str(what)


@final
class ChangeFaults(_Faults):
    """Of calls that change a folder."""

    CALLS = ("open", "fsync", "rename", "replace", "link", "mkdir", "utime")

    def _path(self, what: Any, *, writes: bool | None) -> str | None:
        if writes is False:
            return None
        return os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else os.fspath(what)  # noqa: PTH115


def _swallowing(real: Callable[..., Iterator[Path]]) -> Callable[..., Iterator[Path]]:
    def glob(path: Path, pattern: str) -> Iterator[Path]:
        found = real(path, pattern)
        while True:
            try:
                yield next(found)
            except (StopIteration, OSError):
                return

    return glob

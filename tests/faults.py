"""A file system whose N-th call fails, under a Python whose ``pathlib`` takes that for "there is no such file"."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, final

import pytest

LOOKS = ("stat", "lstat", "scandir", "listdir", "open")
CHANGES = ("open", "fsync", "rename", "replace", "link", "mkdir", "utime")


@final
class LookFaults:
    """Lets one call that looks at or reads a file below a folder fail with EIO: the ``number``-th of :data:`LOOKS`.

    ``Path.exists``, ``is_file`` and ``is_dir`` are those of Python 3.14, and ``Path.glob`` and ``rglob`` those of 3.13:
    for them, what cannot be looked at does not exist.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, number: int) -> None:
        self._folder = str(folder)
        self._left = number
        for name in LOOKS:
            monkeypatch.setattr(os, name, self._failing(getattr(os, name)))
        for name, look in (("exists", os.path.exists), ("is_file", os.path.isfile), ("is_dir", os.path.isdir)):
            monkeypatch.setattr(Path, name, look)
        for name in ("glob", "rglob"):
            monkeypatch.setattr(Path, name, _swallowing(getattr(Path, name)))

    @property
    def has_failed(self) -> bool:
        """Whether there were so many looks."""
        return self._left <= 0

    def _failing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        is_open = real is os.open

        def look(path: Any = ".", *arguments: Any, **options: Any) -> Any:
            writes = is_open and arguments[0] & (os.O_WRONLY | os.O_RDWR)
            if not writes and isinstance(path, str | Path) and str(path).startswith(self._folder):
                self._left -= 1
                if self._left == 0:
                    raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            return real(path, *arguments, **options)

        return look


def _swallowing(real: Callable[..., Iterator[Path]]) -> Callable[..., Iterator[Path]]:
    def glob(path: Path, pattern: str) -> Iterator[Path]:
        found = real(path, pattern)
        while True:
            try:
                yield next(found)
            except (StopIteration, OSError):
                return

    return glob


@final
class ChangeFaults:
    """Lets calls that change a folder fail: the ``number``-th of :data:`CHANGES`, and with ``lasting`` all
    that follow.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        folder: Path,
        number: int,
        *,
        lasting: bool = False,
        code: int = errno.ENOSPC,
    ) -> None:
        self._folder = str(folder)
        self._left = number
        self._lasting = lasting
        self._code = code
        self._is_held = False
        for name in CHANGES:
            monkeypatch.setattr(os, name, self._failing(getattr(os, name)))

    @property
    def has_failed(self) -> bool:
        """Whether the call that was to fail has been made."""
        return self._left <= 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let no call fail and count none, as for what another process does."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False

    def _failing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        reads = os.open

        def change(what: Any, *arguments: Any, **options: Any) -> Any:
            is_look = real is reads and not arguments[0] & (os.O_WRONLY | os.O_RDWR)
            path = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else os.fspath(what)  # noqa: PTH115
            if not self._is_held and not is_look and path.startswith(self._folder):
                self._left -= 1
                if self._left == 0 or (self._lasting and self._left < 0):
                    raise OSError(self._code, os.strerror(self._code), path)
            return real(what, *arguments, **options)

        return change

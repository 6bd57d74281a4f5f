"""Loaded by every Python process of a chaos study: counts training steps, sets the clock back, lets files lie.

``tests/crawl/sitecustomize.py`` loads it in processes with ``SEQLM_TEST_CHAOS``: the lab's folder ``shim``, in which
``control.json`` says what to do:

    back_seconds    how far the clock of these processes is behind the machine's
    lag_seconds     a folder made by another process is left out of listings for so long: of ``os.listdir`` and
                    ``os.scandir``, not of ``glob``, which the product does not use
    below           the folder to which that applies, and what ``lying_files.py`` does

The clock is that of Python alone: ``time.time``, ``time.time_ns``, ``datetime.now``. Times that the kernel writes
(of files) and monotonic clocks go on, as they do where somebody sets a real clock back, apart from times of files.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import lying_files

LAB = os.environ["SEQLM_TEST_CHAOS"]  # no Path: pathlib itself looks at what is changed here
_REAL_TIME, _REAL_TIME_NS, _REAL_DATETIME = time.time, time.time_ns, datetime.datetime
_REAL_OPEN, _REAL_MKDIR, _REAL_LISTDIR, _REAL_SCANDIR = open, os.mkdir, os.listdir, os.scandir

_control: dict[str, Any] = {}
_read_at = -1.0


def control() -> dict[str, Any]:
    """The current content of ``control.json``."""
    global _control, _read_at
    if time.monotonic() - _read_at > 0.1:
        _read_at = time.monotonic()
        try:
            with _REAL_OPEN(os.path.join(LAB, "control.json"), encoding="utf-8") as file:  # noqa: PTH118
                _control = json.load(file)
        except FileNotFoundError:
            _control = {}
    return _control


# -- the clock -------------------------------------------------------------------------------------------------------


def _back_seconds() -> float:
    return float(control().get("back_seconds", 0.0))


class _Datetime(_REAL_DATETIME):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        return _REAL_DATETIME.now(tz) - datetime.timedelta(seconds=_back_seconds())


time.time = lambda: _REAL_TIME() - _back_seconds()
time.time_ns = lambda: _REAL_TIME_NS() - int(_back_seconds() * 1e9)
datetime.datetime = _Datetime  # type: ignore[misc]


# -- listings --------------------------------------------------------------------------------------------------------


def _mkdir(path: Any, *arguments: Any, **options: Any) -> None:
    _REAL_MKDIR(path, *arguments, **options)
    if not isinstance(path, int):
        place = os.path.abspath(lying_files.full(path, options.get("dir_fd")))  # noqa: PTH100
        line = json.dumps({"path": place, "at": time.monotonic(), "pid": os.getpid()})
        _append("made.jsonl", line + "\n")


def _hidden(folder: Any) -> set[str]:
    """Names that others have put into a folder too lately to be seen."""
    lag = float(control().get("lag_seconds", 0.0))
    late = control().get("rename_lag_seconds")
    if not (lag or late):
        return set()
    folder = os.readlink(f"/proc/self/fd/{folder}") if isinstance(folder, int) else folder  # noqa: PTH115
    place = os.path.abspath(os.fspath(folder))  # noqa: PTH100
    if not place.startswith(control()["below"]):
        return set()
    names = lying_files.unseen_names(place)
    try:
        with _REAL_OPEN(os.path.join(LAB, "made.jsonl"), encoding="utf-8") as file:  # noqa: PTH118
            for line in file:
                made = json.loads(line)
                parent, _, name = made["path"].rpartition("/")
                if parent == place and made["pid"] != os.getpid() and time.monotonic() - made["at"] < lag:
                    names.add(name)
    except FileNotFoundError:
        pass
    if names:
        _append("lagged.txt", f"{place}: {' '.join(sorted(names))}\n")
    return names


def _listdir(path: Any = ".") -> Any:
    hidden = _hidden(path)
    return [name for name in _REAL_LISTDIR(path) if name not in hidden]


class _Scan:
    """What ``os.scandir`` returns, without some names."""

    def __init__(self, path: Any) -> None:
        self._hidden = _hidden(path)
        self._entries = _REAL_SCANDIR(path)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        while True:
            entry = next(self._entries)
            if entry.name not in self._hidden:
                return entry

    def __enter__(self) -> _Scan:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._entries.close()


def _scandir(path: Any = ".") -> Any:
    return _Scan(path)


os.mkdir, os.listdir, os.scandir = _mkdir, _listdir, _scandir
lying_files.install(control)


# -- counting --------------------------------------------------------------------------------------------------------


def _append(name: str, text: str) -> None:
    handle = os.open(os.path.join(LAB, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)  # noqa: PTH118
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)


def count_steps(module: Any) -> None:
    """Have each step that trains add a byte to ``steps/RUN-PID``, which a SIGKILL cannot take back.

    Before it, wait ``CHAOS_STEP_SECONDS``.
    """
    run = os.path.basename(sys.argv[-1].rstrip("/"))  # noqa: PTH119
    where = os.path.join(LAB, "steps")  # noqa: PTH118
    os.makedirs(where, exist_ok=True)  # noqa: PTH103
    file = os.path.join(where, f"{run}-{os.getpid()}")  # noqa: PTH118
    counter = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    step = module.TrainingStep.__call__
    seconds = float(os.environ.get("CHAOS_STEP_SECONDS", "0"))

    def count(self: Any, *arguments: Any, **options: Any) -> Any:
        time.sleep(seconds)
        result = step(self, *arguments, **options)
        if self.clip_norm < float("inf"):  # those of the self-check have no limit
            os.write(counter, b".")
        return result

    module.TrainingStep.__call__ = count
    lying_files.install_in_torch()

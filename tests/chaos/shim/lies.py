"""Loaded by every Python process of a chaos study: counts training steps, sets the clock back, lets files lie.

``tests/crawl/sitecustomize.py`` loads it in processes with ``SEQLM_TEST_CHAOS``: the lab's folder ``shim``, in which
``control.json`` says what to do:

    back_seconds    how far the clock of these processes is behind the machine's
    below           the folder to which what ``lying_files.py`` does applies

The clock is that of Python alone: ``time.time``, ``time.time_ns``, ``datetime.now``. Times that the kernel writes
(of files) and monotonic clocks go on, as they do where somebody sets a real clock back, apart from times of files.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
from typing import Any

import lying_files

LAB = os.environ["SEQLM_TEST_CHAOS"]  # no Path: pathlib itself looks at what is changed here
_REAL_TIME, _REAL_TIME_NS, _REAL_DATETIME = time.time, time.time_ns, datetime.datetime
_REAL_OPEN = open

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
lying_files.install(control)


# -- counting --------------------------------------------------------------------------------------------------------


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

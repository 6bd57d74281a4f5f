"""Work that goes on beside the training: one thread, one piece of work at a time."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import final

NICENESS = 10
"""Of the thread: where a core is free it loses nothing, else the training goes first."""


@final
class Background:
    """Does one thing at a time. What goes wrong in it is raised in the thread that asks, at its next question."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="writer", initializer=_be_nice)
        self._work: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin ``work`` once what was begun before has ended, and return.

        Raises:
            Exception: what that has raised.
        """
        self.wait()
        self._work = self._executor.submit(work)

    def check(self) -> None:
        """Raise what the work has raised, if it has ended."""
        if self._work is not None and self._work.done():
            self.wait()

    def wait(self) -> None:
        """Return when the work has ended; raises what it has raised, once."""
        work, self._work = self._work, None
        if work is not None:
            work.result()

    def close(self) -> None:
        """Return when nothing is under way any more; for the end, when something else may have gone wrong already."""
        self._executor.shutdown(wait=True)


def _be_nice() -> None:
    if sys.platform == "linux":  # where a thread has a niceness of its own
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)

"""The process of a launcher: the signals that end it, and its start in the background."""

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from jobs import terminal
from jobs.study.folder import launcher_of
from seqlm.errors import BackendError
from seqlm.files import append_to, make_directory
from seqlm.reading import listed, read_tail

STOP_SECONDS = 60.0
"""Time that workers have to stop before they are killed. A step at the published sizes takes seconds on a CPU."""
START_SECONDS = 120.0
"""How long a background launcher may read data before the command returns without it."""

LARGEST_END = 2**16
"""Most bytes that are read of the log of a launcher that exited, for its last line."""


@contextlib.contextmanager
def handled(signals: Iterable[signal.Signals], handler: Any) -> Iterator[None]:
    """Have a handler for these signals while the block runs."""
    before = {one: signal.signal(one, handler) for one in signals}
    try:
        yield
    finally:
        for one, former in before.items():
            signal.signal(one, former)


class Interrupts:
    """The signals that ask a launcher to end: SIGINT (Ctrl-C), SIGTERM and SIGHUP. Its loop acts on them."""

    signals: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.stop = False
        """Whether the workers are to stop between two steps."""
        self.kill = False
        """Whether the workers are to be killed: SIGINT or SIGTERM came after an earlier request."""
        self._asked = False

    def request(self) -> None:
        """Ask for the end of the launch, as the first Ctrl-C does."""
        self.stop = self._asked = True

    def noted(self) -> contextlib.AbstractContextManager[None]:
        """Note signals while a block runs. No signal raises an exception in it."""
        # A signal that the caller has set to be ignored (nohup) stays ignored.
        return handled([one for one in self.signals if signal.getsignal(one) is not signal.SIG_IGN], self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.stop = True
        if number != signal.SIGHUP:  # of a terminal that closes, kernel and shell both send it
            self.kill = self._asked
            self._asked = True


def detach(argv: Sequence[str], study_dir: Path) -> int:
    """Start a background launcher that outlives this process (``--no-wait``), and return its pid.

    Its output goes to ``launch-NNNN.log`` in the study's folder. Return once it has checked everything and lists its
    runs; after ``START_SECONDS``, say that it has not done so yet. An interrupt before that ends the launcher too.

    Raises:
        BackendError: it exited before that. The message has the last line of its log.
    """
    make_directory(study_dir)
    logs = (re.fullmatch(r"launch-([0-9]+)\.log", path.name) for path in listed(study_dir))
    log = study_dir / f"launch-{max((int(log[1]) for log in logs if log), default=0) + 1:04d}.log"
    with append_to(log) as output:
        child = subprocess.Popen(
            [sys.executable, *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    try:
        while child.poll() is None:
            holder = launcher_of(study_dir)
            if holder is not None and holder.identity.pid == child.pid and holder.has_listed:
                return child.pid
            if time.monotonic() > deadline:
                terminal.tell(f"warning: the launcher is still preparing after {START_SECONDS:g} s; see {log}")
                return child.pid
            time.sleep(0.05)
    except BaseException:
        child.terminate()
        raise
    if child.returncode:
        lines = read_tail(log, LARGEST_END).decode("utf-8", errors="replace").strip().splitlines()
        raise BackendError(f"the launcher exited at once: {lines[-1] if lines else 'no output'} (see {log})")
    return child.pid  # it finished before its queue was seen

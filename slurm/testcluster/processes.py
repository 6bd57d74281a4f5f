"""The daemons of a test cluster: started, stopped and watched through their supervisor (a process of its own)."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from seqlm.errors import BackendError

_POLL_SECONDS = 0.03


@final
class Daemons:
    """Processes that end, with all they have started, when this object is closed or this process dies.

    Args:
        folder: where each daemon's output goes, ``NAME.out``; removed at the end.
        held: kept open as long as anything lives, such as the socket that reserves the cluster's addresses.
    """

    def __init__(self, folder: Path, held: socket.socket) -> None:
        self._folder = folder
        command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("supervisor.py")), str(folder)]
        self._supervisor = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(held.fileno(),), start_new_session=True
        )

    @property
    def supervisor_pid(self) -> int:
        """All processes of the cluster are below this one."""
        return self._supervisor.pid

    def start(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> int:
        """Start a daemon in the foreground (it must not detach itself); returns its pid.

        Raises:
            BackendError: the program cannot be started.
        """
        log = str(self._folder / f"{name}.out")
        return int(self._ask(do="start", name=name, argv=list(argv), env=dict(env), log=log)["pid"])

    def stop(
        self,
        name: str,
        number: int = signal.SIGTERM,
        *,
        seconds: float = 10,
        offspring: Sequence[str] | None = None,
    ) -> None:
        """Signal a daemon and wait until it is gone, killed after so many seconds; nothing if it is not there.

        With ``offspring`` (a file, and a ``NAME=VALUE``) the processes of the cluster that have this file open or were
        started with this variable are killed first, and what is below them.
        """
        self._ask(do="stop", name=name, signal=int(number), seconds=seconds, offspring=offspring)

    def until(self, happened: Callable[[], bool], what: str, *, needs: Sequence[str] = (), seconds: float = 60) -> None:
        """Wait for something; at once an error if a daemon it needs has ended instead.

        Raises:
            BackendError: with the last line of the log that says why.
        """
        deadline = time.monotonic() + seconds
        while not happened():
            dead = [name for name in self._ask(do="dead")["dead"] if name in needs]
            if dead:
                raise BackendError(f"test cluster: {dead[0]} has ended by itself: {self.reason(dead[0])}")
            if time.monotonic() > deadline:
                reasons = "; ".join(f"{name}: {self.reason(name)}" for name in needs)
                raise BackendError(f"test cluster: {what} did not happen within {seconds:g} s; {reasons}")
            time.sleep(_POLL_SECONDS)

    def reason(self, name: str) -> str:
        """The last lines of a daemon's output that tell of errors, or its last line."""
        try:
            lines = (self._folder / f"{name}.out").read_text("utf-8", errors="replace").strip().splitlines()
        except OSError:
            lines = []
        telling = [line.strip() for line in lines if "error:" in line or "fatal:" in line]
        return "; ".join(telling[-2:] or lines[-1:] or ["no output"])

    def close(self) -> None:
        """End everything and wait for it; safe to call again."""
        if self._supervisor.stdin is not None and not self._supervisor.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._supervisor.stdin.close()
        self._supervisor.wait()
        shutil.rmtree(self._folder, ignore_errors=True)  # as the supervisor does, unless somebody has killed it
        if self._supervisor.stdout is not None:
            self._supervisor.stdout.close()

    def _ask(self, **asked: object) -> dict[str, Any]:
        assert self._supervisor.stdin is not None
        assert self._supervisor.stdout is not None
        try:
            self._supervisor.stdin.write(json.dumps(asked).encode() + b"\n")
            self._supervisor.stdin.flush()
            line = self._supervisor.stdout.readline()
        except (BrokenPipeError, ValueError):
            line = b""
        if not line:
            raise BackendError("test cluster: it has been stopped")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BackendError(f"test cluster: {answer['error']}")
        return answer

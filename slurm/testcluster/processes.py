"""Start, stop and watch the daemons of a test cluster, through their supervisor process."""

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
    """Daemons that end, with all their descendants, when this object is closed or this process exits.

    Args:
        folder: the folder of each daemon's output, ``NAME.out``. It is removed at the end.
        held: a socket kept open until all daemons have ended, such as the one that reserves the cluster's addresses.
    """

    def __init__(self, folder: Path, held: socket.socket) -> None:
        self._folder = folder
        command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("supervisor.py")), str(folder)]
        self._supervisor = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(held.fileno(),), start_new_session=True
        )

    @property
    def supervisor_pid(self) -> int:
        """Pid of the ancestor of all processes of the cluster."""
        return self._supervisor.pid

    def start(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> int:
        """Start a daemon that stays in the foreground, and return its pid.

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
        """Signal a daemon, wait until it has ended, and kill it after ``seconds``. Ignore an unknown daemon.

        With ``offspring`` (a file and a ``NAME=VALUE``), first kill the cluster's processes that have this file open or
        were started with this variable, and their descendants.
        """
        self._ask(do="stop", name=name, signal=int(number), seconds=seconds, offspring=offspring)

    def until(self, happened: Callable[[], bool], what: str, *, needs: Sequence[str] = (), seconds: float = 60) -> None:
        """Wait until ``happened`` returns true. ``what`` names this in messages.

        Raises:
            BackendError: a daemon in ``needs`` has exited, or ``seconds`` have passed. The message quotes its log.
        """
        deadline = time.monotonic() + seconds
        while not happened():
            dead = [name for name in self._ask(do="dead")["dead"] if name in needs]
            if dead:
                raise BackendError(f"test cluster: {dead[0]} has exited: {self.reason(dead[0])}")
            if time.monotonic() > deadline:
                reasons = "; ".join(f"{name}: {self.reason(name)}" for name in needs)
                raise BackendError(f"test cluster: {what} did not happen within {seconds:g} s; {reasons}")
            time.sleep(_POLL_SECONDS)

    def reason(self, name: str) -> str:
        """Return the last two error lines of a daemon's output, or else its last line."""
        try:
            lines = (self._folder / f"{name}.out").read_text("utf-8", errors="replace").strip().splitlines()
        except OSError:
            lines = []
        errors = [line.strip() for line in lines if "error:" in line or "fatal:" in line]
        return "; ".join(errors[-2:] or lines[-1:] or ["no output"])

    def close(self) -> None:
        """End all processes and wait for their end. Safe to call again."""
        if self._supervisor.stdin is not None and not self._supervisor.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._supervisor.stdin.close()
        self._supervisor.wait()
        shutil.rmtree(self._folder, ignore_errors=True)  # in case the supervisor was killed before it did this
        if self._supervisor.stdout is not None:
            self._supervisor.stdout.close()

    def _ask(self, **request: object) -> dict[str, Any]:
        assert self._supervisor.stdin is not None
        assert self._supervisor.stdout is not None
        try:
            self._supervisor.stdin.write(json.dumps(request).encode() + b"\n")
            self._supervisor.stdin.flush()
            line = self._supervisor.stdout.readline()
        except (BrokenPipeError, ValueError):
            line = b""
        if not line:
            raise BackendError("test cluster: its supervisor has ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BackendError(f"test cluster: {answer['error']}")
        return answer

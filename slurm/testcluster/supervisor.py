"""The parent process of a test cluster's daemons: ``python supervisor.py FOLDER``, with JSON requests on stdin.

When the process that owns the cluster exits for any reason, its pipe to this process closes. Then this process kills
and reaps all descendants, and removes the folder. As a subreaper, it remains the ancestor of everything that the
daemons start (slurmstepd, jobs, orphans of jobs). It imports only the standard library, to start fast and use little
memory.

Each request is one line and is answered by one line:
``{"do": "start", "name": ..., "argv": [...], "env": {...}, "log": ...}``,
``{"do": "stop", "name": ..., "signal": 15, "seconds": 10, "offspring": ["LOG", "NAME=VALUE"] or null}``
and ``{"do": "dead"}``.
"""

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, final

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_GENTLE_SECONDS = 5.0


def _stat(pid: int) -> list[str]:
    """Return the fields of ``/proc/PID/stat`` after the command, which may contain spaces: state, parent, ..."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def descendants(ancestors: Iterable[int]) -> list[int]:
    """Return the live descendants of these processes, without zombies."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 -- names alone, thousands of them
        if entry.isdigit() and (stat := _stat(int(entry))) and stat[0] not in "ZX":
            children.setdefault(int(stat[1]), []).append(int(entry))
    found, todo = [], list(ancestors)
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def belongs(pid: int, file: str, variable: str) -> bool:
    """Return whether a process has a file open, or was started with an environment variable (``NAME=VALUE``).

    A slurmstepd overwrites its variables with its title, but has its node's log open. The processes that it starts
    have the variable.
    """
    with contextlib.suppress(OSError):
        if variable.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return True
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if str(entry.readlink()) == file:
                    return True
    return False


def send(pids: Iterable[int], number: int) -> None:
    """Send a signal to each process that still exists."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@final
class Supervisor:
    """The daemons by name, and the handler of requests."""

    def __init__(self) -> None:
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        match request["do"]:
            case "start":
                return self._start(request["name"], request["argv"], request["env"], request["log"])
            case "stop":
                return self._stop(request["name"], request["signal"], request["seconds"], request["offspring"])
            case "dead":
                return {"dead": [name for name, daemon in self._daemons.items() if daemon.poll() is not None]}
            case other:
                return {"error": f"expected start, stop or dead, got {other}"}

    def _start(self, name: str, argv: list[str], env: dict[str, str], log: str) -> dict[str, Any]:
        with open(log, "ab") as stream:  # noqa: PTH123
            try:
                daemon = subprocess.Popen(
                    argv,
                    env=env,
                    cwd=os.path.dirname(log),  # noqa: PTH120
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    preexec_fn=_die_with_parent,
                )
            except OSError as error:
                return {"error": f"cannot start {argv[0]}: {error.strerror}"}
        self._daemons[name] = daemon
        return {"pid": daemon.pid}

    def _stop(self, name: str, number: int, seconds: float, offspring: list[str] | None) -> dict[str, Any]:
        """Signal a daemon and wait for its end. First kill the processes with ``belongs(pid, *offspring)``."""
        daemon = self._daemons.pop(name, None)
        if offspring is not None:
            roots = [pid for pid in descendants([os.getpid()]) if belongs(pid, *offspring)]
            doomed = [*roots, *descendants(roots)]
            send(doomed, signal.SIGKILL)
            self._wait_for_end(doomed)
        if daemon is None:
            return {"code": None}
        send([daemon.pid], number)
        try:
            return {"code": daemon.wait(seconds)}
        except subprocess.TimeoutExpired:
            daemon.kill()
            return {"code": daemon.wait()}

    def _wait_for_end(self, pids: list[int]) -> None:
        """Wait until killed processes have ended, then reap orphans, which exist until that is done."""
        deadline = time.monotonic() + _GENTLE_SECONDS
        while time.monotonic() < deadline and any((_stat(pid) or "X")[0] not in "ZX" for pid in pids):
            time.sleep(0.01)
        self.reap()

    def reap(self) -> None:
        """Reap ended orphans. Daemons are left to ``Popen.poll``, which needs their exit status."""
        daemons = {daemon.pid for daemon in self._daemons.values()}
        for entry in os.listdir("/proc"):  # noqa: PTH208
            if entry.isdigit() and int(entry) not in daemons:
                stat = _stat(int(entry))
                if stat and stat[0] == "Z" and int(stat[1]) == os.getpid():
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(int(entry), os.WNOHANG)

    def end_all(self) -> None:
        """Terminate the daemons, then kill all remaining descendants until none is left."""
        send((daemon.pid for daemon in self._daemons.values() if daemon.poll() is None), signal.SIGTERM)
        deadline = time.monotonic() + _GENTLE_SECONDS
        while time.monotonic() < deadline and any(daemon.poll() is None for daemon in self._daemons.values()):
            time.sleep(0.02)
        while left := descendants([os.getpid()]):
            send(left, signal.SIGKILL)
            time.sleep(0.02)
            self.reap()
            for daemon in self._daemons.values():
                daemon.poll()


def _die_with_parent() -> None:
    """Have the kernel kill a daemon if this process is killed. Jobs then run until their time limit."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main() -> None:
    """Answer requests until the pipe is closed."""
    folder = sys.argv[1]
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it ends only with its pipe, so that nothing is left running
    supervisor = Supervisor()
    buffered = b""
    try:
        while True:
            if not select.select([0], [], [], 1.0)[0]:
                supervisor.reap()
                continue
            read = os.read(0, 65536)
            if not read:
                return
            *lines, buffered = (buffered + read).split(b"\n")
            for line in lines:
                os.write(1, json.dumps(supervisor.answer(json.loads(line))).encode() + b"\n")
    except BrokenPipeError:
        return
    finally:
        supervisor.end_all()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()

"""One rank's place on a node of a Ray cluster: an actor that holds the rank's cores and GPU and runs its process.

The rank is a process of its own, with the same command line as on every backend: Ray's own processes hold GPUs and
threads for nobody else, a crash of the rank is an exit code, and nothing of ours is pickled but the names in here.
Standard library alone, apart from Ray: nodes need nothing of the launcher's.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, final

import ray

_SIOCGIFADDR = 0x8915
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a rank will run, as its host found it."""

    node: str
    """Ray's id of the node."""
    address: str
    """The node's address, as the other nodes know it."""
    interface: str | None
    """Network interface with that address."""
    device: str | None
    """The GPU that Ray gave to this rank, as for CUDA_VISIBLE_DEVICES."""
    free_port: int
    """A port that was free a moment ago, for the ranks to meet at."""
    sees_run: bool
    """Whether the run's folder is there."""


@final
class RankHost:
    """The actor. ``run`` takes as long as the rank does; the other methods are called beside it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._stopped: signal.Signals | None = None

    def site(self, run_dir: str) -> Site:
        """Look around, before each run."""
        self._process, self._stopped = None, None
        context = ray.get_runtime_context()
        devices = context.get_accelerator_ids().get("GPU", [])
        address = ray.util.get_node_ip_address()
        with socket.socket() as listener:
            listener.bind((address, 0))
            port = listener.getsockname()[1]
        return Site(
            node=context.get_node_id(),
            address=address,
            interface=_interface_of(address),
            device=devices[0] if devices else None,
            free_port=port,
            sees_run=Path(run_dir).is_dir(),
        )

    def run(
        self, argv: Sequence[str], variables: Mapping[str, str], cwd: str | None, stdout: str, stderr: str
    ) -> tuple[int, str]:
        """Run a rank's process to its end; returns its exit code (negative: a signal), and why it could not start.

        ``argv`` without the interpreter, which is the one that this actor runs in; ``cwd`` none for the code that came
        with the actor.
        """
        try:
            with Path(stdout).open("ab") as out, Path(stderr).open("ab") as err, self._lock:
                if self._stopped is not None:
                    return 128 + signal.SIGTERM, ""
                self._process = _start([sys.executable, *argv], variables, cwd or str(Path.cwd()), out, err)
        except OSError as error:
            return 1, f"cannot start the worker on {socket.gethostname()}: {error}"
        return self._process.wait(), ""

    def stop(self, number: int) -> None:
        """Send a signal to the rank's process, or keep it from starting."""
        with self._lock:
            self._stopped = signal.Signals(number)
            if self._process is not None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.send_signal(number)


def _start(
    argv: Sequence[str], variables: Mapping[str, str], cwd: str, stdout: IO[bytes], stderr: IO[bytes]
) -> subprocess.Popen[bytes]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env.update(variables)
    env["PYTHONPATH"] = os.pathsep.join([cwd, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        argv,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        process_group=0,
        preexec_fn=_die_with_the_host,
    )


_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _die_with_the_host() -> None:
    """In the new process: whatever ends the actor (its node, its driver, Ray itself) ends the rank as well.

    A rank that outlived its host would write beside the attempt that replaces it. Ray blocks SIGINT in its processes;
    ranks get the signals of an ordinary one.
    """
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _interface_of(address: str) -> str | None:
    """The network interface that has an IPv4 address, none where the system does not tell."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(asker.fileno(), _SIOCGIFADDR, request)
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None

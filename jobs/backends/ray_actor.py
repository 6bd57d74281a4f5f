"""One rank's place on a node of a Ray cluster: an actor that holds the rank's cores and GPU and runs its process.

The rank is a process of its own, with the same command line as on every backend: Ray's own processes hold GPUs and
threads for nobody else, a crash of the rank is an exit code, and nothing of ours is pickled but the names in here.
Nodes need nothing else of the launcher's.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import ray

from jobs.attempt.memory_kills import count, own_files
from jobs.attempt.rank import interface_of, start_rank
from seqlm import machine
from seqlm.errors import EXIT_FAILED, EXIT_STOPPED
from seqlm.rundir import append_to


@dataclass(frozen=True, kw_only=True)
class RankLocation:
    """Where a rank will run, as its host found it."""

    node: str
    """Ray's id of the node."""
    address: str
    """The node's address, as the other nodes know it."""
    interface: str | None
    """Network interface with that address."""
    device: str | None
    """The GPU that Ray gave to this rank, as for CUDA_VISIBLE_DEVICES: by UUID if Ray's index is certain."""
    sees_run: bool
    """Whether the run's folder is there."""


@dataclass(frozen=True, kw_only=True)
class RankEnd:
    """How a rank's process ended, as its host saw it."""

    code: int
    """Exit code; negative: the signal that killed it."""
    problem: str = ""
    """Why it could not start."""
    memory_kills: tuple[int, int] = (0, 0)
    """How many processes of the host's control group the system had killed for their memory, before and after."""


@final
class RankHost:
    """The actor. ``run`` takes as long as the rank does; the other methods are called beside it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._stopped: signal.Signals | None = None

    def location(self, run_dir: str) -> RankLocation:
        """Look around, before each run."""
        self._process, self._stopped = None, None
        context = ray.get_runtime_context()
        devices = context.get_accelerator_ids().get("GPU", [])
        address = ray.util.get_node_ip_address()
        return RankLocation(
            node=context.get_node_id(),
            address=address,
            interface=interface_of(address),
            device=machine.addressed(devices[0]) if devices else None,
            sees_run=Path(run_dir).is_dir(),
        )

    def run(
        self, argv: Sequence[str], variables: Mapping[str, str], cwd: str | None, stdout: str, stderr: str
    ) -> RankEnd:
        """Run a rank's process to its end.

        ``argv`` without the interpreter, which is the one that this actor runs in; ``cwd`` none for the code that came
        with the actor.
        """
        counters = own_files()
        before = count(counters)
        try:
            with append_to(Path(stdout)) as out, append_to(Path(stderr)) as err, self._lock:
                if self._stopped is not None:
                    return RankEnd(code=EXIT_STOPPED)
                self._process = start_rank([sys.executable, *argv], variables, cwd or str(Path.cwd()), out, err)
        except OSError as error:
            return RankEnd(code=EXIT_FAILED, problem=f"cannot start the worker on {socket.gethostname()}: {error}")
        code = self._process.wait()
        return RankEnd(code=code, memory_kills=(before, count(counters)))

    def stop(self, number: int) -> None:
        """Send a signal to the rank's process, or keep it from starting."""
        with self._lock:
            self._stopped = signal.Signals(number)
            if self._process is not None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.send_signal(number)

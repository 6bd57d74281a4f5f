"""The actor of one rank on a node of a Ray cluster: it holds the rank's cores and GPU and runs its process.

The rank is a process of its own, with the same command line as on every backend. So Ray's processes hold no GPU and no
threads, a crash of the rank is an exit code, and only the names in this module and a ``Submission`` are pickled.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import ray

from jobs.attempt.memory_kills import own_kill_count
from jobs.attempt.supervisor import Supervisor, interface_of
from jobs.spec import Submission
from seqlm import machine
from seqlm.errors import EXIT_FAILED, EXIT_STOPPED, FileError


@dataclass(frozen=True, kw_only=True)
class RankLocation:
    """Where a rank will run, as its actor reports it."""

    node: str
    """Ray's id of the node."""
    address: str
    """The node's address in the cluster."""
    interface: str | None
    """Network interface with that address."""
    device: str | None
    """The GPU that Ray assigned to this rank, for CUDA_VISIBLE_DEVICES: its UUID if Ray's index is unambiguous."""
    sees_run: bool
    """Whether the run's folder exists there."""


@dataclass(frozen=True, kw_only=True)
class RankEnd:
    """How a rank's process ended, as its actor reports it."""

    code: int
    """Exit code; negative: the signal that killed it."""
    problem: str = ""
    """Why it could not start."""
    memory_kills: tuple[int, int] = (0, 0)
    """Out-of-memory kills in the actor's control group, before the rank started and after it ended."""


@final
class RankHost:
    """The actor of one rank. ``run`` takes as long as the rank does; Ray calls ``stop`` in another thread."""

    def __init__(self) -> None:
        self._ranks: Supervisor | None = None
        self._lock = threading.Lock()
        self._is_stopped = False

    def location(self, run_dir: str) -> RankLocation:
        """Return where this actor is, before each run."""
        self._ranks, self._is_stopped = None, False
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

    def run(self, submission: Submission, rank: int, variables: Mapping[str, str], *, own_code: bool) -> RankEnd:
        """Run a rank's process to its end.

        Args:
            submission: the attempt. The interpreter is that of this actor, whatever its ``argv`` names.
            rank: from 0.
            variables: of :func:`jobs.attempt.supervisor.rank_variables`.
            own_code: whether to run the code that came with the actor, in place of that at ``submission.cwd``.
        """
        before = own_kill_count()
        cwd = Path.cwd() if own_code else submission.cwd
        ranks = Supervisor(replace(submission, argv=(sys.executable, *submission.argv[1:]), cwd=cwd))
        try:
            with self._lock:
                if self._is_stopped:
                    return RankEnd(code=EXIT_STOPPED)
                ranks.start(rank, variables)
                self._ranks = ranks
        except (OSError, FileError) as error:
            return RankEnd(code=EXIT_FAILED, problem=f"cannot start the worker on {socket.gethostname()}: {error}")
        code = ranks.wait()
        return RankEnd(code=code, memory_kills=(before, own_kill_count()))

    def stop(self, number: int) -> None:
        """Send a signal to the rank's process. A rank that has not started yet does not start."""
        with self._lock:
            self._is_stopped = True
            if self._ranks is not None:
                self._ranks.signal(signal.Signals(number))

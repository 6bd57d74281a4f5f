"""The ranks of one attempt on this node: their variables, their start, their signals and their end.

The local backend supervises all ranks of a run, the actor of the Ray backend one, and a scheduler's job those of its
node.
"""

import contextlib
import ctypes
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, final

from jobs.manifests.policy import Policy
from jobs.spec import Submission
from seqlm import environment, machine
from seqlm.errors import EXIT_FAILED, EXPLAINING_EXITS, OWN_SIGNALS, STOPPED_EXITS, STORAGE_EXITS, FileError
from seqlm.files import append_to, make_directory
from seqlm.gpus import Claim
from seqlm.machine import own_groups
from seqlm.reading import read_tail
from seqlm.records.base import Record
from seqlm.rundir import RunDirectory
from seqlm.search import Search
from seqlm.state import FailureKind

PEER_GRACE_SECONDS = 10.0
"""How long the other ranks of a run may take to notice that one has failed, before they are killed."""

KILL_SECONDS = 10.0
"""How long a rank may take to end after SIGKILL. One that waits for a device or file system may take forever."""

LARGEST_LAST_LINE = 2**16
"""Bytes read from the end of a worker's log for the message of its failure."""

INTERFACE_VARIABLE = "GLOO_SOCKET_IFNAME"
"""Network interface on which Gloo meets the other ranks."""

SHORT_SPIN = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
"""Variables of the OpenMP libraries of GNU, and of Intel and LLVM (milliseconds): how long a thread that waits for work
spins before it sleeps. By default it spins so long that another program on its core makes a run up to 200 times slower
(docs/project/decisions/attempts.md)."""


# -- variables -----------------------------------------------------------------------------------------------------


def worker_variables(policy: Policy, search: Search | None = None) -> dict[str, str]:
    """Return the variables that every worker of a study gets, on every backend."""
    return {
        environment.CHECKPOINT_MINUTES.name: f"{policy.checkpoint_min:g}",
        environment.KEEP_LAST.name: "1" if policy.keep_last else "0",
        environment.KEEP_EPOCHS.name: ",".join(map(str, policy.keep_epochs)),
        **({} if search is None else {environment.SEARCH.name: search.to_text()}),
    }


def progress_variables(seconds: float | None) -> dict[str, str]:
    """Return the variable that sets how often workers write ``progress.json``. ``None``: their default."""
    return {} if seconds is None else {environment.PROGRESS_SECONDS.name: f"{seconds:g}"}


def rank_variables(
    submission: Submission,
    rank: int,
    device: str | None,
    *,
    node: str | None = None,
    first_host: str = "127.0.0.1",
    interface: str | None = None,
    cores: int | None = None,
) -> dict[str, str]:
    """Return the variables of one rank, counted from 0.

    Those of the submission override ours, except for what says which rank this is and where it meets the others. So a
    manifest may set ``SEQLM_DEVICE`` or ``GLOO_SOCKET_IFNAME``. The first rank listens on a free port of
    ``first_host`` and writes it into a file of the attempt (:mod:`seqlm.training.distributed`).

    ``device`` is the GPU of the rank (``None``: the processor), ``node`` the name of its node for the record,
    ``first_host`` the address of the first rank's node, ``interface`` the network interface with the node's own
    address, and ``cores`` the most threads that the rank gets.
    """
    resources = submission.resources
    threads = str(resources.cpus if cores is None else min(resources.cpus or 1, cores))
    variables = {
        environment.DEVICE.name: "cpu" if device is None else "cuda",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        **submission.env,
        machine.VISIBLE: device or "",
        **({environment.GPU_SHARE.name: f"{resources.gpus:g}"} if device is not None else {}),
        "RANK": str(rank),
        "WORLD_SIZE": str(resources.ranks),
        "LOCAL_RANK": "0",
    }
    if node is not None:
        variables[environment.NODE.name] = node
    if resources.ranks > 1:
        meeting = RunDirectory(submission.run_dir).attempt_dir(submission.attempt) / "rendezvous"
        variables[environment.RENDEZVOUS.name] = str(meeting.absolute())
        variables[environment.RENDEZVOUS_HOST.name] = first_host
        if interface:
            variables.setdefault(INTERFACE_VARIABLE, interface)
    return variables


def interface_of(host: str) -> str | None:
    """Return the network interface with the IPv4 address of ``host``, an address or a name. ``None``: not found."""
    import psutil  # only for several ranks in a job or on Ray

    with contextlib.suppress(OSError):
        address = socket.gethostbyname(host)
        for name, addresses in psutil.net_if_addrs().items():
            if any(found.address == address for found in addresses):
                return str(name)
    return None


# -- processes -----------------------------------------------------------------------------------------------------

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@final
class Supervisor:
    """The processes of the ranks of one attempt that run on this node."""

    def __init__(
        self,
        submission: Submission,
        *,
        memory_kills: "MemoryKills",
        host: str | None = None,
    ) -> None:
        """Start nothing yet.

        ``memory_kills`` are the kills of this node, shared by all attempts that this process starts.
        ``host`` is this node's name, for messages.
        """
        self._submission = submission
        self._memory_kills = memory_kills
        self._kills_before = own_kill_count()
        self._host = host
        self._failed_at: float | None = None
        """When a rank was first seen to have failed, here or on another node, on the monotonic clock."""
        self._left_behind: set[int] = set()
        """Ranks that were killed here, since they had not noticed that another one failed."""
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def pid(self) -> int:
        """Process id of the first rank on this node."""
        return next(iter(self._processes.values())).pid

    def start(self, rank: int, variables: Mapping[str, str], *, claim: Claim | None = None) -> None:
        """Start a rank, whose output is appended to this node's logs of the attempt.

        ``variables`` are its :func:`rank_variables`. ``claim`` is the booking of its GPU, which it holds from then on.
        ``None``: nobody books it.

        Raises:
            OSError: the process cannot be started, or a log cannot be opened.
            FileError: the folder of the logs cannot be made; no rank has started.
        """
        submission, run = self._submission, RunDirectory(self._submission.run_dir)
        number = submission.attempt
        if not self._processes:
            make_directory(run.attempt_dir(number))
        first = next(iter(self._processes), rank)
        with append_to(run.stdout_log(number, first)) as stdout, append_to(run.stderr_log(number, first)) as stderr:
            self._processes[rank] = start_rank(submission.argv, variables, str(submission.cwd), stdout, stderr, claim)

    def peer_failed(self) -> None:
        """Note that a rank has failed: the others have ``PEER_GRACE_SECONDS`` to notice."""
        self._failed_at = self._failed_at or time.monotonic()

    def poll(self) -> "Ended | None":
        """Return how the ranks here ended; ``None`` while one lives. Ranks that outlive a failed one are killed."""
        polled = {rank: process.poll() for rank, process in self._processes.items()}
        if any(polled.values()):
            self.peer_failed()
        if self._failed_at is not None and time.monotonic() - self._failed_at > PEER_GRACE_SECONDS:
            self._left_behind |= {rank for rank, code in polled.items() if code is None}
            self.signal(signal.SIGKILL)
        codes = {rank: code for rank, code in polled.items() if code is not None}
        if len(codes) < len(polled):
            return None
        codes |= dict.fromkeys(self._left_behind, EXIT_FAILED)  # what killed them explains nothing
        killed = next((rank for rank, code in codes.items() if code == -signal.SIGKILL), None)
        if killed is not None and not self._memory_kills.explain_one(self._kills_before):
            killed = None
        return ended(codes, self._submission.resources.ranks, out_of_memory=killed, host=self._host)

    def follow(
        self,
        poll_seconds: float,
        *,
        is_stopped: Callable[[], bool],
        has_peer_failed: Callable[[], bool],
        stop_seconds: Callable[[], float] = lambda: math.inf,
    ) -> "Ended":
        """Wait for the ranks here, and return how they ended. The conditions are about the other nodes and the user.

        If the run ``is_stopped``, they are asked to stop between two steps, and killed ``stop_seconds`` later.
        """
        deadline: float | None = None
        while (ended := self.poll()) is None:
            if deadline is None and is_stopped():
                deadline = time.monotonic() + stop_seconds()
                self.signal(signal.SIGTERM)
            if deadline is not None and time.monotonic() >= deadline:
                self.signal(signal.SIGKILL)
            if has_peer_failed():
                self.peer_failed()
            time.sleep(poll_seconds)
        return ended

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every rank that lives."""
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)


def start_rank(
    argv: Sequence[str],
    variables: Mapping[str, str],
    cwd: str,
    stdout: IO[bytes],
    stderr: IO[bytes],
    claim: Claim | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``argv`` in ``cwd``, which holds the code, in a process group that Ctrl-C of this terminal does not reach.

    Modules are searched in ``cwd`` first, then in the ``PYTHONPATH`` of ``variables``, then in that of this process.
    Threads that wait spin for a short time only, unless the user has set how they wait.
    On Linux the process ends with this one. It inherits the lock of ``claim``, if there is one.

    Raises:
        OSError: the process cannot be started.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env.update(variables)
    searched = [str(Path(cwd).absolute()), variables.get("PYTHONPATH"), os.environ.get("PYTHONPATH")]
    env["PYTHONPATH"] = os.pathsep.join(filter(None, searched))
    if not env.keys() & {*SHORT_SPIN, "OMP_WAIT_POLICY"}:
        env.update(SHORT_SPIN)
    process = subprocess.Popen(
        argv,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        process_group=0,
        preexec_fn=_in_the_new_process,
        pass_fds=() if claim is None else (claim.handle,),
    )
    if claim is not None:
        claim.hand_over(process.pid)
    return process


def die_with_the_parent() -> None:
    """Have the kernel kill this process if its parent ends: a node is lost, a job is killed.

    A rank that outlived its host would write to the files of the attempt that replaces it.
    """
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _in_the_new_process() -> None:
    """Run between fork and exec. Ray blocks SIGINT in its processes, so the signal mask is reset."""
    die_with_the_parent()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


# -- kills for memory ----------------------------------------------------------------------------------------------

COUNTS = ("memory.events", "memory.oom_control")
"""The kernel's files with the number of kills in a group, of versions 2 and 1 of control groups."""


def kill_count(files: list[Path]) -> int:
    """Return the number of out-of-memory kills so far, from the first file that holds it; 0 if none does."""
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            for line in file.read_text("utf-8").splitlines():
                name, _, number = line.partition(" ")
                if name == "oom_kill":
                    return int(number)
    return 0


def own_kill_count() -> int:
    """Return the number of out-of-memory kills so far in the group of this process."""
    return kill_count([group / name for group in own_groups() for name in COUNTS])


@final
class MemoryKills:
    """The kills on this node for memory, since SIGKILL has no visible sender. Each explains one killed rank.

    Linux counts them for each control group. Containers, systemd and schedulers start processes in groups with a limit.
    """

    def __init__(self) -> None:
        self._explained = 0

    def explain_one(self, before: int) -> bool:
        """Return whether a process ended by SIGKILL because the node was out of memory. Uses up one kill.

        ``before``: the kills that had been counted when the process started.
        """
        explained = max(self._explained, before)
        if own_kill_count() <= explained:
            return False
        self._explained = explained + 1
        return True


# -- how an attempt ended --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Ended(Record):
    """How the ranks of an attempt ended. What the attempt achieved is read from the run directory.

    In a job with several nodes, each node but the first records its own in ``node-1.json``, ...
    """

    exit_code: int
    """Exit code of the rank that explains the others. Negative: the signal that killed it, or its node is gone."""
    message: str
    """The same for a person, such as ``rank 1 was killed by SIGKILL``."""
    out_of_memory: bool = False
    """Whether the system killed a rank because it was out of memory, as counted on the machine of that rank."""
    is_lost: bool = False
    """Whether the rank has no exit code of its own: its node or its host process is gone."""
    taken: str | None = None
    """Who has the GPU of a rank, which therefore was not started. ``None``: all ranks have started."""
    node: str | None = None
    """The node of the rank. ``None``: not known."""
    first_rank: int = 0
    """The first rank on that node, after which its logs are named."""
    stopped_for: str = ""
    """Why the backend has stopped it. Empty: it has not, or nobody knows."""


def first_cause(ends: Sequence[Ended]) -> Ended:
    """Return how an attempt ended, from how its ranks on each node did."""
    return min(ends, key=lambda end: (end.taken is None, not end.out_of_memory, _rank_of_cause(end.exit_code)))


def _rank_of_cause(code: int) -> int:
    """Return the sort key of an exit code; the lowest explains the others best."""
    if code < 0 and code not in OWN_SIGNALS:
        return 0
    if code in EXPLAINING_EXITS:
        return 1
    if code in OWN_SIGNALS:
        return 2
    return 4 if code == 0 else 3


def ended(codes: Mapping[int, int], ranks: int, *, out_of_memory: int | None = None, host: str | None = None) -> Ended:
    """Return how an attempt of ``ranks`` ranks ended, from the exit codes by rank of those on this node.

    A rank that was killed explains the others best, then one whose exit code names a cause, then one that aborted. A
    rank with exit code 1 may only have lost another rank; on a full disk the one that met it first could not write why.

    ``out_of_memory`` is a rank that the system killed for its memory, which explains all others. The message names
    the node ``host``.
    """
    if not any(codes.values()):
        return Ended(exit_code=0, message="ended")
    rank = out_of_memory
    if rank is None:
        rank = min(codes, key=lambda one: (_rank_of_cause(codes[one]), one))
    code = codes[rank]
    how = f"ended with exit code {code}"
    if code < 0:
        how = f"was killed by signal {-code}"
        with contextlib.suppress(ValueError):
            how = f"was killed by {signal.Signals(-code).name}"
    who = f"rank {rank}" if ranks > 1 else "the worker"
    where = f" on {host}" if host else ""
    return Ended(
        exit_code=code,
        message=f"{who} {how}{where}",
        out_of_memory=out_of_memory is not None,
        node=host,
        first_rank=min(codes),
    )


def cause(ended: Ended, stderr_log: Path) -> tuple[FailureKind, str]:
    """Return the kind of a failure and its message."""
    last_line = ""
    with contextlib.suppress(OSError, FileError):
        text = read_tail(stderr_log, LARGEST_LAST_LINE).decode("utf-8", errors="replace")
        last_line = "".join(text.strip().splitlines()[-1:]).strip()
    if ended.exit_code in STOPPED_EXITS and ended.stopped_for:
        return "preempted", f"stopped, since {ended.stopped_for}"
    if ended.exit_code in STOPPED_EXITS:
        return "preempted", f"{ended.message}; another process stopped it (is the node being drained?)"
    if ended.out_of_memory:
        return "oom", f"{ended.message}, by the system, which was out of memory"
    if ended.exit_code in STORAGE_EXITS:
        return "node", last_line or "its files could not be written (is the disk full, or a quota used up?)"
    if ended.exit_code < 0:
        was_killed = ended.exit_code == -signal.SIGKILL and not ended.is_lost
        hint = " (by a person, or by the system when memory ran out)" if was_killed else ""
        return "node", f"{ended.message}{hint}"
    return "code", f"{ended.message}: {last_line}" if last_line else ended.message

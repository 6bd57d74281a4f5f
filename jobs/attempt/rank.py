"""What every backend that starts processes itself has in common: a rank's variables, and what its exit says."""

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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from jobs.spec import Submission
from seqlm import machine
from seqlm.errors import EXPLAINING_EXITS
from seqlm.rundir import RunDirectory

PEER_GRACE_SECONDS = 10.0
"""How long the other ranks of a run may take to notice that one has failed before they are ended."""


def rank_variables(submission: Submission, rank: int, device: str | None) -> dict[str, str]:
    """The variables of rank ``rank``, which computes on GPU ``device``, or its share of it, or without one.

    Those of the submission go first, apart from what says which rank this is: so a manifest may set ``SEQLM_DEVICE``.
    """
    resources = submission.resources
    return {
        "SEQLM_DEVICE": "cpu" if device is None else "cuda",
        "OMP_NUM_THREADS": str(resources.cpus),
        "MKL_NUM_THREADS": str(resources.cpus),
        **submission.env,
        machine.VISIBLE: device or "",
        **({machine.SHARE_VARIABLE: f"{resources.gpus:g}"} if device is not None else {}),
        "RANK": str(rank),
        "WORLD_SIZE": str(resources.ranks),
        "LOCAL_RANK": "0",
    }


def rendezvous_variables(run: RunDirectory, attempt: int, first_host: str) -> dict[str, str]:
    """The variables with which the ranks of an attempt find each other.

    The first rank listens on a port of ``first_host`` and writes it into the file (``seqlm.training.distributed``).
    """
    meeting = run.attempt_dir(attempt) / "rendezvous"
    return {"SEQLM_RENDEZVOUS": meeting.absolute().as_uri(), "SEQLM_RENDEZVOUS_HOST": first_host}


def ended(codes: Sequence[int], lost: Mapping[int, str] | None = None, out_of_memory: Collection[int] = ()) -> Ended:
    """How a run ended whose ranks ended with ``codes``; ``lost`` says for some of them what became of their host.

    The first of ``lost`` is the one that was lost first. ``out_of_memory`` are the ranks that the system killed because
    it was out of memory: the others only lost those.
    """
    failed = [(code, rank) for rank, code in enumerate(codes) if code]
    if not failed:
        return Ended(exit_code=0, message="ended")
    if out_of_memory:
        rank = min(out_of_memory)
        who = f"rank {rank}" if len(codes) > 1 else "the worker"
        return Ended(exit_code=codes[rank], message=f"{who} {describe_exit(codes[rank])}", out_of_memory=True)
    if lost:  # the first that was lost explains the others
        rank, message = next(iter(lost.items()))
        return Ended(exit_code=codes[rank], message=message)
    code, rank = min(failed, key=_explains)
    who = f"rank {rank}" if len(codes) > 1 else "the worker"
    return Ended(exit_code=code, message=f"{who} {describe_exit(code)}")


def _explains(failed: tuple[int, int]) -> tuple[int, int]:
    """Sorts ranks that failed, as (exit code, rank), by how much they explain.

    First one that a signal killed, then one that had a word of its own for it, such as a full disk: the others, with
    exit code 1, may only have lost that one, and where the disk is full they could not write down so much.
    """
    code, rank = failed
    return (0 if code < 0 else 1 if code in EXPLAINING_EXITS else 2, rank)


def describe_exit(code: int) -> str:
    """What an exit code means; a negative one is a signal: ``was killed by SIGKILL``."""
    if code >= 0:
        return f"ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a job ended, as its backend saw it. What it achieved is read from the run directory."""

    exit_code: int
    """Exit code of the worst rank; negative: the signal that killed it, or would have (its node is gone)."""
    message: str
    """The same for a person, such as ``rank 1 was killed by SIGKILL``."""
    out_of_memory: bool = False
    """Whether the system killed a rank because it was out of memory, as the machine where the rank ran counts it."""


_SIOCGIFADDR = 0x8915
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def start_rank(
    argv: Sequence[str], variables: Mapping[str, str], cwd: str, stdout: IO[bytes], stderr: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start ``argv`` in ``cwd``, which holds the code; it ends with this process, and is no part of its signals.

    Modules are searched in ``cwd`` first, then where ``variables`` and this process say (``PYTHONPATH``).

    Raises:
        OSError: it cannot be started.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SUBMITIT_"))}
    env.update(variables)
    searched = [cwd, variables.get("PYTHONPATH"), os.environ.get("PYTHONPATH")]
    env["PYTHONPATH"] = os.pathsep.join(filter(None, searched))
    return subprocess.Popen(
        argv,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        process_group=0,
        preexec_fn=_die_with_the_parent,
    )


def _die_with_the_parent() -> None:
    """In the new process: whatever ends the one that started it (its node, its launcher) ends it as well.

    A rank that outlived its host would write beside the attempt that replaces it. Ray blocks SIGINT in its processes;
    ranks get the signals of an ordinary one.
    """
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def interface_of(address: str) -> str | None:
    """The network interface that has an IPv4 address, none where the system does not tell."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(asker.fileno(), _SIOCGIFADDR, request)
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None

"""Starting a rank's process from a process that is no launcher: an actor of Ray, a task of SLURM.

Standard library alone, since it runs on nodes.
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
from collections.abc import Mapping, Sequence
from typing import IO

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

"""In place of Ray's ``setup_worker.py`` on the nodes of tests: start a Ray worker warm (:mod:`tests.warm`).

A raylet starts this file with the arguments of Ray's own. It asks the process of all nodes (:mod:`tests.ray_nodes`) to
start the same file again, as a fork that has imported torch, with the same files, variables and folder. The fork runs
Ray's file and becomes the worker. The raylet has started another process, which Ray knows from containers: a worker
tells its own number.
"""

from __future__ import annotations

import json
import os
import runpy
import shlex
import socket
import sys
from pathlib import Path

VARIABLE = "SEQLM_TEST_RAY_WORKERS"
"""Socket on which the process of all nodes takes requests for workers."""
_execvp = os.execvp


def ask(where: str) -> None:
    """Have a worker started, and wait for its end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as nodes:
        nodes.connect(where)
        variables = {name: value for name, value in os.environ.items() if name != VARIABLE}
        asked = {"args": [sys.executable, *sys.argv], "cwd": str(Path.cwd()), "env": variables}
        socket.send_fds(nodes, [json.dumps(asked).encode()], [0, 1, 2])
        nodes.recv(1)


def become(_: str, args: list[str]) -> None:
    """In place of ``os.execvp``: do in this process what bash would do: ``cd FOLDER && exec PYTHON WORKER``."""
    os.execvp = _execvp
    words = shlex.split(args[-1])
    place = words.index("exec")
    before, (python, *argv) = words[:place], words[place + 1 :]
    assert python == sys.executable, args
    if before:
        cd, folder, then = before
        assert (cd, then) == ("cd", "&&"), args
        os.chdir(folder)
    own = [str(Path(entry).absolute()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = [str(Path(argv[0]).parent), *own, *(entry for entry in sys.path[1:] if entry not in own)]
    sys.argv[:] = argv
    runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    if VARIABLE in os.environ:
        ask(os.environ[VARIABLE])
    else:
        import ray

        os.execvp = become  # type: ignore[assignment]
        runpy.run_path(str(Path(ray.__file__).parent / "_private/workers/setup_worker.py"), run_name="__main__")

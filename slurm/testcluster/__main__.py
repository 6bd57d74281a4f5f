"""``python -m slurm.testcluster``: a real SLURM on this machine, to try a grid on without a cluster."""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from seqlm.errors import BackendError, SeqlmError, UsageError
from slurm.testcluster.cluster import LoopbackCluster
from slurm.testcluster.configuration import ClusterOptions

_OWNER = "owner"
"""The file in a cluster's folder with the pid and start time of the process that keeps the cluster up."""

_DOWN_SECONDS = 60


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    defaults = ClusterOptions()
    made = argparse.ArgumentParser(prog="python -m slurm.testcluster", description=__doc__)
    commands = made.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start a cluster, and keep it up until Ctrl-C")
    up.add_argument("--nodes", type=int, default=defaults.nodes, help="nodes, one slurmd each (default %(default)s)")
    up.add_argument("--gpus", type=int, default=defaults.gpus, help="fake GPUs per node (default %(default)s)")
    up.add_argument("--cpus", type=int, default=defaults.cpus, help="cores per node (default %(default)s)")
    up.add_argument("--memory-mb", type=int, default=defaults.memory_mb, help="memory per node (default %(default)s)")
    up.add_argument("--accounting", action="store_true", help="also start slurmdbd, so that sacct works")
    up.add_argument("--preemption", action="store_true", help="add a partition, urgent, that preempts the first")
    up.add_argument("--folder", type=Path, help="a new or empty folder with a short path (default: one in /tmp)")
    up.add_argument("--detach", action="store_true", help="return once it is up; stop it with: down --folder FOLDER")
    down = commands.add_parser("down", help="stop a detached cluster, cancel its jobs, remove its folder")
    down.add_argument("--folder", type=Path, required=True)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(arguments)
    try:
        if options.command == "down":
            take_down(options.folder)
        elif options.detach:
            detach([word for word in arguments if word != "--detach"])
        else:
            keep_up(_cluster(options))
    except SeqlmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def keep_up(cluster: LoopbackCluster) -> None:
    """Start the cluster, print how to use it, and stop it at Ctrl-C, SIGTERM or SIGHUP."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    with cluster:
        (cluster.folder / _OWNER).write_text(f"{os.getpid()} {_started(os.getpid())}", "ascii")
        size = cluster.options
        print(f"# {size.nodes} nodes of {size.cpus} cores and {size.gpus} fake GPUs; to use it in a shell:")
        print(f"export SLURM_CONF={cluster.env['SLURM_CONF']}", flush=True)
        while not stop.wait(0.5):
            pass


def detach(arguments: Sequence[str]) -> None:
    """Start the cluster in a background process, and return once it is up.

    Raises:
        UsageError, BackendError: the cluster did not start.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "slurm.testcluster", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,  # not inherited: a reader of this process's stderr would wait until the cluster ends
        start_new_session=True,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="")
        if line.startswith("export "):
            folder = Path(line.strip().partition("=")[2]).parent
            print(f"# to stop it: python -m slurm.testcluster down --folder {folder}", flush=True)
            return
    errors = process.communicate()[1].strip().splitlines() or ["no output"]
    kind = UsageError if process.returncode == UsageError.exit_code else BackendError
    raise kind(errors[-1].removeprefix("error: "))


def take_down(folder: Path) -> None:
    """Stop the cluster of a folder, and wait until its process has ended.

    Raises:
        UsageError: no cluster is running there.
        BackendError: its process does not end.
    """
    try:
        pid, started = (folder / _OWNER).read_text("ascii").split()
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder}: expected the folder of a running test cluster") from error
    if _started(int(pid)) != started:
        raise UsageError(f"{folder}: the test cluster of this folder is no longer running")
    os.kill(int(pid), signal.SIGTERM)
    deadline = time.monotonic() + _DOWN_SECONDS
    while _started(int(pid)) == started:
        if time.monotonic() > deadline:
            raise BackendError(f"test cluster: process {pid} does not end")
        time.sleep(0.05)


def _cluster(options: argparse.Namespace) -> LoopbackCluster:
    size = ClusterOptions(
        nodes=options.nodes,
        gpus=options.gpus,
        cpus=options.cpus,
        memory_mb=options.memory_mb,
        accounting=options.accounting,
        preemption=options.preemption,
    )
    return LoopbackCluster(size, options.folder)


def _started(pid: int) -> str | None:
    """Return a process's start time in clock ticks since boot, or ``None`` if it has ended. Detects reused pids."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


if __name__ == "__main__":
    sys.exit(main())

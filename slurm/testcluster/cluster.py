"""A real SLURM as a context manager."""

import os
import secrets
import signal
import stat
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self, final

from seqlm.errors import BackendError, UsageError
from slurm.testcluster.accounting import start_accounting
from slurm.testcluster.configuration import (
    SOCKET_PATH_BYTES,
    ClusterFolder,
    ClusterOptions,
    cgroup_conf,
    gres_conf,
    slurm_conf,
)
from slurm.testcluster.processes import Daemons
from slurm.testcluster.programs import SEARCHED, program, require_programs
from slurm.testcluster.slots import take_slot

_CLIENT_VARIABLES = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_")
"""Prefixes of environment variables that refer to another cluster, or to a job of one."""

_LONGEST_SPOOL_NAME = len("/spool/127.100.100.100/127.100.100.100_1000000.4294967295")
_CANCEL_SECONDS = 20


@final
class LoopbackCluster:
    """munged, slurmctld, one slurmd per node and optional accounting. All of it ends with this object or process.

    ``start`` (or ``with``) starts the cluster. SLURM's commands, and programs that call them, use this cluster in the
    environment ``env``.

    Args:
        options: size and rules of the cluster.
        folder: the folder for its files, new or empty, with a short path. It is removed at the end.
    """

    def __init__(self, options: ClusterOptions | None = None, folder: Path | None = None) -> None:
        self.options = options or ClusterOptions()
        self._wanted_folder = folder
        self._place: ClusterFolder | None = None
        self._daemons: Daemons | None = None

    # -- start and stop ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start all daemons, and wait until no node is down.

        Raises:
            BackendError: SLURM is not installed, or a daemon does not start. Nothing is left running.
            UsageError: the folder cannot be used.
        """
        require_programs(accounting=self.options.accounting)
        if os.geteuid() != 0:
            raise BackendError("test cluster: expected to be started by root (in a container, for instance)")
        slot = take_slot(self.options.nodes)
        with slot.reservation as reservation:
            self._place = ClusterFolder(folder=_make_folder(self._wanted_folder), slot=slot)
            self._daemons = Daemons(self._place.folder, held=reservation)
        try:
            self._write_files()
            self._start_daemons()
        except BaseException:
            daemons, self._daemons = self._daemons, None
            daemons.close()
            raise

    def close(self) -> None:
        """Cancel all jobs, wait for their end, stop all daemons and remove the folder. Safe to call again."""
        daemons, self._daemons = self._daemons, None
        if daemons is None:
            return
        try:
            self._end_jobs()
        finally:
            daemons.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- use -----------------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """The folder of configuration, state and logs (``slurmctld.log``, ``slurmd-NODE.log``); removed at the end."""
        return self._where.folder

    @property
    def node_names(self) -> list[str]:
        """Names of the nodes: loopback addresses, so that they resolve."""
        return [self._where.slot.node(index) for index in range(self.options.nodes)]

    @property
    def env(self) -> dict[str, str]:
        """The environment of this process, with the variables of this cluster in place of those of any other."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_CLIENT_VARIABLES)}
        return {**kept, "PATH": SEARCHED, "SLURM_CONF": str(self._where.slurm_conf)}

    def run(
        self, *argv: str, cwd: Path | None = None, seconds: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the cluster's environment, such as ``run("squeue", "-h")``.

        Raises:
            BackendError: the command fails and ``check`` is true. The message has its error output.
        """
        done = subprocess.run(
            argv, cwd=cwd or self.folder, env=self.env, capture_output=True, text=True, timeout=seconds, check=False
        )
        if check and done.returncode:
            raise BackendError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()}")
        return done

    # -- failures ------------------------------------------------------------------------------------------------

    def kill_node(self, index: int, *, with_jobs: bool = False) -> None:
        """SIGKILL a slurmd. Its jobs keep running. With ``with_jobs`` they are killed too, as in a power failure."""
        name = self._where.slot.node(index)
        offspring = [str(self._where.slurmd_log(name)), f"SLURMD_NODENAME={name}"]
        self._running.stop(f"slurmd-{name}", signal.SIGKILL, offspring=offspring if with_jobs else None)

    def start_node(self, index: int) -> None:
        """Start the slurmd of a killed node again. ``wait_for_nodes`` waits until SLURM has noticed."""
        name = self._where.slot.node(index)
        command = [program("slurmd"), "-D", "-f", str(self._where.slurm_conf), "-N", name]
        self._running.start(f"slurmd-{name}", command, self._daemon_env)

    def wait_for_nodes(self, seconds: float = 60) -> None:
        """Return when no node is down or unknown.

        Raises:
            BackendError: a node is still down after ``seconds``, or a daemon has exited.
        """
        needs = ["slurmctld", *(f"slurmd-{name}" for name in self.node_names)]

        def all_up() -> bool:
            done = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%T", check=False)
            states = done.stdout.split()
            usable = ("idle", "mixed", "allocated", "completing")
            return len(states) == self.options.nodes and all(state in usable for state in states)

        self._running.until(all_up, "the nodes' start", needs=needs, seconds=seconds)

    def stop_controller(self, *, kill: bool = False) -> None:
        """Stop slurmctld, or with ``kill`` crash it. Jobs keep running; commands fail."""
        self._running.stop("slurmctld", signal.SIGKILL if kill else signal.SIGTERM, seconds=30)

    def start_controller(self) -> None:
        """Start slurmctld from its saved state, and wait until it answers.

        Raises:
            BackendError: it does not answer.
        """
        command = [program("slurmctld"), "-D", "-f", str(self._where.slurm_conf)]
        self._running.start("slurmctld", command, self._daemon_env)

        def answers() -> bool:
            return self.run("scontrol", "ping", check=False).returncode == 0

        self._running.until(answers, "slurmctld's start", needs=["slurmctld"])

    def restart_controller(self, *, kill: bool = False) -> None:
        """Stop and start slurmctld. Jobs keep running."""
        self.stop_controller(kill=kill)
        self.start_controller()

    # -- internals -----------------------------------------------------------------------------------------------

    @property
    def supervisor_pid(self) -> int:
        """Pid of the ancestor of every process of the cluster, including its jobs."""
        return self._running.supervisor_pid

    @property
    def _where(self) -> ClusterFolder:
        assert self._place is not None, "the cluster has not been started"
        return self._place

    @property
    def _running(self) -> Daemons:
        if self._daemons is None:
            raise BackendError("test cluster: it is not running")
        return self._daemons

    @property
    def _daemon_env(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name in ("LANG", "LC_ALL", "TZ")}
        where = {"HOME": str(self.folder), "SLURM_CONF": str(self._where.slurm_conf)}
        return {**kept, **where, "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"}

    def _write_files(self) -> None:
        place, options = self._where, self.options
        for name in ("state", "spool", "dev"):
            (place.folder / name).mkdir()
        for index in range(options.gpus):
            os.mknod(place.gpu(index), stat.S_IFCHR | 0o666, os.makedev(1, 3))  # as /dev/null
        place.slurm_conf.write_text(slurm_conf(options, place), "utf-8")
        (place.folder / "gres.conf").write_text(gres_conf(options, place), "utf-8")
        (place.folder / "cgroup.conf").write_text(cgroup_conf(), "utf-8")
        place.munge_key.touch(mode=0o400)
        place.munge_key.write_bytes(secrets.token_bytes(128))

    def _start_daemons(self) -> None:
        place, daemons = self._where, self._running
        command = [program("munged"), "--foreground", "--force", f"--key-file={place.munge_key}"]
        command += [f"--socket={place.munge_socket}", f"--pid-file={place.folder}/munged.pid"]
        command += [f"--log-file={place.folder}/munged.log", f"--seed-file={place.folder}/munged.seed"]
        daemons.start("munged", command, self._daemon_env)
        daemons.until(place.munge_socket.exists, "munged's start", needs=["munged"])
        if self.options.accounting:
            start_accounting(place, daemons, self._daemon_env)
        self.start_controller()
        for index in range(self.options.nodes):
            self.start_node(index)
        self.wait_for_nodes()

    def _end_jobs(self) -> None:
        """Cancel all jobs through SLURM, since stopping a slurmd leaves its jobs running. ``close`` kills the rest."""
        if self.run("scontrol", "ping", check=False).returncode:  # ping fails at once, squeue only after a while
            return
        deadline = time.monotonic() + _CANCEL_SECONDS
        queue = self.run("squeue", "-h", "-o", "%A", check=False)
        if not queue.stdout.strip():
            return
        jobs = sorted(set(queue.stdout.split()))
        self.run("scancel", "--full", *jobs, check=False)
        while time.monotonic() < deadline and self.run("squeue", "-h", "-o", "%A", check=False).stdout.strip():
            time.sleep(0.1)


def _make_folder(wanted: Path | None) -> Path:
    """Create an empty folder that only root can use, as munged requires, with a path short enough for socket names."""
    if wanted is None:
        return Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))  # the path of TMPDIR may be too long
    folder = wanted.absolute()
    if len(os.fsencode(folder)) + _LONGEST_SPOOL_NAME > SOCKET_PATH_BYTES:
        raise UsageError(f"test cluster: the path of {folder} is too long for the sockets in it; try one in /tmp")
    if any(character.isspace() for character in str(folder)):
        raise UsageError(f"test cluster: SLURM cannot use a path with spaces: {folder}")
    try:
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"test cluster: {folder} is not empty")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"test cluster: cannot use {folder}: {error.strerror}") from error
    return folder

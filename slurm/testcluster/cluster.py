"""A real SLURM as a context manager."""

from __future__ import annotations

import os
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
"""What begins like this belongs to another cluster, or to a job of it."""

_LONGEST_SPOOL_NAME = len("/spool/127.100.100.100/127.100.100.100_1000000.4294967295")
_CANCEL_SECONDS = 20


@final
class LoopbackCluster:
    """munge, slurmctld, one slurmd for each node, accounting if wanted; all of it ends with this object or process.

    ``start`` (or ``with``) brings it up. ``env`` is the environment in which SLURM's commands, and everything that
    calls them, use this cluster.

    Args:
        options: what it is like.
        folder: where its files go, a short path, absent or empty; removed at the end.
    """

    def __init__(self, options: ClusterOptions | None = None, folder: Path | None = None) -> None:
        self.options = options or ClusterOptions()
        self._wanted_folder = folder
        self._place: ClusterFolder | None = None
        self._daemons: Daemons | None = None

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Bring it up, and wait until every node is idle.

        Raises:
            BackendError: SLURM is not installed, or something of it does not start; nothing is left running then.
            UsageError: the folder cannot be used.
        """
        require_programs(accounting=self.options.accounting)
        if os.geteuid() != 0:
            raise BackendError("test cluster: it must be started by root (in a container, for instance)")
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
        """Cancel all jobs, wait for their end, stop everything and remove the folder; safe to call again."""
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
        """Configuration, logs (``slurmctld.log``, ``slurmd-NODE.log``) and state; jobs' own files belong elsewhere."""
        return self._where.folder

    @property
    def node_names(self) -> list[str]:
        """Loopback addresses, so that they resolve."""
        return [self._where.slot.node(index) for index in range(self.options.nodes)]

    @property
    def env(self) -> dict[str, str]:
        """The environment of this process, with the variables that lead to this cluster, and none of another one's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_CLIENT_VARIABLES)}
        return {**kept, "PATH": SEARCHED, "SLURM_CONF": str(self._where.slurm_conf)}

    def run(
        self, *argv: str, cwd: Path | None = None, seconds: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the cluster, such as ``run("squeue", "-h")``.

        Raises:
            BackendError: it fails, unless ``check`` is false; the message has what it said.
        """
        done = subprocess.run(
            argv, cwd=cwd or self.folder, env=self.env, capture_output=True, text=True, timeout=seconds, check=False
        )
        if check and done.returncode:
            raise BackendError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()}")
        return done

    def node_states(self) -> dict[str, str]:
        """Such as idle, mixed, allocated, down*, for each node."""
        lines = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").stdout.split("\n")
        return dict(line.split(maxsplit=1) for line in lines if line.strip())

    # -- accidents -----------------------------------------------------------------------------------------------

    def kill_node(self, index: int, *, with_jobs: bool = False) -> None:
        """SIGKILL a slurmd. Its jobs live on, unknown to SLURM, as they do; ``with_jobs``: as if the power were cut."""
        name = self._where.slot.node(index)
        offspring = [str(self._where.slurmd_log(name)), f"SLURMD_NODENAME={name}"]
        self._running.stop(f"slurmd-{name}", signal.SIGKILL, offspring=offspring if with_jobs else None)

    def start_node(self, index: int) -> None:
        """Bring a killed node back; ``wait_for_nodes`` waits until SLURM has noticed."""
        name = self._where.slot.node(index)
        command = [program("slurmd"), "-D", "-f", str(self._where.slurm_conf), "-N", name]
        self._running.start(f"slurmd-{name}", command, self._daemon_env)

    def wait_for_nodes(self, seconds: float = 60) -> None:
        """Return when no node is down or unknown.

        Raises:
            BackendError: that does not happen in time, or a slurmd has ended.
        """
        needs = ["slurmctld", *(f"slurmd-{name}" for name in self.node_names)]

        def all_up() -> bool:
            done = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%T", check=False)
            states = done.stdout.split()
            usable = ("idle", "mixed", "allocated", "completing")
            return len(states) == self.options.nodes and all(state in usable for state in states)

        self._running.until(all_up, "the nodes' start", needs=needs, seconds=seconds)

    def stop_controller(self, *, kill: bool = False) -> None:
        """Stop slurmctld as an administrator does, or let it crash; jobs go on, commands fail."""
        self._running.stop("slurmctld", signal.SIGKILL if kill else signal.SIGTERM, seconds=30)

    def start_controller(self) -> None:
        """Start slurmctld from its saved state, and wait until it answers.

        Raises:
            BackendError: it does not.
        """
        command = [program("slurmctld"), "-D", "-f", str(self._where.slurm_conf)]
        self._running.start("slurmctld", command, self._daemon_env)

        def answers() -> bool:
            return self.run("scontrol", "ping", check=False).returncode == 0

        self._running.until(answers, "slurmctld's start", needs=["slurmctld"])

    def restart_controller(self, *, kill: bool = False) -> None:
        """Stop and start slurmctld; jobs go on."""
        self.stop_controller(kill=kill)
        self.start_controller()

    # -- inside --------------------------------------------------------------------------------------------------

    @property
    def supervisor_pid(self) -> int:
        """Every process of the cluster, its jobs' as well, is below this one."""
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
        place.munge_key.write_bytes(os.urandom(128))

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
        """Ask SLURM to: a slurmd that stops leaves its jobs running. What is still there then is killed."""
        if self.run("scontrol", "ping", check=False).returncode:  # at once; squeue would wait for it a while
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
    """An empty folder for root alone, as munged wants it; its path leaves room for the names of sockets."""
    if wanted is None:
        return Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))  # a TMPDIR may be too deep
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

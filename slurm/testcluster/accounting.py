"""Accounting of a test cluster: a database on a Unix socket and slurmdbd, so that sacct works."""

import subprocess
from collections.abc import Mapping

from seqlm.errors import BackendError
from slurm.testcluster.configuration import CLUSTER_NAME, DATABASE_NAME, ClusterFolder, slurmdbd_conf
from slurm.testcluster.processes import Daemons
from slurm.testcluster.programs import program

DAEMONS = ("mariadbd", "slurmdbd")


def start_accounting(place: ClusterFolder, daemons: Daemons, env: Mapping[str, str]) -> None:
    """Start the database and slurmdbd, which slurmctld needs.

    Raises:
        BackendError: one of them does not start.
    """
    _make_database(place, env)
    # Create the database here. If slurmdbd finds none, it creates one but keeps the connection that failed for that
    # reason, on which MariaDB's Connector/C 3.4.10 (2026) can read no further results.
    first = place.folder / "first.sql"
    first.write_text(f"CREATE DATABASE {DATABASE_NAME};\n", "ascii")
    command = [program("mariadbd"), "--no-defaults", "--user=root", f"--datadir={place.database}", "--skip-networking"]
    command += [f"--init-file={first}"]
    command += [f"--socket={place.database_socket}", f"--pid-file={place.folder}/mariadbd.pid"]
    # A small pool and no flushing to disk, since the data is deleted with the cluster.
    command += ["--innodb-buffer-pool-size=24M", "--innodb-log-file-size=8M", "--innodb-flush-log-at-trx-commit=0"]
    daemons.start("mariadbd", command, env)
    daemons.until(place.database_socket.exists, "the database's start", needs=["mariadbd"])
    place.slurmdbd_conf.write_text(slurmdbd_conf(place), "utf-8")
    place.slurmdbd_conf.chmod(0o600)  # slurmdbd requires this mode
    daemons.start("slurmdbd", [program("slurmdbd"), "-D"], {**env, "MYSQL_UNIX_PORT": str(place.database_socket)})
    command = [program("sacctmgr"), "-i", "add", "cluster", CLUSTER_NAME]

    def registered() -> bool:
        return subprocess.run(command, env=dict(env), capture_output=True, check=False).returncode == 0

    daemons.until(registered, "slurmdbd's start", needs=DAEMONS)


def _make_database(place: ClusterFolder, env: Mapping[str, str]) -> None:
    """Create an empty database system with mariadb-install-db."""
    command = [program("mariadb-install-db"), "--no-defaults", "--user=root", f"--datadir={place.database}"]
    command += ["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]
    place.database.mkdir()
    done = subprocess.run(
        command,
        env={**env, "TMPDIR": str(place.folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise BackendError(f"test cluster: mariadb-install-db: {last}")

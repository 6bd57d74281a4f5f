"""Find SLURM's programs, and say what to install if they are missing."""

import os
import shutil
from collections.abc import Iterable

from seqlm.errors import BackendError

SEARCHED = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
"""Search path for programs. The daemons are in folders that may be missing from a user's PATH."""

_SLURM = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
_ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db", "sacct", "sacctmgr")


def missing_programs(*, accounting: bool) -> list[str]:
    """Return the names of the missing programs."""
    return [
        name for name in (*_SLURM, *(_ACCOUNTING if accounting else ())) if shutil.which(name, path=SEARCHED) is None
    ]


def program(name: str) -> str:
    """Return the path of a program that :func:`require_programs` has found."""
    path = shutil.which(name, path=SEARCHED)
    assert path is not None, f"require_programs was not called for {name}"
    return path


def require_programs(*, accounting: bool) -> None:
    """Check that all programs of a test cluster are installed.

    Raises:
        BackendError: a program is missing. The message names the packages of Debian and Ubuntu, but never
            slurm-wlm-emulator, which replaces slurmctld and slurmd by versions that run nothing.
    """
    missing = missing_programs(accounting=accounting)
    if missing:
        raise BackendError(
            f"test cluster: not installed: {_listed(missing)}; on Debian or Ubuntu: apt-get install slurm-wlm munge"
            + (" slurmdbd slurm-wlm-mysql-plugin mariadb-server" if accounting else "")
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)

"""Where SLURM's programs are, and what to install where they are not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable

from seqlm.errors import BackendError

SEARCHED = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
"""The daemons are where only an administrator's PATH leads."""

_SLURM = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
_ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db", "sacct", "sacctmgr")


def missing_programs(*, accounting: bool) -> list[str]:
    """The names of those that are not there."""
    return [
        name for name in (*_SLURM, *(_ACCOUNTING if accounting else ())) if shutil.which(name, path=SEARCHED) is None
    ]


def program(name: str) -> str:
    """The path of one that has been found before."""
    path = shutil.which(name, path=SEARCHED)
    assert path is not None, f"{name} is looked for before it is used"
    return path


def require_programs(*, accounting: bool) -> None:
    """All that a test cluster needs.

    Raises:
        BackendError: with the packages to install, those of Debian and Ubuntu. Never slurm-wlm-emulator: it replaces
            slurmctld and slurmd by others that run nothing.
    """
    missing = missing_programs(accounting=accounting)
    if missing:
        raise BackendError(
            f"test cluster: not installed: {_listed(missing)}; on Debian or Ubuntu: apt-get install slurm-wlm munge"
            + (" slurmdbd slurm-wlm-mysql-plugin mariadb-server" if accounting else "")
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)

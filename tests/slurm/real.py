"""Whether a real SLURM can be brought up here: needed with CI=true, else its tests are left out."""

import os

import pytest

from slurm.testcluster.programs import missing_programs


def require_slurm(*, accounting: bool = False) -> None:
    """Skip where SLURM is not installed or this is not root; fail instead with CI=true."""
    missing = missing_programs(accounting=accounting)
    if not missing and os.geteuid() == 0:
        return
    reason = f"not installed: {', '.join(missing)}" if missing else "SLURM's daemons need root"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)

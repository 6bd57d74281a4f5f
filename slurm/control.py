"""The few things that are asked of SLURM by its own commands, each in one call."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from seqlm.errors import BackendError

CALL_SECONDS = 30.0
"""How long a command may take."""


def call(*command: str) -> str:
    """What a command of SLURM prints.

    Raises:
        BackendError: it is not installed, fails, or takes too long; the line says which and why.
    """
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=CALL_SECONDS, check=False)
    except FileNotFoundError:
        raise BackendError(f"{command[0]} is not on PATH; run this on a login node of the cluster") from None
    except subprocess.TimeoutExpired:
        raise BackendError(f"{command[0]} has not answered within {CALL_SECONDS:.0f} s; is slurmctld up?") from None
    if answer.returncode:
        said = (answer.stderr.strip() or answer.stdout.strip() or "no output").splitlines()[-1]
        raise BackendError(f"{command[0]} failed: {said}")
    return answer.stdout


def job_word(job: str) -> str | None:
    """SLURM's word for the state of one job, such as ``CANCELLED``; none where it does not say."""
    try:
        text = call("scontrol", "show", "job", job, "--oneliner")
    except BackendError:
        return None
    return next((word.partition("=")[2] for word in text.split() if word.startswith("JobState=")), None)


def requeue(job: str) -> None:
    """Put a running job back into the queue; SLURM ends its processes.

    Raises:
        BackendError: it cannot be.
    """
    call("scontrol", "requeue", job)


def scancel(jobs: Sequence[str]) -> None:
    """Cancel jobs; those that have ended are none of them.

    Raises:
        BackendError: the controller does not answer.
    """
    if jobs:
        call("scancel", "--quiet", *jobs)

"""The few things that are asked of SLURM by its own commands, each in one call."""

from __future__ import annotations

import json
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


def job_words(number: int) -> list[str]:
    """SLURM's words for the state of one job by its own number, such as ``CANCELLED`` and ``COMPLETING``.

    Only the JSON form tells why a job is completing: one that is requeued is ``PENDING`` already. Empty where SLURM
    does not say, or is older than JSON.
    """
    try:
        jobs = json.loads(call("scontrol", "--json", "show", "job", str(number)))["jobs"]
        (words,) = [job["job_state"] for job in jobs if job["job_id"] == number]
    except (BackendError, ValueError, KeyError, TypeError):
        return []
    return [words] if isinstance(words, str) else list(words)


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

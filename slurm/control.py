"""What is told to SLURM by its own commands, each in one call."""

from __future__ import annotations

import json
from collections.abc import Sequence

from seqlm.errors import BackendError
from slurm.site import ask


def job_words(number: int) -> list[str]:
    """SLURM's words for the state of one job by its own number, such as ``CANCELLED`` and ``COMPLETING``.

    Only the JSON form tells why a job is completing: one that is requeued is ``PENDING`` already. Empty where SLURM
    does not say, or is older than JSON.
    """
    try:
        jobs = json.loads(ask("scontrol", "--json", "show", "job", str(number)))["jobs"]
        (words,) = [job["job_state"] for job in jobs if job["job_id"] == number]
    except (BackendError, ValueError, KeyError, TypeError):
        return []
    return [words] if isinstance(words, str) else list(words)


def requeue(job: str) -> None:
    """Put a running job back into the queue; SLURM ends its processes.

    Raises:
        BackendError: it cannot be.
    """
    ask("scontrol", "requeue", job)


def scancel(jobs: Sequence[str]) -> None:
    """Cancel jobs; those that have ended are none of them.

    Raises:
        BackendError: the controller does not answer.
    """
    if jobs:
        ask("scancel", "--quiet", *jobs)

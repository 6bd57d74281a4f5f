"""What a job asks about itself: why it ends, and when its time is up."""

import contextlib
import json
import time
from collections.abc import Callable
from datetime import datetime
from typing import ParamSpec, TypeVar

from jobs.study.squeue import ask
from seqlm.errors import BackendError, FileError, is_storage_failure

TRIES = 5
AGAIN_SECONDS = 1.0
"""Time to wait after the first try; it doubles after each further one."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


def look_again(look: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Return what ``look`` returns. While a file or SLURM cannot be reached, call it again, for about 15 s.

    On NFS a file that another host has just replaced answers ESTALE for a moment.

    Raises:
        BackendError, FileError, OSError: the error of the last call.
    """
    for number in range(TRIES - 1):
        try:
            return look(*args, **kwargs)
        except (BackendError, FileError, OSError) as error:
            if not (isinstance(error, BackendError) or is_storage_failure(error)):
                raise
            time.sleep(AGAIN_SECONDS * 2**number)
    return look(*args, **kwargs)


def job_words(number: int) -> list[str]:
    """Return SLURM's state flags of one job, such as ``CANCELLED`` and ``COMPLETING``, by its own job number.

    Uses the JSON output, the only one that shows why a job is completing: plain output shows a requeued job as
    ``PENDING``. Empty if SLURM does not answer or is too old for JSON.
    """
    try:
        jobs = json.loads(ask("scontrol", "--json", "show", "job", str(number)))["jobs"]
        (words,) = [job["job_state"] for job in jobs if job["job_id"] == number]
    except (BackendError, ValueError, KeyError, TypeError):
        return []
    return [words] if isinstance(words, str) else list(words)


def has_other_jobs(job: str) -> bool:
    """Return whether other jobs of the array of a job (``12_3``) wait or run. While SLURM does not answer, they may."""
    states = "PENDING,RUNNING,SUSPENDED"  # none that ends
    try:
        lines = ask("squeue", "-h", "-r", "-t", states, "-o", "%i|%T", "-j", job.partition("_")[0]).split()
    except BackendError:
        return True
    return any(line.partition("|")[0] != job for line in lines)


def clock_ahead_s() -> float:
    """Return the seconds by which the controller's clock is ahead of this machine's; 0 if it does not answer."""
    asked_at = time.time()
    with contextlib.suppress(BackendError, ValueError, IndexError):
        answer = ask("scontrol", "show", "config")
        at = datetime.fromisoformat(answer.removeprefix("Configuration data as of ").split()[0])  # in our time zone
        return at.timestamp() - (asked_at + time.time()) / 2
    return 0.0

"""Control jobs and query nodes by SLURM's commands, each function in one call."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime

from jobs.study.squeue import ask
from seqlm.errors import BackendError


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


def clock_ahead_s() -> float:
    """Return the seconds by which the controller's clock is ahead of this machine's; 0 if it does not answer."""
    asked_at = time.time()
    try:
        answer = ask("scontrol", "show", "config", environ={**os.environ, "SLURM_TIME_FORMAT": "standard"})
    except BackendError:
        return 0.0
    found = re.match(r"Configuration data as of (\S+)", answer)  # the time of the answer, in this machine's time zone
    if found is None:
        return 0.0
    return datetime.fromisoformat(found[1]).timestamp() - (asked_at + time.time()) / 2


def requeue(job: str) -> None:
    """Requeue a running job. SLURM kills its processes.

    Raises:
        BackendError: SLURM rejected the request, or does not answer.
    """
    with _undisturbed():
        ask("scontrol", "requeue", job)


def hold_back(job: str, seconds: float, exclude: Collection[str]) -> None:
    """Delay a requeued job by at least ``seconds``, and keep it off the nodes ``exclude``.

    Raises:
        BackendError: SLURM rejected the request, or does not answer. The job starts as soon as it can.
    """
    nodes = [f"ExcNodeList={','.join(exclude)}"] if exclude else []
    with _undisturbed():
        ask("scontrol", "update", f"JobId={job}", f"StartTime=now+{round(seconds)}", *nodes)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Start programs with SIGTERM and SIGINT ignored, since SLURM sends these when it ends the calling job."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_USABLE = ("idle", "mix", "alloc", "comp", "plnd")


def nodes_like(nodes: Collection[str], partition: str) -> list[str]:
    """Return the usable nodes of a partition that have the cores, memory, GPUs and features of one of ``nodes``.

    Raises:
        BackendError: the controller does not answer.
    """
    lines = ask("sinfo", "-N", "-h", "-p", partition, "-o", "%N|%t|%c|%m|%G|%f").splitlines()
    rows = [parts for line in lines if len(parts := line.strip().split("|", 2)) == 3]
    wanted = {hardware for name, _, hardware in rows if name in nodes}
    return [name for name, state, hardware in rows if hardware in wanted and state.rstrip("~#-+") in _USABLE]


def host_names(expression: str) -> list[str]:
    """Return the node names of a SLURM node list such as ``n[1-2],n7``.

    Raises:
        BackendError: SLURM cannot parse it.
    """
    return ask("scontrol", "show", "hostnames", expression).split()


def scancel(jobs: Sequence[str]) -> None:
    """Cancel jobs. Jobs that have ended are ignored.

    Raises:
        BackendError: the controller does not answer.
    """
    if jobs:
        ask("scancel", "--quiet", *jobs)

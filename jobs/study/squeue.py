"""What a SLURM controller says of a study's jobs, in at most two calls however many there are.

The truth about a run is in its folder; this tells only what no file can: that a job waits and why, that it runs on a
machine whose locks are not seen here, or that it is gone without a word. Works without accounting, while the
controller does not answer, and after it has forgotten a job.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, final

from seqlm.rundir import FailureKind

CALL_SECONDS = 20.0
"""How long a controller may take to answer."""
EVERY_SECONDS = 10.0
"""How often the controller is asked by who looks again and again."""

Stage: TypeAlias = Literal["queued", "running", "ended", "gone", "unknown"]


@dataclass(frozen=True, kw_only=True)
class JobState:
    """A job as its scheduler sees it."""

    stage: Stage
    """``gone``: the scheduler does not know it any more; ``unknown``: the scheduler does not answer."""
    reason: str
    """Why it waits, or how it ended, for a person."""
    kind: FailureKind | None = None
    """Of an ended job that its run knows nothing of."""


_QUEUED = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_RUNNING = ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
_KINDS: Mapping[str, FailureKind] = {
    "CANCELLED": "cancelled",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "PREEMPTED": "preempted",
    "NODE_FAIL": "node",
    "BOOT_FAIL": "node",
    "OUT_OF_MEMORY": "oom",
}
"""SLURM's job states (``man squeue``, JOB STATE CODES) -> kinds of failure; all others are of kind ``code``."""
_NOTHING_TO_LEARN = ("Invalid job id", "accounting storage is disabled")
_REASONS = {
    "Priority": "other jobs go before it",
    "Resources": "waits for free resources",
    "JobArrayTaskLimit": "as many of its array run as may at once",
    "BeginTime": "starts again in a moment",
    "Dependency": "waits for another job",
    "DependencyNeverSatisfied": "the job that it waited for has failed",
    "JobHeldUser": "held by its user",
    "JobHeldAdmin": "held by an administrator",
    "QOSMaxJobsPerUserLimit": "your jobs are as many as may run at once",
    "AssocGrpGRES": "your account's GPUs are in use",
}


@final
class Scheduler:
    """Asks a controller about jobs, and remembers its answers for :data:`EVERY_SECONDS`."""

    def __init__(self) -> None:
        self._asked_at = -EVERY_SECONDS
        self._jobs: frozenset[str] = frozenset()
        self._answers: dict[str, JobState] = {}
        self.calls = 0
        """Commands run so far."""

    def states(self, jobs: Iterable[str]) -> dict[str, JobState]:
        """The state of each job (``12`` or ``12_3``)."""
        wanted = frozenset(jobs)
        if not wanted:
            return {}
        now = time.monotonic()
        if now - self._asked_at >= EVERY_SECONDS or not wanted <= self._jobs:
            self._answers = self._ask(wanted)
            self._asked_at, self._jobs = now, wanted
        return {job: self._answers[job] for job in wanted}

    def _ask(self, wanted: frozenset[str]) -> dict[str, JobState]:
        parents = ",".join(sorted({job.partition("_")[0] for job in wanted}))
        queue = self._call("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%r|%N", "-j", parents)
        found = {} if queue is None else read_squeue(queue)
        missing = wanted - found.keys()
        if not missing:
            return found
        parents = ",".join(sorted({job.partition("_")[0] for job in missing}))
        account = self._call("sacct", "-n", "-P", "-X", "-D", "-o", "JobID,State,NodeList", "-j", parents)
        accounted = {} if account is None else read_sacct(account)
        silent = "slurmctld" if queue is None else "the accounting" if account is None else None
        if silent:
            lost = JobState(stage="unknown", reason=f"{silent} does not answer; this is what was known before")
        else:
            lost = JobState(stage="gone", reason="its job is gone without a word; run again to resume")
        return {**{job: accounted.get(job, lost) for job in missing}, **found}

    def _call(self, *command: str) -> str | None:
        """What a command prints. ``None``: no answer.

        "No such job" is an answer, and so is a cluster without accounting: there is nothing more to learn.
        """
        self.calls += 1
        environ = {**os.environ, "SLURM_BITSTR_LEN": "0"}  # else lists of tasks are cut after 64 characters
        try:
            answer = subprocess.run(
                command, capture_output=True, text=True, timeout=CALL_SECONDS, env=environ, check=False
            )
        except FileNotFoundError:
            return "" if command[0] == "sacct" else None
        except (OSError, subprocess.TimeoutExpired):
            return None
        if answer.returncode == 0 or any(text in answer.stderr for text in _NOTHING_TO_LEARN):
            return answer.stdout
        return None


def read_squeue(text: str) -> dict[str, JobState]:
    """The answer of ``squeue -h -r -t all -o "%i|%T|%r|%N"``."""
    found = {}
    for line in text.splitlines():
        parts = line.strip().split("|")
        if len(parts) == 4:
            job, state, reason, nodes = parts
            found[job] = job_state(state, reason, nodes)
    return found


def read_sacct(text: str) -> dict[str, JobState]:
    """The answer of ``sacct -n -P -X -D -o JobID,State,NodeList``; of a job that was requeued, the last line holds."""
    found: dict[str, JobState] = {}
    waiting: dict[str, JobState] = {}
    for line in text.splitlines():
        parts = line.strip().split("|")
        if len(parts) == 3:
            known = waiting if "[" in parts[0] else found
            known.update(dict.fromkeys(_jobs_of(parts[0]), job_state(parts[1], "", parts[2])))
    return {**waiting, **found}  # a range may still have a task that has a line of its own


def _jobs_of(text: str) -> list[str]:
    """The jobs of a line of sacct: ``12``, ``12_3``, or every task of ``12_[0-3,8-16:4%2]``; none for a job's step."""
    match = re.fullmatch(r"(\d+)_\[([^]%]*)(?:%\d+)?\]", text)
    if match is None:
        return [text] if re.fullmatch(r"\d+(_\d+)?", text) else []
    ranges = re.findall(r"(?:^|,)(\d+)(?:-(\d+))?(?::(\d+))?(?=,|$)", match[2])
    return [
        f"{match[1]}_{task}"
        for low, high, step in ranges
        for task in range(int(low), int(high or low) + 1, int(step or 1))
    ]


def job_state(state: str, reason: str = "", nodes: str = "") -> JobState:
    """One job's state from SLURM's words, such as ``PENDING`` with ``Resources``, or ``CANCELLED by 1000``."""
    word = state.split()[0].rstrip("+") if state else "UNKNOWN"
    if word in _QUEUED:
        plain = reason.strip("() ")
        known = _REASONS.get(plain, f"SLURM says {plain}" if plain not in ("", "None") else "about to start")
        return JobState(stage="queued", reason=known)
    if word in _RUNNING:
        return JobState(stage="running", reason=f"on {nodes}" if nodes else "")
    if word == "COMPLETED":
        return JobState(stage="ended", reason="its job ended and left no result; see its logs", kind="code")
    kind = _KINDS.get(word, "code")
    text = "cancelled by scancel" if kind == "cancelled" else f"SLURM says {word}"
    return JobState(stage="ended", reason=text, kind=kind)


def parents(jobs: Sequence[str]) -> list[str]:
    """The ids of the arrays that jobs belong to, each once."""
    return sorted({job.partition("_")[0] for job in jobs}, key=int)

"""Why a job of SLURM waits, and until when: its reason in words, its expected start, and what would start sooner."""

import contextlib
import os
from collections.abc import Collection, Mapping
from datetime import datetime
from pathlib import Path

from jobs.backends.base import Waiting
from jobs.study.folder import ARRAY_FILE, read_jobs
from jobs.study.squeue import ask, parents
from seqlm.errors import BackendError
from seqlm.files import read_json
from seqlm.reading import listed
from seqlm.requests import Requests
from seqlm.rundir import ordinal
from slurm.site import read_minutes

RELEASE, ASK = "scontrol release {job}", "ask the cluster's administrators"
ACCOUNT = "see `sacctmgr show assoc user=$USER` and set sbatch.account or sbatch.qos"
LATER = "nothing to do: it starts when your other jobs end"
SMALLER = "ask for fewer ranks, GPUs or hours, or take another partition; then `run` again"
REASONS: Mapping[str, tuple[str, str]] = {
    "None": ("about to start", ""),
    "Priority": ("other jobs have priority", ""),
    "Resources": ("it is next, and waits for free nodes", ""),
    "Dependency": ("another job has to end first", ""),
    "DependencyNeverSatisfied": ("a job that it depends on has failed", "`cancel` it, then `run` again"),
    "JobHeldUser": ("it is held by its user", RELEASE),
    "JobHeldAdmin": ("it is held by an administrator", ASK),
    "JobHoldMaxRequeue": ("it was requeued too often, and is held", RELEASE),
    "BeginTime": ("it may not begin before a time that was set", ""),
    "JobArrayTaskLimit": ("as many runs are running as max_parallel allows", ""),
    "Cleaning": ("its last start is still being cleaned up", ""),
    "NodeDown": ("a node that it needs is down", ""),
    "ReqNodeNotAvail": ("a node that it needs is down, drained or reserved", "see `sinfo -R`"),
    "Reservation": ("it waits for its reservation", ""),
    "Licenses": ("a licence is in use", ""),
    "BadConstraints": ("no node has what it asks for", SMALLER),
    "PartitionDown": ("its partition is down", "wait, or take another partition; then `run` again"),
    "PartitionInactive": ("its partition takes no jobs", "wait, or take another partition; then `run` again"),
    "PartitionNodeLimit": ("it asks for more nodes than its partition allows", SMALLER),
    "PartitionTimeLimit": ("its time limit is longer than its partition allows", "set a shorter timeout_min"),
    "InvalidAccount": ("its account does not exist", ACCOUNT),
    "InvalidQOS": ("its quality of service does not exist", ACCOUNT),
    "AccountNotAllowed": ("its account may not use the partition", ACCOUNT),
    "AssocMaxJobsLimit": ("your account runs as many jobs as it may", LATER),
    "AssocGrpCpuLimit": ("your group uses as many cores as it may", LATER),
    "AssocGrpGRES": ("your group uses as many GPUs as it may", LATER),
    "AssocGrpCPUMinutesLimit": ("the core hours of your group are spent", ASK),
    "AssocGrpGRESMinutes": ("the GPU hours of your group are spent", ASK),
    "QOSMaxJobsPerUserLimit": ("you run as many jobs as you may", LATER),
    "QOSMaxCpuPerUserLimit": ("you use as many cores as you may", LATER),
    "QOSMaxGRESPerUser": ("you use as many GPUs as you may", LATER),
    "QOSGrpGRES": ("all GPUs of this quality of service are in use", LATER),
    "SystemFailure": ("a daemon of SLURM has failed", ASK),
    "launch_failed_requeued_held": ("it could not be started on its node, and is held", RELEASE),
}
"""Reason of a waiting job (``man squeue``, JOB REASON CODES) -> what it means, and what to do."""
UNPLANNED = ("Dependency", "DependencyNeverSatisfied", "JobHeldUser", "JobHeldAdmin", "JobHoldMaxRequeue")
"""Reasons for which SLURM plans no start. It may still show one from before."""
SHARES = (2, 4, 8)
"""By what a time limit is divided to look for an earlier start."""
LEAST_MINUTES, WORTH_SECONDS = 15, 300
"""The shortest time limit to suggest, and by how much earlier it has to start."""


def waiting_jobs(study_dir: Path, run_ids: Collection[str]) -> dict[str, Waiting]:
    """Return the waiting jobs of these runs, by run id.

    Raises:
        BackendError: SLURM does not answer.
    """
    jobs = {run_id: job for run_id, job in read_jobs(study_dir).items() if run_id in run_ids}
    if not jobs:
        return {}
    asked = _squeue("-j", ",".join(parents(jobs.values())), fields="%i|%r|%S|%P|%l")
    rows = {job: row for job, *row in asked}
    partitions = {partition for _, _, partition, _ in rows.values()}
    queues = {name: [job for (job,) in _squeue("-p", name, "-S", "-p,i", fields="%i")] for name in partitions}
    found = {}
    for run_id, job in jobs.items():
        if job in rows:
            reason, start, partition, limit = rows[job]
            text, action = REASONS.get(reason.strip("()").partition(",")[0], (f"SLURM reports {reason}", ""))
            queue, starts_at = queues[partition], None if reason in UNPLANNED else _moment(start)
            place = f"{ordinal(queue.index(job) + 1)} of {len(queue)} in {partition}" if job in queue else ""
            script = _script(study_dir, run_id, job)
            sooner = None
            if reason in ("Priority", "Resources") and starts_at and script:
                sooner = _sooner(script, read_minutes(limit) or 0, starts_at)
            found[run_id] = Waiting(
                text=text, job=job, action=action.format(job=job), place=place, starts_at=starts_at, sooner=sooner
            )
    return found


def _ask(*command: str) -> str:
    return ask(*command, environ={**os.environ, "SLURM_TIME_FORMAT": "standard"})


def _squeue(*flags: str, fields: str) -> list[list[str]]:
    """Return the fields of each waiting job, tasks of arrays one by one."""
    text = _ask("squeue", "-h", "-r", "-a", "-t", "PD", *flags, "-o", fields)
    return [line.strip().split("|") for line in text.splitlines()]


def _moment(text: str) -> float | None:
    """Return a time of SLURM, in the time zone of this machine, in seconds since 1970. ``None``: ``N/A``."""
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(text).timestamp()
    return None


def _script(study_dir: Path, run_id: str, job: str) -> Path | None:
    """Return the script of the run's job array. ``None``: it is gone."""
    request = Requests(study_dir).to_train(run_id)
    files = [] if request is None else listed(request.folder, ARRAY_FILE.format("*"))
    return next(
        (file.with_suffix(".sh") for file in files if (read_json(file) or {}).get("id") in parents([job])), None
    )


def _sooner(script: Path, minutes: int, starts_at: float) -> tuple[int, float] | None:
    """Ask SLURM whether a shorter time limit would start the job earlier; return the longest such limit."""
    for share in SHARES:
        if (limit := minutes // share) < LEAST_MINUTES:
            break
        with contextlib.suppress(BackendError):
            words = ("sbatch", "--test-only", f"--time={limit}", str(script))
            said = _ask("sh", "-c", 'exec "$@" 2>&1', "sh", *words)  # it answers on stderr
            start = _moment(said.partition(" to start at ")[2].partition(" ")[0])
            if start is not None and start <= starts_at - WORTH_SECONDS:
                return limit, start
    return None

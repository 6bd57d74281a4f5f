"""When a job of SLURM starts by SLURM's own plan, and which shorter time limit would start it sooner."""

import contextlib
from collections import defaultdict
from collections.abc import Collection
from datetime import datetime
from pathlib import Path

from jobs.backends.base import Waiting
from jobs.study.folder import read_jobs
from jobs.study.squeue import ask, meaning, parents
from seqlm.errors import BackendError
from seqlm.rundir import ordinal
from slurm.site import read_minutes

SHARES = (2, 4, 8)
"""By what a time limit is divided to look for an earlier start."""
LEAST_MINUTES, WORTH_SECONDS = 15, 300
"""The shortest time limit to suggest, and by how much earlier it has to start."""


def waiting_jobs(study_dir: Path, run_ids: Collection[str]) -> dict[str, Waiting]:
    """Return the waiting jobs of these runs, by run id; none if SLURM does not answer.

    For a single run, look for a time limit that starts it sooner.
    """
    jobs = {run_id: job for run_id, job in read_jobs(study_dir).items() if run_id in run_ids}
    shown = ""
    with contextlib.suppress(BackendError):  # the reason of the run says so
        shown = ask("squeue", "-h", "-r", "-a", "-t", "PD", "-S", "-p,i", "-o", "%i|%P|%r|%S|%l|%o") if jobs else ""
    rows = {row[0]: row[1:] for line in shown.splitlines() if len(row := line.strip().split("|", 5)) == 6}
    queues = defaultdict[str, list[str]](list)
    for job, (partitions, *_) in rows.items():
        for partition in partitions.split(","):
            queues[partition].append(job)
    found = {}
    for run_id, job in jobs.items():
        if job not in rows:  # of an array its first job that waits
            job = next((one for one in rows if parents([one]) == [job]), job)
        if job in rows:
            partitions, reason, start, limit, script = rows[job]
            (text, action), partition = meaning(reason), partitions.partition(",")[0]
            is_held = reason.startswith(("Dependency", "JobHe", "JobHo"))  # SLURM may show a start from before
            starts_at = None if is_held else _moment(start)
            is_alone = len(run_ids) == 1 and reason in ("Priority", "Resources")
            found[run_id] = Waiting(
                job=job,
                text=text,
                action=action.format(job=job),
                place=f"{ordinal(queues[partition].index(job) + 1)} of {len(queues[partition])} in {partition}",
                starts_at=starts_at,
                sooner=_sooner(script, read_minutes(limit) or 0, starts_at) if is_alone and starts_at else None,
            )
    return found


def _moment(text: str) -> float | None:
    """Return a time of SLURM, in the time zone of this machine, in seconds since 1970. ``None``: ``N/A``."""
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(text).timestamp()
    return None


def _sooner(script: str, minutes: int, starts_at: float) -> tuple[int, float] | None:
    """Ask SLURM whether a shorter time limit would start the job earlier; return the longest such limit."""
    for limit in (minutes // share for share in SHARES if minutes // share >= LEAST_MINUTES):
        with contextlib.suppress(BackendError):
            command = ("sbatch", "--test-only", f"--time={limit}", script)
            said = ask("sh", "-c", 'exec "$@" 2>&1', "sh", *command)  # it answers on stderr
            start = _moment(said.partition(" to start at ")[2].partition(" ")[0])
            if start is not None and start <= starts_at - WORTH_SECONDS:
                return limit, start
    return None

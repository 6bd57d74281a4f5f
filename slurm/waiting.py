"""When a job of SLURM starts by SLURM's own plan, and which shorter time limit would start it sooner."""

import contextlib
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime

from jobs.study.scheduler import Claim, Waiting, works_in
from seqlm.errors import BackendError
from seqlm.rundir import ordinal
from slurm.scheduler import ask, meaning
from slurm.site import read_minutes

SHARES = (2, 4, 8)
"""By what a time limit is divided to look for an earlier start."""
LEAST_MINUTES, WORTH_SECONDS = 15, 300
"""The shortest time limit to suggest, and by how much earlier it has to start."""


def waiting_jobs(jobs: Mapping[str, Claim]) -> dict[str, Waiting]:
    """Return the waiting ones of these jobs, by run id as ``jobs``; none if SLURM does not answer.

    For a single run, look for a time limit that starts it sooner.
    """
    shown = ""
    with contextlib.suppress(BackendError):  # the reason of the run says so
        shown = ask("squeue", "-h", "-r", "-a", "-t", "PD", "-S", "-p,i", "-o", "%i|%P|%r|%S|%l|%Z") if jobs else ""
    rows = {row[0]: row[1:] for line in shown.split("\n") if len(row := line.split("|", 5)) == 6}
    queues = defaultdict[str, list[str]](list)
    for name, (partitions, *_) in rows.items():
        for partition in partitions.split(","):
            queues[partition].append(name)
    found = {}
    for run_id, claim in jobs.items():
        of_array = (one for one in rows if one.partition("_")[0] == claim.array.id)
        job = claim.id if claim.id in rows else next(of_array, None)  # the first one that waits
        if job is not None and works_in(rows[job][-1], claim.folder):
            partitions, reason, start, limit, _ = rows[job]
            (text, action), partition = meaning(reason), partitions.partition(",")[0]
            is_held = reason.startswith(("Dependency", "JobHe", "JobHo"))  # SLURM may show a start from before
            starts_at = None if is_held else _moment(start)
            is_alone = len(jobs) == 1 and reason in ("Priority", "Resources")
            found[run_id] = Waiting(
                job=job,
                text=text,
                action=action.format(job=job),
                place=f"{ordinal(queues[partition].index(job) + 1)} of {len(queues[partition])} in {partition}",
                starts_at=starts_at,
                sooner=_sooner(job, read_minutes(limit) or 0, starts_at) if is_alone and starts_at else None,
            )
    return found


def _moment(text: str) -> float | None:
    """Return a time of SLURM, in the time zone of this machine, in seconds since 1970. ``None``: ``N/A``."""
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(text).timestamp()
    return None


def _sooner(job: str, minutes: int, starts_at: float) -> tuple[int, float] | None:
    """Ask SLURM whether a shorter time limit would start the job earlier; return the longest such limit."""
    script = ""
    with contextlib.suppress(BackendError):
        script = ask("squeue", "-h", "-j", job, "-o", "%o").strip()
    for limit in (minutes // share for share in SHARES if script and minutes // share >= LEAST_MINUTES):
        with contextlib.suppress(BackendError):
            command = ("sbatch", "--test-only", f"--time={limit}", script)
            said = ask("sh", "-c", 'exec "$@" 2>&1', "sh", *command)  # it answers on stderr
            start = _moment(said.partition(" to start at ")[2].partition(" ")[0])
            if start is not None and start <= starts_at - WORTH_SECONDS:
                return limit, start
    return None

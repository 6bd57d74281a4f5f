"""The command ``why``: why a run waits, failed or was stopped, and what can be done about it."""

import contextlib
import heapq
import time
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from jobs import terminal
from jobs.backends.base import Waiting
from jobs.cli.arguments import Arguments
from jobs.cli.naming import chosen_runs, named_runs
from jobs.cli.view import Record, records_of
from jobs.registry import BACKENDS, backend_class
from jobs.study.folder import ObservedRun, find_study, launcher_of, observe_study
from seqlm.errors import BackendError, FileError
from seqlm.reading import read_tail, timestamp

NEXT: Mapping[str | None, str] = {
    "oom": "more ranks, a GPU with more memory, or more mem_gb; then `retry`",
    "diverged": "lower optim.lr, which makes it another run; `retry` ends the same",
    "node": "`run` goes on from its last checkpoint",
    "preempted": "`run` goes on from its last checkpoint",
    "timeout": "`run` goes on from its last checkpoint",
    "code": "correct what its log says, then `retry`",
    "cancelled": "`retry` goes on from its last checkpoint",
    None: "`run` starts it, or goes on from its last checkpoint",
}
"""Kind of a failure that nobody tries again -> what to do. ``None``: no failure."""
LOG_BYTES = 2**16
"""Bytes from the end of a log in which its last line is looked for."""


def why(arguments: Arguments) -> tuple[Any, int]:
    """Print a line for each run that is not well, or all that is known about one run."""
    study_dir = find_study(arguments.study, arguments.runs_dir)
    runs = chosen_runs(arguments, study_dir)
    if arguments.one_run:
        runs = named_runs(runs, arguments.one_run, study_dir)
    else:
        runs = [run for run in runs if run.observation.state not in ("running", "done")]
    waiting = waiting_runs(study_dir, {run.run.id for run in runs if run.observation.state == "queued"})
    records = [explained(run, waiting.get(run.run.id)) for run in runs]
    for record in records:
        terminal.say(f"{record['name']}  {record['headline']}")
        for label, text in record["details"].items() if arguments.one_run else ():
            terminal.say(f"  {label:7} {text}")
    if not records:
        terminal.say("every run is running or done")
    return {"study": study_dir.name, "runs": records}, 0


def explained(one: ObservedRun, waiting: Waiting | None) -> Record:
    """Return the entry of a run in ``--json``: that of ``status``, and what is to be said of it.

    ``starts_at`` is when it is expected to start (ISO 8601), ``None`` if nobody says.
    """
    seen, run, details = one.observation, one.run, dict[str, str]()
    headline, starts_at = f"{seen.state}: {seen.reason}" if seen.reason else seen.state, None
    if waiting is not None:
        job = f" ({waiting.job})" if waiting.job else ""
        headline = f"{seen.state}{job}: {'; '.join(filter(None, (waiting.text, waiting.place)))}"
        if waiting.starts_at is not None:
            starts_at = timestamp(waiting.starts_at)
            details["starts"] = f"about {_clock(waiting.starts_at)}{', by the plan of SLURM' if job else ''}"
        if waiting.sooner is not None:
            minutes, start = waiting.sooner
            details["sooner"] = f"timeout_min = {minutes} would start about {_clock(start)}; runs resume exactly"
        if waiting.action:
            details["do"] = waiting.action
    elif seen.state in ("pending", "cancelled") or (seen.state == "failed" and seen.is_final):
        details["do"] = NEXT[seen.kind]
    if seen.state == "failed":
        with contextlib.suppress(FileError, OSError):
            log = run.stderr_log(run.last_attempt())
            lines = read_tail(log, LOG_BYTES).decode("utf-8", errors="replace").split("\n")
            details["log"] = next((line for line in reversed(lines) if line.strip()), "")
    return {**one.to_dict(), "headline": headline, "details": details, "starts_at": starts_at}


def _clock(moment: float) -> str:
    """Return a time of today or of the next days on this machine's clock: ``14:35``, ``Tue 14:35`` or a date."""
    then = datetime.fromtimestamp(moment).astimezone()
    days = (then.date() - datetime.now().astimezone().date()) // timedelta(days=1)
    return then.strftime("%H:%M" if days == 0 else "%a %H:%M" if 0 < days < 7 else "%Y-%m-%d %H:%M")


# -- what a run waits for ----------------------------------------------------------------------------------------------


def waiting_runs(study_dir: Path, run_ids: Collection[str]) -> dict[str, Waiting]:
    """Return what these runs wait for, by run id, as far as the study's launcher or its jobs say.

    A scheduler that does not answer is told of; ``status`` has the last known state.
    """
    found = {run_id: one for run_id, one in _behind_launcher(study_dir).items() if run_id in run_ids} if run_ids else {}
    for name in BACKENDS if run_ids - found.keys() else ():
        if (kind := backend_class(name)).is_scheduled:
            try:
                found |= kind.waiting(study_dir, run_ids - found.keys())
            except BackendError as error:
                terminal.tell(f"warning: {error}")
    return found


def _behind_launcher(study_dir: Path) -> dict[str, Waiting]:
    """Play the queue of the study's launcher through: a run starts when one before it ends, as `plan` estimates."""
    if (launcher := launcher_of(study_dir)) is None:
        return {}
    now, records = time.time(), {record["id"]: record for record in records_of(observe_study(study_dir))}
    left = [one["seconds_left"] for one in records.values() if one["state"] == "running"]
    ends = [] if None in left else sorted(left)
    found = {}
    for run_id, reason in launcher.waiting.items():
        start, own = heapq.heappop(ends) if ends else None, records.get(run_id, {}).get("seconds_left")
        found[run_id] = Waiting(text=reason, starts_at=None if start is None else now + start)
        if start is not None and own is not None:
            heapq.heappush(ends, start + own)
        else:
            ends = []  # of what comes later nothing is known
    return found

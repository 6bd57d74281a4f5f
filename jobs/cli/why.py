"""The command ``why``: why a run waits, failed, was stopped or is slow, and what can be done about it."""

import contextlib
import heapq
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, final

from jobs import terminal
from jobs.backends.base import Waiting
from jobs.cli.arguments import Arguments
from jobs.cli.naming import chosen_runs, named_runs
from jobs.cli.view import Record, finite, records_of
from jobs.registry import BACKENDS, backend_class
from jobs.spec import Resources
from jobs.study.folder import ObservedRun, find_study, launcher_of, observe_study
from jobs.study.record import StudyRecord
from seqlm.errors import BackendError, FileError, SeqlmError
from seqlm.files import read_json
from seqlm.reading import listed, read_tail, timestamp
from seqlm.rundir import RunDirectory
from seqlm.schema import read

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
WELL = ("running", "done")
SLOW, SIBLINGS = 1.25, 2
"""A run is slow if an epoch takes ``SLOW`` times as long as with at least ``SIBLINGS`` runs like it."""
SPARE = 1.25
"""How many times what was used is enough."""
PHASES = {
    "step": "steps",
    "waiting": "waiting for results",
    "validation": "validation",
    "checkpoint": "checkpoints",
    "data": "data",
    "start_up": "start-up",
}
"""Phase of ``metrics.jsonl`` -> what `why` calls it."""
USED = ("seconds", "cpu_seconds", "peak_resident_bytes")
"""What a rank has used, in ``resources`` of its ``worker.json``."""
LOG_BYTES = 2**16
"""Bytes from the end of a log in which its last line is looked for."""


# -- where the time went -----------------------------------------------------------------------------------------------


@final
class Paces:
    """How long the epochs of runs take that train the same model on the same kind of device."""

    def __init__(self, runs: Iterable[ObservedRun]) -> None:
        self._seconds: dict[str, float] = {}
        self._alike: defaultdict[Hashable, set[str]] = defaultdict(set)
        for one in runs:
            epochs, worker = _measured(one.run)
            seconds = [number for epoch in epochs if (number := finite(epoch.get("epoch_seconds"))) is not None]
            if seconds and one.config is not None:
                config, places = one.config, (worker.get(key) for key in ("device", "ranks", "threads"))
                kind = (config.model, config.data, replace(config.train, epochs=1), config.eval, *map(str, places))
                self._seconds[one.run.id] = statistics.median(seconds)
                self._alike[kind].add(one.run.id)

    def slower(self, one: ObservedRun) -> str:
        """Return by how much a run is slower than its siblings and than planned; empty if it is not slow."""
        own = self._seconds.get(one.run.id)
        siblings = next((ids - {one.run.id} for ids in self._alike.values() if one.run.id in ids), set[str]())
        if own is None or one.config is None or len(siblings) < SIBLINGS:
            return ""
        others = statistics.median(self._seconds[run_id] for run_id in siblings)
        if own < SLOW * others:
            return ""
        text = f"{own / others - 1:.0%} slower than its {len(siblings)} siblings"
        estimate = StudyRecord(one.run.path.parent).estimate(one.config.fingerprint())
        return text if estimate is None else f"{text}, {own * estimate[1] / estimate[0]:.1f} x plan"


def spent(one: ObservedRun) -> dict[str, str]:
    """Return where the time of a run went, what it asked for and used, and what would have been enough."""
    run, details = one.run, dict[str, str]()
    epochs, _ = _measured(run)
    phases = [found for epoch in epochs if isinstance(found := epoch.get("phases"), dict)]
    times = {label: math.fsum(finite(found.get(key)) or 0.0 for found in phases) for key, label in PHASES.items()}
    if total := math.fsum(times.values()):
        shares = sorted(times.items(), key=lambda item: -item[1])
        details["time"] = ", ".join(f"{label} {time / total:.0%}" for label, time in shares if time >= 0.005 * total)
    attempt = run.last_attempt()
    start = read_json(run.start_file(attempt)) or {}
    asked = read(Resources, start.get("resources", {}))
    workers = [read_json(file) or {} for file in listed(run.attempt_dir(attempt), "worker*.json")]
    used = [found for worker in workers if isinstance(found := worker.get("resources"), dict)]
    seconds, busy, peaks = ([finite(found.get(key)) or 0.0 for found in used] for key in USED)
    if len(used) == asked.ranks and all(seconds):
        table = StudyRecord(run.path.parent).backends.get("slurm", {}) if start.get("backend") == "slurm" else {}
        cores = [time / age for time, age in zip(busy, seconds, strict=True)]
        memory, minutes = math.fsum(peaks) / 2**30, max(seconds) / 60
        wanted = {"cores": (asked.cpus or 1) * asked.ranks, "GiB": table.get("mem_gb"), "min": table.get("timeout_min")}
        taken = {"cores": math.fsum(cores), "GiB": memory, "min": minutes}
        enough = {"cpus": max(cores), "mem_gb": SPARE * memory + 1, "timeout_min": SPARE * minutes}
        shown = {"cpus": "cores", "mem_gb": "GiB", "timeout_min": "min"}
        details["asked"] = f"{_amounts(wanted, '.0f')}; used {_amounts(taken, '.2g')}"
        known = [f"{key} = {math.ceil(enough[key])}" for key, unit in shown.items() if wanted[unit] is not None]
        details["enough"] = ", ".join(known)
    return details


def _amounts(amounts: Mapping[str, float | None], form: str) -> str:
    return ", ".join(f"{amount:{form}} {unit}" for unit, amount in amounts.items() if amount is not None)


def _measured(run: RunDirectory) -> tuple[Sequence[Mapping[str, Any]], Mapping[str, Any]]:
    """Return the epochs of a run and the record of its first rank; empty if they cannot be read."""
    with contextlib.suppress(FileError):
        return run.read_metrics()[0], read_json(run.worker_file(run.last_attempt())) or {}
    return [], {}


# -- what a run waits for ----------------------------------------------------------------------------------------------


def waiting_runs(study_dir: Path, run_ids: Collection[str]) -> dict[str, Waiting]:
    """Return what these runs wait for, by run id, as far as the study's launcher or its jobs say.

    If a scheduler does not answer, a warning says so, and its runs are left out.
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


# -- the command -------------------------------------------------------------------------------------------------------


def why(arguments: Arguments) -> tuple[Any, int]:
    """Print a line for each run that is not well, or all that is known about one run."""
    study_dir = find_study(arguments.study, arguments.runs_dir)
    every = chosen_runs(arguments, study_dir)
    runs = named_runs(every, arguments.one_run, study_dir) if arguments.one_run else every
    waiting = waiting_runs(study_dir, {run.run.id for run in runs if run.observation.state == "queued"})
    paces = Paces(every)
    records = [explained(run, waiting.get(run.run.id), paces) for run in runs]
    if not arguments.one_run:
        records = [one for one in records if one["state"] not in WELL or one["headline"] != one["state"]]
    for record in records:
        terminal.say(f"{record['name']}  {record['headline']}")
        for label, text in record["details"].items() if arguments.one_run else ():
            terminal.say(f"  {label:7} {text}")
    if not records:
        terminal.say("every run is running or done, none of them slower than others like it")
    return {"study": study_dir.name, "runs": records}, 0


def explained(one: ObservedRun, waiting: Waiting | None, paces: Paces) -> Record:
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
    if slow := paces.slower(one):
        headline += f", {slow}"
    with contextlib.suppress(SeqlmError):  # `status` names a damaged file if it matters
        details |= spent(one)
    return {**one.to_dict(), "headline": headline, "details": details, "starts_at": starts_at}


def _clock(moment: float) -> str:
    """Return a time of today or of the next days on this machine's clock: ``14:35``, ``Tue 14:35`` or a date."""
    then = datetime.fromtimestamp(moment).astimezone()
    days = (then.date() - datetime.now().astimezone().date()) // timedelta(days=1)
    return then.strftime("%H:%M" if days == 0 else "%a %H:%M" if 0 < days < 7 else "%Y-%m-%d %H:%M")

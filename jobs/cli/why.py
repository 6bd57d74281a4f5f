"""The command ``why``: why a run waits, failed, was stopped or is slow, and what can be done about it."""

import contextlib
import itertools
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jobs import terminal
from jobs.cli.arguments import Arguments
from jobs.cli.naming import chosen_runs, named_runs
from jobs.cli.view import played, records_of
from jobs.plan.capacity import with_noun
from jobs.plan.limits import alike, used
from jobs.registry import BACKENDS, backend_class
from jobs.study.folder import ObservedRun, find_study, launcher_of, observe_study
from jobs.study.record import KeptManifests
from jobs.study.scheduler import Waiting
from jobs.terminal import Result
from seqlm.architectures import CustomConfig
from seqlm.enough import enough
from seqlm.errors import FileError, SeqlmError
from seqlm.hang import waiting_ranks
from seqlm.reading import finite, timestamp
from seqlm.records.attempts import Start, Worker
from seqlm.records.batch import Batch
from seqlm.requests import numbered
from seqlm.state import KINDS

GO_ON = "`run` starts it, or goes on from its last checkpoint"
STOPPED = "`retry --kind stopped` goes on from its last checkpoint"
LEAST_SLOWER, SIBLINGS, TENTHS = 1.25, 3, 9
"""An epoch of a slow run typically takes ``LEAST_SLOWER`` times as long as with at least ``SIBLINGS`` runs like it, and
longer than ``TENTHS`` tenths of the epochs of each of them: where programs share a machine, all have slow epochs."""
PHASES = {"step": "steps", "waiting": "waiting for results", "checkpoint": "checkpoints", "start_up": "start-up"}
"""Phase of ``metrics.jsonl`` -> what `why` calls it, if that is another word."""


@dataclass(frozen=True, kw_only=True)
class WhyResult(Result):
    """A headline of each run that is not well, or all that is known about one run."""

    study: str
    runs: Sequence[Mapping[str, Any]]

    def render(self) -> None:
        alike: dict[tuple[str, ...], list[str]] = {}
        for run in self.runs:
            details = (f"  {key:7} {text}" for key, text in run["details"].items())
            alike.setdefault((run["headline"], *details), []).append(run["name"])
        for (headline, *lines), names in alike.items():
            terminal.say(f"{', '.join(names)}  {headline}", *lines)
        if not self.runs:
            terminal.say("every run is running or done, none of them slower than others like it")


def why(arguments: Arguments) -> WhyResult:
    """Return why runs are not well, or all that is known about one run."""
    study_dir = find_study(arguments.study, arguments.runs_dir)
    every = observe_study(study_dir)
    runs = chosen_runs(arguments, study_dir, every)
    if arguments.one_run:
        runs = named_runs(runs, arguments.one_run, study_dir)
    queued, jobs = {one.run.id for one in runs if one.observation.state == "queued"}, dict[str, Waiting]()
    for name in BACKENDS if queued else ():
        jobs |= backend_class(name).waiting(study_dir, queued)
    starts, slow, records = planned_starts(study_dir, every), slow_runs(every), []
    for one in runs:
        seen, job = one.observation, jobs.get(one.run.id)
        if not arguments.one_run and seen.state in ("running", "done") and one.run.id not in slow:
            continue
        reasons = dict.fromkeys(filter(None, (seen.reason, *((job.text, job.place) if job else ()))))
        state = f"{seen.state} ({job.job})" if job else seen.state
        headline = ": ".join(filter(None, (state, "; ".join(reasons)))) + slow.get(one.run.id, "")
        starts_at = job.starts_at if job else starts.get(one.run.id)
        details = details_of(one, job, starts_at) if arguments.one_run else {}
        start = None if starts_at is None else timestamp(starts_at)
        action = job.action if job else None
        known = {"headline": headline, "details": details, "starts_at": start, "action": action}
        records.append({**one.to_dict(), **known})
    return WhyResult(study=study_dir.name, runs=records)


def details_of(one: ObservedRun, job: Waiting | None, starts_at: float | None) -> dict[str, str]:
    """Return all that is known about a run besides its headline."""
    seen, run, attempt, details = one.observation, one.run, one.run.working_attempt(), dict[str, str]()
    if starts_at is not None:
        details["starts"] = f"about {_clock(starts_at)}{', by the plan of the scheduler' if job else ''}"
    if job is not None:
        if job.sooner is not None:
            limit, start = job.sooner
            details["sooner"] = f"timeout_min = {limit} would start about {_clock(start)}; runs resume exactly"
        details["do"] = job.action
    elif seen.state in ("pending", "cancelled", "stopped", "failed"):
        advice = STOPPED if seen.state == "stopped" else None
        if seen.kind is not None and seen.is_final:
            advice = _own_model_advice(one) or KINDS[seen.kind].advice
        details["do"] = advice or GO_ON
    if failed := _earlier_failures(one):
        details["failed"] = failed
    if waiting := waiting_ranks(run, attempt):
        details["waiting"] = waiting
    if seen.state == "failed":
        details["log"] = str(run.stderr_log(attempt))
    with contextlib.suppress(SeqlmError):  # `status` names a damaged file if it matters
        details |= spent(one)
    return details


def _earlier_failures(one: ObservedRun) -> str:
    """Return which attempts of a run that is not over have failed before its newest one, and how the last did."""
    run = one.run
    if one.observation.state in ("done", "stopped"):
        return ""
    failures = [end for end in run.failures() if end.attempt != run.last_attempt()]
    groups = [[*group] for _, group in itertools.groupby(failures, key=lambda end: end.kind)]
    spans = [
        f"attempt {first}: {group[0].kind}" if first == last else f"attempts {first} to {last}: {group[0].kind}"
        for group in groups
        for first, last in [(group[0].attempt, group[-1].attempt)]
    ]
    return f"{', '.join(spans)} ({failures[-1].message})" if failures else ""


def _own_model_advice(one: ObservedRun) -> str | None:
    """Return what to do after an error in the code of a run of the user's own model; ``None`` for any other run.

    `retry` would train the copy that the study keeps.
    """
    model = None if one.config is None else one.config.model
    if one.observation.kind != "code" or not isinstance(model, CustomConfig):
        return None
    command = KeptManifests(one.run.path.parent, only=("manifest", "folder")).run_command
    return f"correct {model.file} as its log says, then `{command}`"


def _clock(moment: float) -> str:
    """Return a time of this machine's clock: ``14:35``, or with the date if that is not today's."""
    then, today = datetime.fromtimestamp(moment).astimezone(), datetime.fromtimestamp(time.time()).astimezone().date()
    return then.strftime("%H:%M" if then.date() == today else "%Y-%m-%d %H:%M")


def planned_starts(study_dir: Path, every: Sequence[ObservedRun]) -> dict[str, float]:
    """Return when the runs behind the study's launcher start, as far as that is known: each when one before it ends."""
    if (launcher := launcher_of(study_dir)) is None or not launcher.waiting:
        return {}
    left = {record["id"]: record["seconds_left"] for record in records_of(every)}
    running = [left[one.run.id] for one in every if one.observation.state == "running"]
    starts, _ = played(running, [left.get(run_id) for run_id in launcher.waiting])
    found = zip(launcher.waiting, starts, strict=True)
    return {run_id: time.time() + start for run_id, start in found if start is not None}


# -- where the time went -----------------------------------------------------------------------------------------------


def slow_runs(runs: Iterable[ObservedRun]) -> dict[str, str]:
    """Return by how much slow runs are slower than runs like them on the same kind of device, and than planned."""
    groups = defaultdict[Hashable, list[tuple[ObservedRun, float, float]]](list)
    for one in runs:
        seconds, worker = sorted(one.values("epoch_seconds")), Worker()
        with contextlib.suppress(FileError):
            worker = one.run.read_worker(one.run.working_attempt())
        if seconds and one.config is not None:
            groups[alike(one.config), worker.device, worker.ranks, worker.threads].append(
                (one, statistics.median(seconds), seconds[len(seconds) * TENTHS // 10])
            )
    found = {}
    for group in groups.values():
        for one, own, _ in group:
            others = [other for other in group if other[0] is not one]
            usual = statistics.median(median for _, median, _ in others) if len(others) >= SIBLINGS else math.inf
            if one.config and own >= LEAST_SLOWER * usual and own > max(slowest for _, _, slowest in others):
                estimate = KeptManifests(one.run.path.parent, only=("estimates",)).estimate(one.config.fingerprint())
                plan = f", {own * estimate[1] / estimate[0]:.1f} x plan" if estimate else ""
                found[one.run.id] = f", {own / usual - 1:.0%} slower than its {len(others)} siblings{plan}"
    return found


def spent(one: ObservedRun) -> dict[str, str]:
    """Return where the time of a run went, what its last attempt asked for and used, and what would be enough."""
    run, attempt, details = one.run, one.run.working_attempt(), dict[str, str]()
    start = Start.read(run.attempt_dir(attempt)) or Start()
    asked = start.resources
    names = {**PHASES, "waiting": "waiting for ranks"} if asked.ranks > 1 else PHASES
    times: defaultdict[str, float] = defaultdict(float)
    for epoch in one.epochs():
        for phase, seconds in epoch["phases"].items() if isinstance(epoch.get("phases"), dict) else ():
            times[names.get(phase, phase)] += finite(seconds) or 0.0
        # Ranks that reduce their gradients also wait for each other, within the steps.
        reduced = (finite(epoch.get("communication_seconds")) or 0.0) * (finite(epoch.get("steps")) or 0.0)
        times["waiting for ranks"] += min(reduced, times["steps"])
        times["steps"] -= min(reduced, times["steps"])
    if total := math.fsum(times.values()):
        shares = sorted(((seconds / total, phase) for phase, seconds in times.items()), reverse=True)
        details["time"] = ", ".join(f"{phase} {share:.0%}" for share, phase in shares if share >= 0.005)
    request = numbered(run.path.parent, start.request or 0)
    batch = Batch.read(request) or Batch()
    job = next((array for array in batch.arrays if run.id in array.runs and array.at_once == 1), None)
    if (found := used(run, attempt, asked.ranks)) is not None:
        needs = enough(cores=max(found.cores), had=asked.cpus, memory_bytes=found.memory_bytes, seconds=found.seconds)
        cores = math.fsum(found.cores)
        memory, minutes = (None, None) if job is None else (job.mem_gb, job.timeout_min)
        rows = [  # key, asked, used, enough
            ("cpus", with_noun((asked.cpus or 1) * asked.ranks, "core"), f"{cores:.2g} cores", needs.cpus),
            ("mem_gb", memory and f"{memory:.0f} GiB", f"{found.memory_bytes / 2**30:.2g} GiB", needs.mem_gb),
            ("timeout_min", minutes and f"{minutes:.0f} min", f"{found.seconds / 60:.2g} min", needs.timeout_min),
        ]
        known = [(key, str(wanted), amount) for key, wanted, _, amount in rows if wanted]
        used_amounts = ", ".join(amount for _, _, amount, _ in rows)
        details["asked"] = f"{', '.join(wanted for _, wanted, _ in known)}; used {used_amounts}"
        if run.end(attempt).kind is None:  # what an attempt used that failed was not enough, or it had just begun
            details["enough"] = ", ".join(f"{key} = {amount}" for key, _, amount in known)
    return details

"""The attempts of a run, from its files: where each ran, from when to when, and how it ended.

Times are those that worker and launcher have recorded, in whole seconds, never those of files, which a copy changes.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any

from analysis.study.values import as_number, as_text, read_or_warn
from seqlm.ends import End
from seqlm.lease import last_sign_of
from seqlm.machine import short_name
from seqlm.reading import listed, moment
from seqlm.records.attempts import Exit, GpuUsage, ProgressFile, RankEnd, Start, Usage, Worker
from seqlm.records.runs import Result
from seqlm.rounding import differences
from seqlm.rundir import RunDirectory


def read_attempts(
    run: RunDirectory,
    *,
    state: str,
    epochs: Sequence[Mapping[str, Any]],
    result: Result | None,
    warnings: list[str],
) -> list[dict[str, Any]]:
    """Return a row of the attempts table for each attempt, and add a warning for each file that is damaged.

    The rows lack ``number`` and ``id``. ``epochs`` and ``result`` are what the run's own files hold.

    If an attempt went on with an epoch that earlier ones began, all of the epoch's seconds are in its
    ``epoch_seconds``. What exceeds its own time was spent by the earlier attempts, and is not lost.
    """
    attempts: list[int] = read_or_warn(run.attempts, [], warnings)
    seconds_of: dict[float, list[float]] = defaultdict(list)
    for epoch in epochs:
        seconds_of[as_number(epoch.get("attempt"))].append(as_number(epoch.get("epoch_seconds")))

    circumstances: list[Worker] = []  # what the first rank of each attempt so far has recorded

    def row(attempt: int) -> dict[str, Any]:
        is_last = attempt == attempts[-1]
        folder = run.attempt_dir(attempt)
        start = Start.read(folder, warnings.append)
        progress = ProgressFile.read(folder, warnings.append)
        last = RankEnd.read(folder, warnings.append) or RankEnd()
        exit_ = Exit.read(folder, warnings.append)
        files: list[Path] = read_or_warn(lambda: listed(folder, "worker*.json"), [], warnings)
        of_ranks = [worker for path in files if (worker := Worker.read_file(path, warnings.append)) is not None]
        workers = sorted(of_ranks, key=lambda worker: worker.rank)
        end = read_or_warn(lambda: run.end(attempt), End(attempt=attempt), warnings)
        kept, kind = seconds_of[attempt], None
        first = workers[0] if workers else Worker()
        changes: dict[str, str] = {}
        if workers:
            circumstances.append(first)
            changes = differences(*circumstances[-2:]) if len(circumstances) > 1 else {}
        finished_by = None if result is None else result.attempt
        if result is not None and finished_by is None and is_last and state == "done":
            finished_by = attempt
        if finished_by == attempt:
            outcome = "done"
        elif end.outcome in ("done", "rung"):  # the result is of a later attempt, which went further, or none
            outcome = end.outcome
        elif is_last and state == "running":
            outcome = "running"
        elif end.kind is not None:
            kind = end.kind
            outcome = "cancelled" if kind == "cancelled" else "failed"
        elif is_last and state == "cancelled":
            outcome, kind = "cancelled", "cancelled"
        else:
            outcome = "interrupted" if workers or progress is not None or kept else "not started"
        finished_at = result.finished_at if result is not None and outcome == "done" else None
        ends = [last.ended_at, finished_at]
        ended_at = next(filter(None, map(moment, ends)), last_sign_of(progress, exit_))
        started_at = moment(first.started_at)
        seconds = ended_at - started_at if started_at is not None and ended_at is not None else math.nan
        if seconds < 0:  # two clocks that disagree
            ended_at, seconds = None, math.nan
        return {
            "attempt": attempt,
            **_place(workers, start),
            "code": PurePath(as_text(first.code) or "").name or None,
            "versions": _versions(run, first),
            "started_at": _iso(started_at),
            "ended_at": _iso(ended_at),
            "seconds": seconds,
            **_used(workers),
            "changes": as_text(", ".join(changes.values())),
            "outcome": outcome,
            "failure_kind": kind,
            "epochs": len(kept),
            "epoch_seconds": math.fsum(kept),
        }

    rows = [row(attempt) for attempt in attempts]
    carried = 0.0  # seconds that later attempts count for epochs which they did not begin
    for found in reversed(rows):
        rest = found["seconds"] - found["epoch_seconds"] - carried
        found["lost_seconds"] = rest if math.isnan(rest) else max(rest, 0.0)
        if found["outcome"] != "not started":
            carried = -rest if rest < 0 else 0.0
    return rows


def _used(workers: Sequence[Worker]) -> dict[str, float]:
    """What the ranks of an attempt have used; NaN where one of them has recorded nothing."""
    used = [worker.resources or Usage() for worker in workers]
    gpus = [usage.gpu if isinstance(usage.gpu, GpuUsage) else GpuUsage() for usage in used]
    found = {
        "cpu_seconds": [as_number(usage.cpu_seconds) for usage in used],
        "resident_bytes": [as_number(usage.peak_resident_bytes) for usage in used],
        "gpu_busy": [as_number(gpu.busy) / len(gpus) for gpu in gpus],
        "joules": [as_number(gpu.joules) for gpu in gpus],
    }
    return {key: math.fsum(numbers) if numbers else math.nan for key, numbers in found.items()}


PACKAGES = ("seqlm", "python", "torch", "tokenizers", "driver")


def _versions(run: RunDirectory, worker: Worker) -> str | None:
    environment = run.read_environment(worker)
    known: dict[str, str | None] = {"torch": worker.torch, **environment.packages}
    known |= {"python": environment.python or worker.python, "driver": environment.driver}
    return ", ".join(f"{name} {text}" for name in PACKAGES if (text := as_text(known.get(name)))) or None


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _place(workers: Sequence[Worker], start: Start | None) -> dict[str, Any]:
    """Where the attempt ran and with what. An attempt that a user started has no ``start``."""
    first = workers[0] if workers else Worker()
    asked = None if start is None else start.resources
    ranks = as_number(first.ranks)
    if math.isnan(ranks) and asked is not None:
        ranks = float(asked.ranks)
    gpus = math.nan if asked is None else as_number(asked.gpus) * ranks
    cores = math.nan if asked is None else as_number(asked.cpus)
    on_gpus = sum(bool(worker.gpu) for worker in workers)
    gpus = gpus if not math.isnan(gpus) else float(on_gpus) if workers else math.nan
    cores = (as_number(first.threads) if math.isnan(cores) else cores) * ranks
    return {
        "backend": None if start is None else as_text(start.backend),
        "job_id": None if start is None else as_text(start.job_id),
        "host": as_text(first.host),
        "node": as_text(first.node),
        "device": as_text(first.device),
        "ranks": ranks,
        "micro_batches": as_number(first.micro_batches),
        "gpus": gpus,
        "cores": cores,
        "machine": _machine(as_text(first.device), ranks, gpus, cores),
        "places": " + ".join(dict.fromkeys(_place_name(worker, gpus) for worker in workers)) or None,
    }


def _machine(device: str | None, ranks: float, gpus: float, cores: float) -> str | None:
    """Return what decides how fast an attempt is.

    >>> _machine("AMD EPYC", 1, 0, 2), _machine("NVIDIA H100", 2, 2, 8), _machine("NVIDIA H100", 1, 0.5, 4)
    ('AMD EPYC, 2 cores', 'NVIDIA H100, 2 ranks', 'NVIDIA H100, 0.5 of it')
    """
    if device is None:
        return None
    parts = [device, *([f"{ranks:g} ranks"] if ranks > 1 else [])]
    if gpus > 0 and gpus < ranks:
        parts.append(f"{gpus / ranks:g} of {'it' if ranks == 1 else 'each'}")
    elif gpus == 0 and not math.isnan(cores):
        parts.append("1 core" if cores == 1 else f"{cores:g} cores")
    return ", ".join(parts)


def _place_name(worker: Worker, gpus: float) -> str:
    where = as_text(worker.node) or as_text(worker.host) or "unknown host"
    gpu = as_text(worker.gpu)
    if gpus == 0 or (math.isnan(gpus) and not gpu):
        return where
    return f"{where} {short_name(gpu) if gpu else 'GPU'}"

"""The attempts of a run, as its files tell them: where each ran, from when to when, and how it ended.

Times are those that worker and launcher have written down, never those of files, which a copy changes. They are whole
seconds. What nobody has written down is NaN or none.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from analysis.study.values import as_number, clean, whole
from seqlm.errors import FileError
from seqlm.files import read_json
from seqlm.machine import short_name
from seqlm.rundir import RunDirectory

ATTEMPT_COLUMNS = [
    *("number", "id", "attempt", "backend", "job_id", "host", "node", "device", "ranks", "gpus", "cores", "places"),
    *("micro_batches", "started_at", "ended_at", "seconds", "outcome", "failure_kind"),
    *("epochs", "epoch_seconds", "lost_seconds"),
]
"""Columns of the attempts table. ``host``, ``node``: of the first rank. ``gpus``: of all ranks together, 0 on
processors; ``cores`` likewise. ``places``: the hosts and GPUs of all ranks, joined by ``PLACE_JOINT``.
``micro_batches``: parts in which each rank took its steps, above 1 where memory was short. ``seconds``: from
``started_at`` to ``ended_at``, which for an attempt that left no word of its end is its last sign of life.
``outcome``: done, failed, cancelled, interrupted, running or not started. ``epochs``: finished in the attempt and kept,
which took ``epoch_seconds``; ``lost_seconds`` is the rest of ``seconds``: start-up, checkpoints, the test, and the
unfinished epoch of an attempt that was cut off."""

PLACE_JOINT = " + "

NUMBERS = ["gpus", "cores", "seconds", "epoch_seconds", "lost_seconds"]
WHOLE_NUMBERS = ["attempt", "ranks", "micro_batches", "epochs"]


def read_attempts(
    run: RunDirectory,
    *,
    state: str,
    epochs: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any],
    failure: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each attempt without ``number`` and ``id``, and a warning for each file that is damaged.

    The other arguments are what the run's own files hold; empty where they do not exist.
    """
    warnings: list[str] = []

    def read(path: Any) -> dict[str, Any]:
        try:
            return read_json(path) or {}
        except FileError as error:
            warnings.append(str(error))
            return {}

    numbers = run.attempts()
    if not numbers:
        return [], []
    job = {}
    with contextlib.suppress(FileError):  # only says where a run was; nothing else of it depends on it
        job = run.read_job() or {}
    of_attempt: dict[float, list[float]] = defaultdict(list)
    for epoch in epochs:
        of_attempt[as_number(epoch.get("attempt"))].append(as_number(epoch.get("epoch_seconds")))
    rows = []
    for attempt in numbers:
        is_last = attempt == numbers[-1]
        workers = _workers(run, attempt, read)
        progress = read(run.progress_file(attempt))
        own_failure = read(run.attempt_dir(attempt) / "failure.json")
        kept = of_attempt[attempt]
        outcome, kind, ended = _ending(
            attempt,
            is_last=is_last,
            state=state,
            result=result,
            failure=own_failure or failure,
            failed_itself=bool(own_failure),
            has_begun=bool(workers or progress or kept),
            alive_at=progress.get("updated_at"),
        )
        started_at = moment(workers[0].get("started_at")) if workers else None
        ended_at = next((t for t in map(moment, (workers[0].get("ended_at") if workers else None, ended)) if t), None)
        seconds = ended_at - started_at if started_at is not None and ended_at is not None else math.nan
        if seconds < 0:  # two clocks that disagree
            ended_at, seconds = None, math.nan
        epoch_seconds = math.fsum(kept)
        rows.append(
            {
                "attempt": attempt,
                **_place(workers, job if attempt >= as_number(job.get("attempt")) else {}),
                "started_at": _iso(started_at),
                "ended_at": _iso(ended_at),
                "seconds": seconds,
                "outcome": outcome,
                "failure_kind": kind,
                "epochs": len(kept),
                "epoch_seconds": epoch_seconds,
                "lost_seconds": max(seconds - epoch_seconds, 0.0) if not math.isnan(seconds) else math.nan,
            }
        )
    return rows, warnings


def attempts_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows of all runs as one table; see ``ATTEMPT_COLUMNS``."""
    table = pd.DataFrame(list(rows), columns=ATTEMPT_COLUMNS, dtype=object)
    for column in NUMBERS:
        table[column] = pd.to_numeric(table[column], errors="coerce").astype(float)
    for column in WHOLE_NUMBERS:
        table[column] = whole(table[column])
    table["number"] = table["number"].infer_objects()
    return table


def moment(text: Any) -> float | None:
    """An ISO 8601 time as seconds since 1970, without a zone taken as UTC; none for anything else."""
    if not isinstance(text, str):
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    if not 1970 < time.year < 9999:  # nobody's clock, and at the ends of the calendar zones cannot be reckoned
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


# -- one attempt ---------------------------------------------------------------------------------------------------


def _workers(run: RunDirectory, attempt: int, read: Callable[[Any], dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of the attempt's ranks that there are, by rank."""
    files = list(run.attempt_dir(attempt).glob("worker*.json"))
    return sorted(
        (record for file in files if (record := read(file))), key=lambda record: as_number(record.get("rank"))
    )


def _ending(
    attempt: int,
    *,
    is_last: bool,
    state: str,
    result: Mapping[str, Any],
    failure: Mapping[str, Any],
    failed_itself: bool,
    has_begun: bool,
    alive_at: Any,
) -> tuple[str, str | None, Any]:
    """Outcome, kind of failure, and when it ended."""
    if result and _belongs(result, attempt, is_last):
        return "done", None, result.get("finished_at")
    if failure and (failed_itself or _belongs(failure, attempt, is_last)) and not (is_last and state == "running"):
        kind = _text(failure.get("kind")) or "code"
        told = failure.get("at") or failure.get("failed_at")
        # A cancellation names no attempt: it may have come long after the attempt was over.
        ended = told if failed_itself or "attempt" in failure else alive_at or told
        return ("cancelled" if kind == "cancelled" else "failed"), kind, ended
    if is_last and state == "running":
        return "running", None, alive_at
    if not has_begun:
        return "not started", None, None
    return "interrupted", None, alive_at


def _belongs(record: Mapping[str, Any], attempt: int, is_last: bool) -> bool:
    told = record.get("attempt")
    return told == attempt if told is not None else is_last


def _place(workers: Sequence[Mapping[str, Any]], job: Mapping[str, Any]) -> dict[str, Any]:
    """Where the attempt ran and with what. What the launcher gave is known of its newest job alone."""
    first: Mapping[str, Any] = workers[0] if workers else {}
    resources = job.get("resources")
    given: Mapping[str, Any] = resources if isinstance(resources, Mapping) else {}
    ranks = next((n for n in (as_number(first.get("ranks")), as_number(given.get("ranks"))) if n >= 1), math.nan)
    on_gpus = sum(bool(worker.get("gpu")) for worker in workers)
    gpus = as_number(given.get("gpus")) * ranks
    threads = as_number(first.get("threads"))
    cores = as_number(given.get("cpus"))
    return {
        "backend": _text(job.get("backend")),
        "job_id": _text(job.get("job_id")),
        "host": _text(first.get("host")),
        "node": _text(first.get("node")),
        "device": _text(first.get("device")),
        "ranks": ranks,
        "micro_batches": as_number(first.get("micro_batches")),
        "gpus": gpus if not math.isnan(gpus) else float(on_gpus) if workers else math.nan,
        "cores": (threads if math.isnan(cores) else cores) * ranks,
        "places": PLACE_JOINT.join(dict.fromkeys(_place_name(worker, gpus) for worker in workers)) or None,
    }


def _place_name(worker: Mapping[str, Any], gpus: float) -> str:
    where = _text(worker.get("node")) or _text(worker.get("host")) or "unknown host"
    gpu = _text(worker.get("gpu"))
    if gpus == 0 or (math.isnan(gpus) and not gpu):
        return where
    return f"{where} {short_name(gpu) if gpu else 'GPU'}"


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _text(value: Any) -> str | None:
    """A text on one line, of printable characters alone; none where there is none."""
    if value is None or isinstance(value, dict | list):
        return None
    return clean(str(value)) or None

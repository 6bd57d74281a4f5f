"""Records of attempts made up for tests, as workers and launchers leave them."""

from datetime import UTC, datetime
from typing import Any

from seqlm.files import make_directory, read_json, write_json
from seqlm.records.attempts import Start
from seqlm.resources import Resources
from seqlm.rundir import RunDirectory

ORIGIN = datetime(2026, 3, 1, 9, 0, tzinfo=UTC).timestamp()


def at(seconds: float) -> str:
    """A time so long after the first start of the made-up studies."""
    return datetime.fromtimestamp(ORIGIN + seconds, UTC).isoformat(timespec="seconds")


def write_attempt(
    run: RunDirectory,
    attempt: int,
    *,
    start: float | None = None,
    end: float | None = None,
    alive: float | None = None,
    hosts: tuple[str, ...] = ("node07",),
    gpus: tuple[str | None, ...] = (None,),
    device: str = "AMD EPYC",
    micro_batches: int = 1,
    threads: int = 2,
    outcome: str | None = None,
) -> None:
    """A record for each rank, and ``progress.json`` where ``alive``; times in seconds after ``ORIGIN``."""
    run.attempt_dir(attempt).mkdir(parents=True, exist_ok=True)
    for rank, (host, gpu) in enumerate(zip(hosts, gpus, strict=True)):
        record: dict[str, Any] = {"host": host, "node": None, "rank": rank, "ranks": len(hosts)}
        record |= {
            "device": device,
            "gpu": gpu,
            "gpus": 1.0 if gpu else 0.0,
            "threads": threads,
            "micro_batches": micro_batches,
        }
        if start is not None:
            record["started_at"] = at(start)
        write_json(run.worker_file(attempt, rank), record)
        before = read_json(run.end_file(attempt, rank)) or {}
        run.end_file(attempt, rank).unlink(missing_ok=True)
        if end is not None:
            how = before if before.get("kind") else {"outcome": outcome}
            write_json(run.end_file(attempt, rank), {"rank": rank, **how, "ended_at": at(end)})
    if alive is not None:
        write_json(run.progress_file(attempt), {"epoch": 0, "updated_at": at(alive)})


def write_job(
    run: RunDirectory,
    attempt: int,
    *,
    backend: str = "local",
    job: str = "4711",
    ranks: int = 1,
    cpus: int = 2,
    gpus: float = 0.0,
) -> None:
    """``start.json`` of an attempt; cores and GPUs are those of a rank."""
    resources = Resources(ranks=ranks, cpus=cpus, gpus=gpus)
    make_directory(run.attempt_dir(attempt))
    Start(backend=backend, job_id=job, resources=resources).write(run.attempt_dir(attempt))

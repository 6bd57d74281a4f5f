"""One rank of one run, from start to end: ``python -m seqlm.training.worker RUN_DIR``.

The same command line on every backend and for every attempt: it goes on where the run's files say it stopped. What
differs between ranks and machines comes from the environment:

    RANK, WORLD_SIZE, LOCAL_RANK    which rank this is (default: the only one)
    SEQLM_RENDEZVOUS                where the ranks meet, else MASTER_ADDR and MASTER_PORT
    SEQLM_DEVICE                    cpu or cuda (default: cuda where there is a device)
    SEQLM_DATA                      folder or zip of the corpus
    SEQLM_NODE                      the node's name where hosts do not tell nodes apart, for the record
    SEQLM_ATTEMPT                   number of this attempt (default: one more than there were)
    SEQLM_CANARY                    in the folder of a canary: train so many steps, write canary.json, and be done

Exit codes: 0 done, 1 failed (``failure.json`` says why), 2 not a run directory, 74 files cannot be written,
75 another worker is at it, 143 stopped by SIGTERM or SIGINT.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from seqlm.data.corpus import load_corpus
from seqlm.errors import FileError, RunBusyError, SeqlmError
from seqlm.rundir import RunDirectory, exclusive_lock, make_directory, write_json
from seqlm.training.canary import canary_steps, run_canary
from seqlm.training.distributed import Rank, process_group, rank_from_environment
from seqlm.training.failure import describe_failure, failure_text, is_storage_failure, tell
from seqlm.training.trainer import StopRequested, Trainer

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_STORAGE = 74
EXIT_BUSY = 75
EXIT_STOPPED = 143

STOPPED = "stopped; run again to resume"


class StopSignal:
    """Remembers that SIGTERM or SIGINT came, to be obeyed between two steps, never in the middle of one."""

    def __init__(self) -> None:
        self.received = False

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = True


def main(argv: list[str] | None = None) -> int:
    """Run one rank; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m seqlm.training.worker RUN_DIR", file=sys.stderr)
        return EXIT_USAGE
    run = RunDirectory(Path(arguments[0]).absolute())
    stop = StopSignal()
    stop.install()
    try:
        rank = rank_from_environment(os.environ)
        steps = canary_steps(run, os.environ)
        config = run.read_config()
    except SeqlmError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    attempt = int(os.environ.get("SEQLM_ATTEMPT") or run.last_attempt() + 1)
    try:
        with _ownership(run, rank):
            if run.result_file.exists():
                print("this run is done; nothing to do")
                return 0
            with _recorded(run, rank, attempt):
                path = os.environ.get("SEQLM_DATA")
                corpus = load_corpus(config.data, Path(path) if path else None)
                with process_group(rank):
                    trainer = Trainer(
                        config, corpus, run, rank=rank, attempt=attempt, should_stop=lambda: stop.received
                    )
                    if steps is None:
                        trainer.train()
                    else:
                        run_canary(trainer, steps)
    except RunBusyError as error:
        tell(f"error: {error}")
        return EXIT_BUSY
    except StopRequested:
        tell(STOPPED)
        return EXIT_STOPPED
    except Exception as error:
        if stop.received:  # the other ranks left first, so that a collective operation of this one failed
            tell(STOPPED)
            return EXIT_STOPPED
        tell(failure_text(error))
        try:
            run.write_failure_once(describe_failure(error, rank=rank.index, attempt=attempt))
        except SeqlmError as unwritable:
            tell(f"error: {unwritable}")
        return EXIT_STORAGE if is_storage_failure(error) else EXIT_FAILED
    return 0


def _ownership(run: RunDirectory, rank: Rank) -> contextlib.AbstractContextManager[None]:
    if rank.is_first:
        return exclusive_lock(run.worker_lock_file, f"{run.id} already has a live worker")
    return contextlib.nullcontext()


@contextlib.contextmanager
def _recorded(run: RunDirectory, rank: Rank, attempt: int) -> Iterator[None]:
    """Keep the record of this rank while the block runs; at the end, however that came, it gets ``ended_at``.

    A worker that is killed leaves none: its launcher then writes ``failure.json``, which has a time.
    """
    record = _record_worker(run, rank, attempt)
    try:
        yield
    finally:
        with contextlib.suppress(FileError):  # a full disk has been told by whoever met it first
            write_json(run.worker_file(attempt, rank.index), {**record, "ended_at": _now()}, sync=False)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _record_worker(run: RunDirectory, rank: Rank, attempt: int) -> dict[str, Any]:
    """Where and with what this rank runs: ``worker.json`` in the attempt's folder, of other ranks ``worker-N.json``."""
    make_directory(run.attempt_dir(attempt))
    record: dict[str, Any] = {
        "host": socket.gethostname(),
        "node": os.environ.get("SEQLM_NODE"),
        "pid": os.getpid(),
        "rank": rank.index,
        "ranks": rank.world_size,
        "device": rank.device_name,
        "gpu": os.environ.get("CUDA_VISIBLE_DEVICES") or None,
        "threads": torch.get_num_threads(),
        "code": str(Path(__file__).parents[2]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "started_at": _now(),
    }
    write_json(run.worker_file(attempt, rank.index), record)
    return record


if __name__ == "__main__":
    sys.exit(main())

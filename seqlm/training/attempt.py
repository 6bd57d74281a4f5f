"""One attempt of a worker at its folder: who owns it, where it runs, how it ends.

Shared by every worker, whatever its work is: training (:mod:`seqlm.training.worker`) and what is computed from a
finished run (:mod:`analysis.behaviour`).
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from seqlm.errors import FileError, RunBusyError, SeqlmError
from seqlm.rundir import RunDirectory, exclusive_lock, make_directory, write_json
from seqlm.training.distributed import Rank
from seqlm.training.failure import describe_failure, failure_text, is_storage_failure, tell
from seqlm.training.micro_batches import VARIABLE

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_STORAGE = 74
EXIT_BUSY = 75
EXIT_STOPPED = 143

STOPPED = "stopped; run again to resume"


class StopRequested(Exception):  # noqa: N818 -- not an error: somebody asked this run to stop
    """A signal asked the worker to stop; the run goes on from its last checkpoint when launched again."""


class StopSignal:
    """Remembers that SIGTERM or SIGINT came, to be obeyed between two steps, never in the middle of one."""

    def __init__(self) -> None:
        self.received = False

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = True

    def check(self) -> None:
        """Call between two pieces of work.

        Raises:
            StopRequested: a signal has come.
        """
        if self.received:
            raise StopRequested


def attempt_number(run: RunDirectory, env: Mapping[str, str]) -> int:
    """The number of this attempt: ``SEQLM_ATTEMPT``, else one more than there were."""
    return int(env.get("SEQLM_ATTEMPT") or run.last_attempt() + 1)


def make_attempt(run: RunDirectory, rank: Rank, attempt: int, stop: StopSignal, work: Callable[[], object]) -> int:
    """Own the folder, record where this runs, do ``work``; returns the exit code and raises nothing.

    A folder with a ``result.json`` is done: no work, code 0. What goes wrong is told on stderr and in
    ``failure.json``, except for a signal and for a folder that another worker owns.
    """
    try:
        with _ownership(run, rank):
            if run.result_file.exists():
                print("this run is done; nothing to do")
                return 0
            with recorded(run, rank, attempt):
                work()
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
def recorded(run: RunDirectory, rank: Rank, attempt: int) -> Iterator[None]:
    """Keep the record of this rank while the block runs; at the end, however that came, it gets ``ended_at``.

    It says where and with what the rank runs: ``worker.json`` in the attempt's folder, of other ranks
    ``worker-N.json``. A worker that is killed leaves no ``ended_at``: its launcher then writes ``failure.json``, which
    has a time.
    """
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
        "micro_batches": int(os.environ.get(VARIABLE) or 1),
        "code": str(Path(__file__).parents[2]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "started_at": _now(),
    }
    file = run.worker_file(attempt, rank.index)
    write_json(file, record)
    try:
        yield
    finally:
        with contextlib.suppress(FileError):  # a full disk has been told by whoever met it first
            write_json(file, {**record, "ended_at": _now()}, sync=False)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

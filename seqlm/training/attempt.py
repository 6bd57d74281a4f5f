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
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, final

import torch

from seqlm.environment import ATTEMPT, GPU_SHARE, MICRO_BATCHES, NODE
from seqlm.errors import (
    EXIT_BUSY,
    EXIT_FAILED,
    EXIT_RUNG,
    EXIT_STOPPED,
    EXIT_STORAGE,
    FileError,
    LeaseLostError,
    RunBusyError,
    is_storage_failure,
)
from seqlm.files import Guard, make_directory, unguarded, write_json
from seqlm.lease import claim, kept, require_attempt
from seqlm.reading import timestamp
from seqlm.rundir import RunDirectory, stopped_reason
from seqlm.training.distributed import AllLeave, Rank
from seqlm.training.failure import describe_failure, failure_text, tell

STOPPED = "stopped; run again to resume"
CANCELLED = "cancelled; `retry` resumes it"


class StopRequested(AllLeave):
    """A signal asked the worker to stop; the run goes on from its last checkpoint when launched again."""


class LeftAtRungError(AllLeave):
    """The search of the study stops the run at a rung, or has it wait for others there. The run's files say which."""


@final
class StopSignal:
    """Remembers that SIGTERM, SIGINT or SIGUSR2 came, to be obeyed where nothing is half done."""

    def __init__(self) -> None:
        self.received = False

    def install(self) -> None:
        """Take the signals on from here."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, lambda *_: self.request())

    def request(self) -> None:
        """Ask for the same without a signal, from any thread."""
        self.received = True

    def check(self) -> None:
        """Call between two pieces of work.

        Raises:
            StopRequested: a signal has come.
        """
        if self.received:
            raise StopRequested


def attempt_number(run: RunDirectory, env: Mapping[str, str]) -> int:
    """Return the number of this attempt: ``SEQLM_ATTEMPT``, else one more than the attempts so far.

    Raises:
        UsageError: the variable is not a whole number above 0.
    """
    return ATTEMPT.read(env) or run.last_attempt() + 1


def make_attempt(run: RunDirectory, rank: Rank, attempt: int, stop: StopSignal, work: Callable[[Guard], object]) -> int:
    """Own the folder, record where this runs, do ``work``; returns the exit code and raises nothing.

    ``work`` is given a guard, to be called before each file that is put in place. In a folder that is done there is no
    work, code 0. How this rank ended is in ``end.json`` of the attempt, except where another worker owns the folder;
    errors are reported on stderr as well. After an error, a process group that ``work`` has joined ends with the
    process: other ranks that notice it find the record written.
    """
    try:
        with _ownership(run, rank, attempt, stop) as guard:
            if run.is_done():
                print("this run is done; nothing to do")
                return 0
            if (stopped := run.read_stopped()) is not None:
                print(stopped_reason(stopped))
                return EXIT_RUNG
            record_start(run, rank, attempt, guard)
            code, outcome = 0, "done"
            try:
                work(guard)
            except LeaseLostError:
                raise
            except LeftAtRungError as left:
                print(left)
                code, outcome = EXIT_RUNG, "rung"
            except Exception as error:
                # After a signal, other ranks may have left first, so that a collective operation of this one failed.
                if not isinstance(error, StopRequested) and (not stop.received or is_storage_failure(error)):
                    return _failed(run, rank, attempt, error, guard)
                tell(CANCELLED if _is_cancelled(run) else STOPPED)
                code, outcome = EXIT_STOPPED, "interrupted"
            _write_end(run, rank, attempt, {"outcome": outcome}, guard)
            return code
    except (RunBusyError, LeaseLostError) as error:
        tell(f"error: {error}")
        return EXIT_BUSY
    except StopRequested:
        tell(STOPPED)
        return EXIT_STOPPED
    except Exception as error:
        return _failed(run, rank, attempt, error, unguarded)


def _is_cancelled(run: RunDirectory) -> bool:
    with contextlib.suppress(FileError):
        return run.is_cancelled()
    return False


def _failed(run: RunDirectory, rank: Rank, attempt: int, error: Exception, guard: Guard) -> int:
    tell(failure_text(error))
    is_told = _write_end(run, rank, attempt, describe_failure(error, rank=rank.index), guard)
    return EXIT_FAILED if is_told and not is_storage_failure(error) else EXIT_STORAGE


def _write_end(run: RunDirectory, rank: Rank, attempt: int, record: Mapping[str, Any], guard: Guard) -> bool:
    """Write how this rank ended, and return whether that is written. Its launcher sees at least the exit code.

    Raises:
        LeaseLostError: the run belongs to another worker by now.
    """
    try:
        run.write_end(attempt, rank.index, record, guard=guard)
    except FileError as unwritable:
        tell(f"error: {unwritable}")
        return False
    return True


@contextlib.contextmanager
def _ownership(run: RunDirectory, rank: Rank, attempt: int, stop: StopSignal) -> Iterator[Guard]:
    """Own the run while the block runs; yields what is to be asked before each file that is put in place.

    The first rank has the lease, and what it leaves ends the others.

    Raises:
        RunBusyError: another worker owns the run.
        StopRequested: a signal came while a lease was watched.
        UsageError: a variable of the lease's terms is wrong.
    """
    if not rank.is_first:
        yield lambda: require_attempt(run.lease_dir, attempt)
        return

    def pause(seconds: float) -> None:
        time.sleep(seconds)
        stop.check()

    def stop_if_cancelled() -> None:
        if run.is_cancelled():
            stop.request()

    busy = f"{run.id} already has a live worker"
    lease = claim(run.lease_dir, attempt=attempt, busy=busy, pause=pause, tell=tell)
    with kept(lease, stop_if_cancelled):
        run.sweep(attempt)
        yield lease.check


def record_start(run: RunDirectory, rank: Rank, attempt: int, guard: Guard = unguarded) -> None:
    """Write where and with what this rank runs: ``worker.json`` in the attempt's folder, of others ``worker-N.json``.

    Raises:
        FileError: it cannot be written.
        LeaseLostError: ``guard`` says that the run belongs to another worker by now.
    """
    make_directory(run.attempt_dir(attempt))
    record: dict[str, Any] = {
        "host": socket.gethostname(),
        "node": NODE.read() or None,
        "pid": os.getpid(),
        "rank": rank.index,
        "ranks": rank.world_size,
        "device": rank.device_name,
        "multiprocessors": rank.multiprocessors,
        "matmul": rank.matmul,
        "gpu": os.environ.get("CUDA_VISIBLE_DEVICES") or None,
        # What the rank holds: a launcher sets the variable even if the rank computes on the processor.
        "gpus": GPU_SHARE.read() if GPU_SHARE.is_set() or rank.device.type == "cuda" else 0,
        "threads": torch.get_num_threads(),
        "micro_batches": MICRO_BATCHES.read(),
        "code": str(Path(__file__).parents[2]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "started_at": timestamp(),
    }
    write_json(run.worker_file(attempt, rank.index), record, guard=guard)

"""One attempt of a worker at its folder: who owns it, where it runs, how it ends.

Shared by every worker, whatever its work is: training (:mod:`seqlm.training.worker`) and what is computed from a
finished run (:mod:`analysis.behaviour`).
"""

import contextlib
import os
import platform
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

import torch

from seqlm.environment import ATTEMPT, CAPTURE_RANKS, GPU_SHARE, MICRO_BATCHES, NODE
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
from seqlm.files import Guard, make_directory, unguarded
from seqlm.hang import explain
from seqlm.lease import claim, kept, require_attempt
from seqlm.reading import timestamp
from seqlm.records.attempts import RankEnd, Worker
from seqlm.rundir import RunDirectory
from seqlm.training.distributed import AllLeave, Rank
from seqlm.training.failure import describe_failure, failure_text, tell
from seqlm.training.witness import process_seconds, watched

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


@final
@dataclass(kw_only=True)
class Attempt:
    """One attempt of a rank at a run."""

    run: RunDirectory
    rank: Rank
    number: int
    stop: StopSignal = field(default_factory=StopSignal)
    guard: Guard = unguarded
    """Called before each file of the run is put in place. Raises if another worker owns the run by now."""

    def make(self, work: Callable[[], object]) -> int:
        """Own the folder, record where this runs, do ``work``; returns the exit code and raises nothing.

        In a folder that is done there is no work, code 0. How this rank ended is in ``end.json`` of the attempt, except
        where another worker owns the folder; errors are reported on stderr as well. After an error, a process group
        that ``work`` has joined ends with the process: other ranks that notice it find the record written.
        """
        try:
            with self._ownership():
                return self._work(work)
        except (RunBusyError, LeaseLostError) as error:
            tell(f"error: {error}")
            return EXIT_BUSY
        except StopRequested:
            tell(STOPPED)
            return EXIT_STOPPED
        except Exception as error:
            self.guard = unguarded  # the run is not owned yet, or no more
            return self._failed(error)

    def _work(self, work: Callable[[], object]) -> int:
        run, code, outcome = self.run, 0, "done"
        if run.is_done():
            print("this run is done; nothing to do")
            return 0
        if (reason := run.why_stopped()) is not None:
            print(reason)
            return EXIT_RUNG
        record = self.record_start()
        try:
            with watched(self, record):
                work()
        except LeaseLostError:
            raise
        except LeftAtRungError as left:
            print(left)
            code, outcome = EXIT_RUNG, "rung"
        except Exception as error:
            # After a signal, other ranks may have left first, so that a collective operation of this one failed.
            if not isinstance(error, StopRequested) and (not self.stop.received or is_storage_failure(error)):
                return self._failed(error)
            is_cancelled = False
            with contextlib.suppress(FileError):
                is_cancelled = run.is_cancelled()
            tell(CANCELLED if is_cancelled else STOPPED)
            code, outcome = EXIT_STOPPED, "interrupted"
        self._write_end(RankEnd(rank=self.rank.index, outcome=outcome))
        if self.rank.is_first:
            run.drop_progress(self.number)
        return code

    def _failed(self, error: Exception) -> int:
        tell(failure_text(error))
        record = describe_failure(error, rank=self.rank.index, ranks=self.rank.world_size)
        if record.peer_lost and (why := explain(self.run, self.number)):
            record = replace(record, message=f"{why} ({record.message})")
        is_told = self._write_end(record)
        return EXIT_FAILED if is_told and not is_storage_failure(error) else EXIT_STORAGE

    def _write_end(self, record: RankEnd) -> bool:
        """Write how this rank ended, and return whether that is written. Its launcher sees at least the exit code.

        Raises:
            LeaseLostError: the run belongs to another worker by now.
        """
        try:
            self.run.write_end(self.number, record, guard=self.guard)
        except FileError as unwritable:
            tell(f"error: {unwritable}")
            return False
        return True

    @contextlib.contextmanager
    def _ownership(self) -> Iterator[None]:
        """Own the run while the block runs. The first rank has the lease, and what it leaves ends the others.

        Raises:
            RunBusyError: another worker owns the run.
            StopRequested: a signal came while a lease was watched.
            UsageError: a variable of the lease's terms is wrong.
        """
        run = self.run
        if not self.rank.is_first:
            self.guard = lambda: require_attempt(run.lease_dir, self.number)
            yield
            return

        def pause(seconds: float) -> None:
            time.sleep(seconds)
            self.stop.check()

        def stop_if_cancelled() -> None:
            if run.is_cancelled():
                self.stop.request()

        busy = f"{run.id} already has a live worker"
        lease = claim(run.lease_dir, attempt=self.number, busy=busy, pause=pause, tell=tell)
        with kept(lease, stop_if_cancelled):
            run.sweep(self.number)
            run.fold(self.number)
            self.guard = lease.check
            yield

    def record_start(self) -> Worker:
        """Write where and with what this rank runs: ``worker.json`` in the attempt's folder, or ``worker-N.json``.

        It has run since its process started, which held the device from then on.

        Return what is written. These fields never change.

        Raises:
            FileError: it cannot be written.
            LeaseLostError: the run belongs to another worker by now.
        """
        rank = self.rank
        make_directory(self.run.attempt_dir(self.number))
        reduction = ""
        if rank.world_size > 1:
            reduction = "flat" if CAPTURE_RANKS.read() else "buckets"
        # What the rank holds: a launcher sets the variable even if the rank computes on the processor.
        holds_gpu = GPU_SHARE.is_set() or rank.device.type == "cuda"
        record = Worker(
            host=socket.gethostname(),
            node=NODE.read() or None,
            pid=os.getpid(),
            rank=rank.index,
            ranks=rank.world_size,
            device=rank.device_name,
            instructions=rank.instructions,
            multiprocessors=rank.multiprocessors,
            matmul=rank.matmul,
            reduction=reduction,
            gpu=os.environ.get("CUDA_VISIBLE_DEVICES") or None,
            gpus=GPU_SHARE.read() if holds_gpu else 0,
            threads=torch.get_num_threads(),
            micro_batches=MICRO_BATCHES.read(),
            code=str(Path(__file__).parents[2]),
            python=platform.python_version(),
            torch=str(torch.__version__),
            started_at=timestamp(time.time() - process_seconds()),
        )
        record.write_file(self.run.worker_file(self.number, rank.index), guard=self.guard)
        return record

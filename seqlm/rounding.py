"""What decides how the sums of a run are rounded, and whether it has changed from one attempt to the next."""

import contextlib

from seqlm.errors import DamagedFileError
from seqlm.records.attempts import Position, Worker
from seqlm.rundir import RunDirectory

ROUNDING = (
    "ranks",
    "micro_batches",
    "threads",
    "device",
    "instructions",
    "multiprocessors",
    "matmul",
    "reduction",
    "torch",
)
"""Fields of ``worker.json`` that decide how sums are rounded or which dropout masks are drawn."""


def differences(before: Worker, now: Worker) -> dict[str, str]:
    """Compare two records of workers in the fields of ``ROUNDING``: field -> such as ``threads 4 instead of 1``.

    A value that one of them lacks is not compared, nor are threads if the later one has a GPU.
    """
    found = {}
    for key in ROUNDING:
        earlier, later = getattr(before, key), getattr(now, key)
        is_compared = bool(earlier and later) and not (key == "threads" and now.gpus)
        if is_compared and earlier != later:
            found[key] = f"{key.replace('_', '-')} {later} instead of {earlier}"
    return found


def have_same_masks(before: Worker, now: Worker) -> bool:
    """Return whether two workers draw the same dropout masks, as far as their records say."""
    keeps_masks = {"threads", "instructions", "matmul", "reduction"}
    if not before.gpus and not now.gpus:
        keeps_masks.add("device")
    return differences(before, now).keys() <= keeps_masks


def changes(before: Worker, now: Worker) -> str:
    """Return a line on what differs from the worker that saved a checkpoint and affects its numbers. Empty: nothing.

    Masks stay if only threads, library, reduction or processor differ. Another version of PyTorch may draw other ones.
    """
    found = differences(before, now)
    equal = f"up to rounding{'' if have_same_masks(before, now) else ' and dropout masks'}"
    return f"now {', '.join(found.values())}: the result is equal to that of a quiet run {equal}" if found else ""


def worker_of_checkpoint(run: RunDirectory) -> Worker:
    """Return what ``worker.json`` says of the attempt that saved the last checkpoint of a run. Empty: unknown."""
    with contextlib.suppress(DamagedFileError):  # by a crash of the machine: they are not flushed
        position = Position.read_file(run.position_file)
        if position is not None and position.attempt is not None:
            return run.read_worker(position.attempt)
    return Worker()


def threads_of_checkpoint(run: RunDirectory) -> int | None:
    """Return the threads of each rank of the attempt that saved the last checkpoint. ``None``: unknown, or on a GPU."""
    worker = worker_of_checkpoint(run)
    return worker.threads if worker.gpus == 0 else None

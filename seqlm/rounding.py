"""What decides how the sums of a run are rounded, and whether it has changed from one attempt to the next."""

import contextlib
from collections.abc import Mapping
from typing import Any

from seqlm.errors import DamagedFileError
from seqlm.files import read_json
from seqlm.rundir import RunDirectory

ROUNDING = ("ranks", "micro_batches", "threads", "device", "multiprocessors", "matmul", "reduction", "torch")
"""Fields of ``worker.json`` that decide how sums are rounded or which dropout masks are drawn."""


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Compare two records of workers in the fields of ``ROUNDING``: field -> such as ``threads 4 instead of 1``.

    A value that one of them lacks is not compared, nor are threads if the later one has a GPU.
    """
    return {
        key: f"{key.replace('_', '-')} {now[key]} instead of {before[key]}"
        for key in ROUNDING
        if before.get(key) and now.get(key) and before[key] != now[key] and not (key == "threads" and now.get("gpus"))
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return a line on what differs from the worker that saved a checkpoint and affects its numbers. Empty: nothing.

    Masks stay if only threads, library, reduction or processor differ. Another version of PyTorch may draw other ones.
    """
    found = differences(before, now)
    keeps_masks = {"threads", "matmul", "reduction"} | (set() if before.get("gpus") or now.get("gpus") else {"device"})
    equal = f"up to rounding{'' if found.keys() <= keeps_masks else ' and dropout masks'}"
    return f"now {', '.join(found.values())}: the result is equal to that of a quiet run {equal}" if found else ""


def worker_of_checkpoint(run: RunDirectory) -> dict[str, Any]:
    """Return what ``worker.json`` says of the attempt that saved the last checkpoint of a run. Empty: unknown."""
    with contextlib.suppress(DamagedFileError):  # by a crash of the machine: they are not flushed
        saved_by = (read_json(run.position_file) or {}).get("attempt")
        return (read_json(run.worker_file(saved_by)) if type(saved_by) is int else None) or {}
    return {}


def threads_of_checkpoint(run: RunDirectory) -> int | None:
    """Return the threads of each rank of the attempt that saved the last checkpoint. ``None``: unknown, or on a GPU."""
    worker = worker_of_checkpoint(run)
    threads = worker.get("threads") if worker.get("gpus") == 0 else None
    return threads if type(threads) is int and threads > 0 else None

"""What went wrong, as ``failure.json`` tells it. Classified inside the worker, since schedulers cannot tell."""

from __future__ import annotations

import contextlib
import errno
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from seqlm.errors import DivergedError, FileError, SeqlmError
from seqlm.rundir import FailureKind

_PEER_LOST = ("connection closed by peer", "connection reset by peer", "connect timeout", "timed out waiting")


def is_storage_failure(error: BaseException) -> bool:
    """Whether a file could not be written or read: a full disk, a quota, a read-only or failing file system."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
    return isinstance(error, FileError) or (isinstance(error, OSError) and error.errno in codes)


def failure_kind(error: BaseException) -> FailureKind:
    """The kind of a failure: ``diverged``, ``oom``, ``node`` or ``code``.

    ``node`` is what the run is not to blame for: its disk failed, or it lost its other ranks.
    """
    if isinstance(error, DivergedError):
        return "diverged"
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return "oom"
    if "defaultcpuallocator: can't allocate memory" in str(error).lower():
        return "oom"
    return "node" if is_storage_failure(error) or _is_peer_lost(error) else "code"


def _is_peer_lost(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.distributed.DistBackendError) or any(sign in text for sign in _PEER_LOST)


def describe_failure(error: BaseException, *, rank: int, attempt: int) -> dict[str, Any]:
    """The content of ``failure.json``: kind, a line for a person, and where it happened."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else "unknown"
    message = str(error).strip() or type(error).__name__
    if not isinstance(error, SeqlmError):
        message = f"{type(error).__name__}: {message}"
    if _is_peer_lost(error):
        message = f"rank {rank} lost another rank of the run, which ended or whose machine is gone ({message})"
    return {
        "kind": failure_kind(error),
        "message": message.splitlines()[0][:300],
        "where": where,
        "rank": rank,
        "attempt": attempt,
        "failed_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def tell(text: str) -> None:
    """One or more lines on stderr; where even the log cannot be written, nothing."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def failure_text(error: BaseException) -> str:
    """One line for an error of the world; the traceback for one of the code."""
    if isinstance(error, SeqlmError):
        return f"error: {error}"
    return "".join(traceback.format_exception(error)).rstrip()

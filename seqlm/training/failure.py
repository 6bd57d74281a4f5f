"""What went wrong, as ``failure.json`` tells it. Classified inside the worker, since schedulers cannot tell."""

from __future__ import annotations

import contextlib
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from seqlm.errors import DivergedError, SeqlmError
from seqlm.rundir import FailureKind

_PEER_LOST = ("connection closed by peer", "connection reset by peer", "connect timeout", "timed out waiting")


def failure_kind(error: BaseException) -> FailureKind:
    """The kind of a failure: ``diverged``, ``oom``, ``node`` for a rank that lost the others, else ``code``."""
    if isinstance(error, DivergedError):
        return "diverged"
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return "oom"
    text = str(error).lower()
    if "defaultcpuallocator: can't allocate memory" in text:
        return "oom"
    if isinstance(error, torch.distributed.DistBackendError) or any(sign in text for sign in _PEER_LOST):
        return "node"
    return "code"


def describe_failure(error: BaseException, *, rank: int, attempt: int) -> dict[str, Any]:
    """The content of ``failure.json``: kind, a line for a person, and where it happened."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else "unknown"
    message = str(error).strip() or type(error).__name__
    if not isinstance(error, SeqlmError):
        message = f"{type(error).__name__}: {message}"
    return {
        "kind": failure_kind(error),
        "message": message.splitlines()[0],
        "where": where,
        "rank": rank,
        "attempt": attempt,
        "failed_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def print_failure(error: BaseException) -> str:
    """One line for an error of the world; the traceback for one of the code."""
    if isinstance(error, SeqlmError):
        return f"error: {error}"
    with contextlib.suppress(Exception):
        return "".join(traceback.format_exception(error)).rstrip()
    return f"error: {type(error).__name__}"

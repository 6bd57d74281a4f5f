"""How an attempt ended, seen from outside its processes: the cause, from the exit codes of its ranks.

A worker that fails writes ``failure.json`` itself. A worker that a signal killed, or whose disk is full, cannot.
:meth:`jobs.attempt.attempt.Attempt.record_exit` then writes it.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.attempt.retry import timestamp
from seqlm.errors import EXPLAINING_EXITS, STOPPED_EXITS, STORAGE_EXITS
from seqlm.rundir import FailureKind


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How the ranks of an attempt ended. What the attempt achieved is read from the run directory."""

    exit_code: int
    """Exit code of the rank that explains the others. Negative: the signal that killed it, or its node is gone."""
    message: str
    """The same for a person, such as ``rank 1 was killed by SIGKILL``."""
    out_of_memory: bool = False
    """Whether the system killed a rank because it was out of memory, as counted on the machine of that rank."""


def ended(
    codes: Mapping[int, int],
    ranks: int,
    *,
    lost: Mapping[int, str] | None = None,
    out_of_memory: Collection[int] = (),
    host: str | None = None,
) -> Ended:
    """Return how an attempt of ``ranks`` ranks ended, from the exit codes of all ranks, or of those on this node.

    A rank that a signal killed explains the others best, then one whose exit code names a cause. A rank with exit code
    1 may only have lost another rank; on a full disk the one that met it first could not write ``failure.json``.

    Args:
        codes: by rank.
        ranks: of the run.
        lost: why a rank has no exit code of its own, such as a lost node; the first entry was lost first.
        out_of_memory: ranks that the system killed because it was out of memory. They explain all others.
        host: the node to name in the message. ``None``: name none.
    """
    failed = [rank for rank, code in codes.items() if code]
    if not failed:
        return Ended(exit_code=0, message="ended")
    if lost and not out_of_memory:
        rank, message = next(iter(lost.items()))
        return Ended(exit_code=codes[rank], message=message)
    by_cause = sorted(failed, key=lambda rank: (codes[rank] >= 0, codes[rank] not in EXPLAINING_EXITS, rank))
    rank = min(out_of_memory) if out_of_memory else by_cause[0]
    code = codes[rank]
    how = f"ended with exit code {code}"
    if code < 0:
        how = f"was killed by signal {-code}"
        with contextlib.suppress(ValueError):
            how = f"was killed by {signal.Signals(-code).name}"
    who = f"rank {rank}" if ranks > 1 else "the worker"
    where = f" on {host}" if host else ""
    return Ended(exit_code=code, message=f"{who} {how}{where}", out_of_memory=bool(out_of_memory))


def failure_record(kind: str, message: str, *, where: str, **more: Any) -> dict[str, Any]:
    """Return the content of a ``failure.json`` that is not the worker's own. ``where``: its author."""
    return {"kind": kind, "message": message, "where": where, **more, "failed_at": timestamp()}


def cause(ended: Ended, stderr_log: Path) -> tuple[FailureKind, str]:
    """Return the kind of a failure and its message."""
    last_line = ""
    with contextlib.suppress(OSError):
        last_line = "".join(stderr_log.read_text("utf-8", errors="replace").strip().splitlines()[-1:]).strip()
    if ended.exit_code in STOPPED_EXITS:
        return "preempted", f"{ended.message}; another process stopped it (is the node being drained?)"
    if ended.out_of_memory:
        return "oom", f"{ended.message}, by the system, which was out of memory"
    if ended.exit_code in STORAGE_EXITS:
        return "node", last_line or "its files could not be written (is the disk full, or a quota used up?)"
    if ended.exit_code < 0:
        hint = " (by a person, or by the system when memory ran out)" if ended.message.endswith("SIGKILL") else ""
        return "node", f"{ended.message}{hint}"
    return "code", f"{ended.message}: {last_line}" if last_line else ended.message

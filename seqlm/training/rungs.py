"""End a training at a rung of its study's search, on all of its ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from seqlm.files import Guard
from seqlm.rundir import RunDirectory, stopped_reason
from seqlm.search import Search, decide
from seqlm.training.attempt import LeftAtRungError
from seqlm.training.distributed import Rank

BeforeEpoch: TypeAlias = Callable[[int, Callable[[], None]], None]
"""Called by every rank before each epoch with the number of finished epochs, and with what waits until the files of
these epochs are written. It may raise to end the training."""


def always_goes_on(finished: int, until_written: Callable[[], None]) -> None:
    """Let a run go on that belongs to no search."""


def at_rungs(search: Search | None, run: RunDirectory, rank: Rank, attempt: int, guard: Guard) -> BeforeEpoch:
    """Return what ends a training at a rung with :class:`LeftAtRungError` unless the run is to go on.

    A run whose decision is recorded does what the record says. Else the first rank decides.
    """
    if search is None:
        return always_goes_on

    def before_epoch(finished: int, until_written: Callable[[], None]) -> None:
        if finished not in search.rungs:
            return
        reason = None
        if rank.is_first:
            until_written()
            if decide(run, search, finished, attempt, guard=guard) == "stopped":
                reason = stopped_reason(run.read_stopped() or {})
        reason = rank.from_first(reason)
        if reason is not None:
            raise LeftAtRungError(reason)

    return before_epoch

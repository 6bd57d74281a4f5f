"""When a run that failed is tried again by its launcher, and how long it waits before."""

from __future__ import annotations

from typing import final

from seqlm.rundir import FailureKind

RETRIED: frozenset[FailureKind] = frozenset({"node", "preempted", "timeout"})
"""Failures that are not the run's own fault: the same command goes on from the last checkpoint."""

IN_A_ROW = 3
"""Retries, by default, that a run gets without finishing an epoch in between."""

FIRST_DELAY_SECONDS = 1.0
DELAY_FACTOR = 5.0
"""Each further retry in a row waits so many times as long: a full disk or a sick node is not hammered."""


@final
class Retries:
    """The retries of one run. An epoch finished in between shows progress, and the count starts anew."""

    def __init__(self, in_a_row: int = IN_A_ROW) -> None:
        self._in_a_row = in_a_row
        self._used = 0
        self._epoch: int | None = None

    def delay(self, kind: FailureKind | None, epoch: int | None) -> float | None:
        """Seconds to wait before the next attempt, or none if the failure of this ``kind`` is to stand.

        ``epoch`` is the last one that the run has finished.
        """
        if kind not in RETRIED:
            return None
        if epoch != self._epoch:
            self._epoch, self._used = epoch, 0
        if self._used >= self._in_a_row:
            return None
        self._used += 1
        return FIRST_DELAY_SECONDS * DELAY_FACTOR ** (self._used - 1)

"""When a run is over and stays so: a launcher puts some failures back into its queue a moment later."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import final

from jobs.attempt.retry import RETRIED
from jobs.study.folder import AtWork
from seqlm.rundir import Observation

SETTLE_SECONDS = 2.0
"""How long a state that a live launcher may still change must last; it looks at its runs several times a second."""


@final
class FinalityTracker:
    """Remembers since when runs are in a state that their launcher may still change."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[str, float] = {}

    def is_over(self, run_id: str, observation: Observation, work: AtWork) -> bool:
        """Whether nothing more will happen to the run by itself, as far as can be known.

        ``work`` is who is at work on its study. While somebody is, a run that has lost its node may be tried again,
        and a pending one may be about to be taken on: these are over only once they have stayed as they are.
        """
        if observation.state in ("queued", "running"):
            self._since.pop(run_id, None)
            return False
        may_change = observation.state == "pending" or observation.kind in RETRIED
        if not work.may_change(run_id) or observation.state in ("done", "cancelled") or not may_change:
            return True
        return self._clock() - self._since.setdefault(run_id, self._clock()) >= SETTLE_SECONDS

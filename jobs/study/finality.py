"""When watchers and logs may stop following a run: a launcher retries some failures a moment later."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import final

from jobs.attempt.retry import RETRIED
from jobs.study.folder import AtWork
from seqlm.rundir import Observation

SETTLE_SECONDS = 2.0
"""How long a state that a live launcher may change must last to count as final. A launcher polls its runs several times
a second."""


@final
class FinalityTracker:
    """Records since when each run has been in a state that its launcher may still change."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[str, float] = {}

    def is_over(self, run_id: str, observation: Observation, work: AtWork) -> bool:
        """Return whether the state of the run is final, as far as can be known.

        ``work`` says which launcher and jobs are active on the study. While there are any, a run that lost its node may
        be retried and a pending run may start. Such a state counts as final after it has lasted ``SETTLE_SECONDS``.
        """
        if observation.state in ("queued", "running"):
            self._since.pop(run_id, None)
            return False
        may_change = observation.state == "pending" or observation.kind in RETRIED
        if not work.may_change(run_id) or observation.state in ("done", "cancelled") or not may_change:
            return True
        return self._clock() - self._since.setdefault(run_id, self._clock()) >= SETTLE_SECONDS

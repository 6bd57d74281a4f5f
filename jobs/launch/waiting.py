"""The study's budget while a launch runs."""

from __future__ import annotations

from pathlib import Path
from typing import final

from jobs import terminal
from jobs.manifests.policy import Policy
from jobs.study.budget import WAITS, Budget, BudgetWatch


@final
class Spending:
    """What the attempts of a study have used, against the budget of the policy."""

    def __init__(self, study_dir: Path, policy: Policy) -> None:
        self._watch = BudgetWatch(study_dir, Budget.of(policy))
        self.is_over: str | None = None
        """Why no run goes on, as of the last :meth:`look`: the budget is spent. ``None``: it is not."""

    def look(self, *, at_once: bool = False, live: int = 0) -> None:
        """Read what is spent, unless that was done a moment ago. ``live``: the number of runs that have to stop."""
        before, self.is_over = self.is_over, self._watch.look(at_once=at_once)
        if self.is_over is not None and before is None and live:
            runs = "1 run stops" if live == 1 else f"{live} runs stop"
            terminal.tell(f"{self.is_over.removeprefix(WAITS)}; {runs} at a checkpoint")

    def started(self) -> None:
        """Note that a run of the launch has been started."""
        self._watch.started()

"""Why runs of a launch wait although they fit: for the study's budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import final

from jobs import terminal
from jobs.manifests.policy import Policy
from jobs.plan.planned import PlannedRun
from jobs.study.budget import WAITS, Budget, BudgetWatch, Hours, total


@final
class Spending:
    """What the runs of a launch have used and are expected to use, against the budget of the policy."""

    def __init__(self, study_dir: Path, policy: Policy) -> None:
        self._watch = BudgetWatch(study_dir, Budget.of(policy))
        self._planned: dict[str, PlannedRun] = {}
        """By run id, as planned: a later attempt has fewer epochs left than its estimate."""
        self.is_over: str | None = None
        """Why no run goes on, as of the last :meth:`look`: the budget is spent. ``None``: it is not."""

    def plan(self, todo: Iterable[PlannedRun]) -> None:
        """Note the estimates of the runs of the launch, and read what is spent."""
        self._planned = {item.run.id: item for item in todo}
        self.look(at_once=True)

    def look(self, *, at_once: bool = False, live: int = 0) -> None:
        """Read what is spent, unless that was done a moment ago. ``live``: the number of runs that have to stop."""
        before, self.is_over = self.is_over, self._watch.look(at_once=at_once)
        if self.is_over is not None and before is None and live:
            runs = "1 run stops" if live == 1 else f"{live} runs stop"
            terminal.tell(f"{self.is_over.removeprefix(WAITS)}; {runs} at a checkpoint")

    def started(self) -> None:
        """Note that a run of the launch has been started."""
        self._watch.started()

    def refusal(
        self, live: Iterable[PlannedRun], epochs: Mapping[str, int | None]
    ) -> Callable[[PlannedRun], str | None]:
        """Return a function that returns why a run must not start, or ``None``.

        What the ``live`` runs are still expected to use is reserved. ``epochs`` is the last finished epoch of each run,
        by run id.
        """

        def needs(item: PlannedRun) -> Hours | None:
            epoch = epochs[item.run.id]
            return self._planned[item.run.id].hours_after(0 if epoch is None else epoch + 1)

        reserved = total(filter(None, map(needs, live)))
        return lambda item: self._watch.refuses(reserved, needs(item))

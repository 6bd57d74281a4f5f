"""Why runs of a launch wait although they fit: at a rung of a search in mode ``sync``, or for the study's budget."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, final

from jobs import terminal
from jobs.manifests.policy import Policy
from jobs.plan.planned import PlannedRun
from jobs.study.budget import WAITS, Budget, BudgetWatch, Hours, total
from seqlm.errors import FileError
from seqlm.search import Decision, Search, decision_at, epochs_finished, record_decision, rung_of_waiting, values_at

_Place: TypeAlias = tuple[int, tuple[Any, ...]]
"""A rung, and the values that all runs compared there share."""


@final
class RungQueue:
    """Holds runs that wait at a rung. They take no room on the backend."""

    def __init__(self, search: Search | None) -> None:
        """``None``: no run ever waits."""
        self._search = search
        self._waiting: dict[_Place, list[PlannedRun]] = {}
        self._values: Mapping[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def reasons(self) -> dict[str, str]:
        """Run id -> why the run waits, for ``status``."""
        return {
            item.run.id: f"waits at epoch {rung} for the runs that it is compared with"
            for (rung, _), items in self._waiting.items()
            for item in items
        }

    def add(self, item: PlannedRun) -> bool:
        """Keep a run that waits at a rung, and return whether it does.

        Raises:
            FileError, OSError: the run's files cannot be read.
        """
        rung = rung_of_waiting(item.run, self._search)
        if rung is not None:
            self._waiting.setdefault((rung, self._group(item)), []).append(item)
        return rung is not None

    def comparable(self, busy: Sequence[PlannedRun]) -> list[PlannedRun]:
        """Remove and return runs that all wait at one place, if none of the ``busy`` runs can join them there.

        Empty: each place may yet be reached by another run of this launch. Call :meth:`decide` for each.
        """
        for place in sorted(self._waiting, key=lambda place: place[0]):
            behind = (item for other, waiting in self._waiting.items() if other[0] < place[0] for item in waiting)
            if not any(self._may_come(other, place) for other in [*behind, *busy]):
                self._values = {}
                return self._waiting.pop(place)
        return []

    def decide(self, item: PlannedRun) -> Decision:
        """Decide about one of the runs that :meth:`comparable` has just returned. All are compared on equal values.

        Raises:
            FileError, OSError: the run's files cannot be read or written.
        """
        run, rung = item.run, rung_of_waiting(item.run, self._search)
        assert self._search is not None, "a run waits only in a search"
        if rung is None:
            return "goes on"  # decided before an error in its files
        if run.id not in self._values:
            self._values = values_at(run, self._search, rung)
        return record_decision(run, self._search, rung, self._values)

    def _group(self, item: PlannedRun) -> tuple[Any, ...]:
        found = item.spec.config.by_key()
        return tuple(found.get(key) for key in (self._search.within if self._search else ()))

    def _may_come(self, item: PlannedRun, place: _Place) -> bool:
        """Return whether a run that waits elsewhere, is queued or is running may come to a place. If unsure: yes."""
        rung, group = place
        if self._group(item) != group:
            return False
        with contextlib.suppress(FileError, OSError):
            return epochs_finished(item.run) <= rung and decision_at(item.run, rung) in (None, "waits")
        return True


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

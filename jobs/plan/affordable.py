"""What a study's budget allows of a plan, by the estimates: which runs wait, and what ``plan`` says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jobs.plan.planned import PlannedRun
from jobs.plan.queue import places
from jobs.study.budget import UNITS, Budget, Hours, total


def waiting(todo: Sequence[PlannedRun], budget: Budget, spent: Hours) -> dict[str, str]:
    """Return the runs that the budget does not allow: run id -> why it waits. Pure.

    Runs are taken in the order of the queue; one that needs more than is left delays no other. A run without an
    estimate is allowed while anything is left.
    """
    place, reserved = places(todo), Hours()
    waits: dict[str, str] = {}
    for item in sorted(todo, key=lambda item: place[item.run.id]):
        why = budget.refuses(spent, reserved, item.hours)
        if why is not None:
            waits[item.run.id] = why
        elif item.hours is not None:
            reserved += item.hours
    return waits


@dataclass(frozen=True, kw_only=True)
class BudgetPlan:
    """What the budget of a study means for a plan."""

    budget: Budget
    spent: Hours
    needs: Hours | None
    """What is left to do is expected to use. ``None``: unknown for a run."""
    waits: dict[str, str]
    """Run id -> why it waits."""

    @classmethod
    def of(cls, todo: Sequence[PlannedRun], budget: Budget, spent: Hours) -> BudgetPlan:
        """Return that of the runs to do."""
        known = [item.hours for item in todo if item.hours is not None]
        needs = total(known) if len(known) == len(todo) else None
        return cls(budget=budget, spent=spent, needs=needs, waits=waiting(todo, budget, spent))

    @property
    def fits(self) -> bool | None:
        """Whether everything that is left to do fits. ``None``: unknown."""
        if self.needs is None:
            return False if self.waits else None
        return self.budget.refuses(self.spent, Hours(), self.needs) is None or self.needs == Hours()

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of ``plan --json``. ``needs`` and ``fits`` are ``None`` if unknown."""
        needs = asdict(self.needs) if self.needs is not None else {}
        limits = {
            key: {"limit": limit, "spent": getattr(self.spent, key), "needs": needs.get(key)}
            for key, limit in self.budget.limits.items()
        }
        return {**limits, "fits": self.fits, "waiting": list(self.waits)}

    def line(self, number: int) -> str:
        """Return what ``plan`` prints. ``number``: of the runs to do."""
        spent = f"budget: {self.budget.words(self.spent)} spent"
        if self.needs is None:
            what = "what is left to do needs is not known"
        else:
            amounts = [f"{getattr(self.needs, key):.3g} {UNITS[key]}" for key in self.budget.limits]
            what = f"what is left to do needs about {', '.join(amounts)}"
        end = {True: "and fits", None: "", False: f"; {len(self.waits)} of {number} runs wait"}[self.fits]
        return f"{spent}; {what} {end}".replace(" ;", ";").rstrip()

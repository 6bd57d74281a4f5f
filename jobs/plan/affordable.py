"""What a study's budget allows of a plan, by the estimates: which runs wait, and what ``plan`` says of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jobs.manifests.policy import Policy
from jobs.plan.planned import PlannedRun
from jobs.plan.queue import places
from jobs.search import rungs_within
from jobs.study.budget import UNITS, Budget, Hours, Ledger, total
from seqlm.search import Search


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


def plan_budget(
    planned: Sequence[PlannedRun], policy: Policy, study_dir: Path, search: Search | None
) -> BudgetPlan | None:
    """Return what the budget of a policy means for a plan of the study. ``None``: it has no budget."""
    budget, todo = Budget.of(policy), [item for item in planned if item.action != "skip"]
    return BudgetPlan.of(todo, budget, Ledger(study_dir).spent(), search) if budget else None


@dataclass(frozen=True, kw_only=True)
class BudgetPlan:
    """What the budget of a study means for a plan."""

    budget: Budget
    spent: Hours
    todo: int
    """Number of runs to do."""
    needs: Hours | None
    """What they are expected to use. ``None``: unknown."""
    waits: Mapping[str, str]
    """Run id -> why it waits."""
    rungs: tuple[int, ...] | None = None
    """Rungs with which the search is expected to fit if it does not with its own. ``None``: there are none."""

    @classmethod
    def of(cls, todo: Sequence[PlannedRun], budget: Budget, spent: Hours, search: Search | None = None) -> BudgetPlan:
        """Return that of the runs to do."""
        known = [item.hours for item in todo if item.hours is not None]
        needs = total(known) if len(known) == len(todo) else None
        made = cls(budget=budget, spent=spent, todo=len(todo), needs=needs, waits=waiting(todo, budget, spent))
        if search is None or made.fits is not False or needs is None:
            return made
        share = _share_left(todo, budget, spent)
        return replace(made, rungs=rungs_within(search, [item.spec for item in todo], share))

    @property
    def fits(self) -> bool | None:
        """Whether everything that is left to do fits. ``None``: unknown."""
        if self.needs is None:
            return False if self.waits else None
        return not self.todo or self.budget.refuses(self.spent, Hours(), self.needs) is None

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of ``plan --json``. ``needs`` and ``fits`` are ``None`` if unknown."""
        needs = asdict(self.needs) if self.needs is not None else {}
        limits = {
            key: {"limit": limit, "spent": getattr(self.spent, key), "needs": needs.get(key)}
            for key, limit in self.budget.limits.items()
        }
        rungs = None if self.rungs is None else list(self.rungs)
        return {**limits, "fits": self.fits, "waiting": list(self.waits), "rungs": rungs}

    def line(self) -> str:
        """Return what ``plan`` prints."""
        what = "it is not known what the rest needs"
        if self.needs is not None:
            amounts = [f"{getattr(self.needs, key):.3g} {UNITS[key]}" for key in self.budget.limits]
            what = f"the rest needs about {' and '.join(amounts)}"
        if self.fits is not None:
            what += ", and fits" if self.fits else f": {len(self.waits)} of {self.todo} runs wait"
        if self.rungs is not None:
            what += f"; it would fit with search.rungs = {list(self.rungs)}"
        return f"budget: {self.budget.words(self.spent)} spent; {what}"


def _share_left(todo: Sequence[PlannedRun], budget: Budget, spent: Hours) -> float:
    """Return what is left of the budget as a share of what all epochs of the runs would use."""
    everything = total(item.epoch_hours * item.spec.config.train.epochs for item in todo if item.epoch_hours)
    shares = [
        (limit - getattr(spent, key)) / used
        for key, limit in budget.limits.items()
        if (used := getattr(everything, key)) > 0
    ]
    return min(shares, default=math.inf)

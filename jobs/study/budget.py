"""The budget of a study, ``policy.gpu_hours`` and ``policy.core_hours``: what is spent, what may start, what must stop.

All attempts of runs and canaries count, those that failed too. Behaviour jobs do not count. The times of an
attempt are those that its workers recorded, so that the clocks of other nodes do not matter.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from jobs.manifests.policy import Policy
from jobs.spec import Resources
from seqlm.errors import DamagedFileError, FileError, UnfitFileError
from seqlm.files import read_json
from seqlm.lease import last_sign_of
from seqlm.reading import listed, moment
from seqlm.run_layout import CANARY_FOLDER, study_record_file
from seqlm.rundir import RunDirectory

UNITS = {"gpu_hours": "GPU hours", "core_hours": "core hours"}
"""Key of the policy -> its unit in messages."""
LOOK_SECONDS = 2.0
"""Least time between two readings of the attempts."""
MOST_SECONDS = 60.0
"""Longest time between two readings."""
LOOK_SHARE = 0.05
"""Largest share of the time that reading may take."""


@dataclass(frozen=True, kw_only=True)
class Hours:
    """An amount of computing."""

    gpu_hours: float = 0.0
    core_hours: float = 0.0

    def __add__(self, other: Hours) -> Hours:
        return Hours(gpu_hours=self.gpu_hours + other.gpu_hours, core_hours=self.core_hours + other.core_hours)

    def __mul__(self, factor: float) -> Hours:
        return Hours(gpu_hours=self.gpu_hours * factor, core_hours=self.core_hours * factor)


def hours_of(resources: Resources, seconds: float) -> Hours:
    """Return what a run with these resources, which are resolved, uses in some seconds."""
    hours = resources.ranks * seconds / 3600
    return Hours(gpu_hours=hours * (resources.gpus or 0), core_hours=hours * (resources.cpus or 1))


def total(amounts: Iterable[Hours]) -> Hours:
    """Return the sum of some amounts."""
    return sum(amounts, Hours())


# -- what is spent -------------------------------------------------------------------------------------------------


@final
class Ledger:
    """What the attempts of a study have used. An attempt that has ended is read once."""

    def __init__(self, study_dir: Path) -> None:
        self._study_dir = study_dir
        self._ended: dict[Path, Hours] = {}
        self.rate = Hours()
        """What the attempts that have not ended use in an hour, as of the last :meth:`spent`."""

    def spent(self) -> Hours:
        """Read the attempts, and return what all of them have used so far.

        Raises:
            FileError: a file cannot be read. A damaged one counts as missing.
        """
        self.rate = Hours()
        runs = map(RunDirectory, (*listed(self._study_dir), *listed(self._study_dir / CANARY_FOLDER)))
        folders = (run.attempt_dir(attempt) for run in runs for attempt in run.attempts())
        return total(self._ended.get(folder) or self._read(folder) for folder in folders)

    def _read(self, folder: Path) -> Hours:
        """Return what one attempt has used. A worker that recorded no end counts until its last sign of life."""
        workers = {path.stem.removeprefix("worker"): _record(path) for path in listed(folder, "worker*.json")}
        has_ended = len(workers) >= max((_number(worker.get("ranks")) for worker in workers.values()), default=1)
        used, sign = [], None
        for rank, worker in workers.items():
            hour = Hours(gpu_hours=_number(worker.get("gpus")), core_hours=_number(worker.get("threads"), 1.0))
            start, end = moment(worker.get("started_at")), moment(_record(folder / f"end{rank}.json").get("ended_at"))
            if end is None:
                has_ended, self.rate = False, self.rate + hour
                sign = sign or last_sign_of(_record(folder / "progress.json"), _record(folder / "exit.json"))
                end = sign
            if start is not None and end is not None:
                used.append(hour * (max(0.0, end - start) / 3600))
        amount = total(used)
        if has_ended:
            self._ended[folder] = amount
        return amount


def _record(path: Path) -> Mapping[str, Any]:
    with contextlib.suppress(DamagedFileError, UnfitFileError):  # one damaged file must not hide what the others say
        return read_json(path) or {}
    return {}


def _number(value: Any, otherwise: float = 0.0) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    return float(value) if is_number else otherwise


# -- what may start ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The limits of a study. Falsy if it has none."""

    limits: Mapping[str, float] = field(default_factory=dict)
    """Key of :data:`UNITS` -> the limit in hours, for those that are limited."""

    @classmethod
    def of(cls, policy: Policy) -> Budget:
        """Return the budget of a policy."""
        limits = {key: getattr(policy, key) for key in UNITS}
        return cls(limits={key: limit for key, limit in limits.items() if limit is not None})

    def __bool__(self) -> bool:
        return bool(self.limits)

    def is_spent(self, spent: Hours) -> str | None:
        """Return why no run goes on: which limit is reached. ``None``: none is."""
        for key, limit in self.limits.items():
            if getattr(spent, key) >= limit:
                return f"budget of {limit:g} {UNITS[key]} is spent"
        return None

    def times_left(self, spent: Hours, amount: Hours) -> float:
        """Return how many times ``amount`` fits into what is left. Infinity: it uses nothing that is limited."""
        times = [
            max(0.0, limit - getattr(spent, key)) / used
            for key, limit in self.limits.items()
            if (used := getattr(amount, key)) > 0
        ]
        return min(times, default=math.inf)

    def words(self, spent: Hours) -> str:
        """Return what is spent, such as ``12.3 of 50 GPU hours``."""
        return ", ".join(f"{getattr(spent, key):.3g} of {limit:g} {UNITS[key]}" for key, limit in self.limits.items())


@final
class KeptBudget:
    """The budget of a study for readers that have only its folder. Its files are read when they are first needed."""

    def __init__(self, study_dir: Path, default: Policy | None = None) -> None:
        """``default`` is the policy that counts if ``study.json`` says nothing of a budget."""
        self._study_dir = study_dir
        self._default = default

    @functools.cached_property
    def budget(self) -> Budget:
        policy = _record(study_record_file(self._study_dir)).get("policy")
        if not isinstance(policy, dict) or UNITS.keys().isdisjoint(policy):
            return Budget.of(self._default or Policy())
        limits = {key: _number(policy.get(key)) for key in UNITS}
        return Budget(limits={key: limit for key, limit in limits.items() if limit})

    @functools.cached_property
    def spent(self) -> Hours:
        return Ledger(self._study_dir).spent()

    def to_dict(self) -> dict[str, dict[str, float]] | None:
        """Return the limits and what is spent of them, as JSON outputs have it. ``None``: there is no limit."""
        if not self.budget:
            return None
        return {key: {"limit": limit, "spent": getattr(self.spent, key)} for key, limit in self.budget.limits.items()}

    def line(self) -> str | None:
        """Return what is spent, as ``status`` prints it. ``None``: there is no limit."""
        return f"budget: {self.budget.words(self.spent)} spent" if self.budget else None

    def is_spent(self) -> str | None:
        """Return why no run goes on, as :meth:`Budget.is_spent`."""
        return self.budget.is_spent(self.spent) if self.budget else None


# -- while runs are live -------------------------------------------------------------------------------------------


@final
class BudgetWatch:
    """Follows what is spent while runs are live. The attempts are read more often the less is left.

    The pause between two readings at most doubles: a run that has just started has no record yet.
    """

    def __init__(self, study_dir: Path, budget: Budget, clock: Callable[[], float] = time.monotonic) -> None:
        self._budget = budget
        self._clock = clock
        self._ledger = Ledger(study_dir)
        self._spent = Hours()
        self._pause = 0.0
        self._next = -math.inf

    def started(self) -> None:
        """Note that a run has just been started: the next reading is soon."""
        self._pause, self._next = 0.0, -math.inf

    def look(self, *, at_once: bool = False) -> str | None:
        """Return why no run goes on, as :meth:`Budget.is_spent`. ``at_once``: read the attempts in any case."""
        started = self._clock()
        if self._budget and (at_once or started >= self._next):
            with contextlib.suppress(FileError):  # what was spent before still counts; the next look is soon
                self._spent = self._ledger.spent()
            took = self._clock() - started
            half = 1800 * self._budget.times_left(self._spent, self._ledger.rate)  # seconds until half of it is used
            self._pause = max(LOOK_SECONDS, took / LOOK_SHARE, min(half, MOST_SECONDS, 2 * self._pause))
            self._next = self._clock() + self._pause
        return self._budget.is_spent(self._spent)

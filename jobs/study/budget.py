"""The budget of a study, ``policy.gpu_hours`` and ``policy.core_hours``: its limits, and what the attempts have used.

All attempts of runs and canaries count, those that failed too. Behaviour jobs do not count. The times of an
attempt are those that its workers recorded, so that the clocks of other nodes do not matter.

A dispatcher keeps the totals. When one of its runs ends it reads the attempts of that run alone. What live runs and
those of other launchers and jobs have used, it learns from a reading of all attempts every :data:`READ_SECONDS`. That
is done in pieces, so that it does not keep the dispatcher from its workers.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Self, TypeAlias, TypeVar, final

from jobs.manifests.policy import Policy
from jobs.study.record import KeptManifests
from seqlm.errors import DamagedFileError, UnfitFileError
from seqlm.lease import last_sign_of
from seqlm.reading import listed, moment
from seqlm.records.attempts import Exit, ProgressFile, RankEnd, Worker
from seqlm.records.base import RecordT
from seqlm.resources import Resources
from seqlm.rundir import CANARY_FOLDER, RunDirectory

T = TypeVar("T")

UNITS = {"gpu_hours": "GPU hours", "core_hours": "core hours"}
"""Key of the policy -> its unit in messages."""
READ_SECONDS = 5.0
"""Least time between two readings of the attempts while runs are live."""
READ_SHARE = 0.05
"""Largest share of the time that reading may take: a shared disk needs seconds to list a large study."""
LONGEST_PIECE_SECONDS = 0.1
"""Time after which a reading is left to the next call."""

Hours: TypeAlias = Mapping[str, float]
"""An amount of computing: hours of each of :data:`UNITS`."""
_Attempt: TypeAlias = tuple[bool, str, int]
"""Whether it is of a canary, the id of its run, and its number."""


def _start_of(worker: Worker, by: Worker) -> float | None:
    """Return when a worker started, in seconds since 1970, by the clock of the node of ``by``. ``None``: unknown.

    A rank without an end counts until the last sign of life of its attempt, which the first rank's node records. So it
    counts from the start of that rank: the ranks start together, and the clocks of two nodes may differ.
    """
    return moment(by.started_at or worker.started_at)


def hours_of(resources: Resources, seconds: float) -> Hours:
    """Return what a run with these resources, which are resolved, uses in some seconds."""
    hours = resources.ranks * seconds / 3600
    return {"gpu_hours": hours * (resources.gpus or 0), "core_hours": hours * (resources.cpus or 1)}


def total(amounts: Iterable[Hours]) -> Hours:
    """Return the sum of some amounts."""
    amounts = list(amounts)
    return {key: sum(amount[key] for amount in amounts) for key in UNITS}


def _limits(policy: Policy) -> dict[str, float]:
    return {key: float(limit) for key in UNITS if (limit := getattr(policy, key)) is not None}


@final
class Budget:
    """The budget of a study."""

    def __init__(self, study_dir: Path, policy: Policy) -> None:
        """The limits are those of ``policy``. Nothing is read yet."""
        self._study_dir = study_dir
        self.limits = _limits(policy)
        """Key of :data:`UNITS` -> the limit in hours, for those that are limited."""
        self._used: dict[_Attempt, Hours] = {}
        """What each attempt has used, as last read."""
        self._spent: Hours = {}
        """Their total."""
        self._ended: set[_Attempt] = set()
        """The attempts that have ended, which are not read again."""
        self._reading: Iterator[None] | None = None
        """The reading that is not complete yet."""
        self._found: dict[_Attempt, Hours] = {}
        """What that has found so far."""
        self._took = 0.0
        """How many seconds it has taken so far."""
        self._next = -math.inf
        """When the next reading begins, on the monotonic clock."""

    @classmethod
    def kept(cls, study_dir: Path, default: Policy | None = None) -> Self:
        """Return the budget that ``study.json`` has now. ``default`` counts if that has no policy."""
        return cls(study_dir, KeptManifests(study_dir, only=("policy",)).policy or default or Policy())

    def renew(self) -> None:
        """Take the limits that ``study.json`` has now. What the attempts have used is kept."""
        self.limits = _limits(KeptManifests(self._study_dir, only=("policy",)).policy or Policy())

    def spent(self, *, at_once: bool = False) -> Hours:
        """Return what all attempts have used so far, as last read.

        The first call reads all of them. A later one reads a piece, or nothing if they were read ``READ_SECONDS`` ago.
        ``at_once``: read all of them in any case.

        Raises:
            FileError: a file cannot be read. A damaged one counts as missing.
        """
        now = time.monotonic()
        is_whole = at_once or self._next == -math.inf
        if is_whole or (self._reading is None and now >= self._next):
            self._reading, self._found, self._took = self._read_all(), {}, 0.0
        if self._reading is not None:
            self._read_on(self._reading, until=math.inf if is_whole else now + LONGEST_PIECE_SECONDS)
        return self._spent

    def _read_on(self, reading: Iterator[None], until: float) -> None:
        """Go on with a reading until it is complete, or the monotonic clock has reached ``until``."""
        began = time.monotonic()
        self._reading = None  # a reading that fails begins again at the next call
        for _ in reading:
            if time.monotonic() >= until:
                self._took += time.monotonic() - began
                self._reading = reading
                return
        now = time.monotonic()
        self._took += now - began
        self._used, self._found = self._found, {}
        self._spent = total(self._used.values())
        self._next = now + max(READ_SECONDS, self._took / READ_SHARE)

    def _read_all(self) -> Iterator[None]:
        """Read what all attempts have used, one run at a time."""
        runs = (*listed(self._study_dir), *_unless_linked(lambda: listed(self._study_dir / CANARY_FOLDER)))
        for run in map(RunDirectory, runs):
            self._found |= self._used_by(run)
            yield

    def count(self, run: RunDirectory) -> None:
        """Read what the attempts of one run have used, and nothing of other runs. Errors as of :meth:`spent`."""
        if self.limits:
            used = self._used_by(run)
            self._used |= used
            self._found |= used  # a reading may have passed this run already
            self._spent = total(self._used.values())

    def _used_by(self, run: RunDirectory) -> dict[_Attempt, Hours]:
        """Return what each attempt of a run has used."""
        found = {}
        for attempt in _unless_linked(run.attempts):
            key = (run.is_canary, run.id, attempt)
            known = self._used.get(key) if key in self._ended else None  # a reading that failed half-way kept nothing
            found[key] = self._read(key, run.attempt_dir(attempt)) if known is None else known
        return found

    def _read(self, key: _Attempt, folder: Path) -> Hours:
        """Return what one attempt has used. A worker that recorded no end counts until its last sign of life."""
        files = _unless_linked(lambda: listed(folder, "worker*.json"))
        workers = {path.stem.removeprefix("worker"): _read(Worker, path) or Worker() for path in files}
        has_ended = len(workers) >= max((worker.ranks or 0 for worker in workers.values()), default=1)
        used, sign = [], None
        first = workers.get("", Worker())
        for rank, worker in workers.items():
            end = moment((_read(RankEnd, folder / f"end{rank}.json") or RankEnd()).ended_at)
            start = _start_of(worker, first if end is None else worker)
            if end is None:
                has_ended = False
                if sign is None:
                    progress, exit_ = _read(ProgressFile, folder / ProgressFile.FILE), _read(Exit, folder / Exit.FILE)
                    sign = last_sign_of(progress, exit_)
                end = sign
            if start is not None and end is not None:
                hours = max(0.0, end - start) / 3600
                used.append({"gpu_hours": (worker.gpus or 0.0) * hours, "core_hours": (worker.threads or 1) * hours})
        amount = total(used)
        if has_ended:
            self._ended.add(key)
        return amount

    def is_spent(self, *, at_once: bool = False) -> str | None:
        """Return why no run goes on: which limit is reached. ``None``: none is. Arguments and errors as of `spent`."""
        spent = self.spent(at_once=at_once) if self.limits else {}
        reached = (key for key, limit in self.limits.items() if spent[key] >= limit)
        return next((f"budget of {self.limits[key]:g} {UNITS[key]} is spent" for key in reached), None)

    def line(self) -> str | None:
        """Return what is spent, as ``status`` prints it. ``None``: there is no limit."""
        spent = (f"{self.spent()[key]:.3g} of {limit:g} {UNITS[key]}" for key, limit in self.limits.items())
        return f"budget: {', '.join(spent)} spent" if self.limits else None

    def to_dict(self) -> dict[str, dict[str, float | None]] | None:
        """Return the limits and what is spent of them, as JSON outputs have it. ``None``: there is no limit."""
        return {key: {"limit": limit, "spent": self.spent()[key]} for key, limit in self.limits.items()} or None


def _unless_linked(look: Callable[[], list[T]]) -> list[T]:
    """Return what a folder of the study holds; nothing if a link is in its place, which hides nothing of the others."""
    with contextlib.suppress(UnfitFileError):
        return look()
    return []


def _read(kind: type[RecordT], path: Path) -> RecordT | None:
    with contextlib.suppress(DamagedFileError, UnfitFileError):  # one damaged file must not hide what the others say
        return kind.read_file(path)
    return None

"""What the fake programs share: the state of all jobs, in one JSON file that one of them has at a time.

Standard library alone, no module of ours: the programs start as files, in a few hundredths of a second.
"""

import contextlib
import fcntl
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

NODES = ("127.9.9.1", "127.9.9.2")
ACTIVE = ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED")


@dataclass(kw_only=True)
class Job:
    """A job, or one task of an array."""

    number: int
    """Its own id (``%A``); tasks that wait have their array's."""
    array: int | None = None
    index: int | None = None
    limit: int = 0
    """How many tasks of its array may run at once; 0: any number."""
    state: str = "PENDING"
    reason: str = "None"
    node: str = ""
    restarts: int = 0
    exit_code: int = 0
    started: bool = False
    signals: list[str] = field(default_factory=list)
    """Those that scancel sent."""
    script: str = ""
    options: dict[str, str] = field(default_factory=dict)
    """Of sbatch, those of the script as well: ``{"time": "5"}``."""
    known: bool = True
    """Whether the controller still has a record of it."""

    @property
    def id(self) -> str:
        return str(self.number) if self.array is None else f"{self.array}_{self.index}"

    @property
    def parent(self) -> int:
        return self.number if self.array is None else self.array

    @property
    def ended(self) -> bool:
        return self.state not in ("PENDING", *ACTIVE)


@dataclass(kw_only=True)
class Room:
    """All there is."""

    next: int = 1
    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    """Of each submission, by its number: the environment that jobs get."""
    controller: bool = True
    accounting: bool = False
    max_array_size: int = 1001
    max_submitted: int = 10_000
    """Jobs that may wait or run at once."""
    jobs: list[Job] = field(default_factory=list)

    def new_number(self) -> int:
        self.next += 1
        return self.next - 1

    def start(self, job: Job, node: str) -> None:
        waiting = [other for other in self.jobs if other.number == job.number]
        if job.array is not None and not job.started and len(waiting) > 1:
            job.number = self.new_number()
        job.state, job.reason, job.node, job.started = "RUNNING", "None", node, True
        together = [other for other in self.jobs if other.array == job.array] if job.limit else []
        if len([other for other in together if other.state in ACTIVE]) >= job.limit:
            for other in together:
                if other.state == "PENDING":
                    other.reason = "JobArrayTaskLimit"

    def requeue(self, job: Job) -> None:
        job.state, job.reason, job.node = "PENDING", "BeginTime", ""
        job.restarts += 1

    def end(self, job: Job, state: str, exit_code: int = 0) -> None:
        job.state, job.reason, job.exit_code = state, "None", exit_code

    def found(self, word: str) -> list[Job]:
        """The jobs of a word as scancel and squeue take it: ``7``, ``7_2``, ``7_[2-4,6]``."""
        match = re.fullmatch(r"(\d+)(?:_(?:(\d+)|\[([\d,-]+)(?:%\d+)?\]))?", word)
        if match is None:
            return []
        number, one, several = int(match[1]), match[2], match[3]
        known = [job for job in self.jobs if job.known]
        if one is None and several is None:
            return [job for job in known if number in (job.number, job.parent)]
        indices = indices_of(one or several)
        return [job for job in known if job.array == number and job.index in indices]


def indices_of(text: str) -> list[int]:
    """``0-3,7`` and ``0-8:4`` -> numbers."""
    found = []
    for part in text.split(","):
        ends, _, step = part.partition(":")
        low, _, high = ends.partition("-")
        found += range(int(low), int(high or low) + 1, int(step or 1))
    return found


def ranges_of(indices: list[int]) -> str:
    """The opposite: ``0-3,7``."""
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and index == parts[-1][1] + 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Room]:
    """The room, for one at a time; what is done to it is kept."""
    with (folder / "room.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = folder / "room.json"
        stored: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
        room = Room(**{**stored, "jobs": [Job(**job) for job in stored.get("jobs", [])]})
        yield room
        path.write_text(json.dumps(asdict(room)), "utf-8")

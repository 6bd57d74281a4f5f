"""SLURM's programs, which keep a list of jobs and run none: for tests of what is submitted and what is asked.

``slurm/testcluster`` is a real SLURM. Here a test says what becomes of a job. A program, ``python fake_slurm.py NAME
FOLDER WORD...``, answers what seqlm and submitit ask of it, and needs the standard library alone.
"""

import contextlib
import fcntl
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

NAMES = ("sbatch", "squeue", "sacct", "scancel", "scontrol", "sinfo")
DOWN = "Unable to contact slurm controller (connect failure)"
CONFIG = {"AccountingStorageType": "(null)", "MaxArraySize": 1001, "MaxJobCount": 10000, "SLURM_VERSION": "24.11.5"}


@dataclass(kw_only=True)
class Job:
    """A job, or one task of an array."""

    id: str
    """``7`` or ``7_2``."""
    state: str = "PENDING"
    script: str = ""
    options: dict[str, str] = field(default_factory=dict)
    """Those of the script: ``{"time": "5"}``."""
    environment: dict[str, str] = field(default_factory=dict)
    """That of sbatch."""
    user: int = field(default_factory=os.geteuid)
    """Who has submitted it."""
    is_known: bool = True
    """Whether the controller still has a record of it."""

    @property
    def reason(self) -> str:
        return "JobHeldUser" if "hold" in self.options else "Dependency" if "dependency" in self.options else "None"

    @property
    def folder(self) -> str:
        """Its working directory."""
        return self.options.get("chdir", "/")

    @property
    def parent(self) -> int:
        return int(self.id.partition("_")[0])


@dataclass(kw_only=True)
class Room:
    """All there is, in one JSON file that one program has at a time."""

    has_controller: bool = True
    has_accounting: bool = False
    most_jobs: int = 10_000
    """Jobs that may wait or run at once."""
    most_of_array: int = 1000
    """Jobs of an array."""
    fails: str = "none"
    """Part of the command lines that fail."""
    calls: list[list[str]] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)

    def found(self, words: str) -> list[Job]:
        """Return the jobs of ``7,8_2``; ``7`` stands for all tasks of the array."""
        ids = words.split(",")
        return [job for job in self.jobs if job.id in ids or str(job.parent) in ids]


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Room]:
    """Have the room; what is done to it is kept."""
    path = folder / "room.json"
    with (folder / "room.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stored: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
        room = Room(**{**stored, "jobs": [Job(**job) for job in stored.get("jobs", [])]})
        yield room
        path.write_text(json.dumps(asdict(room)), "utf-8")


@final
class FakeSlurm:
    """A folder with the programs (``bin``) and the state of their jobs."""

    def __init__(self, folder: Path, *, accounting: bool = False) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir(parents=True)
        for name in NAMES:
            self.program(name, f'exec {shlex.join([sys.executable, "-S", "-E", __file__, name, str(folder)])} "$@"')
        self.program("srun", "exit 1")  # by which submitit knows a cluster
        with self.opened() as room:
            room.has_accounting = accounting

    def program(self, name: str, body: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{body}\n", "utf-8")
        (self.bin / name).chmod(0o755)

    def on_path(self, monkeypatch: Any) -> "FakeSlurm":
        """Have this process and its children find these programs before any others; return itself."""
        monkeypatch.setenv("PATH", f"{self.bin}{os.pathsep}{os.environ['PATH']}")
        return self

    def opened(self) -> contextlib.AbstractContextManager[Room]:
        return opened(self.folder)

    def end(self, job: str, state: str = "COMPLETED", *, purged: bool = False) -> None:
        """A job comes to a state. ``purged``: the controller forgets it; accounting, if there is any, does not."""
        with self.opened() as room:
            for one in room.found(job):
                one.state, one.is_known = state, not purged

    def calls(self, *names: str) -> list[list[str]]:
        """Return the command lines so far, of these programs or all."""
        with self.opened() as room:
            return [call for call in room.calls if not names or call[0] in names]

    def environment(self, number: int) -> dict[str, str]:
        """Return the environment in which sbatch was called for a submission."""
        return next(job.environment for job in self.jobs().values() if job.parent == number)

    def jobs(self) -> dict[str, Job]:
        """Return every job ever submitted, by its id."""
        with self.opened() as room:
            return {job.id: job for job in room.jobs}


# -- the programs ----------------------------------------------------------------------------------------------------


def sbatch(room: Room, words: list[str]) -> str:
    script = Path(words[-1]).read_text("utf-8")
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    given = [*(shlex.split(line)[1] for line in lines), *(word for word in words[:-1] if word != "--parsable")]
    pairs = [word.removeprefix("--").partition("=") for word in given]
    options = {name: value for name, _, value in pairs}
    last = re.search(r"-(\d+)", options.get("array", ""))
    numbers = [f"_{index}" for index in range(int(last[1]) + 1)] if last else ["_0"] if "array" in options else [""]
    if len(numbers) > room.most_of_array:
        sys.exit("sbatch: error: Batch job submission failed: Invalid job array specification")
    if sum(job.state in ("PENDING", "RUNNING") for job in room.jobs) + len(numbers) > room.most_jobs:
        sys.exit("sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit)")
    job = max((job.parent for job in room.jobs), default=0) + 1
    room.jobs += [Job(id=f"{job}{n}", script=script, options=options, environment={**os.environ}) for n in numbers]
    return f"{job}"


def squeue(room: Room, words: list[str]) -> str:
    asked = {word: words[words.index(word) + 1] for word in ("-u", "-j", "-t", "-o") if word in words}
    found = room.found(asked["-j"]) if "-j" in asked else room.jobs
    found = [job for job in found if job.is_known and asked.get("-u", str(job.user)) == str(job.user)]
    if asked["-t"] == "PD":
        found = [job for job in found if job.state == "PENDING"]
    same = {"P": "main", "S": "N/A", "l": "1:00:00", "o": "(null)"}
    rows = [{**same, "i": job.id, "F": job.parent, "T": job.state, "r": job.reason, "Z": job.folder} for job in found]
    return "\n".join(filled(asked["-o"], row) for row in rows)


def filled(text: str, values: dict[str, Any]) -> str:
    """Return a format of squeue or sinfo with its values."""
    return re.sub(r"%(\w)", lambda letter: str(values[letter[1]]), text)


def sacct(room: Room, words: list[str]) -> str:
    if not room.has_accounting:
        sys.exit("Slurm accounting storage is disabled")
    found = room.found(words[words.index("-j") + 1])
    return "\n".join(f"{job.id}|{job.state}|0:0|{job.folder}" for job in found)


def scancel(room: Room, words: list[str]) -> str:
    for job in room.found(",".join(words)):
        job.state = "CANCELLED"
    return ""


def scontrol(room: Room, words: list[str]) -> str:
    for job in room.found(words[1]) if words[0] == "release" else ():
        del job.options["hold"]
    return "\n".join(f"{key} = {value}" for key, value in CONFIG.items())


def sinfo(room: Room, words: list[str]) -> str:
    values = {"P": "main*", "l": "infinite", "D": 2, "c": 4, "m": 2000, "G": "gpu:fake:2", "s": "1-infinite"}
    return filled(words[words.index("-o") + 1], values)


def main() -> None:
    name, folder, *words = sys.argv[1:]
    with opened(Path(folder)) as room:
        room.calls.append([name, *words])
        if not room.has_controller and name != "sacct":
            sys.exit(f"{name}: error: {DOWN}")
        if room.fails in " ".join([name, *words]):
            sys.exit(f"{name}: error: Invalid account or account/partition combination specified")
        print(globals()[name](room, words))


if __name__ == "__main__":
    main()

"""What the script of a job and its program tell each other: the folder of the job, with a folder for each start.

    launches/N/job-0-3/         job 3 of array 0
        over                    the job's exit code: nothing is left to do
        1/, 2/, ...             its starts, in their order; the script makes them
            begun-NODE          the program has begun on that node
            news                a worker has begun to train a run of the job
            sick                nodes that the next start is to avoid, one a line
            again               changes of the job before its next start, one a line: ``wait_s=300``
            lease/              the heartbeat of the program on the first node (:mod:`seqlm.lease`)
            joint-1.json, ...   the attempts whose ranks each of several nodes starts, in their order
            end                 the program on the first node has ended

Unless the job is over, its script puts it back into the queue, whatever the program's exit code is
(:mod:`jobs.scheduled.script`). So an end that nobody foresaw is one more start, not a lost run.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from seqlm.files import make_directory, write_text
from seqlm.lease import Lease, claim, kept, live_owner
from seqlm.reading import exists, read_bytes
from seqlm.records.batch import Joint

OVER, BEGUN, NEWS, SICK, AGAIN, JOINT, END = "over", "begun-", "news", "sick", "again", "joint", "end"
"""Names of the files."""
SLOT, LEASE = "job-", "lease"
"""Names of folders: the beginning of that of a job, and that of a start's lease."""
MOST_IDLE = 10
"""Starts in a row without news after which a job gives up. From the third on it waits longer each time, an hour and a
half in all: a full disk needs time."""


@final
@dataclass(frozen=True)
class Start:
    """A start of a job, as its program has it.

    Raises:
        FileError: from each method: the folder cannot be read or written.
    """

    folder: Path
    """Of the start, with its number as name."""

    @property
    def number(self) -> int:
        """Counted from 1."""
        return int(self.folder.name)

    @property
    def name(self) -> str:
        """Of the job and its start, such as ``0-3/2``."""
        return f"{self.folder.parent.name.removeprefix(SLOT)}/{self.folder.name}"

    def alive(self) -> contextlib.AbstractContextManager[Lease]:
        """Give signs of life while the block runs, so that other jobs know that this one has its runs."""
        return kept(claim(self.folder / LEASE, busy="this start of the job has another program"))

    def begin(self, node: str) -> None:
        """Record that the program has begun on a node."""
        self._write(f"{BEGUN}{node}")

    def has_news(self) -> bool:
        """Return whether a worker has begun to train in this start."""
        return exists(self.folder / NEWS)

    def note_news(self) -> None:
        """Record that a worker has begun to train."""
        if not self.has_news():
            self._write(NEWS)

    def idle(self) -> int:
        """Return how many starts in a row, the last of which is this one, have had no news."""
        number = self.number
        while number > 0 and not exists(self.folder.with_name(str(number)) / NEWS):
            number -= 1
        return self.number - number

    def is_last(self) -> bool:
        """Return whether the job gives up if this start has no news."""
        return self.idle() >= MOST_IDLE

    def ask(self, *, avoid: Sequence[str], changes: Sequence[str]) -> None:
        """Write what the script does when it puts the job back: which nodes it avoids, and what it changes."""
        self._write(SICK, avoid)
        self._write(AGAIN, changes)

    def has_asked_to_avoid(self, node: str) -> bool:
        """Return whether the start before has asked to avoid a node. A job that gets it again cannot avoid it."""
        sick = self.folder.with_name(str(self.number - 1)) / SICK
        return exists(sick) and node in read_bytes(sick).decode("utf-8", "replace").splitlines()

    def joint_file(self, number: int) -> Path:
        """Return the file of the attempt with this number, from 1, whose ranks each node of the job starts."""
        return self.folder / f"{JOINT}-{number}.json"

    def note_joint(self, number: int, joint: Joint) -> None:
        """Have the other nodes of the job start their ranks of an attempt."""
        joint.write_file(self.joint_file(number))

    def note_end(self) -> None:
        """Record that the program on the first node ends, for those on the others."""
        self._write(END)

    def has_ended(self) -> bool:
        """Return whether the program on the first node has ended."""
        return exists(self.folder / END)

    def finish(self, code: int) -> None:
        """Record that the job is over, with its exit code. Its script then does not put it back."""
        make_directory(self.folder.parent)
        write_text(self.folder.parent / OVER, f"{code}\n")

    def _write(self, name: str, lines: Sequence[str] = ()) -> None:
        write_text(self.folder / name, "".join(f"{line}\n" for line in lines))


def has_started(launch: Path, number: int, index: int) -> bool:
    """Return whether a job of array ``number`` of a launch has ever been started.

    Raises:
        FileError: the folder of the launch cannot be read.
    """
    return exists(launch / f"{SLOT}{number}-{index}")


def is_alive(launch: Path, name: str) -> bool:
    """Return whether a job of a launch has a program that gives signs of life.

    ``launch`` is the folder of the request, and ``name`` that of a start of the job; a later one counts as well.

    Raises:
        FileError: the folder of the job cannot be read.
    """
    slot, _, number = name.partition("/")
    start = launch / f"{SLOT}{slot}" / number
    while exists(later := start.with_name(str(int(start.name) + 1))):
        start = later
    return live_owner(start / LEASE) is not None

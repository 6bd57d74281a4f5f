"""Checks of a story. They know what the accidents have done, and never the product's reasons.

SPIN and COMMANDS are where calls are counted: in the kernel, and where a story answers SLURM's commands.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from seqlm import reading
from seqlm.errors import SeqlmError
from seqlm.rundir import RunDirectory
from tests.simulation.accidents import name_of, run_of
from tests.simulation.files import Inode
from tests.simulation.kernel import Process, ViolationError

if TYPE_CHECKING:
    from tests.simulation.story import Story

STUDY = "/sim/runs/s"
HOURS_AFTER = 12.0
"""How long after the last accident everything must be over."""
MOST_HITS = 10
"""How often an attempt of a run may be disturbed before the policy gives the run up."""
OWNED = ("last.pt", "metrics.jsonl", "result.json")
"""What only the owner of a run writes."""

Check: TypeAlias = "Callable[[Story], None]"
AT_END: list[Check] = []
"""Checks of what has come of a study once nobody acts any more. Each raises :class:`ViolationError`."""


def at_end(check: Check) -> Check:
    """Have this check look at the end of each story."""
    AT_END.append(check)
    return check


def only_owners_write(story: Story, process: Process, path: str) -> None:
    """Check a write at once: only the owner of a run writes what it has come to."""
    name, run = path.rpartition("/")[2], run_of(process)
    if name not in OWNED or run is None:
        return
    folder = story.files.look(f"{STUDY}/{run}/lease")
    leases = sorted(one for one in (folder.names if folder else ()) if re.fullmatch(r"\d{6}\.json", one))
    if not leases:
        return
    assert folder is not None
    owner = json.loads(folder.names[leases[-1]].content or b"{}")
    if (owner.get("host"), owner.get("pid")) != (process.host.name, process.pid):
        story.kernel.violate(f"OWNER: {process} has written {name} of a run that {owner.get('pid')} owns")


@at_end
def no_program_ends_with_a_traceback(story: Story) -> None:
    for process in story.kernel.processes:
        if process.error is not None and not process.ended_by_error:
            raise ViolationError(f"TRACEBACK: {process}:\n{process.error}")


@at_end
def files_are_whole(story: Story) -> None:
    _look_into(story.files.root, "/sim")


def _look_into(folder: Inode, path: str) -> None:
    for name, inode in folder.names.items():
        if inode.kind == stat.S_IFDIR:
            _look_into(inode, f"{path}/{name}")
        elif name.endswith(".json"):
            try:
                json.loads(inode.content)
            except ValueError as error:
                raise ViolationError(f"FILES: {path}/{name} is damaged: {error}") from None


@at_end
def nothing_is_left(story: Story) -> None:
    if left := [job for job in story.cluster.jobs if job.is_live]:
        states = ", ".join(f"{job.id} {job.state} ({story.cluster.reason(job)})" for job in left)
        raise ViolationError(f"LEFT: jobs wait or run {HOURS_AFTER:g} h after the last accident: {states}")
    if alive := [process for process in story.kernel.processes if process.lives]:
        raise ViolationError(f"LEFT: {alive}")


@at_end
def runs_end_as_they_should(story: Story) -> None:
    ends = ends_of(story)
    for name in story.study.names:
        state, kind, reason = ends.get(name, ("missing", None, "it has never begun"))
        if not _is_explained(story, name, state, kind):
            raise ViolationError(
                f"END: {name} is {state} ({kind}: {reason}); nothing that was done to it ends it for good"
            )


def _is_explained(story: Story, name: str, state: str, kind: str | None) -> bool:
    """Return whether a run has come to an end that was done to it, or is done."""
    if state == "done":
        return True
    if state == "failed" and kind == "code" and "code" in story.harm.causes[name]:
        return True
    if state == "failed" and kind in ("node", "preempted", "timeout") and story.harm.hits[name] > MOST_HITS:
        return True
    arrays = story.arrays_of(name)
    newest = max(arrays, default=0)
    return newest <= story.harm.cancelled.get(name, -1.0) or arrays.get(newest) in story.harm.scancelled


def ends_of(story: Story) -> dict[str, tuple[str, str | None, str]]:
    """Return state, kind and reason of each run that has begun, by its name, as its files say."""
    found: dict[str, tuple[str, str | None, str]] = {}

    def look() -> None:
        reading.confine(Path(STUDY))
        for run in story.run_ids():
            try:
                seen = RunDirectory(Path(STUDY) / run).observe()
                found[name_of(run)] = (seen.state, seen.kind, str(seen.reason))
            except (SeqlmError, OSError) as error:
                found[name_of(run)] = ("damaged", None, str(error))

    story.kernel.spawn(story.login, ["look"], look, env={}, output=story.files.open_log("/sim/home/look"), tag="a look")
    story.kernel.play(story.kernel.now + 60)
    assert len(found) == len(story.run_ids())
    return found

"""Checks of a story. They know what the accidents have done, and never the product's reasons.

SPIN and COMMANDS are where calls are counted: in the kernel, and where a story answers SLURM's commands.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from jobs.manifests.policy import Policy
from jobs.study.budget import Budget
from seqlm import reading
from seqlm.errors import SeqlmError
from seqlm.rundir import RunDirectory
from tests.simulation.accidents import name_of, rank_of, run_of
from tests.simulation.files import Inode
from tests.simulation.kernel import Process, ViolationError
from tests.simulation.study import EPOCHS

if TYPE_CHECKING:
    from tests.simulation.story import Story

STUDY = "/sim/runs/s"
HOURS_AFTER = 12.0
"""How long after the last accident everything must be over."""
MOST_HITS = 10
"""How often an attempt of a run may be disturbed before the policy gives the run up."""
STOP_SECONDS = 120.0
"""How long after `cancel` a worker may still write."""
COST_SECONDS = 60.0
"""How far the product's count of an attempt's seconds may be from ours."""
OWNED = ("last.pt", "metrics.jsonl", "result.json")
"""What only the owner of a run writes."""

Told = TypeVar("Told")
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
    newest = story.requests_of(name_of(run))[-1]
    since = max(newest.filed_at, story.harm.slow_until)
    if newest.is_cancel and story.kernel.now > since + STOP_SECONDS:
        story.kernel.violate(f"CANCELLED: {process} writes {name} of a run that was cancelled long ago")
    owner = json.loads(folder.names[leases[-1]].content or b"{}")
    if (owner.get("host"), owner.get("pid")) != (process.host.name, process.pid):
        story.kernel.violate(f"OWNER: {process} has written {name} of a run that {owner.get('pid')} owns")


def attempts_of(story: Story) -> Counter[str]:
    """Return how many attempts each run had, by its name: each starts a first rank."""
    firsts = [one for one in story.kernel.processes if rank_of(one) == 0]
    return Counter(name_of(run) for one in firsts if (run := run_of(one)) is not None)


def work_is_not_repeated(story: Story, name: str) -> None:
    """Check at the beginning of an epoch: an attempt repeats at most the epoch in which the one before it ended."""
    attempts = attempts_of(story)[name]
    begun = story.harm.begun[name]
    if begun > EPOCHS + attempts:
        story.kernel.violate(f"REPEATED: {name} began {begun} epochs of {EPOCHS} in {attempts} attempts")


RETRIES = {"code": 0, "diverged": 0, "oom": 3, "node": math.inf}
"""Kind of error -> how often the policy of these studies tries a run again after it."""


def errors_are_tried_again_as_the_policy_says(story: Story, name: str, kind: str) -> None:
    """Check at an error of a worker."""
    errors, asked = story.harm.errors[name, kind], sum(not one.is_cancel for one in story.requests_of(name))
    if errors > asked * (1 + RETRIES[kind]):
        story.kernel.violate(f"RETRIES: {name} raised {errors} errors of kind {kind} in {asked} requests")


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
    if left := [job for job in story.study_jobs if job.is_live]:
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
    if state == "failed" and kind in story.harm.causes[name] & {"code", "diverged", "oom"}:
        return True
    if state == "pending" and "canary" in story.harm.causes[name]:
        return True
    hits = story.harm.hits[name] + story.harm.errors[name, "node"]
    if state == "failed" and kind in ("node", "preempted", "timeout") and hits > MOST_HITS:
        return True
    arrays = story.arrays_of(name)
    newest = max(arrays, default=0)
    return newest <= story.harm.cancelled.get(name, -1.0) or arrays.get(newest) in story.harm.scancelled


@at_end
def jobs_of_others_are_left_alone(story: Story) -> None:
    for job in story.others:
        if job.state not in ("RUNNING", "PENDING") or (job.state == "PENDING") != job.is_held:
            raise ViolationError(f"OTHERS: job {job.id}, which is of no study, is {job.state}")


STRANGE = {"cut_off_node", "node_without_device", "silence", "config_unreadable", "disk_full", "files_hang"}
"""Accidents after which attempts may fail without a disturbance that is counted."""


@at_end
def each_attempt_has_a_reason(story: Story) -> None:
    if STRANGE & story.harm.happened:
        return
    attempts = attempts_of(story)
    for name in story.study.names:
        asked, errors = story.requests_of(name), [story.harm.errors[name, kind] for kind in RETRIES]
        reasons = sum(not one.is_cancel for one in asked) + story.harm.excuses[name] + sum(errors)
        if attempts[name] > reasons:
            raise ViolationError(f"ATTEMPTS: {name} had {attempts[name]} attempts and {reasons} reasons for one")


@at_end
def costs_are_what_was_spent(story: Story) -> None:
    if story.harm.slow_until:  # a worker that stands still has no last sign of life
        return
    workers = [one for one in story.kernel.processes if run_of(one) is not None]
    lived = sum(one.ended_at - one.began_at for one in workers if one.ended_at is not None)
    hours = told_by_the_product(story, lambda: Budget(Path(STUDY), Policy()).spent())
    spent = 3600 * hours["core_hours"]
    if abs(spent - lived) > COST_SECONDS * len(workers):
        raise ViolationError(f"COSTS: {len(workers)} workers lived {lived:.0f} s, of which {spent:.0f} s are counted")


def ends_of(story: Story) -> dict[str, tuple[str, str | None, str]]:
    """Return state, kind and reason of each run that has begun, by its name, as its files say."""

    def look() -> dict[str, tuple[str, str | None, str]]:
        found = {}
        for run in story.run_ids():
            try:
                seen = RunDirectory(Path(STUDY) / run).observe()
                found[name_of(run)] = (seen.state, seen.kind, str(seen.reason))
            except (SeqlmError, OSError) as error:
                found[name_of(run)] = ("damaged", None, str(error))
        return found

    return told_by_the_product(story, look)


def told_by_the_product(story: Story, look: Callable[[], Told]) -> Told:
    """Return what a function of the product says in a process of the login node."""
    answers: list[Told] = []

    def main() -> None:
        reading.confine(Path(STUDY))
        answers.append(look())

    story.kernel.spawn(story.login, ["look"], main, env={}, output=story.files.open_log("/sim/home/look"), tag="a look")
    story.kernel.play(story.kernel.now + 60)
    (answer,) = answers
    return answer

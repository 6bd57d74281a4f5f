"""Checks of a story. They know what the accidents have done, and never the product's reasons.

SPIN and COMMANDS are where calls are counted: in the kernel, and where a story answers SLURM's commands.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, final

from jobs.manifests.policy import Policy
from jobs.scheduled.slot import NEWS, OVER
from jobs.study.budget import Budget
from seqlm import reading
from seqlm.errors import SeqlmError
from seqlm.rundir import RunDirectory
from tests.simulation.accidents import name_of, rank_of, run_of
from tests.simulation.files import Inode
from tests.simulation.kernel import Process, ViolationError
from tests.simulation.study import EPOCHS

if TYPE_CHECKING:
    from tests.simulation.slurm import Job
    from tests.simulation.story import Story

STUDY = "/sim/runs/s"
HOURS_AFTER = 12.0
"""How long after the last accident everything must be over."""
MOST_HITS = 10
"""How often an attempt of a run may be disturbed before the policy gives the run up."""
STOP_SECONDS = 120.0
"""How long after `cancel` a worker may still write."""
TAKEOVER_SECONDS = 200.0
"""How long a worker watches the lease of one that may be dead, before it notes that it lives itself."""
COST_SECONDS = 60.0
"""How far the product's count of an attempt's seconds may be from ours."""
SETTLED = "settled.json"
FINAL = ("metrics.jsonl", "result.json")
"""What is not changed any more, except that epochs are added."""
UNFLUSHED = ("progress.json", "position.json")
"""What a disk may lose with its machine, since it says nothing that other files do not say."""
FLUSH_SECONDS = 10.0
"""What was written so long ago must have been flushed."""
UNSURE_HOURS = frozenset(
    {
        *("clock_wrong", "files_hang", "files_slow", "files_late", "disk_full", "quota_used_up", "writes_broken"),
        *("reads_broken", "replies_lost", "stop_worker", "cut_off_node", "lose_node", "power_cut", "config_unreadable"),
    }
)
"""Accidents after which nobody can say for how long a worker has lived."""
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


def owner_of(story: Story, run: str) -> Mapping[str, Any]:
    """Return the newest lease of a run. Empty: it has had none."""
    folder = story.files.look(f"{STUDY}/{run}/lease")
    leases = sorted(one for one in (folder.names if folder else ()) if re.fullmatch(r"\d{6}\.json", one))
    record: Mapping[str, Any] = json.loads(folder.names[leases[-1]].content or b"{}") if folder and leases else {}
    return record


def only_owners_write(story: Story, process: Process, path: str) -> None:
    """Check a write at once: only the owner of a run writes what it has come to."""
    name, run = path.rpartition("/")[2], run_of(process)
    if name not in OWNED or run is None:
        return
    if not (owner := owner_of(story, run)):
        return
    newest = story.requests_of(name_of(run))[-1]
    since = max(newest.filed_at, story.harm.slow_until)
    if newest.is_cancel and story.kernel.now > since + STOP_SECONDS:
        story.kernel.violate(f"CANCELLED: {process} writes {name} of a run that was cancelled long ago")
    if (owner.get("host"), owner.get("pid")) != (process.host.name, process.pid):
        story.kernel.violate(f"OWNER: {process} has written {name} of a run that {owner.get('pid')} owns")


UNSURE_LEASES = frozenset(
    {
        *("clock_wrong", "files_hang", "files_slow", "files_late", "disk_full", "quota_used_up", "writes_broken"),
        *("reads_broken", "replies_lost", "power_cut", "config_unreadable"),
    }
)
"""Accidents after which nobody can say at once whether a worker lives."""


def cancelled_means_that_no_worker_lives(story: Story, command: Process) -> None:
    """Check at the end of `cancel`: of a run that it has cancelled, or was to cancel if it ends with 0, none lives.

    Workers that were stopped by a signal give no sign of life. Ranks but the first end with it a moment later.
    """
    if story.harm.happened & UNSURE_LEASES:
        return
    asked = command.argv[command.argv.index("--only") + 1].removeprefix("name=").split(",")
    said = re.findall("^cancelled (.*)$", command.output.text(), re.MULTILINE)
    cancelled = {name for name in story.study.names if (wishes := story.requests_of(name)) and wishes[-1].is_cancel}
    over = cancelled.intersection(said if command.exit_code else asked)
    others = [user for user in story.users if user.lives and user.argv[1] == "cancel"]
    is_all = cancelled == set(story.study.names) and not others
    for worker in story.workers():
        run, is_old = run_of(worker), worker.began_at < command.began_at and not worker.is_stopped
        is_over = is_all and not command.exit_code if run is None else name_of(run) in over
        if is_old and is_over and rank_of(worker) == 0:
            story.kernel.violate(f"CANCELLED: `seqlm cancel` has ended with {command.exit_code}, and {worker} lives")


def nothing_is_trained_at_the_limit(story: Story, job: Job) -> None:
    """Check at the time limit of a job: its workers have ended, whatever they do at a signal."""
    if story.harm.happened & (UNSURE_LEASES | {"silence", "controller_gone", "cut_off_node", "stop_program"}):
        return
    for worker in story.cluster.members(job):
        if run_of(worker) is not None:
            raise ViolationError(f"LIMIT: {worker} lives at the time limit of job {job.id}")


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


@final
class Finished:
    """What files of runs have said that must not change any more."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], list[tuple[float, bytes]]] = {}
        """Run id and name of a file -> when it had which content."""

    def note(self, story: Story, run: str, name: str) -> str | None:
        """Note the present content of a file; return what of an earlier one is lost. ``None``: nothing."""
        inode = story.files.look(f"{STUDY}/{run}/{name}")
        content = bytes(inode.content) if inode is not None else b""
        known = self._seen.setdefault((run, name), [])
        if known and not content.startswith(known[-1][1]):
            return f"{name} of {run} said {known[-1][1][-200:]!r}, and says {content[-200:]!r}"
        known.append((story.kernel.now, content))
        return None

    def note_all(self, story: Story) -> str | None:
        """Do the same for all files that have been noted."""
        return next(filter(None, (self.note(story, *key) for key in self._seen)), None)

    def lose_power(self, now: float) -> None:
        """Forget what the disk may have lost of a machine that loses power."""
        for known in self._seen.values():
            while known and known[-1][0] > now - FLUSH_SECONDS:
                known.pop()


def what_is_finished_stays(story: Story, process: Process, path: str) -> None:
    """Check a write at once: a result does not change, and no line of an epoch."""
    name, run = path.rpartition("/")[2], run_of(process)
    if run is not None and name in FINAL and (lost := story.finished.note(story, run, name)) is not None:
        story.kernel.violate(f"KEPT: {lost}")


def what_was_decided_stays(story: Story, process: Process, path: str) -> None:
    """Check a write at once: a decision is made once, after two seeds of both settings, and its run trains no more."""
    name, run = path.rpartition("/")[2], run_of(process)
    if run is None or not story.study.is_decided or name not in (SETTLED, *FINAL):
        return
    folder = story.files.look(f"{STUDY}/{run}")
    settled = folder.names.get(SETTLED) if folder is not None else None
    if settled is None:
        return
    before = story.decided.setdefault(run, settled.content)
    if before != settled.content:
        story.kernel.violate(f"DECIDED: {process} decides {run} again")
    if name in FINAL:
        story.kernel.violate(f"DECIDED: {process} writes {name} of {run}, which a comparison has stopped")
    for one in json.loads(settled.content)["verdicts"]:
        if len(one["seeds"]) < 2:
            story.kernel.violate(f"DECIDED: {run} is stopped after the seeds {one['seeds']}")


HUNG_SECONDS = 780.0
"""How long a worker may make no progress: ten minutes, in looks of some seconds, and a minute to be killed in."""
UNSEEN_HANGS = UNSURE_LEASES | {"stop_launcher", "stop_program", "kill_program", "cut_off_node", "ray_silence"}
"""Accidents after which nobody may watch a worker."""


def what_hangs_is_killed(story: Story, worker: Process, seconds: float) -> None:
    """Check at the end of a hang: a worker does not come to it if that has taken long."""
    if rank_of(worker) == 0 and seconds > HUNG_SECONDS and not story.harm.happened & UNSEEN_HANGS:
        story.kernel.violate(f"HUNG: {worker} has made no progress for {seconds:.0f} s, and lives")


CLAIM_SECONDS = 20.0
"""How long a worker needs from its start to the lease of its run, if nobody else has that."""


def what_is_released_is_taken_at_once(story: Story, process: Process, path: str) -> None:
    """Check a write at once: a worker does not wait for the owner of its run that has ended in order."""
    lease, run = re.fullmatch(r"(?:.*/)?(\d{6})\.json", path), run_of(process)
    if lease is None or run is None or lease[1] in story.leases[run]:
        return
    before, story.leases[run][lease[1]] = list(story.leases[run].values())[-1:], process
    waited = story.kernel.now - process.began_at
    if waited < CLAIM_SECONDS or story.harm.happened & (UNSURE_LEASES | {"slow_start", "stop_worker"}):
        return
    for owner in before:
        if owner.ended_at is not None and owner.ended_at < process.began_at and (owner.exit_code or 0) >= 0:
            story.kernel.violate(f"WAITED: {process} has waited {waited:.0f} s for {owner}, which had ended")


UNSEEN_RUNS = UNSURE_LEASES | {"files_late", "node_without_device", "retry", "run", "cancel_and_retry"}
"""Accidents after which a job may not see a run that waits, or its request may not be the newest."""
LOOKS_AGAIN_SECONDS = 60.0
"""A job has looked at all runs of its array so long before its end."""


def no_run_waits_for_a_job_that_ends(story: Story, process: Process, path: str) -> None:
    """Check at the end of a job for good: no run of its array has never begun although the run's own job has started.

    Its own job is busy with other runs, or was lost.
    """
    job = next((one for one in story.study_jobs if process in one.processes), None)
    if path != OVER or job is None or story.harm.happened & UNSEEN_RUNS or _may_be_over(story):
        return
    folder = story.files.look(job.folder)
    if folder is None or "canary" in job.folder or "withdrawn.json" in folder.names:
        return
    arrays = json.loads(folder.names["batch.json"].content)["arrays"]
    (number,) = [place for place, array in enumerate(arrays) if array["job"] == str(job.array)]
    for place, run in enumerate(arrays[number]["runs"]):
        own = story.files.look(f"{job.folder}/job-{number}-{place % arrays[number]['jobs']}/1")
        is_wanted = not story.requests_of(name_of(run))[-1].is_cancel
        has_begun = story.files.look(f"{STUDY}/{run}/attempts/0001") is not None
        if own is None or has_begun or not is_wanted:
            continue
        began_at = min(inode.changed_at for inode in own.names.values()) if own.names else story.kernel.now
        if story.kernel.now > began_at + LOOKS_AGAIN_SECONDS:
            story.kernel.violate(f"WAITS: job {job.id} ends, and {run}, whose own job has started, has never begun")


def _may_be_over(story: Story) -> bool:
    """Return whether runs may not start any more: the budget is spent, or a search does not train them."""
    return story.study.core_hours is not None or story.study.is_search or story.study.is_decided


AT_WRITES = (
    only_owners_write,
    what_is_finished_stays,
    what_was_decided_stays,
    what_is_released_is_taken_at_once,
    no_run_waits_for_a_job_that_ends,
)
"""Checks at each name that a process makes, replaces or removes."""


@at_end
def no_program_ends_with_a_traceback(story: Story) -> None:
    for process in story.kernel.processes:
        if process.error is not None and not process.ended_by_error:
            raise ViolationError(f"TRACEBACK: {process}:\n{process.error}")


@at_end
def files_are_whole(story: Story) -> None:
    _look_into(story.files.root, "/sim", UNFLUSHED if "power_cut" in story.harm.happened else ())


def _look_into(folder: Inode, path: str, but: Collection[str]) -> None:
    for name, inode in folder.names.items():
        if inode.kind == stat.S_IFDIR:
            _look_into(inode, f"{path}/{name}", but)
        elif name.endswith(".json") and name not in but:
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
    if state == "stopped" and (story.study.is_search or story.study.is_decided):
        return True
    limit = story.study.core_hours
    is_interrupted = state in ("pending", "missing") or (state == "failed" and kind in ("node", "preempted", "timeout"))
    if is_interrupted and limit is not None and counted_hours(story) >= limit:
        return True
    if state == "failed" and kind in story.harm.causes[name] & {"code", "diverged", "oom"}:
        return True
    if state in ("pending", "missing") and "canary" in story.harm.causes[name]:
        return True
    hits = story.harm.hits[name] + story.harm.errors[name, "node"] + story.harm.errors[name, "oom"]
    if state == "failed" and kind in ("node", "preempted", "timeout") and hits > MOST_HITS:
        return True
    arrays = story.arrays_of(name)
    if state in ("pending", "missing") and _is_without_job(story, name, arrays):
        return True
    newest = max(arrays, default=0)
    return newest <= story.harm.cancelled.get(name, -1.0) or arrays.get(newest) in story.harm.scancelled


def _is_without_job(story: Story, name: str, arrays: Mapping[int, int]) -> bool:
    """Return whether SLURM took no job for a run of several nodes. It waits for the next `run`, as the docs say."""
    asked = [one.number for one in story.requests_of(name) if not one.is_cancel]
    may_lack_one = story.study.most_jobs is not None and story.study.ranks_per_node is not None
    return may_lack_one and bool(asked) and asked[-1] not in arrays


GIVE_UP_SECONDS = 240.0
"""How long the program on the first node may live after the ranks there: it gives the other nodes two minutes."""


def nobody_waits_for_a_node_that_does_not_answer(story: Story, program: Process) -> None:
    """Check at the end of a program on the first of several nodes: it has not waited for the others for ever."""
    jobs = [job for job in story.study_jobs if len(job.nodes) > 1 and program in job.processes[1:2]]
    if not jobs or not story.harm.happened <= {"stop_program", "kill_worker", "preempt", "requeue"}:
        return
    ranks = [one for one in story.kernel.processes if one.parent is program]
    last = max((one.ended_at for one in ranks if one.ended_at is not None), default=story.kernel.now)
    if story.kernel.now > last + GIVE_UP_SECONDS:
        waited = story.kernel.now - last
        story.kernel.violate(f"ANSWER: {program} has waited for the other nodes for {waited:.0f} s after its ranks")


@at_end
def jobs_of_others_are_left_alone(story: Story) -> None:
    for job in story.others:
        if job.state not in ("RUNNING", "PENDING") or (job.state == "PENDING") != job.is_held:
            raise ViolationError(f"OTHERS: job {job.id}, which is of no study, is {job.state}")


@at_end
def a_job_avoids_a_node_that_failed_twice(story: Story) -> None:
    """Of a job of several nodes only a killed rank shows which node has failed."""
    if not story.harm.happened <= {"lose_node", "kill_worker", "code_error", "diverges"}:  # which end no start early
        return
    for job in story.study_jobs:
        for number, ((node, *others), up) in enumerate(job.places, start=1):
            # SLURM itself starts it there a third time. Then it sees what has happened, and trains nothing there.
            lost = {story.harm.lost.get((job.id, number - before)) for before in (1, 2)}
            news = story.files.look(f"{job.folder}/job-0-{job.index}/{number}/{NEWS}")
            if not others and lost == {node} and len(up) > 1 and news is not None:
                raise ViolationError(f"NODES: job {job.id} trains on {node}, which it has just lost twice in a row")


UNSEEN_SCANCELS = UNSURE_LEASES | {
    *("silence", "controller_gone", "kill_program", "stop_program", "lose_node", "cut_off_node", "hang_worker"),
    *("memory_of_job_used_up", "scancel", "slow_start", "stop_worker", "kill_worker", "terminate_worker", "requeue"),
    *("preempt", "ranks_abort", "device_error", "node_without_device"),
}
"""Accidents after which the program of a job may end before it records that its user has cancelled the job."""


@at_end
def a_run_that_was_cancelled_in_slurm_says_so(story: Story) -> None:
    """That is for the time when SLURM has forgotten its job."""
    if story.harm.happened & UNSEEN_SCANCELS:
        return
    ends = ends_of(story)
    for name, when in story.harm.cancelled_by_slurm.items():
        is_newest = all(one.filed_at < when for one in story.requests_of(name))
        if is_newest and ends.get(name, ("missing",))[0] in ("pending", "missing"):
            raise ViolationError(f"SCANCEL: {name} is {ends.get(name)}, and its job was cancelled while it trained")


COUNTED = {
    *("kill_worker", "terminate_worker", "kill_program", "stop_worker", "lose_node", "preempt", "requeue", "scancel"),
    *("operator_cancels", "memory_of_job_used_up"),
    *("cancel", "cancel_and_retry", "retry", "run", "reuse_id", "hang_worker", "slow_start"),
    *("code_error", "diverges", "out_of_memory", "device_error", "ranks_abort"),
}
"""Accidents each of which is counted where it disturbs a run. After others an attempt may fail without that."""


@at_end
def each_attempt_has_a_reason(story: Story) -> None:
    if not story.harm.happened <= COUNTED:
        return
    attempts = attempts_of(story)
    for name in story.study.names:
        asked, errors = story.requests_of(name), [story.harm.errors[name, kind] for kind in RETRIES]
        reasons = sum(not one.is_cancel for one in asked) + story.harm.excuses[name] + sum(errors)
        if attempts[name] > reasons:
            raise ViolationError(f"ATTEMPTS: {name} had {attempts[name]} attempts and {reasons} reasons for one")


ORDERLY = {
    *("preempt", "requeue", "terminate_worker", "code_error", "diverges", "out_of_memory", "device_error"),
    *("cancel", "retry", "run", "cancel_and_retry", "reuse_id"),
}
"""Accidents after which whoever ends can say so."""


@at_end
def no_job_starts_for_nothing(story: Story) -> None:
    """A job does not come back before it has started a worker, unless somebody else ends it, or it avoids its node."""
    if not story.harm.happened <= ORDERLY:
        return
    used = set(story.used)
    for job in [one for one in story.study_jobs if not one.excluded]:
        mine = [number for number in range(1, len(job.places)) if number not in job.cut_short]
        if idle := [number for number in mine if (job.id, number) not in used]:
            raise ViolationError(f"STARTS: job {job.id} started no worker at its start {idle[0]}, and waited again")


@at_end
def costs_are_what_was_spent(story: Story) -> None:
    if story.harm.slow_until or story.harm.happened & UNSURE_HOURS:  # no last sign of life, or not when it was
        return
    lived, number = lived_of(story)
    spent = 3600 * counted_hours(story)
    found_late = story.harm.still_seconds * story.study.runs  # the end of a worker, by a launcher that stood still
    if abs(spent - lived) > COST_SECONDS * number + found_late:
        raise ViolationError(f"COSTS: {number} workers lived {lived:.0f} s, of which {spent:.0f} s are counted")


@at_end
def what_was_finished_is_there(story: Story) -> None:
    if (lost := story.finished.note_all(story)) is not None:
        raise ViolationError(f"KEPT: {lost}")


@at_end
def a_budget_is_kept(story: Story) -> None:
    limit = story.study.core_hours
    if limit is None or story.harm.happened & UNSURE_HOURS:
        return
    over = lived_of(story)[0] - 3600 * limit
    if over > (STOP_SECONDS + TAKEOVER_SECONDS + story.harm.still_seconds) * story.study.runs:
        raise ViolationError(f"BUDGET: the workers have lived for {over:.0f} s more than the budget of {limit:g} hours")


@at_end
def a_search_does_not_stop_the_best(story: Story) -> None:
    """The run that is best after the first epoch is the best of whichever it is compared with."""
    values = {}
    for run in story.run_ids():
        if lines := story.files.text(f"{STUDY}/{run}/metrics.jsonl").splitlines():
            values[run] = json.loads(lines[0])["val_ppl"]
    best = min(values, key=lambda run: values[run], default=None)
    if best is not None and story.study.is_search and ends_of(story)[name_of(best)][0] == "stopped":
        raise ViolationError(f"SEARCH: {best} is stopped, and none is better after the first epoch")


def lived_of(story: Story) -> tuple[float, int]:
    """Return how many seconds workers and canaries have lived, and how many there were.

    One that was ended before its first call is left out: it had no chance to record anything.
    """
    kinds = ("worker of ", "canary of ")
    workers = [one for one in story.kernel.processes if str(one.tag).startswith(kinds) and one.calls]
    return sum(one.ended_at - one.began_at for one in workers if one.ended_at is not None), len(workers)


def counted_hours(story: Story) -> float:
    """Return how many core hours the study counts."""
    return told_by_the_product(story, lambda: Budget(Path(STUDY), Policy()).spent())["core_hours"]


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

"""Which runs of a shared array a job takes, without SLURM."""

from pathlib import Path
from typing import Any

import pytest

from jobs.manifests.policy import Policy
from jobs.plan.capacity import Capacity, Node
from jobs.scheduled import share as shares
from jobs.scheduled.share import Share
from jobs.scheduled.slot import SLOT, Start
from jobs.scheduled.submission import JobPlan
from seqlm import ends
from seqlm.records import attempts
from seqlm.records.attempts import Exit
from seqlm.rundir import Observation, RunDirectory
from tests.slurm.test_job import KILLED, TELL, asked, make, place, plan, room, work

__all__ = ["room"]

pytestmark = pytest.mark.process

SHARED: dict[str, Any] = {"jobs": 3}
JOBS = ["0-0", "0-1", "0-2"]


def starts_of(told: JobPlan, job: str) -> Start:
    """A start of a job, whose folder is made."""
    slot = told.folder / f"{SLOT}{job}"
    start = Start(slot / str(1 + len(list(slot.glob("*/")))))
    start.folder.mkdir(parents=True)
    return start


def share(told: JobPlan, start: Start) -> Share:
    index = start.folder.parent.name[-1]
    return Share(told, 0, place(SLURM_ARRAY_TASK_ID=index, SLURM_ARRAY_TASK_COUNT="3"), start)


def begin(run: RunDirectory, told: JobPlan, start: Start) -> None:
    """Have a start of a job begin the next attempt of a run."""
    folder = run.attempt_dir(run.last_attempt() + 1)
    folder.mkdir(parents=True)
    attempts.Start(request=told.options.request, job_start=start.name).write(folder)


SEEN = {
    "waits": Observation(state="pending"),
    "its node failed": Observation(state="failed", kind="node", is_final=False),
    "was preempted": Observation(state="failed", kind="preempted", is_final=False),
    "runs": Observation(state="running"),
    "is done": Observation(state="done"),
    "is cancelled": Observation(state="cancelled"),
    "has failed": Observation(state="failed", kind="code"),
}


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("has_another_start", [False, True])
def test_whatever_its_jobs_do_a_run_that_is_not_over_has_one_job_or_is_for_all(
    tmp_path: Path, seen: str, *, has_another_start: bool
) -> None:
    run = make(tmp_path)
    told = plan(run, array=SHARED)
    first = starts_of(told, JOBS[0])
    others = [starts_of(told, job) for job in JOBS[1:]]
    begin(run, told, first)
    start = starts_of(told, JOBS[0]) if has_another_start else first

    def takers() -> list[str]:
        return [one.name for one in [start, *others] if share(told, one).may_take(run, SEEN[seen])]

    with start.alive():
        while_it_lives = takers()
    if seen in ("is done", "is cancelled", "has failed"):
        assert while_it_lives == takers() == []
    elif seen == "runs":
        assert while_it_lives == takers() == [start.name]
    else:
        assert while_it_lives == [start.name], "the job that has begun it, or its next start"
        assert takers() == [start.name, *(one.name for one in others)], "whoever has room goes on with it"


def test_a_run_whose_node_failed_waits_for_its_time_whichever_job_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "SOON_SECONDS", 5.0)
    monkeypatch.setattr(ends, "FIRST_DELAY_SECONDS", 60.0)
    sick, well = make(tmp_path, "sick"), make(tmp_path, "well")
    told = plan(sick, well, array=SHARED)
    first, second = starts_of(told, JOBS[0]), starts_of(told, JOBS[1])
    begin(sick, told, first)
    sick.write_exit(1, Exit(kind="node", message="lost"))
    other = share(told, second)
    room = Capacity([Node(name="n2", cpus=8, gpus={})], where="here")
    assert [run.id for run, _ in filter(None, [other.next_run(room, is_idle=True)])] == ["well"]
    monkeypatch.setattr(ends, "FIRST_DELAY_SECONDS", 0.0)
    assert other.next_run(room, is_idle=True, but=["well"]) is not None


def test_a_job_that_shares_its_runs_tries_one_again_until_its_node_has_failed_twice_in_a_row(
    tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ends, "FIRST_DELAY_SECONDS", 0.0)
    killed, other = make(tmp_path, "a"), make(tmp_path, "b")
    program = f"import sys\nif sys.argv[1].endswith('a'):\n    {KILLED}\n{TELL}"
    told = plan(killed, other, program=program, policy=Policy(), array={**SHARED, "at_once": 1})
    work(told, place(SLURM_ARRAY_TASK_COUNT="3"))
    assert killed.attempts() == [1, 2], "the third one is for another node"
    assert other.attempts() == [], "this node may be sick"
    assert asked(told) == [["-n1"]]
    assert not killed.has_ended()

"""Which runs of a shared array a job takes, without SLURM."""

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


def write_result(run: RunDirectory) -> None:
    """Have a run be done."""
    run.result_file.write_text("{}")


def begin(run: RunDirectory, told: JobPlan, start: Start) -> None:
    """Have a start of a job begin the next attempt of a run."""
    folder = run.attempt_dir(run.last_attempt() + 1)
    folder.mkdir(parents=True)
    attempts.Start(request=told.request, job_start=start.name).write(folder)


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


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("owner", ["has never started", "is busy", "was lost"])
def test_a_job_that_is_done_early_takes_a_run_that_waits_unless_the_time_is_short_and_the_own_job_will_have_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: str, *, is_late: bool
) -> None:
    own, waiting = make(tmp_path, "own"), make(tmp_path, "waiting")
    told = plan(own, waiting, array=SHARED, timeout_min=60)
    start = starts_of(told, JOBS[0])
    if owner != "has never started":
        starts_of(told, JOBS[1])
    ours = share(told, start)
    ours.saw(own)
    write_result(own)
    late, now = 31 * 60.0 if is_late else 29 * 60.0, time.monotonic()
    monkeypatch.setattr(shares.time, "monotonic", lambda: now + late)
    ours.saw(own)
    if owner == "was lost":
        begin(waiting, told, Start(told.folder / f"{SLOT}{JOBS[1]}" / "1"))
    found = ours.next_run(Capacity([Node(name="n", cpus=8, gpus={})], where="here"), is_idle=True)
    assert (found is not None) == (owner != "has never started" or not is_late)
    assert found is None or found[0].id == "waiting"


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs=st.integers(1, 9), jobs=st.integers(1, 9), over=st.sets(st.integers(0, 8)))
def test_whichever_job_of_an_array_is_left_it_takes_all_runs_its_own_ones_first(
    tmp_path_factory: pytest.TempPathFactory, runs: int, jobs: int, over: set[int]
) -> None:
    jobs = min(jobs, runs)
    every = [make(tmp_path_factory.mktemp("study"), f"r{number}") for number in range(1)]
    every += [make(every[0].path.parent, f"r{number}") for number in range(1, runs)]
    told = plan(*every, array={"jobs": jobs, "at_once": None})
    for number in over:
        if number < runs:
            write_result(every[number])
    index = runs % jobs
    context = place(SLURM_ARRAY_TASK_ID=str(index), SLURM_ARRAY_TASK_COUNT=str(jobs))
    start = starts_of(told, f"0-{index}")
    ours, taken = Share(told, 0, context, start), list[str]()
    room = Capacity([Node(name="n", cpus=8, gpus={})], where="here")
    while (found := ours.next_run(room, is_idle=True, but=taken)) is not None:
        taken.append(found[0].id)
    wanted = [f"r{number}" for number in range(runs) if number not in over]
    own = [name for name in wanted if int(name[1:]) % jobs == index]
    assert sorted(taken) == sorted(wanted)
    assert taken[: len(own)] == own


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

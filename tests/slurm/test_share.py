"""Which runs of a shared array a job takes, without SLURM."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from jobs.manifests.policy import Policy
from jobs.plan.capacity import Capacity, Node
from seqlm import ends
from seqlm.errors import BackendError
from seqlm.files import write_json
from seqlm.rundir import Observation, RunDirectory
from slurm import share
from slurm.share import Share
from slurm.submission import JobPlan
from tests.facts import fail
from tests.slurm.programs import answering
from tests.slurm.test_job import KILLED, TELL, calls, make, place, plan, room, work

__all__ = ["room"]

pytestmark = pytest.mark.process

SHARED: dict[str, Any] = {"jobs": 3, "is_pool": True}
JOBS = [f"77_{index}" for index in range(3)]


def shares(told: JobPlan) -> dict[str, Share]:
    """The share of each of the three jobs."""
    where = [place(SLURM_ARRAY_TASK_ID=str(index), SLURM_ARRAY_TASK_COUNT="3") for index in range(3)]
    return {context.job: Share(told, 0, context) for context in where}


def begin(run: RunDirectory, told: JobPlan, job: str) -> None:
    """Have a job start the next attempt of a run."""
    folder = run.attempt_dir(run.last_attempt() + 1)
    folder.mkdir(parents=True)
    write_json(folder / "start.json", {"request": told.options.request, "job_id": job, "restart": None})


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
def test_whatever_its_jobs_do_a_run_that_is_not_over_has_one_job_or_is_for_all_that_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: str
) -> None:
    run = make(tmp_path)
    told = plan(run, array=SHARED)
    begin(run, told, "77_0")
    is_over = seen in ("is done", "is cancelled", "has failed")
    for states in itertools.product(["RUNNING", "PENDING", None], repeat=3):
        lines = [f"{job}|{state}" for job, state in zip(JOBS, states, strict=True) if state is not None]
        text = "\n".join(lines)
        monkeypatch.setattr(share, "ask", lambda *_, text=text: text)
        takers = [job for job, one in shares(told).items() if one.may_take(run, SEEN[seen])]
        running = [job for job, state in zip(JOBS, states, strict=True) if state == "RUNNING"]
        if is_over:
            assert takers == []
        elif seen == "runs" or states[0] == "RUNNING" or (states[0] == "PENDING" and seen == "its node failed"):
            assert takers == ["77_0"], "the job that has begun it, or its next start"
        else:
            assert set(running) <= set(takers), "its job does not run: whoever has room goes on with it"


def test_while_slurm_does_not_answer_no_job_takes_what_another_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: str) -> str:
        raise BackendError("slurmctld does not answer")

    monkeypatch.setattr(share, "ask", refuse)
    begun, other = make(tmp_path, "a"), make(tmp_path, "b")
    told = plan(begun, other, array=SHARED)
    begin(begun, told, "77_0")
    found = shares(told)
    assert [job for job in JOBS if found[job].may_take(begun, SEEN["waits"])] == ["77_0"]
    assert all(one.may_take(other, SEEN["waits"]) for one in found.values())


@pytest.mark.parametrize("number", [2, 40])
def test_one_question_to_slurm_serves_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    runs = [make(tmp_path, f"r{index}") for index in range(number)]
    told = plan(*runs, array=SHARED)
    for run in runs:
        begin(run, told, "77_1")
    asked: list[str] = []

    def suspended(*words: str) -> str:
        asked.append(words[0])
        return "77_0|RUNNING\n77_1|SUSPENDED"

    monkeypatch.setattr(share, "ask", suspended)
    found, free = shares(told)["77_0"], Capacity([Node(name="n1", cpus=8, gpus={})], where="here")
    assert not any(found.may_take(run, run.observe()) for run in runs)
    for _ in range(2):
        assert found.next_run(free, is_idle=True) is None
    assert asked == ["squeue"]


def test_a_job_that_has_come_to_run_since_slurm_was_asked_keeps_what_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, run = make(tmp_path, "a"), make(tmp_path, "b")
    told = plan(before, run, array=SHARED)
    for one in (before, run):
        begin(one, told, "77_1")
    monkeypatch.setattr(share, "ask", lambda *_: "77_0|RUNNING\n77_1|PENDING")
    first = shares(told)["77_0"]
    assert first.may_take(before, SEEN["waits"])
    monkeypatch.setattr(share, "ask", lambda *_: "77_0|RUNNING\n77_1|RUNNING")
    begin(run, told, "77_1")
    assert not first.may_take(run, SEEN["waits"])


def test_a_job_goes_on_with_the_runs_of_one_that_is_gone_and_leaves_those_of_one_that_runs(
    tmp_path: Path, room: Path
) -> None:
    answering(room, "squeue", "77_0|RUNNING\n77_1|RUNNING\n")
    runs = mine, held, gone, unbegun, failed = [make(tmp_path, name) for name in "abcde"]
    told = plan(*runs, array={**SHARED, "at_once": 1})
    begin(held, told, "77_1")
    begin(gone, told, "77_2")
    fail(failed, {"kind": "diverged", "message": "nan"})
    assert work(told, place(SLURM_ARRAY_TASK_COUNT="3")), "the failure is that of another job"
    assert [run.is_done() for run in runs] == [True, False, True, True, False]
    assert (mine.attempts(), gone.attempts(), unbegun.attempts()) == ([1], [1, 2], [1])
    assert calls(room) == [], "nothing is left for another start of the job"


def test_of_two_jobs_that_start_the_same_attempt_one_goes_on(
    tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(room, "squeue", "77_0|RUNNING\n77_1|RUNNING\n")
    run, other = make(tmp_path, "a"), make(tmp_path, "b")
    told = plan(run, other, array=SHARED)

    def be_later(self: RunDirectory) -> None:
        if self.id == run.id:
            begin(run, told, "77_1")

    monkeypatch.setattr(RunDirectory, "create_as_launched", be_later)
    assert work(told, place(SLURM_ARRAY_TASK_COUNT="3"))
    assert not run.is_done()
    assert run.attempts() == [1]
    assert other.is_done()


def test_a_job_that_shares_its_runs_tries_one_again_until_its_node_has_failed_twice_in_a_row(
    tmp_path: Path, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ends, "FIRST_DELAY_SECONDS", 0.0)
    answering(room, "squeue", "77_0|RUNNING\n")
    killed, other = make(tmp_path, "a"), make(tmp_path, "b")
    program = f"import sys\nif sys.argv[1].endswith('a'):\n    {KILLED}\n{TELL}"
    told = plan(killed, other, program=program, policy=Policy(), array={**SHARED, "at_once": 1})
    work(told, place(SLURM_ARRAY_TASK_COUNT="3"))
    assert killed.attempts() == [1, 2], "the third one is for another node"
    assert other.is_done()
    assert not killed.has_ended()

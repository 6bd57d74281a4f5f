"""Which runs of a shared array a job takes, without SLURM."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from jobs.manifests.policy import Policy
from seqlm import ends
from seqlm.records.attempts import Start
from seqlm.rundir import Observation, RunDirectory
from slurm import share
from slurm.share import Share
from slurm.submission import JobPlan
from tests.slurm.programs import answering
from tests.slurm.test_job import KILLED, TELL, asked, make, place, plan, room, work

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
    Start(request=told.options.request, job_id=job).write(folder)


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
    assert other.attempts() == [], "this node may be sick"
    assert asked(told) == [["-n1"]]
    assert not killed.has_ended()

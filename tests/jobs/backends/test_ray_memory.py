"""A rank on another node is short of memory where that node says so; without a Ray that runs."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import ray

from jobs.backends.ray_executor import RayExecutor, _Job
from jobs.backends.ray_groups import Group, RankEnd, RankHost, RankLocation
from jobs.plan.capacity import Allocation
from jobs.spec import Resources, Submission

KILL = "import os, sys; open(sys.argv[1], 'w').write(sys.argv[2]); os.kill(os.getpid(), 9)"
ONE = Resources(cpus=1, gpus=0)


@pytest.mark.process
@pytest.mark.parametrize("after", [3, 4])
def test_a_host_tells_of_the_kills_in_its_own_group_before_and_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    counter = tmp_path / "memory.events"
    counter.write_text("oom_kill 3\n")
    monkeypatch.setattr("jobs.attempt.memory_kills.groups_files", lambda membership: [counter])
    argv = ("python", "-c", KILL, str(counter), f"oom_kill {after}\n")
    submission = Submission(run_dir=tmp_path, attempt=1, argv=argv, env={}, cwd=tmp_path, resources=ONE)
    found = RankHost().run(submission, 0, {}, own_code=False)
    assert found == RankEnd(code=-signal.SIGKILL, memory_kills=(3, after))


def end(monkeypatch: pytest.MonkeyPatch, backend: RayExecutor, *answers: Any) -> bool:
    """What the backend says of a job whose ranks, on the nodes n0, n1, ..., have given these answers."""
    nothing: Any = None
    allocations = [Allocation(node=f"n{rank}", cpus=1, device=None, gpus=0) for rank in range(len(answers))]
    group = Group(group=nothing, hosts=[nothing] * len(answers), resources=Resources(cpus=1), allocations=allocations)
    submission = Submission(run_dir=Path("/run"), attempt=1, argv=(), env={}, cwd=Path("/"), resources=Resources())
    locations = {
        rank: RankLocation(node=f"n{rank}", address="", interface=None, device=None, sees_run=True)
        for rank in range(len(answers))
    }
    job = _Job(submission=submission, group=group, pending={}, since=0.0, locations=locations)
    job.pending = {str(rank): rank for rank in range(len(answers))}

    def get(reference: str) -> Any:
        answer = answers[int(reference)]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(RayExecutor, "_what_became_of", lambda self, job, rank, error: "lost")
    for reference in list(job.pending):
        backend._take(job, reference)
    backend._jobs["job"] = job
    ended = backend.poll("job")
    assert ended is not None
    return ended.out_of_memory


KILLED, OTHERS = RankEnd(code=-9, memory_kills=(0, 1)), RankEnd(code=1, memory_kills=(0, 1))


def test_a_rank_is_short_of_memory_where_its_own_node_has_counted_a_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = RayExecutor(address="x")
    assert end(monkeypatch, backend, KILLED)
    assert not end(monkeypatch, backend, KILLED), "that kill is explained"
    assert end(monkeypatch, backend, RankEnd(code=1), KILLED), "on another node"
    assert not end(monkeypatch, RayExecutor(address="x"), RankEnd(code=-9), OTHERS), "another process of node n1"
    assert not end(monkeypatch, RayExecutor(address="x"), RankEnd(code=-9, memory_kills=(2, 2)))


def test_a_rank_whose_host_ray_has_killed_for_memory_is_short_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RayExecutor, "_release", lambda self, *groups: None)
    assert end(monkeypatch, RayExecutor(address="x"), ray.exceptions.OutOfMemoryError("low on memory"))
    assert not end(monkeypatch, RayExecutor(address="x"), ray.exceptions.ActorDiedError())


def test_ray_is_asked_as_often_for_a_hundred_live_runs_as_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, asked = RayExecutor(address="x"), []
    nothing: Any = None
    submission = Submission(run_dir=Path("/run"), attempt=1, argv=(), env={}, cwd=Path("/"), resources=ONE)
    for number in range(100):
        job = _Job(submission=submission, group=nothing, pending={f"job {number}": 0}, since=0.0, runs=True)
        backend._jobs[str(number)] = job

    def wait(references: list[str], **options: Any) -> tuple[list[str], list[str]]:
        asked.append(len(references))
        return [], references

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(RayExecutor, "_refresh_if_due", lambda self: None)
    backend.wait(seconds=0)
    assert [backend.poll(str(number)) for number in range(100)] == [None] * 100
    assert asked == [100]

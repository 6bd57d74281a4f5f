"""Ranks on Ray whose node is short of memory, groups that are used again, and calls of Ray; no Ray runs."""

import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from jobs.attempt.supervisor import Ended
from jobs.backends.ray_cluster import RayCluster
from jobs.backends.ray_executor import PATIENCE_SECONDS, RayExecutor, _Group, _Job
from jobs.backends.ray_rank import RankHost
from jobs.plan.capacity import Allocation, Capacity, Node
from jobs.spec import Submission
from jobs.study.kept_code import Code
from seqlm.errors import BackendError, LostBackendError
from seqlm.resources import Resources
from seqlm.rundir import RunDirectory

KILL = """
import os, sys
open(sys.argv[1], "w").write(sys.argv[2])
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
os.kill(os.getpid(), 9)
"""
ONE = Resources(cpus=1, gpus=0)


def started(submission: Submission) -> Submission:
    """A submission whose launcher has written that it starts."""
    start = RunDirectory(submission.run_dir).start_file(submission.attempt)
    start.parent.mkdir(parents=True, exist_ok=True)
    start.touch()
    return submission


@pytest.mark.process
@pytest.mark.parametrize("after", [3, 4])
def test_a_rank_has_the_gpu_that_ray_booked_and_is_short_of_memory_where_its_own_node_has_counted_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    counter = tmp_path / "memory.events"
    counter.write_text("oom_kill 3\n")
    monkeypatch.setattr("jobs.attempt.supervisor.own_groups", lambda: [counter.parent])
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_accelerator_ids=lambda: {"GPU": ["6"]}))
    monkeypatch.setattr("jobs.backends.ray_rank.die_with_the_parent", lambda: None)
    monkeypatch.setattr("seqlm.machine.addressed", lambda index: f"GPU-{index}")
    argv = ("python", "-c", KILL, str(counter), f"oom_kill {after}\n")
    submission = started(Submission(run_dir=tmp_path, attempt=1, argv=argv, env={}, cwd=tmp_path, resources=ONE))
    found = RankHost().run(submission, 0, node="n0", first_host="127.0.0.1", kept_code=tmp_path)
    assert found is not None
    assert (found.exit_code, found.out_of_memory) == (-signal.SIGKILL, after == 4)
    assert RunDirectory(tmp_path).stdout_log(1).read_text() == "GPU-6\n"


@pytest.mark.process
@pytest.mark.parametrize("comes_late", [False, True])
def test_a_node_with_an_old_copy_of_the_folder_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comes_late: bool
) -> None:
    """The record of the attempt is what an old copy lacks. On NFS it may be seen some seconds later than written."""
    argv = ("python", "-c", "import pathlib; pathlib.Path('began').touch()")
    submission = Submission(run_dir=tmp_path, attempt=2, argv=argv, env={}, cwd=tmp_path, resources=ONE)
    started(replace(submission, attempt=1))
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += 20.0
        if comes_late:
            started(submission)

    monkeypatch.setattr("jobs.backends.ray_rank.die_with_the_parent", lambda: None)
    monkeypatch.setattr("jobs.backends.ray_rank.time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_accelerator_ids=lambda: {}))
    found = RankHost().run(submission, 0, node="n0", first_host="127.0.0.1", kept_code=tmp_path)
    assert (found is not None, (tmp_path / "began").exists()) == (comes_late, comes_late)


@pytest.mark.parametrize("error", [ray.exceptions.OutOfMemoryError("low on memory"), ray.exceptions.ActorDiedError()])
def test_a_rank_whose_host_ray_has_killed_is_lost_and_does_not_need_less_memory(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Ray kills for the memory of the whole node, which other programs may have taken."""
    backend = RayExecutor(address="x")
    submission = Submission(run_dir=Path("/run"), attempt=1, argv=(), env={}, cwd=Path("/"), resources=ONE)
    held = [Allocation(node="n0", cpus=1, device=None, gpus=0)]
    group: Any = _Group(group=None, hosts=[None], allocations=held, needs=ONE)
    backend._jobs["job"] = job = _Job(submission=submission, groups=[group], pending={"answer": 0})

    def get(reference: str) -> Any:
        raise error

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(RayExecutor, "_release", lambda self, job: None)
    monkeypatch.setattr("jobs.backends.ray_cluster.RayCluster.address_of", lambda self, node: "10.0.0.1")
    there = Capacity([Node(name="n0", cpus=1, gpus={})], where="the cluster")
    monkeypatch.setattr("jobs.backends.ray_cluster.RayCluster.capacity", lambda self: there)
    backend._take(job, "answer")
    ended = backend.poll("job")
    assert isinstance(ended, Ended)
    assert (ended.is_lost, ended.out_of_memory) == (True, False)


def test_a_run_that_ray_places_slowly_leaves_room_for_the_one_that_was_promised_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend, now = RayExecutor(address="x"), [0.0]
    monkeypatch.setattr("jobs.backends.ray_executor.time", SimpleNamespace(monotonic=lambda: now[0]))
    there = Capacity([Node(name="n0", cpus=2, gpus={})], where="the cluster")
    monkeypatch.setattr("jobs.backends.ray_cluster.RayCluster.capacity", lambda self: there)
    monkeypatch.setattr(RayExecutor, "_refresh_if_due", lambda self: None)

    def start(self: RayExecutor, job: _Job, allocations: list[Allocation]) -> None:
        group: Any = _Group(group=None, hosts=[None], allocations=allocations, needs=ONE)
        job.groups, job.since = [group], now[0]

    monkeypatch.setattr(RayExecutor, "_start", start)
    submission = Submission(run_dir=Path("/run"), attempt=1, argv=(), env={}, cwd=Path("/"), resources=ONE)
    backend.submit(submission)
    assert backend.free().place(ONE) is not None
    now[0] = PATIENCE_SECONDS + 1  # the dispatcher wrote to a slow disk
    backend.submit(submission)
    assert backend.free().place(ONE) is None


@pytest.mark.parametrize(
    ("left", "ranks", "hosts"),
    [
        ("a0", 1, "a"),
        ("a0 bb0", 2, "bb"),
        ("a0 bb0 c0", 3, "bba"),
        ("a0 b0 c0", 2, "ab"),
        ("aa0", 1, ""),
        ("a0", 2, ""),
        ("a0 b1", 2, ""),
    ],
    ids=["one", "as large", "two together", "single ones together", "too large", "too few", "on two nodes"],
)
def test_a_run_gets_groups_that_others_have_left_if_they_have_its_ranks_on_as_few_nodes(
    monkeypatch: pytest.MonkeyPatch, left: str, ranks: int, hosts: str
) -> None:
    backend, two = RayExecutor(address="x"), [Node(name=name, cpus=8, gpus={}) for name in "01"]
    monkeypatch.setattr(
        "jobs.backends.ray_cluster.RayCluster.capacity", lambda self: Capacity(two, where="the cluster")
    )
    for name in ("_run", "_start", "_release"):
        monkeypatch.setattr(RayExecutor, name, lambda *arguments: None)
    for text in left.split():
        held = [Allocation(node=text[-1], cpus=1, device=None, gpus=0) for _ in text[:-1]]
        other: Any = _Group(group=None, hosts=[*text[:-1]], allocations=held, needs=replace(ONE, gpus=1))
        group: Any = _Group(group=None, hosts=[*text[:-1]], allocations=held, needs=ONE)
        backend._idle += [other, group]
    wanted = Resources(ranks=ranks, cpus=1, gpus=0)
    submission = Submission(run_dir=Path("/run"), attempt=1, argv=(), env={}, cwd=Path("/"), resources=wanted)
    assert "".join(backend._jobs[backend.submit(submission)].hosts) == hosts


def test_what_is_free_of_each_card_is_what_ray_has_booked_and_a_run_that_fits_on_none_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray has put two halves on two cards, which one card would hold."""
    backend, now, cards = RayExecutor(address="x"), [0.0], iter(["GPU-b", "GPU-a"])
    monkeypatch.setattr("jobs.backends.ray_executor.time", SimpleNamespace(monotonic=lambda: now[0]))
    there = Capacity([Node(name="n0", cpus=8, gpus={"0": 1.0, "1": 1.0})], where="the cluster")
    monkeypatch.setattr("jobs.backends.ray_cluster.RayCluster.capacity", lambda self: there)
    monkeypatch.setattr(RayExecutor, "_refresh_if_due", lambda self: None)
    monkeypatch.setattr(ray, "wait", lambda asked, **options: ([one for one in asked if "card" in one], []))
    monkeypatch.setattr(ray, "get", lambda reference: next(cards))

    def start(self: RayExecutor, job: _Job, allocations: list[Allocation]) -> None:
        number = len(self._jobs)
        group: Any = _Group(
            group=None,
            hosts=[None],
            allocations=allocations,
            needs=(1, 0),
            cards={f"card{number}": 0} if number < 2 else {},
        )
        job.groups, job.since, job.pending = [group], now[0], {f"end{number}": 0}

    monkeypatch.setattr(RayExecutor, "_start", start)

    def submit(gpus: float) -> str:
        needs = Resources(cpus=1, gpus=gpus)
        return backend.submit(
            Submission(run_dir=Path("/run"), attempt=1, argv=(), env={}, cwd=Path("/"), resources=needs)
        )

    submit(0.5)
    submit(0.5)
    whole = Resources(cpus=1, gpus=1)
    assert backend.free().place(whole) is not None
    hasty = submit(1)
    backend.wait(0)
    assert backend.why_waits(hasty) == ""
    now[0] = PATIENCE_SECONDS + 1
    assert backend.why_waits(hasty) == "needs 1 GPU on one card, no card has more than 0.5 free"
    backend._jobs.pop(hasty)
    assert backend._unbooked().nodes["n0"].gpus == {"0": 0.5, "1": 0.5}
    assert backend._unbooked().place(whole) is None


def test_a_launch_whose_own_node_has_left_the_cluster_does_not_wait_for_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray has ended the actors of that launch, and starts no more for it."""
    cluster = RayCluster("10.0.0.1:6379")
    cluster.is_open, cluster._here = True, "here"
    nodes = [{"NodeID": name, "Alive": name != "here", "Resources": {"CPU": 4.0}} for name in ("here", "there")]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    with pytest.raises(LostBackendError, match=r"^this machine is no live node of the Ray cluster at 10.0.0.1:6379"):
        cluster.capacity()


def test_a_ray_of_the_launch_that_ends_again_and_again_ends_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []

    def capacity(self: RayCluster) -> Capacity:
        raise LostBackendError("Ray on this machine has ended")

    monkeypatch.setattr(RayCluster, "open", lambda self, code: starts.append(code))
    monkeypatch.setattr(RayCluster, "capacity", capacity)
    with pytest.raises(BackendError, match=r"^Ray on this machine has ended, for the 4th time in this launch; "):
        RayExecutor().open(Code(path=Path("/code"), commit=None, dirty=False, live=True))
    assert len(starts) == 4


def test_ray_is_asked_as_often_for_a_hundred_live_runs_as_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, asked = RayExecutor(address="x"), []
    submission = Submission(run_dir=Path("/run"), attempt=1, argv=(), env={}, cwd=Path("/"), resources=ONE)
    for number in range(100):
        backend._jobs[str(number)] = _Job(submission=submission, pending={f"job {number}": 0})

    def wait(references: list[str], **options: Any) -> tuple[list[str], list[str]]:
        asked.append(len(references))
        return [], references

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(RayExecutor, "_refresh_if_due", lambda self: None)
    backend.wait(seconds=0)
    assert [backend.poll(str(number)) for number in range(100)] == [None] * 100
    assert asked == [100]

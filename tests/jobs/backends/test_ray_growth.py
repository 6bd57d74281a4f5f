"""A Ray cluster whose autoscaler adds nodes: what can ever fit, and what it is asked for. The last test starts one."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.backends.ray_backend import RayBackend
from jobs.backends.ray_executor import REFRESH_SECONDS, REQUEST_SECONDS, RayExecutor, _Group, _Job
from jobs.backends.ray_growth import Bundle, Largest, bundles
from jobs.plan.capacity import Allocation, Capacity, Node
from jobs.spec import RunSpec, Submission
from seqlm.errors import BackendError
from seqlm.resources import Resources
from tests.ray_lab import RayLab
from tests.seqlm.training.studies import make_config
from tests.small_study import RayStudy, worker_of
from tests.waiting import wait_for

LARGEST = Largest(nodes=3, cpus=4, gpus=2)
ONE_GPU = Resources(cpus=1, gpus=1)


def node(name: str, cpus: float, gpus: int = 0) -> Node:
    return Node(name=name, cpus=cpus, gpus=dict.fromkeys(map(str, range(gpus)), 1.0))


def head() -> Capacity:
    """What a cluster has before anything was asked for: a head that runs nothing."""
    found = Capacity([node("head", 0)], where="the cluster")
    found.total_cpus = LARGEST.grown(found).cpus
    return found


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> list[Node]:
    """The nodes of a cluster that is not there."""
    nodes = [node("head", 0)]
    monkeypatch.setattr(
        "jobs.backends.ray_cluster.RayCluster.capacity", lambda self: Capacity(nodes, where="the cluster")
    )
    return nodes


def test_nodes_that_are_there_are_not_added_once_more() -> None:
    now = Capacity([node("head", 1), node("a", 4, 2), node("b", 16, 2)], where="the cluster")
    assert LARGEST.grown(now).describe() == "5 nodes, 8 GPUs, 29 cores"
    now.take([Allocation(node="a", cpus=4, device="0", gpus=1)])
    assert now.describe() == "3 nodes, 3 GPUs, 17 cores", "a copy"


def test_a_run_fits_if_the_largest_cluster_holds_it(cluster: list[Node]) -> None:
    spec = RunSpec(name="a", config=make_config(), resources=Resources(ranks=6, gpus=1))
    with pytest.raises(BackendError, match=r"^never fits: needs 6 GPUs, the cluster has 0; .*`largest` in"):
        RayBackend(RayBackend.TABLE(address="x")).resolve(spec, 1)
    grows = RayBackend(RayBackend.TABLE(address="x", largest=LARGEST))
    assert grows.resolve(spec, 1).cpus == 2, "an equal share of the cores of a node"
    assert grows.describe() == "the Ray cluster at x (0 cores; at its largest 4 nodes, 6 GPUs, 12 cores)"
    spec = RunSpec(name="a", config=make_config(), resources=Resources(ranks=7, gpus=1))
    with pytest.raises(BackendError, match=r"^never fits: needs 7 GPUs, the cluster at its largest has 6$"):
        grows.resolve(spec, 1)


def test_kind_and_memory_of_gpus_are_those_that_are_declared(cluster: list[Node]) -> None:
    largest = Largest(nodes=1, cpus=4, gpus=2, accelerator_type="H100", gpu_memory_gb=80)
    grows = RayBackend(RayBackend.TABLE(address="x", largest=largest))
    wanted = Resources(accelerator_type="H100", gpu_memory_gb=40)
    found = grows.resolve(RunSpec(name="a", config=make_config(), resources=wanted), 1)
    assert found.gpus == pytest.approx(0.5)
    other = RunSpec(name="a", config=make_config(), resources=Resources(accelerator_type="A100"))
    with pytest.raises(BackendError, match=r"^never fits: needs 1 GPU "):
        grows.resolve(other, 1)


def test_a_cluster_without_cores_has_no_room_for_anything_yet() -> None:
    assert head().place(ONE_GPU) is None
    assert head().place(Resources(cpus=4, gpus=0)) is None
    assert head().why_not(ONE_GPU) == "needs 1 GPU, 0 free"


@pytest.mark.parametrize(
    ("waiting", "held", "others", "wanted"),
    [
        ([], 1, {}, []),
        ([ONE_GPU], 0, {}, [{"CPU": 1, "GPU": 1}]),
        ([Resources(ranks=2, cpus=2, gpus=0)], 0, {}, [{"CPU": 2}] * 2),
        ([ONE_GPU], 1, {}, [{"CPU": 1, "GPU": 1}] * 2),
        ([ONE_GPU], 0, {"head": (3.0, 1.5)}, [{"CPU": 3, "GPU": 1.5}, {"CPU": 1, "GPU": 1}]),
        ([ONE_GPU] * 9, 0, {}, [{"CPU": 1, "GPU": 1}] * 6),
    ],
    ids=["none waits", "one", "ranks", "with what runs", "with what others hold", "no more than the largest holds"],
)
def test_a_request_has_room_for_all_that_is_there_and_for_what_waits(
    waiting: list[Resources], held: int, others: dict[str, tuple[float, float]], wanted: list[Bundle]
) -> None:
    runs = [Allocation(node="a", cpus=1, device="0", gpus=1)] * held
    assert bundles(waiting, LARGEST.grown(head()), runs, others) == wanted


def test_the_autoscaler_is_asked_while_runs_wait_and_once_more_now_and_then(
    cluster: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[Bundle]] = []
    now = [0.0]

    def look(executor: RayExecutor, *waiting: Resources, after: float = REFRESH_SECONDS + 1) -> list[list[Bundle]]:
        asked.clear()
        now[0] += after
        executor.ask_for_room(waiting)
        return list(asked)

    monkeypatch.setattr("jobs.backends.ray_cluster.RayCluster.request", lambda self, wanted: asked.append(wanted))
    monkeypatch.setattr("jobs.backends.ray_executor.time", SimpleNamespace(monotonic=lambda: now[0]))
    executor = RayExecutor(address="x", largest=LARGEST)
    demand = [{"CPU": 1, "GPU": 1}]
    assert look(executor) == []
    assert look(executor, ONE_GPU) == [demand]
    assert look(executor, ONE_GPU) == [], "it was asked a moment ago"
    assert look(executor, ONE_GPU, after=REQUEST_SECONDS + 1) == [demand], "another launch may have asked since"
    allocation = Allocation(node="a", cpus=1, device="0", gpus=1)
    submission = Submission(run_dir=Path("/run"), attempt=1, argv=(), env={}, cwd=Path("/"), resources=ONE_GPU)
    group = _Group(group=None, hosts=[], allocations=[allocation], needs=(1, 1))  # type: ignore[arg-type] # no Ray
    executor._jobs["job"] = _Job(submission=submission, groups=[group])
    assert look(executor, ONE_GPU) == [demand * 2]
    assert look(executor) == [[]], "none waits"
    assert look(executor) == []
    assert look(executor, ONE_GPU) == [demand * 2]
    asked.clear()
    executor.close()
    assert asked == [[]]
    assert look(RayExecutor(address="x"), ONE_GPU) == [], "it was not declared to grow"


@pytest.mark.process
def test_a_node_is_added_for_a_run_that_fits_nowhere_and_goes_when_nothing_waits(lab: RayLab, tmp_path: Path) -> None:
    lab.start_autoscaling_cluster(cpus=4, gpus=1, nodes=1)
    study = RayStudy(lab, tmp_path)
    text, largest = study.manifest.read_text(), "largest = {nodes = 1, cpus = 4, gpus = 1}"
    study.manifest.write_text(text.replace("[backend.ray]", f"[backend.ray]\n{largest}"))
    answer = study("run", "small.toml")
    assert answer.returncode == 0, f"{answer.stderr}\n{lab.ends_of_logs()}"
    (run,) = study.runs()
    assert worker_of(run)["gpu"] is not None
    wait_for(
        lambda: [words for words in lab.processes() if "raylet_socket_name" in words],
        "the node that was added to end",
        until=lambda raylets: len(raylets) == 1,
    )

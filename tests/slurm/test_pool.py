"""Jobs that share out runs on a real SLURM: a pool, and an array with fewer jobs than runs."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs.study.folder import read_jobs
from seqlm.records.attempts import Start
from seqlm.rundir import RunDirectory
from slurm.testcluster import ClusterOptions, LoopbackCluster
from tests.crawl import Crawl
from tests.outcome import alone, outcome
from tests.slurm.real import require_slurm
from tests.small_study import SlurmStudy, epochs_of, worker_of
from tests.waiting import wait_for

pytestmark = pytest.mark.process


def jobs_of(runs: Sequence[RunDirectory]) -> list[str]:
    """The jobs that have started attempts, each as often as it did."""
    starts = [Start.read(run.attempt_dir(attempt)) for run in runs for attempt in run.attempts()]
    return [str(start.job_id) for start in starts if start is not None]


def until_all_end(study: SlurmStudy) -> None:
    wait_for(study.each, "all runs to end", until=lambda states: not {"queued", "running"} & set(states))


def nodes_of(cluster: LoopbackCluster) -> dict[str, str]:
    """Job -> its node, of the jobs that run."""
    rows = cluster.run("squeue", "-h", "-r", "-t", "R", "-o", "%i %N").stdout.splitlines()
    return dict(row.split() for row in rows)


def test_the_runs_of_a_pool_are_those_of_single_jobs_bit_for_bit_although_each_of_its_jobs_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_slurm()
    crawl = Crawl(tmp_path, epochs=1, step_seconds=0.5)
    with LoopbackCluster(ClusterOptions(nodes=4, cpus=2, gpus=1)) as cluster:
        study = SlurmStudy(
            cluster,
            tmp_path,
            trains=True,
            epochs=4,
            keep=1.0,
            env=crawl.env,
            settings=("ranks_per_node = 1", "pool = { jobs = 2, gpus = 1, cpus = 2 }"),
            archs=["transformer"],
            rates=[0.01],
        )
        study.add(archs=["gru"], rates=[0.02, 0.03], ranks=1, gpus=0.5, cpus=1)
        study.add(archs=["gru"], rates=[0.2], ranks=1, gpus=0, cpus=2)
        study.add(rates=[0.03], ranks=2, gpus=1, cpus=1)
        assert study("run", "small.toml", "--no-wait", "--no-canary").returncode == 0
        lost, cancelled = "1_0", "1_1"
        wait_for(study.epochs, "an epoch of some runs", until=lambda seen: sum(map(bool, seen)) >= 3)
        nodes = wait_for(lambda: nodes_of(cluster), "the jobs", until=lambda found: len(found) == 3)
        assert {"waits for room in array 1 (2 of 2 jobs run)"} == set(study.each("reason")) - {None}
        cluster.kill_node(cluster.node_names.index(nodes[lost]), with_jobs=True)
        cluster.run("scontrol", "update", f"NodeName={nodes[lost]}", "State=DOWN", "Reason=test")
        cluster.run("scancel", cancelled)
        wait_for(lambda: nodes_of(cluster), "both jobs to end", until=lambda found: not {lost, cancelled} & set(found))
        crawl.end()
        cluster.start_node(cluster.node_names.index(nodes[lost]))
        until_all_end(study)
        runs = study.runs()
        assert set(study.each()) == {"done"}, study("status", "small.toml").stdout
        assert {lost, cancelled} <= set(jobs_of(runs))
    assert all(epochs_of(run) == list(range(4)) for run in runs)
    several = [run for run in runs if len({*jobs_of([run])}) > 1]
    assert several, "jobs take over the runs of others"
    (pair,) = [run for run in runs if worker_of(run)["ranks"] == 2]
    single = [run for run in runs if run != pair]
    assert worker_of(pair)["node"] != worker_of(pair, 1)["node"]
    assert worker_of(pair)["threads"] == 1, "as many as in the quiet study, else sums are rounded apart"
    quiet = alone(runs, tmp_path / "text", tmp_path / "quiet", monkeypatch)
    assert {run.id: found for run in single if (found := outcome(run).differences(quiet[run.id]))} == {}
    losses = [[record["val_loss"] for record in found] for found in (pair.read_metrics()[0], quiet[pair.id].metrics)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6), "two ranks on two nodes have the losses of one"


def test_an_array_that_shares_its_runs_and_is_cancelled_leaves_all_of_them_cancelled(
    slurm_cluster: LoopbackCluster, tmp_path: Path
) -> None:
    crawl = Crawl(tmp_path, epochs=0)
    pool = ("pool = { jobs = 2, cpus = 1 }",)
    study = SlurmStudy(
        slurm_cluster, tmp_path, env=crawl.env, settings=pool, gpus=0, rates=[0.01, 0.02, 0.03, 0.04, 0.05]
    )
    assert study("run", "small.toml", "--no-wait").returncode == 0
    (array,) = {job.array.id for job in read_jobs(tmp_path / "runs/small").values()}
    wait_for(
        lambda: sum(run.worker_file(1).exists() for run in study.runs()),
        "two runs to begin",
        until=lambda begun: begun == 2,
    )
    slurm_cluster.run("scancel", array)
    until_all_end(study)
    assert study.each() == ["cancelled"] * 5
    wait_for(
        lambda: [run.observe().state for run in study.runs()],
        "the jobs to record it, for when SLURM has forgotten them",
        until=lambda states: states == ["cancelled"] * 5,
    )
    crawl.end()
    assert study("retry", "small").returncode == 0
    assert study.each() == ["done"] * 5

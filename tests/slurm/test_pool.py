"""Jobs that share out runs on a real SLURM: a pool, and an array with fewer jobs than runs."""

import os
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

RUNS = int(os.environ.get("SEQLM_TEST_POOL_RUNS", "12"))
"""Of the pool that is disturbed; 96 take four minutes on two cores."""


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
    with LoopbackCluster(ClusterOptions(nodes=4, cpus=4, gpus=2, preemption=True, grace_seconds=60)) as cluster:
        study = SlurmStudy(
            cluster,
            tmp_path,
            trains=True,
            epochs=4,
            keep=1.0,
            env=crawl.env,
            settings=("pool = { jobs = 3, gpus = 2, cpus = 3 }",),
            rates=[0.01 + number / 1000 for number in range(RUNS // 3 + RUNS % 3)],
        )
        study.add(archs=["gru"], rates=[0.02 + number / 1000 for number in range(RUNS // 3)], gpus=0.5, cpus=1)
        study.add(archs=["rnn"], rates=[0.2 + number / 1000 for number in range(RUNS // 3)], gpus=0, cpus=2)
        study.add(archs=["gru"], rates=[0.6], ranks=2, gpus=1, cpus=1)
        study.add(rates=[0.7], ranks=4, gpus=0, cpus=1)
        assert study("run", "small.toml", "--no-wait", "--no-canary").returncode == 0
        lost, cancelled, preempted = (f"1_{index}" for index in range(3))
        wait_for(study.epochs, "an epoch of some runs", until=lambda seen: sum(map(bool, seen)) >= 6)
        nodes = wait_for(lambda: nodes_of(cluster), "the jobs", until=lambda found: len(found) == 4)
        assert {"waits for room in array 1 (3 of 3 jobs run)"} == set(study.each("reason")) - {None}
        cluster.kill_node(cluster.node_names.index(nodes[lost]), with_jobs=True)
        cluster.run("scontrol", "update", f"NodeName={nodes[lost]}", "State=DOWN", "Reason=test")
        cluster.run("scancel", cancelled)
        cluster.run("sbatch", "-p", "urgent", "-w", nodes[preempted], "--exclusive", "--wrap", "true")
        wait_for(
            lambda: [end.kind for run in study.runs() for end in run.failures()],
            "the preemption",
            until=lambda kinds: "preempted" in kinds,
        )
        crawl.end()
        cluster.start_node(cluster.node_names.index(nodes[lost]))
        until_all_end(study)
        runs = study.runs()
        assert set(study.each()) == {"done"}, study("status", "small.toml").stdout
        assert {lost, cancelled, preempted} <= set(jobs_of(runs))
        assert any(len(run.attempts()) > 1 for run in runs)
    assert all(epochs_of(run) == list(range(4)) for run in runs)
    several = [run for run in runs if len({*jobs_of([run])}) > 1]
    assert several, "jobs take over the runs of others"
    single = [run for run in runs if worker_of(run)["ranks"] == 1]
    quiet = alone(single, tmp_path / "text", tmp_path / "quiet", monkeypatch)
    assert {run.id: found for run in single if (found := outcome(run).differences(quiet[run.id]))} == {}


def test_an_array_that_shares_its_runs_and_is_cancelled_leaves_all_of_them_cancelled(
    slurm_cluster: LoopbackCluster, tmp_path: Path
) -> None:
    crawl = Crawl(tmp_path, epochs=0)
    pool = ("pool = { jobs = 2, cpus = 1 }",)
    study = SlurmStudy(
        slurm_cluster, tmp_path, env=crawl.env, settings=pool, gpus=0, rates=[0.01, 0.02, 0.03, 0.04, 0.05]
    )
    assert study("run", "small.toml", "--no-wait").returncode == 0
    (array,) = {job.id for job in read_jobs(tmp_path / "runs/small").values()}
    wait_for(study.each, "two runs to begin", until=lambda states: sorted(states)[-2:] == ["running", "running"])
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

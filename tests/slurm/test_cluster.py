"""Studies on a real SLURM: arrays, several nodes, and everything that can happen to a job."""

import os
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest

from jobs.study.folder import read_jobs
from seqlm.files import read_json, write_json
from seqlm.records.attempts import Start
from slurm.testcluster import ClusterOptions, LoopbackCluster
from tests import commands, searches
from tests.crawl import Crawl
from tests.slurm.real import require_slurm
from tests.small_study import SlurmStudy, epochs_of, read_soon, worker_of
from tests.waiting import wait_for

pytestmark = pytest.mark.process


def jobs(study: SlurmStudy) -> dict[str, str]:
    """Run id -> job id."""
    return {run_id: job.id for run_id, job in read_jobs(study.folder / "runs/small").items()}


def until_all_end(study: SlurmStudy) -> None:
    wait_for(study.each, "all runs to end", until=lambda states: not {"queued", "running"} & set(states))


def until_all_are_idle(cluster: LoopbackCluster) -> None:
    states = ("sinfo", "-h", "-N", "-o", "%t")
    wait_for(
        lambda: set(cluster.run(*states).stdout.split()), "all nodes to be idle", until=lambda found: found == {"idle"}
    )


def test_runs_of_an_array_have_gpus_of_their_own_and_those_with_half_of_one_share_a_job(
    slurm_cluster: LoopbackCluster, tmp_path: Path
) -> None:
    crawl = Crawl(tmp_path, epochs=0)
    whole, halves = [1e-3, 2e-3, 3e-3], [0.01, 0.02]
    study = SlurmStudy(slurm_cluster, tmp_path, rates=whole, epochs=1, env=crawl.env)
    study.add(rates=halves, ranks=1, gpus=0.5, cpus=1)
    answer = study("run", "small.toml", "--no-wait")
    assert answer.returncode == 0, answer.stderr
    assert sorted(Counter(jobs(study).values()).values()) == [1, 1, 1, 2]
    assert len({job.partition("_")[0] for job in jobs(study).values()}) == 2, "arrays"
    begun = wait_for(
        lambda: [read_json(run.worker_file(1)) or {} for run in study.runs()],
        "all runs to begin, which the crawl holds",
        until=lambda workers: len(workers) == 5 and all(workers),
    )
    shared = Counter((worker["node"], worker["gpu"]) for worker in begun)
    assert sorted(shared.values()) == [1, 1, 1, 2], begun
    crawl.end()
    again = study("run", "small.toml")  # waits, and submits nothing
    assert again.returncode == 0, again.stderr
    assert "0 of 5 runs to do" in again.stderr
    assert study.each() == ["done"] * 5
    assert all(epochs_of(run) == [0] and run.attempts() == [1] for run in study.runs())


SICK: dict[str, tuple[str, str]] = {
    "setup fails, and no modules": ("exit 1", "export PYTHONHOME=/nowhere"),
    "a cache that cannot be written, and a program that dies": ("export SEQLM_CACHE=/proc/cache", "export SICK=1"),
}
"""What a line of ``setup`` does on the first of three nodes, and on the second."""


@pytest.mark.parametrize("lines", SICK.values(), ids=SICK)
def test_a_study_ends_with_nobody_acting_although_two_of_its_three_nodes_are_sick(
    slurm_cluster: LoopbackCluster, tmp_path: Path, lines: tuple[str, str]
) -> None:
    first, second, well = slurm_cluster.node_names
    setup = [f"[ $SLURMD_NODENAME != {node} ] || {line}" for node, line in zip((first, second), lines, strict=True)]
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ -z "$SICK" ] || kill -KILL $$\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    settings = ("ranks_per_node = 1", f"setup = {setup}", f'python = "{python}"')
    study = SlurmStudy(slurm_cluster, tmp_path, rates=[0.01, 0.02, 0.03], epochs=1, gpus=0, settings=settings)
    until_all_are_idle(slurm_cluster)
    assert study("run", "small.toml", "--no-wait").returncode == 0
    until_all_end(study)
    assert study.each() == ["done"] * 3, study("status", "small.toml").stdout
    used = {worker_of(run)["node"] for run in study.runs()}
    assert used <= ({well} if lines[0] == "exit 1" else {first, well}), "a cache that cannot be written is done without"


def test_a_job_goes_on_although_a_signal_ends_the_process_on_its_second_node_at_its_start_and_it_has_no_scontrol(
    slurm_cluster: LoopbackCluster, tmp_path: Path
) -> None:
    """As in a container, which has a Python and nothing of SLURM."""
    study = SlurmStudy(slurm_cluster, tmp_path, epochs=1, ranks=2)
    python = tmp_path / "python"
    python.write_text(f"""#!/bin/sh
[ "$SLURM_NODEID$SLURM_RESTART_COUNT" != 1 ] || kill -TERM $$
PATH=/nowhere exec {sys.executable} "$@"
""")
    python.chmod(0o755)
    table = "[backend.slurm]\n"
    study.manifest.write_text(study.manifest.read_text().replace(table, f'{table}python = "{python}"\n'))
    assert study("run", "small.toml", "--no-wait").returncode == 0
    until_all_end(study)
    assert study.each() == ["done"], study("status", "small.toml").stdout


def test_a_copied_study_leaves_the_jobs_of_the_original_alone_and_the_job_that_its_plan_names(
    slurm_cluster: LoopbackCluster, tmp_path: Path
) -> None:
    cluster, folder = slurm_cluster, tmp_path / "a|b"
    folder.mkdir()
    until_all_are_idle(cluster)
    other = cluster.run("sbatch", "--parsable", "-N3", "--exclusive", "-t", "9", "--wrap", "sleep 500").stdout.strip()
    study = SlurmStudy(cluster, folder, rates=[0.01, 0.02], epochs=1)
    assert study("run", "small.toml", "--no-wait").returncode == 0
    mine = jobs(study)
    copy = SlurmStudy(cluster, tmp_path, rates=[0.01, 0.02], epochs=1)
    shutil.copytree(folder / "runs", tmp_path / "runs")
    assert (study.each(), copy.each()) == (["queued"] * 2, ["pending"] * 2)
    plan_file = tmp_path / "runs/small/launches/000001/batch.json"
    plan = read_json(plan_file) or {}
    write_json(plan_file, {**plan, "arrays": [{**plan["arrays"][0], "job": other}]})
    assert copy.each() == ["pending"] * 2
    assert copy("cancel", "small.toml", "--all").returncode == 0
    assert cluster.run("squeue", "-h", "-j", other, "-o", "%T").stdout.strip() in ("PENDING", "RUNNING")
    cluster.run("scancel", other)
    until_all_end(study)
    assert (study.each(), jobs(study)) == (["done"] * 2, mine)


def test_a_search_ends_with_nobody_waiting_although_a_worker_dies_twice_on_a_node_which_is_not_used_again(
    slurm_cluster: LoopbackCluster, tmp_path: Path
) -> None:
    crawl = Crawl(tmp_path, epochs=1)
    study = SlurmStudy(slurm_cluster, tmp_path, rates=searches.RATES, epochs=searches.EPOCHS, gpus=0, env=crawl.env)
    study.write(searches.TABLE)
    until_all_are_idle(slurm_cluster)  # jobs of other tests may be ending
    assert study("run", "small.toml", "--no-wait").returncode == 0
    victim = searches.kill_between_rungs(study.runs)
    os.kill(read_soon(victim.worker_file(2))["pid"], signal.SIGKILL)
    nodes = [read_soon(victim.worker_file(attempt))["node"] for attempt in (1, 2, 3)]
    assert nodes[0] == nodes[1] != nodes[2], "SLURM takes the first free node, until it may not"
    assert [victim.end(attempt).node for attempt in (1, 2)] == nodes[:2]
    crawl.end()
    until_all_end(study)
    assert victim.attempts() == [1, 2, 3]
    assert searches.EPOCHS in searches.ends_of(study.runs()).values()


def test_a_launch_that_waits_submits_the_final_seeds_of_a_search_once_their_first_seeds_have_ended(
    slurm_cluster: LoopbackCluster, tmp_path: Path
) -> None:
    study = SlurmStudy(slurm_cluster, tmp_path, rates=searches.RATES, epochs=searches.EPOCHS, gpus=0)
    study.write(searches.TABLE, "final_seeds = 2")
    until_all_are_idle(slurm_cluster)
    launched = study("run", "small.toml")
    assert launched.returncode == 0, launched.stderr
    further = [run for run in study.runs() if run.first_seed() is not None]
    assert {run.observe().state for run in further} == {"done"}
    reached = {run.id for run in study.runs() if run.first_seed() is None and run.observe().state == "done"}
    assert {first.id for run in further if (first := run.first_seed()) is not None} == reached
    assert len(further) == len(reached) > 0
    again = study("run", "small.toml")
    assert "nothing to submit" in again.stderr
    assert again.returncode == 0


def test_a_run_out_of_budget_goes_on_here_and_comes_back_to_slurm_where_its_job_is_held_and_suspended(
    slurm_cluster: LoopbackCluster, tmp_path: Path
) -> None:
    cluster, crawl = slurm_cluster, Crawl(tmp_path, epochs=1, step_seconds=1)
    study = SlurmStudy(cluster, tmp_path, epochs=12, gpus=0, env=crawl.env)
    assert study("run", "small.toml", "--no-wait", "--set", "policy.core_hours=0.0003").returncode == 0
    spent = ["waits: budget of 0.0003 core hours is spent"]
    wait_for(lambda: study.each("reason"), "the job to stop", until=lambda reasons: reasons == spent)
    assert study.each() == ["pending"], "with nobody waiting"
    (run,) = study.runs()
    assert run.failures() == []
    here = run.last_attempt() + 1
    launcher = study.start("run", "small.toml", "--backend", "local", env={**study.env, **crawl.env})
    wait_for(run.worker_file(here).exists, "a worker on this machine", by=launcher)
    launcher.send_signal(signal.SIGINT)
    commands.finish(launcher)
    assert launcher.returncode == 130

    assert study("run", "small.toml", "--no-wait").returncode == 0
    wait_for(run.worker_file(here + 1).exists, "a worker on SLURM")
    job = jobs(study)[run.id]
    cluster.run("scontrol", "requeuehold", job)
    wait_for(study.each, "the job to wait again", until=lambda states: states == ["queued"])
    assert "held" in study.each("reason")[0]
    wait_for(  # SLURM holds a job at the end of its completion, after a release that comes before
        lambda: cluster.run("scontrol", "show", "job", job).stdout,
        "it to be held",
        until=lambda shown: "=PENDING" in shown,
    )
    cluster.run("scontrol", "release", job)
    wait_for(run.worker_file(here + 2).exists, "the next attempt")
    cluster.run("scontrol", "suspend", job)
    assert study.each() == ["running"]
    assert "suspended" in study.each("reason")[0]
    assert "0 of 1 runs to do" in study("run", "small.toml", "--no-wait").stderr
    cluster.run("scontrol", "resume", job)
    crawl.end()
    wait_for(study.each, "the run to end", until=lambda states: states == ["done"])
    assert [one.id for one in study.runs()] == [run.id]
    assert epochs_of(run) == list(range(12))
    backends = [(Start.read(run.attempt_dir(attempt)) or Start()).backend for attempt in run.attempts()]
    assert backends == ["slurm"] * (here - 1) + ["local", "slurm", "slurm"]


def test_preemptions_and_time_limits_cost_no_epoch_and_accounting_knows_a_job_that_the_queue_has_forgotten(
    tmp_path: Path,
) -> None:
    require_slurm(accounting=True)
    options = ClusterOptions(
        nodes=1, cpus=2, gpus=0, accounting=True, preemption=True, grace_seconds=20, min_job_age_seconds=2
    )
    with LoopbackCluster(options) as cluster:
        slow = {"SEQLM_TEST_STUB_SECONDS": "0.5"}
        study = SlurmStudy(cluster, tmp_path, rates=[0.01, 0.02], gpus=0, epochs=100_000, env=slow)
        assert study("run", "small.toml", "--no-wait").returncode == 0
        wait_for(study.epochs, "an epoch of both runs", until=lambda seen: len(seen) == 2 and all(seen))
        runs = forgotten, limited = study.runs()
        cluster.run("sbatch", "-p", "urgent", "--exclusive", "--wrap", "true")
        for run in runs:
            wait_for(run.exit_file(1).exists, "the record of the preemption")
            assert run.end(1).kind == "preempted"

        limit = ("scontrol", "update", f"JobId={jobs(study)[limited.id]}", "TimeLimit=1")
        wait_for(lambda: cluster.run(*limit, check=False).returncode == 0, "the end of its first start, which has none")
        worker = psutil.Process(read_soon(forgotten.worker_file(2))["pid"])
        worker.parent().suspend()  # the job's process records nothing any more
        job = jobs(study)[forgotten.id]
        cluster.run("scancel", job)
        struck, *_ = wait_for(  # an attempt that begins before the limit is changed takes the signal for a preemption
            lambda: [end.attempt for end in limited.failures() if end.kind == "timeout"], "the time limit to strike"
        )
        wait_for(
            lambda: [record["attempt"] for record in limited.read_metrics()[0]],
            "an attempt after it to go on",
            until=lambda writers: writers[-1] > struck,
        )
        wait_for(
            lambda: cluster.run("squeue", "-h", "-t", "all", "-j", job, check=False).stdout.strip(),
            "the queue to forget the job",
            until=lambda queue: not queue,
        )
        accounted = ("sacct", "-n", "-P", "-X", "-o", "State", "-j", job)
        wait_for(
            lambda: cluster.run(*accounted).stdout.strip(),
            "the accounting to have the end of the job",
            until=lambda state: state.startswith("CANCELLED"),
        )
        assert study.each()[0] == "queued", "the other job has yet to take it"
        cluster.run("scancel", jobs(study)[limited.id])
        wait_for(study.each, "no job to be left", until=lambda states: states == ["cancelled"] * 2)
        assert study("cancel", "small", "--all").returncode == 0
        assert study.each() == ["cancelled", "cancelled"]
        assert study.epochs() == [list(range(len(epochs_of(run)))) for run in runs]

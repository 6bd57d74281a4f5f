"""Studies on a real SLURM: arrays, several nodes, and everything that can happen to a job."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.study.folder import read_jobs
from seqlm.files import read_json
from slurm.testcluster import ClusterOptions, LoopbackCluster
from tests import commands, searches
from tests.chaos.study import processes
from tests.crawl import Crawl, blank_figures
from tests.outcome import alone, outcome
from tests.seqlm.training.studies import runs_in, write_text
from tests.slurm.real import require_slurm
from tests.small_study import ROOT, STUB_LAUNCH, SlurmStudy, epochs_of, read_soon, worker_of, worker_pid
from tests.waiting import wait_for

pytestmark = pytest.mark.process


def jobs(study: SlurmStudy) -> dict[str, str]:
    """Run id -> job id."""
    return read_jobs(study.folder / "runs/small")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LoopbackCluster]:
    require_slurm()
    with LoopbackCluster(ClusterOptions(nodes=3, cpus=4, gpus=2)) as cluster:
        yield cluster


def test_a_time_limit_that_strikes_three_times_costs_no_epoch(cluster: LoopbackCluster, tmp_path: Path) -> None:
    study = SlurmStudy(cluster, tmp_path, epochs=100_000, timeout_min=1, env={"SEQLM_TEST_STUB_SECONDS": "2"})
    assert study("run", "small.toml", "--no-wait").returncode == 0

    def strikes() -> list[str]:
        return [str(end.kind) for run in study.runs() for end in run.failures()]

    def writers() -> list[int]:
        return [record["attempt"] for run in study.runs() for record in run.read_metrics()[0]]

    wait_for(  # on a busy machine an attempt may end before its first epoch does
        lambda: (strikes(), writers()),
        "three strikes, then an attempt that goes on with the epochs of an earlier one",
        until=lambda seen: len(seen[0]) >= 3 and len(set(seen[1])) >= 2 and seen[1][-1] >= 4,
    )
    assert set(strikes()) == {"timeout"}
    (run,) = study.runs()
    assert study("cancel", "small", "--all").returncode == 0
    assert study.each() == ["cancelled"]
    assert epochs_of(run) == list(range(len(epochs_of(run))))
    assert writers() == sorted(writers())


def test_the_quickstarts_grid_is_one_array_whose_runs_have_gpus_of_their_own(
    cluster: LoopbackCluster, tmp_path: Path
) -> None:
    crawl = Crawl(tmp_path, epochs=0, step_seconds=5)
    env = {"SEQLM_DEVICE": "cpu", "SEQLM_DATA": str(write_text(tmp_path / "text")), **crawl.env}  # the GPUs are fake
    lines = (f"{name} = {json.dumps(value)}\n" for name, value in env.items())
    (tmp_path / "site.toml").write_text("".join(["[env]\n", *lines]))
    changes = ["data.corpus=files", "train.epochs=1", "train.batch_size=4", "train.seq_len=10", "model.hidden_size=16"]
    changes += ["resources.cpus=1", "resources.gpus=1"]
    argv = [sys.executable, str(STUB_LAUNCH), "run", str(ROOT / "jobs/manifests/quickstart.toml")]
    argv += ["--backend", "slurm", "--json", *(word for change in changes for word in ("--set", change))]
    argv += ["--only", "arch=rnn,gru", "--only", "optimizer=adam"]
    of_jobs_too = {**blank_figures(), "SEQLM_SLURM_CONFIG": str(tmp_path / "site.toml")}
    options = {"cwd": tmp_path, "env": {**cluster.env, "SEQLM_DATA": env["SEQLM_DATA"], **of_jobs_too}}
    answer = commands.run([*argv, "--no-wait", "--then-report"], **options)
    assert answer.returncode == 0, answer.stderr
    (array,) = json.loads(answer.stdout)["data"]["jobs"]
    study_dir = tmp_path / "runs/quickstart"
    assert sorted(read_jobs(study_dir).values()) == [f"{array}_{number}" for number in range(7)]

    def workers() -> list[dict[str, Any]]:
        return [read_json(path) or {} for path in study_dir.glob("*/attempts/0001/worker.json")]

    # The crawl holds them: three nodes of two GPUs have six runs at once.
    begun = wait_for(workers, "six runs to begin", until=lambda workers: len(workers) == 6 and all(workers))
    assert len({(worker["node"], worker["gpu"]) for worker in begun}) == 6, begun
    crawl.end()
    again = commands.run(argv, **options)  # waits, and submits nothing
    assert again.returncode == 0, again.stderr
    assert "0 of 7 runs to do" in again.stderr
    assert [run["state"] for run in json.loads(again.stdout)["data"]["runs"]] == ["done"] * 7
    assert all(epochs_of(run) == [0] and run.attempts() == [1] for run in runs_in(study_dir))
    wait_for((study_dir / "report/index.html").exists, "the report")


def test_two_ranks_on_two_nodes_have_the_losses_of_one(
    cluster: LoopbackCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = SlurmStudy(cluster, tmp_path, trains=True, ranks=2, keep=1.0)
    assert study("run", "small.toml", "--no-wait").returncode == 0
    wait_for(study.each, "the run of two ranks to end", until=lambda states: states == ["done"])
    (run,) = study.runs()
    assert worker_of(run)["node"] != worker_of(run, 1)["node"]
    one = alone([run], tmp_path / "text", tmp_path / "one", monkeypatch)[run.id]
    losses = [[record["val_loss"] for record in metrics] for metrics in (run.read_metrics()[0], one.metrics)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_four_quarters_of_a_gpu_are_one_job(cluster: LoopbackCluster, tmp_path: Path) -> None:
    study = SlurmStudy(cluster, tmp_path, rates=[0.01, 0.02, 0.03, 0.04], gpus=0.25)
    answer = study("run", "small.toml", "--json")
    assert answer.returncode == 0, answer.stderr
    assert len(set(jobs(study).values())) == 1
    assert len({(worker_of(run)["node"], worker_of(run)["gpu"]) for run in study.runs()}) == 1
    assert study.each() == ["done"] * 4


def until_it_is_saved(cluster: LoopbackCluster, job: str) -> None:
    """Return when the controller has written down what it was told so far: what it has not, a crash takes from it."""
    saved = cluster.folder / "state" / "job_state"
    last = f"the last thing that it was told, at {time.time_ns()}"
    cluster.run("scontrol", "update", f"JobId={job}", f"Comment={last}")
    wait_for(lambda: saved.exists() and last.encode() in saved.read_bytes(), "the controller to save its state")


def test_requeue_scancel_a_lost_node_and_a_killed_controller_in_one_study_change_no_bit_of_its_weights(
    cluster: LoopbackCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crawl = Crawl(tmp_path, epochs=1, step_seconds=1)
    study = SlurmStudy(cluster, tmp_path, trains=True, rates=[0.01, 0.02, 0.03], epochs=12, env=crawl.env)
    assert study("run", "small.toml", "--no-wait").returncode == 0
    study.until_they_train()
    further = {run.id: run.last_attempt() for run in study.runs()}  # a new cluster may lose a node at first
    requeued, cancelled, lost = study.runs()
    nodes = {run.id: worker_of(run)["node"] for run in study.runs()}
    cluster.run("scontrol", "requeue", jobs(study)[requeued.id])
    cluster.run("scancel", jobs(study)[cancelled.id])
    wait_for(study.each, "the run to be cancelled", until=lambda states: states[1] == "cancelled")
    wait_for(lambda: requeued.end(further[requeued.id]).has_ended, "the first worker of the requeued run to end")
    until_it_is_saved(cluster, jobs(study)[lost.id])
    cluster.restart_controller(kill=True)
    index = cluster.node_names.index(nodes[lost.id])
    cluster.kill_node(index, with_jobs=True)
    crawl.end()
    # A controller that has just restarted may take minutes to miss a node.
    wait_for(
        lambda: (study.each(), lost.last_attempt()),
        "the controller to miss the node",
        until=lambda seen: "running" not in seen[0] or seen[1] > further[lost.id],
    )
    cluster.start_node(index)
    cluster.wait_for_nodes()
    wait_for(study.each, "all runs to end", until=lambda states: not {"queued", "running"} & set(states))
    states = dict(zip([run.id for run in study.runs()], study.each(), strict=True))
    assert states.pop(cancelled.id) == "cancelled"
    assert set(states.values()) == {"done"}, study("status", "small.toml").stdout
    for run in (requeued, lost):
        assert epochs_of(run) == list(range(12))
    assert requeued.last_attempt() > further[requeued.id]
    assert lost.last_attempt() > further[lost.id]
    assert epochs_of(cancelled) == list(range(len(epochs_of(cancelled))))
    assert worker_of(lost)["threads"] == 1, "as many as in the quiet study, else sums are rounded apart"
    quiet = alone((requeued, lost), tmp_path / "text", tmp_path / "quiet", monkeypatch)
    assert [outcome(run).differences(quiet[run.id]) for run in (requeued, lost)] == [[], []]


def test_a_job_that_is_held_or_suspended_goes_on_where_it_was(cluster: LoopbackCluster, tmp_path: Path) -> None:
    crawl = Crawl(tmp_path, epochs=1, step_seconds=1)
    study = SlurmStudy(cluster, tmp_path, epochs=12, env=crawl.env)
    assert study("run", "small.toml", "--no-wait").returncode == 0
    study.until_they_train()
    (run,) = study.runs()
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
    wait_for(lambda: read_json(run.worker_file(2)), "the second attempt", until=bool)
    cluster.run("scontrol", "suspend", job)
    assert study.each() == ["running"]
    assert "suspended" in study.each("reason")[0]
    assert "0 of 1 runs to do" in study("run", "small.toml", "--no-wait").stderr
    cluster.run("scontrol", "resume", job)
    crawl.end()
    wait_for(study.each, "the run to end", until=lambda states: states == ["done"])
    assert epochs_of(run) == list(range(12))
    assert run.attempts() == [1, 2]


def test_a_search_ends_with_nobody_waiting_although_a_worker_is_killed(
    cluster: LoopbackCluster, tmp_path: Path
) -> None:
    crawl = Crawl(tmp_path, epochs=1)
    study = SlurmStudy(cluster, tmp_path, rates=searches.RATES, epochs=searches.EPOCHS, gpus=0, env=crawl.env)
    study.write(searches.TABLE)
    answer = study("run", "small.toml", "--no-wait", "--json")
    assert answer.returncode == 0, answer.stderr
    victim = searches.kill_between_rungs(study.runs)
    crawl.end()
    wait_for(study.each, "all runs to end", until=lambda states: not {"queued", "running"} & set(states))
    assert len(victim.attempts()) == 2
    assert searches.EPOCHS in searches.ends_of(study.runs()).values()


def test_a_node_that_lost_only_its_daemon_leaves_no_second_copy_writing(
    cluster: LoopbackCluster, tmp_path: Path
) -> None:
    crawl = Crawl(tmp_path, epochs=1, step_seconds=1)
    study = SlurmStudy(cluster, tmp_path, epochs=12, env=crawl.env)
    assert study("run", "small.toml", "--no-wait").returncode == 0
    study.until_they_train()
    (run,) = study.runs()
    index = cluster.node_names.index(worker_of(run)["node"])
    cluster.kill_node(index)  # the worker goes on, unknown to SLURM, which starts the job once more elsewhere
    wait_for(
        lambda: [process.pid for process in processes(run.path.parent) if "stub_worker.py" in process.words[1]],
        "a worker of the second copy",
        until=lambda workers: len(workers) == 2,
    )
    crawl.end()
    wait_for(run.result_file.exists, "the result")
    cluster.start_node(index)
    cluster.wait_for_nodes()
    wait_for(study.each, "the run to be done", until=lambda states: states == ["done"])
    assert epochs_of(run) == list(range(12))
    writers = {record["attempt"] for record in run.read_metrics()[0]}
    assert len(writers) == 1, "one of the copies wrote, the other waited"


def test_a_node_on_which_a_worker_dies_twice_is_not_used_again(cluster: LoopbackCluster, tmp_path: Path) -> None:
    study = SlurmStudy(cluster, tmp_path, epochs=100_000, gpus=0, env=Crawl(tmp_path, epochs=0).env)
    wait_for(  # jobs of other tests may be ending
        lambda: commands.run(["sinfo", "-h", "-N", "-o", "%t"], env=cluster.env, check=True).stdout.split(),
        "all nodes to be idle",
        until=lambda states: set(states) == {"idle"},
    )
    assert study("run", "small.toml", "--no-wait").returncode == 0
    (run,) = study.runs()
    nodes = []
    for attempt in (1, 2, 3):
        record = run.worker_file(attempt)
        wait_for(record.exists, f"the worker of attempt {attempt}")
        nodes.append(read_soon(record)["node"])
        if attempt < 3:
            os.kill(read_soon(record)["pid"], signal.SIGKILL)
    assert nodes[0] == nodes[1] != nodes[2], "SLURM takes the first free node, until it may not"
    assert [run.end(attempt).node for attempt in (1, 2)] == [nodes[0], nodes[0]]
    assert study("cancel", "small", "--all").returncode == 0


def test_a_run_stops_at_its_budget_goes_on_here_and_comes_back_to_slurm(
    cluster: LoopbackCluster, tmp_path: Path
) -> None:
    crawl = Crawl(tmp_path, epochs=1, step_seconds=1)
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
    crawl.end()
    assert study("run", "small.toml", "--no-wait").returncode == 0
    wait_for(study.each, "the run to end", until=lambda states: states == ["done"])
    assert [one.id for one in study.runs()] == [run.id]
    assert epochs_of(run) == list(range(12))
    backends = [(read_json(run.start_file(attempt)) or {})["backend"] for attempt in run.attempts()]
    assert backends == ["slurm"] * (here - 1) + ["local", "slurm"]


def test_with_accounting_a_job_that_the_queue_has_forgotten_is_still_known(tmp_path: Path) -> None:
    require_slurm(accounting=True)
    options = ClusterOptions(nodes=1, accounting=True, min_job_age_seconds=2)
    with LoopbackCluster(options) as cluster:
        study = SlurmStudy(cluster, tmp_path, epochs=100_000)
        assert study("run", "small.toml", "--no-wait").returncode == 0
        study.until_they_train()
        (run,) = study.runs()
        (job,) = jobs(study).values()
        os.kill(worker_pid(run), signal.SIGSTOP)  # it cannot say a word
        cluster.run("scancel", job)
        wait_for(
            lambda: cluster.run("squeue", "-h", "-t", "all").stdout.strip(),
            "the queue to forget the job",
            until=lambda queue: not queue,
        )
        accounted = ("sacct", "-n", "-P", "-X", "-o", "State", "-j", job)
        wait_for(
            lambda: cluster.run(*accounted).stdout.strip(),
            "the accounting to have the end of the job",
            until=lambda state: state.startswith("CANCELLED"),
        )
        assert study.each() == ["cancelled"]


def test_a_preempted_run_is_saved_requeued_and_goes_on(tmp_path: Path) -> None:
    require_slurm()
    with LoopbackCluster(ClusterOptions(nodes=1, cpus=1, gpus=0, preemption=True, grace_seconds=20)) as cluster:
        study = SlurmStudy(cluster, tmp_path, gpus=0, epochs=100_000, env={"SEQLM_TEST_STUB_SECONDS": "0.5"})
        assert study("run", "small.toml", "--no-wait").returncode == 0
        study.until_they_train()
        (run,) = study.runs()
        cluster.run("sbatch", "-p", "urgent", "--wrap", "sleep 5")
        wait_for(run.exit_file(1).exists, "the record of the preemption")
        assert run.end(1).kind == "preempted"
        seen = len(epochs_of(run))
        wait_for(
            lambda: (run.attempts(), len(epochs_of(run))),
            f"a second attempt and more than {seen} epochs",
            until=lambda now: len(now[0]) > 1 and now[1] > seen,
        )
        assert study("cancel", "small", "--all").returncode == 0
        assert epochs_of(run) == list(range(len(epochs_of(run))))

"""The Ray backend on a real Ray: an embedded one, and clusters of several simulated nodes with fake GPUs."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from seqlm.files import read_json
from seqlm.lease import live_owner
from tests import commands
from tests.chaos.disk import may_mount
from tests.crawl import Crawl
from tests.facts import start_of
from tests.outcome import alone, outcome
from tests.ray_lab import ROOT, RayLab
from tests.small_study import RayStudy, epochs_of, worker_of, worker_pid
from tests.waiting import wait_for

pytestmark = pytest.mark.process

# -- clusters ------------------------------------------------------------------------------------------------------


def test_a_grid_on_three_nodes_of_which_one_is_killed_ends_as_it_would_have_undisturbed(
    ray_cluster: RayLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray_cluster.tell_cluster("add 4 1")  # a third node with a GPU, until one is killed
    crawl = Crawl(tmp_path, epochs=1, step_seconds=1)
    study = RayStudy(ray_cluster, tmp_path, rates=(0.01, 0.02), trains=True, epochs=4, env=crawl.env)
    study.add(rates=(0.1,), ranks=2, gpus=1, cpus=1)
    launcher = study.start("run", "small.toml")
    (victim, *_) = wait_for(
        lambda: [run for run in study.runs() if epochs_of(run) and worker_of(run)["ranks"] == 1],
        "an epoch of a run of one rank",
        by=launcher,
    )
    ray_cluster.tell_cluster(f"kill {worker_of(victim)['node']}")
    # Its ranks live on for a moment, and without the crawl they would be done in it.
    wait_for(
        lambda: (live_owner(victim.lease_dir), victim.attempts()),
        "the victim's worker to end",
        until=lambda seen: not seen[0] or len(seen[1]) > 1,
    )
    crawl.end()
    _, stderr = commands.finish(launcher)
    assert launcher.returncode == 0, stderr
    runs = study.runs()
    assert len(runs) == 3
    assert all(epochs_of(run) == [0, 1, 2, 3] for run in runs)
    again = [run for run in runs if len(run.attempts()) > 1]
    assert victim in again
    assert {run.end(1).kind for run in again} == {"node"}
    workers = [worker_of(run) for run in runs]
    assert sorted(worker["ranks"] for worker in workers) == [1, 1, 2]
    assert {worker["threads"] for worker in workers} == {1}, "as many as here, else sums are rounded apart"
    quiet = alone([victim], tmp_path / "text", tmp_path / "quiet", monkeypatch)
    assert outcome(victim).differences(quiet[victim.id]) == []


def test_two_ranks_meet_on_two_nodes_and_give_the_losses_of_one(
    ray_cluster: RayLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = RayStudy(ray_cluster, tmp_path, ranks=2, trains=True, keep=1.0)
    assert study("run", "small.toml").returncode == 0
    (run,) = study.runs()
    assert worker_of(run)["node"] != worker_of(run, 1)["node"]
    one = alone([run], tmp_path / "text", tmp_path / "one", monkeypatch)[run.id]
    losses = [[record["val_loss"] for record in metrics] for metrics in (run.read_metrics()[0], one.metrics)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


OVERTAKEN = """
from pathlib import Path
import ray
from ray.util.placement_group import placement_group
from jobs.backends.ray_executor import RayExecutor
from jobs.study.kept_code import live_code
from jobs.spec import Resources, Submission

backend = RayExecutor(address="auto")
backend.open(live_code())
resources = Resources(cpus=1, gpus=1)

def free_node():
    while not (places := backend.free().place(resources)):
        backend.wait(0.5)
    return places[0].node

wanted = free_node()
assert placement_group([{"GPU": 1}], bundle_label_selector=[{"ray.io/node-id": wanted}]).wait(1000)
folder = Path("run").absolute()
folder.mkdir()
program = "import pathlib, time\\nwhile not pathlib.Path('seen').exists(): time.sleep(0.05)"
job = backend.submit(
    Submission(run_dir=folder, attempt=1, argv=("python", "-c", program), env={}, cwd=folder, resources=resources)
)
assert [share.node for share in backend._jobs[job].allocations] == [wanted]
while not (ended := backend.poll(job)):
    (last,) = backend._jobs[job].allocations
    if last.node != wanted:
        (folder / "seen").touch()
    backend.wait(0.5)
print(last.node != wanted, ended.exit_code, ended.message, free_node() == last.node)
backend.close()
"""
"""A run whose place another user takes before it starts, and the place of the next run."""

BLIND = """
from pathlib import Path
import jobs.backends.ray_executor as backends
from jobs.launch.dispatch import Dispatcher
from jobs.launch.job import LaunchOptions
from jobs.plan.planned import plan
from jobs.spec import Resources, RunSpec
from jobs.study.kept_code import live_code
from seqlm.rundir import RunDirectory
from tests.seqlm.training.studies import make_config

backend, study = backends.RayExecutor(address="auto"), Path("study").absolute()
backend.open(live_code())
blind, _ = sorted(node for node, has in backend.capacity().nodes.items() if has.gpus)

class Blind(backends.RankHost):
    def run(self, submission, rank, *, node, **more):
        return None if node == blind else super().run(submission, rank, node=node, **more)

backends.RankHost = Blind
worker = "import pathlib, sys; pathlib.Path(sys.argv[1], 'result.json').write_text('{}')"
items = []
for seed in range(4):
    spec = RunSpec(name=f"run{seed}", config=make_config(seed=seed), resources=Resources(cpus=1, gpus=1))
    run = RunDirectory.locate(study, spec.name, spec.fingerprint)
    run.create(spec.config, {"name": spec.name})
    items.append(plan(spec, run, run.observe(), has_checkpoint=False, retry=False))
options = LaunchOptions(study_dir=study, worker=("-c", worker))
Dispatcher(backend, live_code(), options).dispatch(items)
ends = [item.run.observe().state for item in items]
lost = [path.read_text() for path in study.glob("*/attempts/*/exit.json")]
print(ends, len(lost), all('"kind": "node"' in text and "does not see" in text for text in lost))
backend.close()
"""
"""Four runs, whose folders one of the two nodes with GPUs does not see."""


@pytest.mark.parametrize(
    ("driver", "said"),
    [(OVERTAKEN, "True 0 ended True"), (BLIND, "['done', 'done', 'done', 'done'] 1 True")],
    ids=["taken by others", "without the runs folder"],
)
def test_a_run_goes_to_another_node_and_the_next_one_avoids_the_first(
    ray_cluster: RayLab, tmp_path: Path, driver: str, said: str
) -> None:
    (tmp_path / "driver.py").write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{driver}")
    answer = ray_cluster.run([sys.executable, "driver.py"], cwd=tmp_path)
    assert answer.stdout.strip() == said, answer.stderr


def test_a_study_begun_locally_is_finished_on_ray(ray_cluster: RayLab, tmp_path: Path) -> None:
    study = RayStudy(ray_cluster, tmp_path, rates=(0.01, 0.02, 0.03), gpus=0, epochs=100)
    words = ("run", "small.toml", "--backend", "local", "--max-parallel", "1")
    launcher = commands.start(study.command(*words), cwd=tmp_path)
    wait_for(
        lambda: [(run.result_file.exists(), epochs_of(run)) for run in study.runs()],
        "a run to be done and the next one to have an epoch",
        until=lambda seen: any(done for done, _ in seen) and any(epochs and not done for done, epochs in seen),
    )
    launcher.send_signal(signal.SIGINT)
    commands.finish(launcher)
    assert launcher.returncode == 130
    half = {run.id: run for run in study.runs()}
    done = [run for run in half.values() if run.result_file.exists()]
    assert 0 < len(done) < 3
    before = {path: path.stat().st_mtime_ns for run in done for path in run.path.rglob("*")}

    answer = study("run", "small.toml", "--backend", "ray")
    assert answer.returncode == 0, answer.stderr
    assert {run.id for run in study.runs()} == half.keys()
    assert all(epochs_of(run) == list(range(100)) for run in study.runs())
    assert {path: path.stat().st_mtime_ns for run in done for path in run.path.rglob("*")} == before
    assert " resume" in answer.stderr
    backends = {start_of(run)["backend"] for run in study.runs()}
    assert backends == {"local", "ray"}


def test_shares_of_a_gpu_run_at_once_on_one_card_and_what_waits_says_why_and_can_be_cancelled(
    ray_cluster: RayLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = RayStudy(ray_cluster, tmp_path, rates=(0.01, 0.02, 0.03, 0.04), gpus=0.25, epochs=5000)
    study.add(rates=(0.1,), ranks=2, gpus=1, cpus=1, priority=-1)
    monkeypatch.setitem(ray_cluster.env, "WANDB_API_KEY", "very-secret")
    left = study("run", "small.toml", "--no-wait")
    assert left.returncode == 0, left.stderr
    wait_for(study.each, "four runs to run", until=lambda states: states == ["running"] * 4 + ["queued"])
    waiting = study.status()[-1]
    assert waiting["reason"] == "needs 2 GPUs, 1 free"
    sharing = study.runs()[:4]
    assert len({(worker_of(run)["node"], worker_of(run)["gpu"]) for run in sharing}) == 1
    for run in sharing:
        assert b"very-secret" not in Path(f"/proc/{worker_pid(run)}/environ").read_bytes()
        assert "runtime_resources" in worker_of(run)["code"], "that of the launcher"
    assert study("cancel", "small", "--only", f"id={waiting['id']}").returncode == 0
    assert study.each() == ["running"] * 4 + ["cancelled"]
    assert study("cancel", "small", "--all").returncode == 0
    assert study.each() == ["cancelled"] * 5
    wait_for(
        lambda: [words for words in ray_cluster.processes() if "stub_worker.py" in words],
        "the workers to end",
        until=lambda workers: not workers,
    )


def test_a_folder_that_the_nodes_do_not_see_is_one_clear_line(ray_cluster: RayLab, tmp_path: Path) -> None:
    study = RayStudy(ray_cluster, tmp_path)
    script = 'mount -t tmpfs none "$0" && cd "$0" && exec "$@"'
    (tmp_path / "hidden").mkdir()
    words = [*study.command("run", str(tmp_path / "small.toml"))]
    argv = ["unshare", "--mount", "sh", "-c", script, str(tmp_path / "hidden"), *words]
    answer = ray_cluster.run(argv, cwd=tmp_path)
    if "mount:" in answer.stderr:
        pytest.skip("mounting is not allowed here")
    assert answer.returncode == 3
    assert "put --runs-dir on a file system that all nodes of the cluster share" in answer.stderr
    assert "Traceback" not in answer.stderr


# -- embedded ------------------------------------------------------------------------------------------------------


def test_a_signal_to_the_launchers_group_stops_the_workers_and_leaves_nothing_running(
    lab: RayLab, tmp_path: Path
) -> None:
    del lab.env["RAY_worker_niceness"]
    study = RayStudy(lab, tmp_path, archs=("rnn", "gru"), gpus=0, epochs=5000)
    launcher = study.start("run", "small.toml")
    wait_for(study.epochs, "an epoch of one of the two runs", until=lambda epochs: len(epochs) == 2 and any(epochs))
    begun = [read_json(run.worker_file(1)) for run in study.runs()]
    niceness = {os.getpriority(os.PRIO_PROCESS, worker["pid"]) for worker in begun if worker}
    assert niceness == {os.getpriority(os.PRIO_PROCESS, 0)}, "as on the backend local"
    os.killpg(launcher.pid, signal.SIGTERM)  # as `timeout` does: to all that it has started in its group
    _, stderr = commands.finish(launcher)
    assert launcher.returncode == 130, stderr
    assert "the workers have stopped" in stderr
    assert "Traceback" not in stderr
    wait_for(lab.processes, "all processes of the lab to end", until=lambda alive: not alive)
    wait_for(study.each, "the runs to be released", until=lambda states: set(states) == {"pending"})
    logs = [run.stderr_log(1).read_text() for run in study.runs() if epochs_of(run)]
    assert logs
    assert all("stopped; run again to resume" in log for log in logs)


@pytest.mark.skipif(not may_mount(), reason="only root may mount the file system that this test needs")
def test_a_killed_launcher_with_a_read_only_home_takes_its_ray_and_its_workers_along(
    lab: RayLab, tmp_path: Path
) -> None:
    study, home = RayStudy(lab, tmp_path, gpus=0, epochs=5000), tmp_path / "home"
    home.mkdir()
    lab.env["HOME"] = str(home)
    script = 'mount -t tmpfs -o ro none "$HOME" && exec "$@"'
    words = ["unshare", "--mount", "sh", "-c", script, "sh", *study.command("run", "small.toml")]
    launcher = lab.start(words, cwd=tmp_path)
    wait_for(study.epochs, "an epoch of the run", until=any, by=launcher)
    launcher.kill()
    commands.finish(launcher)
    wait_for(lab.processes, "all processes of the lab to end", until=lambda alive: not alive)
    assert not list(lab.folder.glob("seqlm-ray-*")), "the files of its Ray"
    # A process lets go of its locks a moment after it has left its network.
    wait_for(study.each, "the run to be released", until=lambda states: states == ["pending"])


ON_TWO_CARDS = """
import os
from pathlib import Path
from jobs.study.kept_code import live_code
from jobs.backends.ray_executor import RayExecutor
from jobs.spec import Resources, Submission
from seqlm.rundir import RunDirectory

backend = RayExecutor(address=os.environ.get("RAY_ADDRESS"))
print(backend.capacity().gpus)
backend.open(live_code())
resources = Resources(cpus=1, gpus=1)
program = (
    "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['SEQLM_GPU_SHARE'], flush=True); "
    "time.sleep(600)"
)
logs = []
for number in range(2):
    run = Path(f"run{number}").absolute()
    run.mkdir()
    backend.submit(
        Submission(run_dir=run, attempt=1, argv=("python", "-c", program), env={}, cwd=run, resources=resources)
    )
    logs.append(RunDirectory(run).stdout_log(1))
while not all(log.exists() and log.read_text() for log in logs):
    backend.wait(0.2)
print(*sorted(log.read_text().strip() for log in logs))
print(backend.free().gpus)
backend.close()
"""


def test_the_gpus_that_the_caller_has_chosen_are_those_that_ray_books(lab: RayLab, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nfor n in 0 1 2 3; do echo "GPU $n: Fake (UUID: GPU-$n$n$n$n)"; done\n')
    program.chmod(0o755)
    lab.env["PATH"] = f"{program.parent}:{lab.env['PATH']}"
    (tmp_path / "driver.py").write_text(ON_TWO_CARDS)
    lab.env |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "2,3"}
    answer = lab.run([sys.executable, "driver.py"], cwd=tmp_path)
    assert answer.stdout.splitlines() == ["2.0", "GPU-2222 1 GPU-3333 1", "0.0"], answer.stderr

"""The Ray backend on a real Ray: an embedded one, and clusters of several simulated nodes with fake GPUs."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from seqlm.files import read_json
from seqlm.lease import live_owner
from seqlm.model_files import ModelFiles
from seqlm.rundir import RunDirectory
from tests import commands
from tests.chaos.disk import may_mount
from tests.crawl import Crawl
from tests.facts import start_of
from tests.outcome import differences, outcome, quiet_outcomes
from tests.ray_lab import ROOT, RayLab
from tests.seqlm.check_model.faulty import use_own_model
from tests.small_study import RayStudy, epochs_of, worker_of, worker_pid
from tests.waiting import wait_for

pytestmark = pytest.mark.process

# -- clusters ------------------------------------------------------------------------------------------------------


def test_a_grid_on_three_nodes_of_which_one_is_killed_ends_as_it_would_have_undisturbed(
    ray_cluster: RayLab, tmp_path: Path
) -> None:
    ray_cluster.tell_cluster("add 4 1")  # a third node with a GPU, until one is killed
    crawl = Crawl(tmp_path, epochs=1, step_seconds=1)
    grid = {"archs": ("rnn", "gru"), "rates": (0.01, 0.02)}
    study = RayStudy(ray_cluster, tmp_path, **grid, trains=True, epochs=4, env=crawl.env)
    study.add(rates=(0.1,), ranks=2, gpus=1, cpus=1)
    trial = study("run", "small.toml", "--set", "train.epochs=1")
    assert trial.returncode == 0, trial.stderr
    assert study.epochs() == [[0]] * 5
    launcher = study.start("run", "small.toml")  # extends them
    (victim, *_) = wait_for(
        lambda: [run for run in study.runs() if live_owner(run.lease_dir)],
        "two runs to train",
        until=lambda training: len(training) >= 2,
    )
    ray_cluster.tell_cluster(f"kill {worker_of(victim)['node']}")
    # Its ranks live on for a moment, and without the crawl they would be done in it.
    wait_for(
        lambda: (live_owner(victim.lease_dir), victim.attempts()),
        "the victim's worker to end",
        until=lambda seen: not seen[0] or len(seen[1]) > 2,
    )
    crawl.end()
    _, stderr = commands.finish(launcher)
    assert launcher.returncode == 0, stderr
    runs = study.runs()
    assert len(runs) == 5
    assert all(epochs_of(run) == [0, 1, 2, 3] for run in runs)
    again = [run for run in runs if len(run.attempts()) > 2]
    assert again, "the killed node had no run"
    assert {run.end(2).kind for run in again} == {"node"}
    workers = [worker_of(run) for run in runs]
    assert sorted(worker["ranks"] for worker in workers) == [1] * 4 + [2]
    assert {worker["threads"] for worker in workers} == {1}, (
        "as many as in the quiet study, else sums are rounded apart"
    )
    disturbed = {run.id: outcome(run) for run in again}
    quiet = quiet_outcomes(tmp_path / "small.toml", tmp_path / "quiet", again)
    assert differences(disturbed, quiet) == []


def test_two_ranks_meet_on_two_nodes_and_give_the_losses_of_one(ray_cluster: RayLab, tmp_path: Path) -> None:
    study = RayStudy(ray_cluster, tmp_path, ranks=2, trains=True)
    plain = ("--set", "model.keep=1.0")
    assert study("run", "small.toml", *plain).returncode == 0
    (run,) = study.runs()
    nodes = [json.loads(run.worker_file(1, rank).read_text())["node"] for rank in range(2)]
    assert nodes[0] != nodes[1]
    (tmp_path / "runs").rename(tmp_path / "two")
    here = ("--backend", "local", "--set", "resources.ranks=1", "--set", "resources.gpus=0")
    commands.run(study.command("run", "small.toml", *plain, *here), cwd=tmp_path, check=True)
    (alone,) = study.runs()
    one = [record["val_loss"] for record in alone.read_metrics()[0]]
    metrics = next((tmp_path / "two").glob("*/*/metrics.jsonl")).read_text()
    assert [json.loads(line)["val_loss"] for line in metrics.splitlines()] == pytest.approx(one, abs=1e-6)


def test_two_ranks_train_the_own_model_that_was_launched_whatever_becomes_of_its_file(
    ray_cluster: RayLab, tmp_path: Path
) -> None:
    study = RayStudy(ray_cluster, tmp_path, ranks=2, trains=True, epochs=1)
    file = use_own_model(tmp_path / "small.toml")
    launched = file.read_bytes()
    assert study("run", "small.toml", "--no-wait").returncode == 0
    (kept,) = wait_for(lambda: [*tmp_path.glob("runs/small/*/model/model.py")], "the run to be prepared")
    file.write_text("this is no Python any more")
    run = RunDirectory(kept.parents[1])
    wait_for(run.result_file.exists, "the run to end")
    assert (run.model_dir / "model.py").read_bytes() == launched
    assert run.read_config().by_key()["model.sha256"] == ModelFiles(contents={"model.py": launched}).sha256
    assert worker_of(run)["ranks"] == 2
    assert run.attempts() == [1]


HOLD = """
import sys, ray
from ray.util.placement_group import placement_group, remove_placement_group
ray.init(log_to_driver=False)
for node in [node["NodeID"] for node in ray.nodes() if node["Resources"].get("GPU")]:
    group = placement_group([{"GPU": 1}], bundle_label_selector=[{"ray.io/node-id": node}])
    assert group.wait(1000)
    print(node, flush=True)
    sys.stdin.readline()
    remove_placement_group(group)
"""
"""Holds the GPU of one node after the other, until it reads a line."""

DRIVER = """
import sys, time
from pathlib import Path
import ray
from ray.util.placement_group import placement_group
import jobs.backends.ray_executor
from jobs.study.kept_code import live_code
from jobs.spec import Resources, Submission

backend = jobs.backends.ray_executor.RayExecutor(address="auto")
backend.open(live_code())
resources = Resources(cpus=1, gpus=1)
while not (places := backend.free().place(resources)):
    backend.wait(0.5)
(wanted,) = places
if sys.argv[1] == "overtaken":
    assert placement_group([{"GPU": 1}], bundle_label_selector=[{"ray.io/node-id": wanted.node}]).wait(1000)
folder = Path("run").absolute()
folder.mkdir()
program = "import pathlib, time\\nwhile not pathlib.Path('seen').exists(): time.sleep(0.05)"
job = backend.submit(
    Submission(run_dir=folder, attempt=1, argv=("python", "-c", program), env={}, cwd=folder, resources=resources)
)
assert [share.node for share in backend._jobs[job].allocations] == [wanted.node]
while not (ended := backend.poll(job)):
    (last,) = backend._jobs[job].allocations
    if sys.argv[1] != "overtaken" or last.node != wanted.node:
        (folder / "seen").touch()
    backend.wait(0.5)
print(last.node if sys.argv[1] == "held" else last.node != wanted.node, ended.exit_code, ended.message)
backend.close()
"""


BLIND = """
import sys, os, time
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
blind = sorted(node for node, has in backend.capacity().nodes.items() if has.gpus)[: int(sys.argv[1])]

class Blind(backends.RankHost):
    def run(self, submission, rank, *, node, **more):
        return None if node in blind else super().run(submission, rank, node=node, **more)

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
"""Four runs, where the given number of the two nodes with GPUs do not see the folders of runs."""


def drive(ray_cluster: RayLab, folder: Path, what: str, driver: str = DRIVER) -> str:
    """What a driver of its own, with a backend of its own, says in the end of a run that is disturbed."""
    script = folder / "driver.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{driver}")
    answer = ray_cluster.run([sys.executable, str(script), what], cwd=folder)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def test_a_run_goes_to_the_node_that_others_leave_free(ray_cluster: RayLab, tmp_path: Path) -> None:
    other = ray_cluster.start([sys.executable, "-c", HOLD], cwd=tmp_path)
    held, used = [], []
    for number in range(2):
        held.append(commands.next_line(other).strip())
        folder = tmp_path / str(number)
        folder.mkdir()
        node, *said = drive(ray_cluster, folder, "held").split(maxsplit=1)
        assert said == ["0 ended"]
        used.append(node)
        assert other.stdin is not None
        other.stdin.write("\n")
        other.stdin.flush()
    commands.finish(other)
    assert held[0] != held[1]
    assert used == [held[1], held[0]]


def test_a_run_whose_place_is_taken_by_somebody_faster_goes_elsewhere(ray_cluster: RayLab, tmp_path: Path) -> None:
    assert drive(ray_cluster, tmp_path, "overtaken") == "True 0 ended"


def test_a_node_that_does_not_see_the_runs_folder_fails_one_run_and_is_avoided(
    ray_cluster: RayLab, tmp_path: Path
) -> None:
    assert drive(ray_cluster, tmp_path, "1", BLIND) == "['done', 'done', 'done', 'done'] 1 True"


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


def test_what_can_never_fit_is_said_at_once_and_nothing_is_written(ray_cluster: RayLab, tmp_path: Path) -> None:
    study = RayStudy(ray_cluster, tmp_path, ranks=8)
    answer = study("run", "small.toml")
    assert answer.returncode == 3
    assert "never fits: needs 8 GPUs, the cluster has 2" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not (tmp_path / "runs").exists()


def test_waiting_runs_say_why_and_runs_are_cancelled_from_the_folder_alone(ray_cluster: RayLab, tmp_path: Path) -> None:
    study = RayStudy(ray_cluster, tmp_path, rates=(0.01, 0.02), ranks=2, epochs=5000)
    left = study("run", "small.toml", "--no-wait")
    assert left.returncode == 0, left.stderr
    wait_for(study.each, "a run to run, one to wait", until=lambda states: sorted(states) == ["queued", "running"])
    (waiting,) = [run for run in study.status() if run["state"] == "queued"]
    assert waiting["reason"] == "needs 2 GPUs, 0 free"
    assert study("cancel", "small", "--only", f"id={waiting['id']}").returncode == 0
    assert sorted(study.each()) == ["cancelled", "running"]
    assert study("cancel", "small", "--all").returncode == 0
    assert study.each() == ["cancelled"] * 2
    wait_for(
        lambda: [words for words in ray_cluster.processes() if "stub_worker.py" in words],
        "the workers to end",
        until=lambda workers: not workers,
    )


def test_four_quarters_of_a_gpu_run_at_once_on_one_card_with_the_launchers_code_and_without_its_secrets(
    ray_cluster: RayLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = RayStudy(ray_cluster, tmp_path, rates=(0.01, 0.02, 0.03, 0.04), gpus=0.25, epochs=5000)
    monkeypatch.setitem(ray_cluster.env, "WANDB_API_KEY", "very-secret")
    assert study("run", "small.toml", "--no-wait").returncode == 0
    wait_for(study.each, "all runs to run at once", until=lambda states: states == ["running"] * 4)
    assert len({(worker_of(run)["node"], worker_of(run)["gpu"]) for run in study.runs()}) == 1
    for run in study.runs():
        assert b"very-secret" not in Path(f"/proc/{worker_pid(run)}/environ").read_bytes()
        assert "runtime_resources" in worker_of(run)["code"]
    assert study("cancel", "small", "--all").returncode == 0


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


def test_a_cluster_that_is_not_there_is_one_clear_line(lab: RayLab, tmp_path: Path) -> None:
    study = RayStudy(lab, tmp_path)
    answer = study("run", "small.toml", "--ray-address", "127.0.0.1:7")
    assert answer.returncode == 3
    (line,) = [line for line in answer.stderr.splitlines() if line.startswith("error")]
    assert line.startswith("error: no Ray cluster at 127.0.0.1:7")
    assert "Traceback" not in answer.stderr


# -- embedded ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])  # of a terminal, of `timeout`
def test_a_signal_to_the_launchers_group_stops_the_workers_and_leaves_nothing_running(
    lab: RayLab, tmp_path: Path, number: signal.Signals
) -> None:
    del lab.env["RAY_worker_niceness"]
    study = RayStudy(lab, tmp_path, archs=("rnn", "gru"), gpus=0, epochs=5000)
    launcher = study.start("run", "small.toml")
    wait_for(study.epochs, "an epoch of one of the two runs", until=lambda epochs: len(epochs) == 2 and any(epochs))
    begun = [read_json(run.worker_file(1)) for run in study.runs()]
    niceness = {os.getpriority(os.PRIO_PROCESS, worker["pid"]) for worker in begun if worker}
    assert niceness == {os.getpriority(os.PRIO_PROCESS, 0)}, "as on the backend local"
    os.killpg(launcher.pid, number)  # to all that the launcher has started in its group
    _, stderr = commands.finish(launcher)
    assert launcher.returncode == 130, stderr
    assert "the workers have stopped" in stderr
    assert "Traceback" not in stderr
    wait_for(lab.processes, "all processes of the lab to end", until=lambda alive: not alive)
    wait_for(study.each, "the runs to be released", until=lambda states: set(states) == {"pending"})
    logs = [run.stderr_log(1).read_text() for run in study.runs() if epochs_of(run)]
    assert logs
    assert all("stopped; run again to resume" in log for log in logs)


def test_a_killed_launcher_takes_its_ray_and_its_workers_along(lab: RayLab, tmp_path: Path) -> None:
    study = RayStudy(lab, tmp_path, gpus=0, epochs=5000)
    launcher = study.start("run", "small.toml")
    wait_for(study.epochs, "an epoch of the run", until=any)
    launcher.kill()
    commands.finish(launcher)
    wait_for(lab.processes, "all processes of the lab to end", until=lambda alive: not alive)
    assert not list(lab.folder.glob("seqlm-ray-*")), "the files of its Ray"
    # A process lets go of its locks a moment after it has left its network.
    wait_for(study.each, "the run to be released", until=lambda states: states == ["pending"])


@pytest.mark.skipif(not may_mount(), reason="only root may mount the file system that this test needs")
def test_a_home_that_is_read_only_is_no_hindrance(lab: RayLab, tmp_path: Path) -> None:
    study, home = RayStudy(lab, tmp_path, gpus=0), tmp_path / "home"
    home.mkdir()
    lab.env["HOME"] = str(home)
    script = 'mount -t tmpfs -o ro none "$HOME" && exec "$@"'
    answer = lab.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *study.command("run", "small.toml")], cwd=tmp_path
    )
    assert answer.returncode == 0, answer.stderr
    assert "Traceback" not in answer.stderr
    assert study.each() == ["done"]


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


def with_four_cards(lab: RayLab, folder: Path) -> None:
    """Put an nvidia-smi that lists four cards on the PATH of what the lab starts."""
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nfor n in 0 1 2 3; do echo "GPU $n: Fake (UUID: GPU-$n$n$n$n)"; done\n')
    program.chmod(0o755)
    lab.env["PATH"] = f"{program.parent}:{lab.env['PATH']}"


def test_the_gpus_that_the_caller_has_chosen_are_those_that_ray_books(lab: RayLab, tmp_path: Path) -> None:
    with_four_cards(lab, tmp_path)
    (tmp_path / "driver.py").write_text(ON_TWO_CARDS)
    lab.env |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "2,3"}
    answer = lab.run([sys.executable, "driver.py"], cwd=tmp_path)
    assert answer.stdout.splitlines() == ["2.0", "GPU-2222 1 GPU-3333 1", "0.0"], answer.stderr


def test_a_rank_on_a_node_gets_the_uuid_of_the_gpu_that_ray_booked(lab: RayLab, tmp_path: Path) -> None:
    with_four_cards(lab, tmp_path)
    lab.start_cluster((4, 2))
    (tmp_path / "driver.py").write_text(ON_TWO_CARDS)
    lab.env["PYTHONPATH"] = str(ROOT)  # of the driver alone
    answer = lab.run([sys.executable, "driver.py"], cwd=tmp_path)
    assert answer.stdout.splitlines() == ["2.0", "GPU-0000 1 GPU-1111 1", "0.0"], answer.stderr

"""The Ray backend on a real Ray: an embedded one, and clusters of several simulated nodes with fake GPUs."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from seqlm.lease import live_owner
from tests import commands
from tests.chaos.disk import may_mount
from tests.crawl import Crawl
from tests.outcome import alone, outcome
from tests.ray_lab import GPU_MIB, ROOT, RayLab
from tests.small_study import RayStudy, epochs_of, worker_of, worker_pid
from tests.waiting import wait_for

pytestmark = pytest.mark.process

# -- clusters ------------------------------------------------------------------------------------------------------


def test_a_run_on_a_new_node_that_is_killed_ends_as_undisturbed_and_two_ranks_on_two_nodes_as_one(
    ray_cluster: RayLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crawl = Crawl(tmp_path, epochs=1, step_seconds=3)
    study = RayStudy(ray_cluster, tmp_path, trains=True, epochs=4, keep=1.0, env=crawl.env)
    study.add(archs=("gru",), ranks=2, gpus=1, cpus=1, priority=1)
    launcher = study.start("run", "small.toml")
    wait_for(study.epochs, "an epoch of the two ranks", until=any, by=launcher)
    ray_cluster.tell_cluster("add 4 1")  # a third node with a GPU, until it is killed
    wait_for(study.epochs, "an epoch of both runs", until=lambda seen: len(seen) == 2 and all(seen), by=launcher)
    victim, pair = study.runs()
    assert len({worker_of(run, rank)["node"] for run, rank in ((victim, 0), (pair, 0), (pair, 1))}) == 3
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
    assert study.epochs() == [[0, 1, 2, 3]] * 2
    # Ray may list the killed node for a moment, in which a second attempt is lost there.
    assert (victim.attempts()[:2], victim.end(1).kind, pair.attempts()) == ([1, 2], "node", [1])
    assert {worker_of(run)["threads"] for run in (victim, pair)} == {1}, "as many as here, else sums are rounded apart"
    quiet = alone([victim, pair], tmp_path / "text", tmp_path / "quiet", monkeypatch)
    assert outcome(victim).differences(quiet[victim.id]) == []
    losses = [[record["val_loss"] for record in found] for found in (pair.read_metrics()[0], quiet[pair.id].metrics)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


DRIVER = """
import pathlib
from pathlib import Path
import jobs.backends.ray_executor as backends
from ray.util.placement_group import placement_group, remove_placement_group
from jobs.launch.dispatch import Dispatcher
from jobs.launch.job import StudySettings
from jobs.plan.planned import plan
from seqlm.records.runs import Provenance
from jobs.spec import RunSpec, Submission
from seqlm.resources import Resources
from jobs.study.kept_code import live_code
from seqlm.rundir import RunDirectory
from tests.seqlm.training.studies import make_config

backend, study = backends.RayExecutor(address="auto"), Path("study").absolute()
backends.PATIENCE_SECONDS, backends.REFRESH_SECONDS = 2.0, 0.5
backend.open(live_code())
resources = Resources(cpus=1, gpus=1)

def free_node():
    while not (places := backend.free().place(resources)):
        backend.wait(0.5)
    return places[0].node

# Another user takes the place of a run before it starts.
wanted = free_node()
taken = placement_group([{"GPU": 1}], bundle_label_selector=[{"ray.io/node-id": wanted}])
assert taken.wait(1000)
folder = Path("run").absolute()
start = RunDirectory(folder).start_file(1)
start.parent.mkdir(parents=True)
start.touch()
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
remove_placement_group(taken)

# One of two nodes does not see the folders of four runs.
blind = wanted
while backend.free().nodes[blind].free_gpus < 1:  # Ray takes a moment to give back what the other user had
    backend.wait(0.5)

class Blind(backends.RankHost):
    def run(self, submission, rank, *, node, **more):
        return None if node == blind else super().run(submission, rank, node=node, **more)

backends.RankHost = Blind
worker = "import pathlib, sys; pathlib.Path(sys.argv[1], 'result.json').write_text('{}')"
items = []
for seed in range(4):
    spec = RunSpec(name=f"run{seed}", config=make_config(seed=seed), resources=resources)
    run = RunDirectory.locate(study, spec.name, spec.fingerprint)
    run.create(spec.config, Provenance(name=spec.name))
    items.append(plan(spec, run, run.observe(), has_checkpoint=False, retry=False))
Dispatcher(backend, live_code(), StudySettings(path=study, worker=("-c", worker))).dispatch(items)
ends = [item.run.observe().state for item in items]
lost = [path.read_text() for path in study.glob("*/attempts/*/exit.json")]
print(ends, len(lost), all('"kind": "node"' in text and "does not see" in text for text in lost))
backend.close()
"""


def test_a_run_goes_to_another_node_if_others_have_taken_its_place_or_the_node_does_not_see_its_folder(
    ray_cluster: RayLab, tmp_path: Path
) -> None:
    (tmp_path / "driver.py").write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{DRIVER}")
    answer = ray_cluster.run([sys.executable, "driver.py"], cwd=tmp_path)
    expected = ["True 0 ended True", "['done', 'done', 'done', 'done'] 1 True"]
    assert answer.stdout.splitlines() == expected, answer.stderr


OF_A_JOB = {
    "runtime_env": {
        "working_dir": "gcs://_ray_pkg_0123456789abcdef.zip",
        "excludes": ["*.py"],
        "env_vars": {"SET_BY": "ray job submit"},
    },
    "metadata": {"job_submission_id": "raysubmit_1"},
}
"""What the driver of `ray job submit --working-dir .` gets of its job in a variable."""


def test_shares_of_a_gpu_run_at_once_on_one_card_and_what_waits_says_why_and_can_be_cancelled(
    ray_cluster: RayLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quarter = GPU_MIB * 2**20 / 1e9 / 4
    rates = (0.01, 0.02, 0.03, 0.04)
    study = RayStudy(ray_cluster, tmp_path, rates=rates, gpus=0.01, gpu_memory_gb=quarter, epochs=5000)
    study.add(rates=(0.1,), ranks=2, gpus=1, cpus=1, priority=-1)
    monkeypatch.setitem(ray_cluster.env, "WANDB_API_KEY", "very-secret")
    monkeypatch.setitem(ray_cluster.env, "RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(OF_A_JOB))
    left = study("run", "small.toml", "--no-wait")
    assert left.returncode == 0, left.stderr
    wait_for(study.each, "four runs to run", until=lambda states: states == ["running"] * 4 + ["queued"])
    waiting = study.status()[-1]
    assert waiting["reason"] == "needs 2 GPUs, 1 free"
    sharing = study.runs()[:4]
    assert len({(worker_of(run)["node"], worker_of(run)["gpu"]) for run in sharing}) == 1
    for run in sharing:
        environ = Path(f"/proc/{worker_pid(run)}/environ").read_bytes().split(b"\0")
        assert b"WANDB_API_KEY=very-secret" not in environ
        assert b"SET_BY=ray job submit" in environ
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


def test_a_run_on_a_node_that_is_drained_saves_and_continues_on_another_one(
    ray_cluster: RayLab, tmp_path: Path
) -> None:
    ray_cluster.tell_cluster("add 6 1")
    crawl = Crawl(tmp_path, epochs=1, step_seconds=0.5)
    study = RayStudy(ray_cluster, tmp_path, epochs=20, env=crawl.env, gpus=1, cpus=6)  # fits on no other node
    launcher = study.start("run", "small.toml")
    wait_for(study.epochs, "an epoch", until=any, by=launcher)
    (run,) = study.runs()
    drained = worker_of(run)["node"]
    ray_cluster.drain(drained)
    wait_for(lambda: run.end(1).kind, "the run to leave the node", by=launcher)
    assert (run.end(1).kind, run.end(1).outcome) == ("preempted", "interrupted")
    assert "is being drained" in run.end(1).message
    ray_cluster.tell_cluster("add 6 1")
    wait_for(run.last_attempt, "another attempt", until=lambda number: number == 2, by=launcher)
    other = worker_of(run)["node"]
    crawl.end()
    _, stderr = commands.finish(launcher)
    ray_cluster.tell_cluster(f"kill {other}")
    assert launcher.returncode == 0, stderr
    assert other != drained
    assert study.epochs() == [[*range(20)]]


def test_a_cluster_of_another_user_is_refused_before_anything_is_sent(ray_cluster: RayLab, tmp_path: Path) -> None:
    study = RayStudy(ray_cluster, tmp_path)
    sockets = [*ray_cluster.folder.glob("**/session_2*/sockets/raylet")]
    for path in sockets:
        os.chown(path, 65534, -1)
    try:
        answer = study("run", "small.toml")
    finally:
        for path in sockets:
            os.chown(path, os.getuid(), -1)
    assert answer.returncode == 3
    assert "belongs to user nobody, as whom your code would run" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert "joining the Ray cluster" not in answer.stderr
    assert study.runs() == []


IMPATIENT = f"""
import runpy, sys
sys.path.insert(0, {str(ROOT)!r})
import jobs.backends.ray_cluster
jobs.backends.ray_cluster.LOST_SECONDS = 2.0
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_launch_whose_cluster_has_lost_its_head_saves_its_runs_and_ends_with_one_line(
    lab: RayLab, tmp_path: Path
) -> None:
    lab.start_cluster((2, 0))
    crawl = Crawl(tmp_path, epochs=1, step_seconds=0.5)
    study = RayStudy(lab, tmp_path, epochs=20, env=crawl.env, gpus=0, cpus=1)
    launcher = lab.start([sys.executable, "-c", IMPATIENT, *study.command("run", "small.toml")[1:]], cwd=tmp_path)
    wait_for(study.epochs, "an epoch", until=any, by=launcher)
    lab.kill("gcs_server")
    _, stderr = commands.finish(launcher)
    assert launcher.returncode == 3, stderr
    assert [line for line in stderr.splitlines() if f"the Ray cluster at {lab.address} has not answered" in line]
    assert "Traceback" not in stderr
    assert study.each() == ["pending"]
    (run,) = study.runs()
    assert run.end(1).outcome == "interrupted", "it has saved"
    crawl.end()
    assert study("run", "small.toml", "--backend", "local").returncode == 0
    assert study.each() == ["done"]


# -- embedded ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not may_mount(), reason="only root may mount the file system that this test needs")
def test_a_signal_to_the_group_of_a_launcher_with_a_read_only_home_stops_the_workers_on_the_gpus_of_the_caller(
    lab: RayLab, tmp_path: Path
) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nfor n in 0 1 2 3; do echo "GPU $n: Fake (UUID: GPU-$n$n$n$n)"; done\n')
    program.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    lab.env |= {"PATH": f"{program.parent}:{lab.env['PATH']}", "CUDA_VISIBLE_DEVICES": "2,3", "HOME": str(home)}
    del lab.env["RAY_worker_niceness"]
    study = RayStudy(lab, tmp_path, archs=("rnn", "gru", "transformer"), epochs=5000)
    read_only = 'mount -t tmpfs -o ro none "$HOME" && exec "$@"'
    words = ["unshare", "--mount", "sh", "-c", read_only, "sh", *study.command("run", "small.toml")]
    launcher = lab.start(words, cwd=tmp_path)
    wait_for(
        study.epochs,
        "an epoch of two of the three runs",
        until=lambda epochs: sum(map(bool, epochs)) == 2,
        by=launcher,
    )
    begun = [worker_of(run) for run in study.runs() if epochs_of(run)]
    assert {worker["gpu"] for worker in begun} == {"GPU-2222", "GPU-3333"}
    assert sorted(study.each()) == ["queued", "running", "running"], "no third GPU"
    assert not [words for words in lab.processes() if re.search(r"/(dashboard|log_monitor|monitor)\.py", words)]
    niceness = {os.getpriority(os.PRIO_PROCESS, worker["pid"]) for worker in begun}
    assert niceness == {os.getpriority(os.PRIO_PROCESS, 0)}, "as on the backend local"
    os.killpg(launcher.pid, signal.SIGTERM)  # as `timeout` does: to all that it has started in its group
    _, stderr = commands.finish(launcher)
    assert launcher.returncode == 130, stderr
    assert "the workers have stopped" in stderr
    assert "Traceback" not in stderr
    wait_for(lab.processes, "all processes of the lab to end", until=lambda alive: not alive)
    assert not list(lab.folder.glob("seqlm-*")), "the files of its Ray"
    wait_for(study.each, "the runs to be released", until=lambda states: set(states) == {"pending"})
    logs = [run.stderr_log(1).read_text() for run in study.runs() if epochs_of(run)]
    assert all("stopped; run again to resume" in log for log in logs)


def test_a_launch_outlives_the_raylet_and_the_head_of_its_own_ray_and_leaves_nothing_behind(
    lab: RayLab, tmp_path: Path
) -> None:
    crawl = Crawl(tmp_path, epochs=1, step_seconds=0.5)
    study = RayStudy(lab, tmp_path, epochs=20, env=crawl.env, gpus=0, cpus=1)
    launcher = study.start("run", "small.toml")
    wait_for(study.epochs, "an epoch", until=any, by=launcher)
    (run,) = study.runs()
    for attempt, server in enumerate(("raylet", "gcs_server"), 1):
        rank = worker_of(run)["pid"]
        lab.kill(server)
        wait_for(run.last_attempt, "another attempt", until=attempt.__lt__, by=launcher)
        assert rank not in lab.pids(), "it would hold its GPU"
        worker_of(run)
    crawl.end()
    _, stderr = commands.finish(launcher)
    assert launcher.returncode == 0, stderr
    assert study.epochs() == [[*range(20)]]
    assert [run.end(attempt).kind for attempt in (1, 2, 3)] == ["node", "preempted", None]
    assert stderr.count("starting Ray on this machine") == 3
    assert "Traceback" not in stderr
    wait_for(lab.processes, "all processes of the lab to end", until=lambda alive: not alive)
    assert not list(lab.folder.glob("seqlm-*")), "the files of its Rays"

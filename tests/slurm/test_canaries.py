"""Canaries of grids on SLURM: what is submitted, what a failure does, and what a killed launcher leaves."""

import os
import shutil
from pathlib import Path

import pytest

import launch
from jobs.scheduled import canary, job
from jobs.scheduled.slot import OVER
from jobs.scheduled.submission import plan_sha256
from seqlm.reading import listed
from seqlm.records.batch import Batch, Withdrawn
from seqlm.records.runs import CanaryResult
from seqlm.requests import Requests, numbered
from seqlm.rundir import RunDirectory
from slurm.testcluster import LoopbackCluster
from tests import commands
from tests.facts import launch_again
from tests.fake_slurm import FakeSlurm
from tests.small_study import SlurmStudy, Study
from tests.waiting import wait_for

pytestmark = pytest.mark.process

STUB = "SEQLM_TEST_STUB"
STUCK = {"PENDING JobHeldUser", "PENDING Dependency"}


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    monkeypatch.delenv("SEQLM_BACKEND")
    monkeypatch.chdir(tmp_path)
    Study(tmp_path, rates=[0.01, 0.02], gpus=0, cpus=1)
    return FakeSlurm(tmp_path / "fake").on_path(monkeypatch)


def run(*words: str) -> int:
    return launch.main(["run", "small.toml", "--backend", "slurm", "--no-wait", "--live-code", *words])


def canary_attempts(study_dir: Path) -> list[list[int]]:
    """Return the attempts of each canary, all of which have passed."""
    canaries = [RunDirectory(path) for path in listed(study_dir / "canary", "*-*")]
    assert all(one.read_canary() for one in canaries)
    return [one.attempts() for one in canaries]


def test_the_grid_depends_on_held_canaries_which_are_released_last(fake: FakeSlurm, tmp_path: Path) -> None:
    assert run("--canary") == 0
    first, second = fake.jobs()["1_0"], fake.jobs()["2_0"]
    assert first.options["job-name"] == "seqlm-small-canary"
    assert second.options["dependency"] == "afterok:1"
    steps = [call[:2] for call in fake.calls("sbatch", "scontrol") if "show" not in call]
    assert [step[0] for step in steps] == ["sbatch", "sbatch", "scontrol", "sbatch"]
    assert fake.calls("scontrol")[-1] == ["scontrol", "release", "1"]
    assert len(fake.jobs()) == 4, "one canary, since both runs are one pair, two runs, and what follows the canary"
    assert fake.jobs()["3"].options["dependency"] == "afterany:1"
    assert run("--canary") == 0
    assert len(fake.jobs()) == 4, "nothing of it is replaced"


def test_a_grid_that_sbatch_refuses_leaves_no_canary(fake: FakeSlurm, tmp_path: Path) -> None:
    with fake.opened() as room:
        room.most_jobs = 1
    assert run("--canary") == 3
    assert {one.state for one in fake.jobs().values()} == {"CANCELLED"}
    with fake.opened() as room:
        room.most_jobs = 100
    assert run("--canary") == 0
    assert [one.state for one in fake.jobs().values()].count("PENDING") == 4


def test_a_cancelled_grid_needs_no_canary(fake: FakeSlurm, tmp_path: Path) -> None:
    assert run("--canary") == 0
    assert launch.main(["cancel", "small", "--only", "name=*0.01*"]) == 0
    assert fake.jobs()["1_0"].state == "PENDING"
    assert launch.main(["cancel", "small", "--all"]) == 0
    assert {one.state for name, one in fake.jobs().items() if "_" in name} == {"CANCELLED"}


def follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Do what the job does that follows the canaries of the first launch; return the folder of its request."""
    study_dir = tmp_path / "runs" / "small"
    grid = numbered(study_dir, 1)
    monkeypatch.setattr("sys.argv", ["canary", "slurm", str(numbered(study_dir / "canary", 1)), str(grid)])
    assert canary.main() == 0
    return grid


def test_a_grid_is_withdrawn_if_slurm_ends_its_canary_before_that_says_anything(
    fake: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--canary") == 0
    fake.end("1_0", "OUT_OF_MEMORY")
    grid = follow(tmp_path, monkeypatch)
    assert Withdrawn.read(grid) is not None
    assert {fake.jobs()[f"2_{index}"].state for index in (0, 1)} == {"CANCELLED"}
    launch.main(["status", "small"])
    assert "held back" in capsys.readouterr().out
    assert run("--no-canary") == 0
    assert fake.jobs()["4_0"].state == "PENDING"


def test_a_grid_whose_canaries_have_passed_or_were_launched_again_goes_on(
    fake: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("--canary") == 0
    study_dir = tmp_path / "runs" / "small"
    (folder,) = Requests(study_dir / "canary").by_run()
    tried = RunDirectory.canary(study_dir, folder)
    tried.attempt_dir(1).mkdir(parents=True)
    CanaryResult(attempt=1).write(tried.path)
    assert Withdrawn.read(follow(tmp_path, monkeypatch)) is None
    launch_again(tried)
    assert tried.observe().state != "done"
    assert Withdrawn.read(follow(tmp_path, monkeypatch)) is None, "its canaries are those of a later launch"


def start(plan: Path, monkeypatch: pytest.MonkeyPatch, job_id: str) -> str | None:
    """Start the first job of the first array, as its script does; return its exit code if it is over."""
    folder = plan.with_name("job-0-0") / "1"
    folder.mkdir(parents=True)
    for name, value in {"SLURM_ARRAY_JOB_ID": job_id, "SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_ID": job_id}.items():
        monkeypatch.setenv(name, value)
    digest = plan_sha256(Batch.read_file(plan) or Batch())
    monkeypatch.setattr("sys.argv", ["job", "slurm", str(plan), digest, "0", str(folder), "n1"])
    assert job.main() == 0
    over = folder.with_name(OVER)
    return over.read_text().strip() if over.exists() else None


def test_a_job_whose_launch_is_withdrawn_starts_nothing(
    fake: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("--no-canary") == 0
    folder = numbered(tmp_path / "runs" / "small", 1)
    Withdrawn().write(folder)
    monkeypatch.setattr(job, "run_job", lambda *_: pytest.fail("it starts"))
    assert start(folder / "batch.json", monkeypatch, "1") == "2"


@pytest.mark.parametrize(("job_id", "code"), [("1", None), ("2", "2")])
def test_a_job_of_a_deleted_study_does_not_take_the_runs_of_the_one_in_its_place(
    fake: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job_id: str, code: str | None
) -> None:
    assert run("--no-canary") == 0
    plan = numbered(tmp_path / "runs" / "small", 1) / "batch.json"
    monkeypatch.setattr(job, "run_job", lambda *_: None)
    assert start(plan, monkeypatch, job_id) == code


def jobs_there(cluster: LoopbackCluster) -> set[str]:
    """State and reason of each job in the queue."""
    return set(cluster.run("squeue", "-h", "-r", "-o", "%T %r").stdout.splitlines())


def test_a_failed_canary_holds_the_grid_back_until_a_run_after_the_fix(
    slurm_cluster: LoopbackCluster, tmp_path: Path
) -> None:
    env = {STUB: '{"1/0": "oom"}'}
    study = SlurmStudy(slurm_cluster, tmp_path, archs=("rnn", "gru"), gpus=0, epochs=1, env=env)
    assert study("run", "small.toml", "--canary", "--no-wait").returncode == 0
    wait_for(study.each, "the grid to be held back", until=lambda states: set(states) == {"pending"})
    (reason,) = {str(one["reason"]) for one in study.status()}
    assert reason.startswith("held back: canary ")
    assert "-adam failed: oom: " in reason
    assert "run again after the fix" in reason
    wait_for(lambda: jobs_there(slurm_cluster), "all jobs to be gone", until=lambda found: not found)
    assert [run.attempts() for run in study.runs()] == [[], []]
    study.manifest.write_text(study.manifest.read_text().replace("1/0", "9/0"))
    assert study("run", "small.toml", "--canary", "--no-wait").returncode == 0
    wait_for(study.each, "all runs to end", until=lambda states: set(states) == {"done"})
    assert canary_attempts(tmp_path / "runs/small") == [[1, 2]] * 2


def test_a_launcher_killed_after_each_step_leaves_held_jobs_which_the_next_run_replaces(
    slurm_cluster: LoopbackCluster, tmp_path: Path
) -> None:
    study = SlurmStudy(slurm_cluster, tmp_path, rates=[0.01, 0.02], gpus=0, epochs=1)
    study.add(archs=("gru",), rates=[0.01], ranks=1, gpus=0, cpus=2)
    folder = tmp_path / "killing"
    folder.mkdir()
    for name, step in (("sbatch", "true"), ("scontrol", '[ "$1" = release ]')):
        real = shutil.which(name, path=slurm_cluster.env["PATH"])
        program = folder / name
        program.write_text(f"""#!/bin/sh
cd {folder}
{step} || exec {real} "$@"
number=$(($(cat number) + 1))
echo $number > number
[ $number != "$(cat before)" ] || {{ kill -KILL $PPID; exit 1; }}
{real} "$@"
code=$?
[ $number != "$(cat after)" ] || kill -KILL $PPID
exit $code
""")
        program.chmod(0o755)
    env = {**study.env, "PATH": f"{folder}{os.pathsep}{study.env['PATH']}"}

    def launched(*, before: int = 0, after: int = 0) -> None:
        for file, number in (("number", 0), ("before", before), ("after", after)):
            (folder / file).write_text(f"{number}\n")
        done = commands.run(study.command("run", "small.toml", "--canary", "--no-wait"), cwd=tmp_path, env=env)
        assert (done.returncode == 0) == (before == after), done.stderr

    steps = ("the array of the canaries", "the first array", "the second array", "the release")
    for number, step in enumerate(steps, start=1):
        launched(before=number)
        if step != "the release":
            launched(after=number)
        wait_for(lambda: jobs_there(slurm_cluster) <= STUCK, f"jobs that cannot start, after {step}")
    launched()
    wait_for(study.each, "all runs to end", until=lambda states: set(states) == {"done"})
    assert [run.attempts() for run in study.runs()] == [[1]] * 3
    assert canary_attempts(tmp_path / "runs/small") == [[1]] * 2
    wait_for(lambda: jobs_there(slurm_cluster), "no job to be left", until=lambda found: not found)

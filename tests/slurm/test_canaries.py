"""Canaries of grids on SLURM: what is submitted, what a failure does, and what a killed launcher leaves."""

import os
import shutil
from pathlib import Path

import pytest

import launch
from jobs.scheduled import again, job
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


def test_the_grid_waits_for_the_end_of_held_canaries_which_are_released_last(fake: FakeSlurm, tmp_path: Path) -> None:
    assert run("--canary") == 0
    first, second = fake.jobs()["1_0"], fake.jobs()["2_0"]
    assert first.options["job-name"] == "seqlm-small-canary"
    assert second.options["dependency"] == "afterany:1"
    steps = [call[:2] for call in fake.calls("sbatch", "scontrol") if "show" not in call]
    assert [step[0] for step in steps] == ["sbatch", "sbatch", "scontrol"]
    assert fake.calls("scontrol")[-1] == ["scontrol", "release", "1"]
    assert len(fake.jobs()) == 3, "one canary, since both runs are one pair, and two runs"
    assert run("--canary") == 0
    assert len(fake.jobs()) == 3, "nothing of it is replaced"


def test_a_grid_that_sbatch_refuses_leaves_no_canary(fake: FakeSlurm, tmp_path: Path) -> None:
    with fake.opened() as room:
        room.most_jobs = 1
    assert run("--canary") == 3
    assert {one.state for one in fake.jobs().values()} == {"CANCELLED"}
    with fake.opened() as room:
        room.most_jobs = 100
    assert run("--canary") == 0
    assert [one.state for one in fake.jobs().values()].count("PENDING") == 3


def test_a_cancelled_grid_needs_no_canary(fake: FakeSlurm, tmp_path: Path) -> None:
    assert run("--canary") == 0
    assert launch.main(["cancel", "small", "--only", "name=*0.01*"]) == 0
    assert fake.jobs()["1_0"].state == "PENDING"
    assert launch.main(["cancel", "small", "--all"]) == 0
    assert {one.state for name, one in fake.jobs().items() if "_" in name} == {"CANCELLED"}


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


def start_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Start the first job of the grid of the first launch; return whether it trains."""
    begun: list[object] = []
    monkeypatch.setattr(job, "run_job", lambda *_: begun.append(True))
    code = start(numbered(tmp_path / "runs" / "small", 1) / "batch.json", monkeypatch, "2")
    assert code == (None if begun else "2")
    return bool(begun)


@pytest.mark.parametrize("has_passed", [False, True])
def test_a_grid_is_withdrawn_unless_its_canary_has_passed_however_slurm_has_ended_that(
    fake: FakeSlurm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    has_passed: bool,
) -> None:
    monkeypatch.setattr(again, "LATE_SECONDS", 0.0)
    assert run("--canary") == 0
    if has_passed:
        pass_canary(tmp_path)
    fake.end("1_0", "OUT_OF_MEMORY")
    fake.end("2_0", "RUNNING")
    assert start_grid(tmp_path, monkeypatch) == has_passed
    assert (Withdrawn.read(numbered(tmp_path / "runs" / "small", 1)) is None) == has_passed
    assert fake.jobs()["2_1"].state == ("PENDING" if has_passed else "CANCELLED")
    if not has_passed:
        launch.main(["status", "small"])
        assert "held back" in capsys.readouterr().out
        assert run("--no-canary") == 0
        assert fake.jobs()["3_0"].state == "PENDING"


def pass_canary(tmp_path: Path) -> RunDirectory:
    study_dir = tmp_path / "runs" / "small"
    (folder,) = Requests(study_dir / "canary").by_run()
    tried = RunDirectory.canary(study_dir, folder)
    tried.attempt_dir(1).mkdir(parents=True)
    CanaryResult(attempt=1).write(tried.path)
    return tried


def test_a_canary_that_passes_late_for_another_node_is_waited_for(
    fake: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("--canary") == 0
    looks = iter([lambda: None, lambda: pass_canary(tmp_path)])
    monkeypatch.setattr(again.time, "sleep", lambda _: next(looks)())
    assert start_grid(tmp_path, monkeypatch)


@pytest.mark.parametrize("is_late", [True, False])
def test_a_job_waits_until_its_node_sees_the_request_that_has_submitted_it(
    fake: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    """Else the run would be what it was before: cancelled, or done in an earlier launch."""
    assert run("--no-canary") == 0
    folder = numbered(tmp_path / "runs" / "small", 1)
    seen: list[list[Path]] = [[], [folder.with_name("000000")], [folder]] if is_late else [[folder]]
    monkeypatch.setattr(again, "listed", lambda _: seen.pop(0))
    monkeypatch.setattr(again.time, "sleep", lambda _: None)
    begun: list[bool] = []
    monkeypatch.setattr(job, "run_job", lambda *_: begun.append(not seen))
    assert start(folder / "batch.json", monkeypatch, "1") is None
    assert begun == [True]


def test_a_grid_whose_canaries_were_launched_again_is_not_withdrawn(
    fake: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("--canary") == 0
    tried = pass_canary(tmp_path)
    launch_again(tried)
    assert tried.observe().state != "done"
    assert start_grid(tmp_path, monkeypatch), "its canaries are those of a later launch"


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

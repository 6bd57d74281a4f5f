"""What a launch on SLURM submits, asks and leaves with the study, with programs that run no job."""

import json
import os
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import launch
from analysis.sections.cost import cost_section
from analysis.study.pools import used_of_pools
from analysis.study.study import load_study
from jobs.attempt.attempt import micro_batches
from jobs.cli.arguments import EXIT_RUN_FAILED
from jobs.cli.view import Watcher
from jobs.manifests.policy import Policy
from jobs.scheduled.submission import JobPlan
from jobs.study.budget import Budget
from jobs.study.folder import read_jobs
from seqlm.files import write_json
from seqlm.reading import listed
from seqlm.resources import Resources
from seqlm.rundir import RunDirectory
from tests.analysis.attempt_files import ORIGIN, at, write_attempt, write_job
from tests.analysis.contents import said
from tests.facts import fail, stop
from tests.fake_slurm import FakeSlurm, Job
from tests.jobs.plan.test_limits import trained
from tests.seqlm.training.studies import runs_in

pytestmark = pytest.mark.process


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    monkeypatch.delenv("SEQLM_BACKEND")
    return FakeSlurm(tmp_path / "fake").on_path(monkeypatch)


KEYS = 'model.hidden_size = 4\noptim.optimizer = "sgd"\noptim.lr = 1\n'
RUN = f'[[run]]\nmodel.arch = "rnn"\n{KEYS}'


def submit(folder: Path, text: str, *words: str) -> int:
    """Launch the study ``s`` on SLURM, in the folder of its manifest; return the exit code."""
    (folder / "m.toml").write_text(f'[study]\nname = "s"\n{text}')
    where = ["--backend", "slurm", "--runs-dir", str(folder)]
    return launch.main(["run", str(folder / "m.toml"), *where, "--no-wait", "--live-code", *words])


@pytest.mark.parametrize(
    ("has_controller", "ranks", "line"), [(False, 1, "Unable to contact slurm controller"), (True, 16, "never fits")]
)
def test_a_cluster_that_does_not_answer_or_is_too_small_is_one_line_and_nothing_is_written(
    fake: FakeSlurm,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    has_controller: bool,
    ranks: int,
    line: str,
) -> None:
    with fake.opened() as room:
        room.has_controller = has_controller
    assert submit(tmp_path, f"{RUN}resources.ranks = {ranks}\n") == 3
    (error,) = capsys.readouterr().err.splitlines()
    assert line in error
    assert not (tmp_path / "s").exists()


def test_longer_runs_are_submitted_first_whatever_the_order_of_the_manifest(fake: FakeSlurm, tmp_path: Path) -> None:
    """A search is only safe for slow starters in this order; SLURM starts the jobs of an array by their numbers."""
    grid = KEYS.replace("hidden_size = 4", "hidden_size = [16, 64, 4, 32]")
    assert (
        submit(tmp_path, f'[search]\nrungs = [1]\n[defaults]\ntrain.epochs = 3\n[[grid]]\nmodel.arch = "rnn"\n{grid}')
        == 0
    )
    jobs = read_jobs(tmp_path / "s")
    numbers = {int(job.id.partition("_")[2]): run_id for run_id, job in jobs.items()}
    assert len({job.id.partition("_")[0] for job in jobs.values()}) == 1
    widths = [re.search(r"hidden(\d+)", numbers[number]) for number in sorted(numbers)]
    assert [int(width[1]) for width in widths if width] == [64, 32, 16, 4]


def test_retry_goes_by_the_policy_of_the_manifest_and_by_what_the_run_needed(fake: FakeSlurm, tmp_path: Path) -> None:
    text = f"[policy]\noom = 1\ncheckpoint_min = 3\n{RUN}"
    retry = ["retry", "s", "--no-wait", "--live-code", "--runs-dir", str(tmp_path)]  # on the backend of before
    assert submit(tmp_path, text, "--set", "policy.timeout=2") == 0
    (run,) = runs_in(tmp_path / "s")
    fail(run, {"kind": "oom", "message": "no memory", "stands": True})
    assert submit(tmp_path, text) == 0
    assert list(fake.jobs()) == ["1_0"], "a failure that stands is for a person to retry"
    assert submit(tmp_path, text, "--set", "policy.timeout=2") == 0
    assert launch.main([*retry, "--kind", "code", "--kind", "diverged"]) == 0
    assert list(fake.jobs()) == ["1_0"]
    assert launch.main([*retry, "--kind", "code", "--kind", "oom", "--max-stalled-retries", "4"]) == 0
    assert list(fake.jobs()) == ["1_0", "2_0"]
    told = JobPlan.read(tmp_path / "s" / "launches" / "000002" / "batch.json")
    assert told.study.policy == Policy(oom=1, checkpoint_min=3, timeout=2, max_stalled_retries=4)
    assert micro_batches(run, batch_size=20, ranks=1) == 2
    (run,) = runs_in(tmp_path / "s")
    assert run.first_attempt() == 2


def test_a_failure_that_only_slurm_knows_of_ends_the_attempt_at_its_last_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeSlurm(tmp_path / "fake", accounting=True).on_path(monkeypatch)
    text = f"[policy]\ncore_hours = 9\n{RUN}resources.ranks = 2\nresources.cpus = 2\n"
    assert submit(tmp_path, text) == 0
    (run,) = runs_in(tmp_path / "s")
    write_attempt(run, 1, start=0, alive=3600, hosts=("n1", "n2"), gpus=(None, None))
    run.lease_dir.mkdir()
    write_json(run.lease_dir / "000001.json", {"attempt": 1, "released": False, "host": "n1", "pid": 1})
    os.utime(run.lease_dir / "000001.json", (ORIGIN + 3606, ORIGIN + 3606))
    fake.end("1", "OUT_OF_MEMORY")  # 63 hours ago, as it were: the attempt's times are of March
    assert submit(tmp_path, text) == 0
    assert list(fake.jobs()) == ["1_0", "2_0"], "the budget is not spent"
    assert (run.end(1).kind, run.end(1).at) == ("oom", at(3606))
    assert Budget(tmp_path / "s", Policy()).spent()["core_hours"] == 2 * 2 * 3606 / 3600
    assert load_study(tmp_path / "s").attempts["seconds"].tolist() == [3606]


def told_of(capsys: pytest.CaptureFixture[str], folder: Path) -> list[tuple[str, str | None]]:
    """State and reason of each run of the study ``s`` in a folder, by `status`."""
    capsys.readouterr()
    assert launch.main(["status", "s", "--json", "--runs-dir", str(folder)]) == 0
    return [(run["state"], run["reason"]) for run in json.loads(capsys.readouterr().out)["data"]["runs"]]


def name_job(study_dir: Path, job: str) -> None:
    """Have the newest plan of a study name another job."""
    file = listed(study_dir / "launches")[-1] / "batch.json"
    plan = json.loads(file.read_text())
    plan["arrays"][0]["job"] = job
    write_json(file, plan)


@pytest.mark.parametrize("accounting", [False, True])
def test_a_plan_that_names_a_job_of_another_folder_has_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], accounting: bool
) -> None:
    fake = FakeSlurm(tmp_path / "fake", accounting=accounting).on_path(monkeypatch)
    with fake.opened() as room:
        room.jobs.append(Job(id="1_0", state="RUNNING", options={"chdir": "/other/launches/000001"}))
    assert submit(tmp_path, RUN) == 0
    fake.end("2", "NODE_FAIL", purged=True)
    name_job(tmp_path / "s", "1")
    ((state, reason),) = told_of(capsys, tmp_path)
    assert state == "pending"
    assert "/other/launches/000001" in str(reason)
    assert submit(tmp_path, RUN) == 0
    assert fake.jobs()["3_0"].state == "PENDING", "its run starts"
    name_job(tmp_path / "s", "1")
    assert launch.main(["cancel", "s", "--all", "--runs-dir", str(tmp_path)]) == 0
    assert fake.jobs()["1_0"].state == "RUNNING"


def test_a_copy_of_a_study_whose_jobs_run_leaves_them_alone_and_has_jobs_of_its_own(
    fake: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--runs-dir", str(tmp_path / "copy"), "--backend", "slurm", "--no-wait", "--live-code"]
    text = f"{RUN}seeds = [1, 2]\n"
    assert submit(tmp_path, text, "--canary") == 0
    for job in ("1", "2"):
        fake.end(job, "RUNNING")
    shutil.copytree(tmp_path / "s", tmp_path / "copy" / "s")
    assert [state for state, _ in told_of(capsys, tmp_path / "copy")] == ["pending"] * 2
    assert launch.main(["run", str(tmp_path / "m.toml"), *words, "--no-canary"]) == 0
    assert launch.main(["cancel", "s", "--all", "--runs-dir", str(tmp_path / "copy")]) == 0
    states = {job.parent: job.state for job in fake.jobs().values()}
    assert states == {1: "RUNNING", 2: "RUNNING", 3: "CANCELLED"}
    assert launch.main(["retry", "s", *words]) == 0
    assert [state for state, _ in told_of(capsys, tmp_path / "copy")] == ["queued"] * 2
    assert [state for state, _ in told_of(capsys, tmp_path)] == ["running"] * 2


def test_jobs_of_a_colleague_in_a_study_are_shown_and_end_by_the_mark_alone(
    fake: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(tmp_path, RUN) == 0
    with fake.opened() as room:
        room.jobs[0].state, room.jobs[0].user = "RUNNING", os.geteuid() + 1
    assert told_of(capsys, tmp_path)[0][0] == "running"
    assert launch.main(["cancel", "s", "--all", "--runs-dir", str(tmp_path)]) == 0
    assert fake.calls("scancel") == []
    assert runs_in(tmp_path / "s")[0].is_cancelled()


def test_a_study_behind_a_link_has_its_jobs(
    fake: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    where = ["--backend", "slurm", "--no-wait", "--live-code", "--runs-dir"]
    (tmp_path / "m.toml").write_text(f'[study]\nname = "s"\n{RUN}')
    assert launch.main(["run", str(tmp_path / "m.toml"), *where, str(tmp_path / "link")]) == 0
    for name in ("link", "there"):
        assert [state for state, _ in told_of(capsys, tmp_path / name)] == ["queued"]
    assert launch.main(["cancel", "s", "--all", "--runs-dir", str(tmp_path / "there")]) == 0
    assert fake.jobs()["1_0"].state == "CANCELLED"


@pytest.mark.parametrize("fit", [False, True])
def test_what_earlier_runs_took_is_asked_for_with_fit_limits_and_else_advised_in_one_line(
    fake: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str], fit: bool
) -> None:
    keys = f"[backend.slurm]\ntimeout_min = 240\nfit_limits = {str(fit).lower()}\n"
    assert submit(tmp_path, f"{keys}{RUN}resources.cpus = 1\n") == 0
    (run,) = runs_in(tmp_path / "s")
    trained(tmp_path / "earlier", 0, config=run.read_config(), resources=Resources(cpus=1, gpus=1), partition="main")
    fake.end("1")
    capsys.readouterr()
    assert submit(tmp_path, f"{keys}{RUN}resources.cpus = 1\n", "--set", "train.epochs=3") == 0
    assert [job.options["time"] for job in fake.jobs().values()] == ["240", "15" if fit else "240"]
    advised = [line for line in capsys.readouterr().err.splitlines() if "fit_limits" in line]
    assert len(advised) == (0 if fit else 1), advised


FIVE = '[study]\nname = "s"\n' + "".join(
    f'[[run]]\nname = "{arch}-{cpus}-{seed}"\nmodel.arch = "{arch}"\nmodel.hidden_size = 4\noptim.optimizer = "sgd"\n'
    f"optim.lr = {cpus}\nseed = {seed}\nresources.cpus = {cpus}\nresources.gpus = 0\nresources.ranks = {ranks}\n"
    for arch, cpus, ranks in (("rnn", 1, 1), ("rnn", 2, 1), ("rnn", 3, 1), ("rnn", 4, 1), ("gru", 2, 2))
    for seed in (0, 1)
)
"""A study of five arrays, two runs each."""


def test_several_arrays_together_keep_to_the_limit_of_the_site_and_plan_says_so(
    fake: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.toml").write_text(FIVE)
    (tmp_path / "site.toml").write_text("max_parallel = 2\n")
    monkeypatch.setenv("SEQLM_SLURM_CONFIG", str(tmp_path / "site.toml"))
    words = [str(tmp_path / "m.toml"), "--backend", "slurm", "--runs-dir", str(tmp_path / "runs")]
    assert launch.main(["plan", *words]) == 0
    said = capsys.readouterr().out
    limits = re.findall(r"^#SBATCH --array=.*%(\d+)$", said, flags=re.MULTILINE)
    waits = re.findall(r"^#SBATCH --dependency=(.*)$", said, flags=re.MULTILINE)
    assert (limits, waits) == (["2"] * 5, [f"afterany:ARRAY_{number}" for number in range(1, 5)])
    assert launch.main(["plan", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["totals"]["max_parallel"] == 2
    assert launch.main(["plan", *words, "--json", "--max-parallel", "40"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["totals"]["max_parallel"] == 40
    assert launch.main(["run", *words, "--no-wait", "--live-code"]) == 0
    jobs = fake.jobs().values()
    waits_for = {job.parent: job.options.get("dependency") for job in jobs}
    assert waits_for == {1: None, **{number: f"afterany:{number - 1}" for number in range(2, 6)}}


def test_several_arrays_divide_the_limit_if_each_has_a_part_of_it(fake: FakeSlurm, tmp_path: Path) -> None:
    arrays = [(1, 6), (2, 3)]  # cores of each run, and runs
    runs = "".join(
        f"{RUN}resources.cpus = {cpus}\nseeds = {list(range(10 * cpus, 10 * cpus + count))}\n" for cpus, count in arrays
    )
    assert submit(tmp_path, runs, "--max-parallel", "3", "--no-canary") == 0
    jobs = {job.parent: job.options for job in fake.jobs().values()}
    assert sorted(int(job["array"].partition("%")[2]) for job in jobs.values()) == [1, 2]
    assert not any("dependency" in job for job in jobs.values())


@pytest.mark.parametrize(
    ("most_jobs", "jobs", "without_job"),
    [
        (1, [("1", "4")], 2),
        (2, [("1", "4"), ("2", "2")], 0),
        (3, [("1", "4")] * 2 + [("2", "2")], 0),
        (4, [("1", "4")] * 3 + [("2", "2")], 0),
        (6, [("1", "1")] * 2 + [("1", "2"), ("1", "3"), ("1", "4"), ("2", "2")], 0),
    ],
)
def test_runs_share_the_jobs_that_the_user_may_submit_and_what_has_none_is_submitted_by_the_next_run(
    fake: FakeSlurm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    most_jobs: int,
    jobs: list[tuple[str, str]],
    without_job: int,
) -> None:
    (tmp_path / "m.toml").write_text(FIVE)
    (tmp_path / "site.toml").write_text("ranks_per_node = 1\n")
    monkeypatch.setenv("SEQLM_SLURM_CONFIG", str(tmp_path / "site.toml"))
    words = [str(tmp_path / "m.toml"), "--backend", "slurm", "--runs-dir", str(tmp_path / "runs"), "--no-wait"]

    def waiting() -> list[Job]:
        return [job for job in fake.jobs().values() if job.state == "PENDING"]

    with fake.opened() as room:
        room.most_jobs = most_jobs
    assert launch.main(["run", *words, "--live-code"]) == 0
    shapes = [(job.options["nodes"], job.options["cpus-per-task"]) for job in waiting()]
    assert (set(shapes), len(shapes)) == (set(jobs), len(jobs))
    assert not any("hold" in job.options for job in waiting())
    capsys.readouterr()
    assert launch.main(["status", "s", "--runs-dir", str(tmp_path / "runs"), "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["data"]["runs"]
    assert Counter(run["state"] for run in runs) == Counter(queued=10 - without_job, pending=without_job)
    assert all("job submit limit" in run["reason"] for run in runs if run["state"] == "pending")
    with fake.opened() as room:
        room.most_jobs = 100
    assert launch.main(["run", *words, "--live-code"]) == 0
    assert len(waiting()) == len(jobs) + without_job


def test_runs_share_the_jobs_that_an_array_of_the_cluster_may_have(fake: FakeSlurm, tmp_path: Path) -> None:
    with fake.opened() as room:
        room.most_of_array = 2
    several = f"{RUN}resources.cpus = 1\nresources.ranks = 2\nseeds = [6, 7, 8]\n[backend.slurm]\nranks_per_node = 1\n"
    assert submit(tmp_path, f"{RUN}seeds = [1, 2, 3, 4, 5]\n{several}") == 0
    assert [job.options["array"] for job in fake.jobs().values()] == ["0-1"] * 4
    told = JobPlan.read(tmp_path / "s" / "launches" / "000001" / "batch.json")
    assert [len(array.runs) for array in told.arrays] == [5, 3]


@pytest.mark.parametrize("most_jobs", [7, 30, 95])
def test_of_the_jobs_that_a_user_may_submit_few_are_left_free(fake: FakeSlurm, tmp_path: Path, most_jobs: int) -> None:
    with fake.opened() as room:
        room.most_jobs = most_jobs
    assert submit(tmp_path, f"{RUN}seeds = {list(range(100))}\n", "--no-canary") == 0
    assert 0.9 * most_jobs - 1 <= len(fake.jobs()) <= most_jobs


def test_a_cluster_that_takes_no_arrays_is_told_in_one_line(
    fake: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with fake.opened() as room:
        room.most_of_array = 0
    assert submit(tmp_path, RUN) == 3
    (error,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("backend slurm")]
    assert "no job arrays (MaxArraySize)" in error
    assert fake.jobs() == {}


@pytest.mark.parametrize("step", ["array-1.sh", "scontrol release"])
def test_a_launch_of_which_a_step_fails_leaves_no_job_and_the_next_one_starts_all(
    fake: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str], step: str
) -> None:
    text = "".join(f'{RUN}name = "{number}"\nseed = {number}\nresources.cpus = {number}\n' for number in (1, 2))
    with fake.opened() as room:
        room.fails = step
    assert submit(tmp_path, text) == 3
    assert "Invalid account" in capsys.readouterr().err
    assert {job.state for job in fake.jobs().values()} == {"CANCELLED"}
    with fake.opened() as room:
        room.fails = "none"
    assert submit(tmp_path, text) == 0
    assert [job.state for job in fake.jobs().values()][-2:] == ["PENDING"] * 2


def test_jobs_that_a_user_holds_stay_and_those_of_a_launch_without_an_end_are_replaced(
    fake: FakeSlurm, tmp_path: Path
) -> None:
    assert submit(tmp_path, f"{RUN}seeds = [1, 2]\n") == 0
    with fake.opened() as room:
        for job in room.jobs:
            job.options["hold"] = ""
    assert submit(tmp_path, f"{RUN}seeds = [1, 2]\n") == 0
    assert [job.state for job in fake.jobs().values()] == ["PENDING"] * 2
    (tmp_path / "s" / "launches" / "000001" / "submitted.json").unlink()  # as if the launcher had been killed before
    assert submit(tmp_path, f"{RUN}seeds = [1, 2]\n") == 0
    assert [job.state for job in fake.jobs().values()] == ["CANCELLED"] * 2 + ["PENDING"] * 2


def test_a_pool_is_planned_in_one_line_and_its_array_is_cancelled_with_its_last_run(
    fake: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = "[backend.slurm]\npool = { jobs = 2, cpus = 3 }\n"
    large = RUN + 'name = "large"\nseed = 9\nresources.cpus = 4\n'
    small = [RUN + f'name = "{name}"\nseed = {number}\n' for number, name in enumerate("abc")]
    assert submit(tmp_path, "".join([pool, *small, large]), "--dry-run") == 0
    assert "3 runs in 2 pool jobs of 3 cores; 1 larger run as an ordinary job\n" in capsys.readouterr().out
    assert submit(tmp_path, "".join([pool, *small, large])) == 0
    assert list(fake.jobs()) == ["1_0", "1_1", "2_0"]
    for name, state in (("a", "PENDING"), ("b", "PENDING"), ("c", "CANCELLED")):
        assert launch.main(["cancel", str(tmp_path / "s"), "--only", f"name={name}"]) == 0
        assert {job: one.state for job, one in fake.jobs().items()} == {"1_0": state, "1_1": state, "2_0": "PENDING"}


def test_the_report_has_the_share_in_which_a_submitted_pool_was_idle(fake: FakeSlurm, tmp_path: Path) -> None:
    pool = "[backend.slurm]\npool = { jobs = 2, cpus = 3 }\n"
    small = [RUN + f'name = "{name}"\nseed = {number}\n' for number, name in enumerate("abc")]
    assert submit(tmp_path, "".join([pool, *small])) == 0
    for run, job in zip(runs_in(tmp_path / "s"), ("1_0", "1_1", "1_0"), strict=True):
        run.create_as_launched()
        write_attempt(run, 1, start=0, end=3600, outcome="interrupted")
        write_job(run, 1, backend="slurm", job=job, cpus=1, gpus=0)
    study = load_study(tmp_path / "s")
    assert used_of_pools(study.directories.values(), study.attempts) == {"core": (6.0, 3.0)}
    assert "6.00 core hours, of which 50 % were idle" in said(cost_section(study).blocks)


def test_runs_of_arrays_that_an_earlier_version_has_submitted_are_read_and_launched_again(
    fake: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their jobs did not take runs of one another. Such a run waits until they all have ended."""
    text = f"{RUN}seeds = [1, 2, 3]\n"
    assert submit(tmp_path, text) == 0
    file = tmp_path / "s/launches/000001/batch.json"
    plan = json.loads(file.read_text())
    del plan["arrays"][0]["most_runs"]
    plan["arrays"][0]["is_pool"] = False
    write_json(file, plan)
    assert [state for state, _ in told_of(capsys, tmp_path)] == ["queued"] * 3
    with fake.opened() as room:
        room.jobs[0].state, room.jobs[1].state = "NODE_FAIL", "RUNNING"
    assert [state for state, _ in told_of(capsys, tmp_path)] == ["queued", "running", "queued"]
    assert submit(tmp_path, text) == 0
    assert list(fake.jobs()) == ["1_0", "1_1", "1_2"], "jobs that may start are not submitted twice"
    for job in ("1_1", "1_2"):
        fake.end(job, purged=True)
    assert submit(tmp_path, text) == 0
    assert [job.state for job in fake.jobs().values()].count("PENDING") == 3


PRIORITIES = """
[study]
name = "s"
[resources]
gpus = 0
[[run]]
name = "short"
model = { arch = "rnn", hidden_size = 4 }
optim = { optimizer = "sgd", lr = 1 }
resources = { cpus = 1 }
[[run]]
name = "long"
model = { arch = "rnn", hidden_size = 40 }
optim = { optimizer = "sgd", lr = 1 }
resources = { cpus = 1 }
[[run]]
name = "urgent"
model = { arch = "gru", hidden_size = 4 }
optim = { optimizer = "sgd", lr = 1 }
resources = { cpus = 2, priority = 5 }
[backend.slurm]
max_parallel = 1
sbatch = { nice = 7 }
"""


def test_plan_prints_the_scripts_that_run_submits(
    fake: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.toml").write_text(PRIORITIES)
    words = [str(tmp_path / "m.toml"), "--backend", "slurm", "--runs-dir", str(tmp_path / "runs")]
    assert launch.main(["plan", *words, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["data"]["scripts"]
    assert launch.main(["run", *words, "--no-wait", "--live-code"]) == 0
    submitted = {job.parent: job for job in fake.jobs().values()}
    asked = [re.sub(r"ARRAY_(\d+)", r"\1", script).replace("REQUEST", "000001") for script in planned]
    assert asked == [re.sub("[0-9a-f]{64}", "DIGEST", job.script) for job in submitted.values()]
    assert [job.options["nice"] for job in submitted.values()] == ["7", "12"], "the urgent run goes first"
    told = JobPlan.read(tmp_path / "runs/s/launches/000001/batch.json")
    assert RunDirectory(told.study.path / next(iter(told.arrays[1].runs))).read_provenance().name == "long"


def test_plan_shows_no_script_once_the_budget_is_spent(
    fake: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.toml").write_text(PRIORITIES)
    words = ["plan", str(tmp_path / "m.toml"), "--backend", "slurm", "--runs-dir", str(tmp_path / "runs"), "--json"]
    for is_spent in (False, True):
        if is_spent:
            write_attempt(RunDirectory(tmp_path / "runs/s/other-1"), 1, start=0, end=3600, gpus=("GPU-1",))
        assert launch.main([*words, "--set", "policy.gpu_hours=0.5"]) == 0
        assert ("scripts" in json.loads(capsys.readouterr().out)["data"]) is not is_spent


def test_the_report_job_is_submitted_with_the_settings_of_the_runs(
    fake: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.toml").write_text(FIVE)
    given = {"account": "lab", "reservation": "r", "nodelist": "n[1-2]", "exclude": "n3"}
    site = "".join(f'{key} = "{value}"\n' for key, value in given.items())
    (tmp_path / "site.toml").write_text(f'{site}sbatch = {{exclusive = true, core_spec = 1, comment = "a b"}}\n')
    monkeypatch.setenv("SEQLM_SLURM_CONFIG", str(tmp_path / "site.toml"))
    words = ["--backend", "slurm", "--runs-dir", str(tmp_path / "runs"), "--no-wait", "--live-code", "--then-report"]
    assert launch.main(["run", str(tmp_path / "m.toml"), *words, "--only", "arch=gru"]) == 0
    options = fake.jobs()["2"].options
    expected = {**given, "exclusive": "", "core-spec": "1", "comment": "a b", "dependency": "afterany:1"}
    assert {key: options.get(key) for key in expected} == expected


def test_runs_wait_on_while_only_the_accounting_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeSlurm(tmp_path / "fake", accounting=True).on_path(monkeypatch)
    assert submit(tmp_path, f"{RUN}seeds = [1, 2, 3]\n") == 0
    assert list(fake.jobs()) == ["1_0", "1_1", "1_2"]
    with fake.opened() as room:
        room.has_controller = False
    capsys.readouterr()
    assert launch.main(["status", "s", "--json", "--runs-dir", str(tmp_path)]) == 0
    runs = json.loads(capsys.readouterr().out)["data"]["runs"]
    assert [run["state"] for run in runs] == ["queued"] * 3
    assert not Watcher(tmp_path / "s").look().is_over


def test_a_run_whose_job_is_gone_without_a_result_is_a_failure_of_the_launch_that_waits(
    fake: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.toml").write_text(f'[study]\nname = "s"\n{RUN}')

    def lose(*_: object) -> None:
        fake.end("1", purged=True)

    monkeypatch.setattr("jobs.cli.launching.watch", lose)
    words = ["run", str(tmp_path / "m.toml"), "--backend", "slurm", "--live-code", "--runs-dir", str(tmp_path)]
    assert launch.main(words) == EXIT_RUN_FAILED


def test_a_final_seed_is_submitted_once_its_first_seed_is_done_and_none_whose_setting_was_stopped(
    fake: FakeSlurm, tmp_path: Path
) -> None:
    grid = RUN.replace("[[run]]", "[[grid]]").replace("optim.lr = 1", "optim.lr = [1, 2]")
    text = f"[search]\nrungs = [1]\nfinal_seeds = 2\n{grid}"
    assert submit(tmp_path, text) == 0
    good, bad = runs_in(tmp_path / "s")
    first_jobs = list(fake.jobs())
    assert submit(tmp_path, text) == 0
    assert list(fake.jobs()) == first_jobs, "the first seeds are queued"
    for run in (good, bad):
        run.create_as_launched()
        run.attempt_dir(1).mkdir(parents=True)
    write_json(good.result_file, {"epochs": 40, "best_val_ppl": 2.0})
    stop(bad, {"metric": "val_ppl", "rung": 1, "value": 9.0, "rank": 2, "of": 2})
    assert submit(tmp_path, text) == 0
    (further,) = [run for run in runs_in(tmp_path / "s") if run not in (good, bad)]
    first = further.first_seed()
    assert first is not None
    assert first.id == good.id
    assert replace(further.read_config(), seed=good.read_config().seed) == good.read_config()
    assert len(fake.jobs()) == len(first_jobs) + 1

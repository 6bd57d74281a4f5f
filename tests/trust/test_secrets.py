"""The submitter's environment is written to no file, and jobs on a cluster get only the variables that are named."""

import json
import os
import subprocess
from pathlib import Path

import pytest

import launch
from jobs.manifests.secrets import advice_on_command, looks_secret, passed
from jobs.scheduled.environment import inherited
from jobs.scheduled.submission import JobPlan
from seqlm.errors import UsageError
from seqlm.training.failure import describe_failure, failure_text
from slurm import doctor
from slurm.scheduler import Slurm
from slurm.settings import read_settings
from slurm.testcluster import LoopbackCluster
from tests import commands
from tests.crawl import Crawl, blank_figures
from tests.fake_slurm import FakeSlurm
from tests.ray_lab import RayLab
from tests.small_study import Study, worker_of
from tests.trust.canaries import OWN, PASSED, SHELL, environment_of, files_with, told_in
from tests.waiting import wait_for

LONG = 4000
"""Epochs of a run that is cancelled before its end."""


def study_on(folder: Path, backend: str, table: str = 'env_pass = ["HF_TOKEN"]') -> Study:
    return Study(folder, epochs=LONG, stub=True, head=f"[backend.{backend}]\n{table}\n", gpus=0, cpus=1)


def slow_study_on_ray(folder: Path) -> Study:
    """A study whose worker leaves the processor to others from its second epoch on."""
    crawl = Crawl(folder, epochs=1)
    variables = ", ".join(f"{name} = {json.dumps(value)}" for name, value in crawl.env.items())
    return study_on(folder, "ray", f'env_pass = ["HF_TOKEN"]\nenv = {{{variables}}}')


def training(study: Study, launcher: subprocess.Popen[str] | None = None) -> int:
    """The process of the study's run, which trains, started by ``launcher`` if that has not ended before."""
    wait_for(study.epochs, "an epoch of the run", until=any, by=launcher)
    (run,) = study.runs()
    return int(worker_of(run)["pid"])


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A submitter's shell that is full of secrets."""
    for name, value in SHELL.items():
        monkeypatch.setenv(name, value)


# -- names -------------------------------------------------------------------------------------------------------------


SECRETS = (
    "HF_TOKEN WANDB_API_KEY AWS_SECRET_ACCESS_KEY AWS_ACCESS_KEY_ID DB_PASSWORD GITHUB_PAT OPENAI_APIKEY CONDA_TOKEN "
    "SLURM_JWT SSH_AUTH_SOCK my_secret PGPASSFILE_PASS SEQLM_NOTIFY"
)
NO_SECRETS = "PATH PWD TOKENIZERS_PARALLELISM NCCL_DEBUG PYTHONPATH KEYBOARD MONKEY_BUSINESS"


def test_the_names_of_secrets_are_known_as_such_and_ordinary_ones_are_not() -> None:
    assert [name for name in SECRETS.split() if not looks_secret(name)] == []
    assert [name for name in NO_SECRETS.split() if looks_secret(name)] == []


def test_a_variable_that_is_to_be_passed_and_is_not_set_is_an_error_that_names_it() -> None:
    assert passed(["HF_TOKEN"], {"HF_TOKEN": "t", "OTHER": "o"}, "backend.ray.env_pass") == {"HF_TOKEN": "t"}
    with pytest.raises(UsageError, match=r"^backend\.ray\.env_pass: HF_TOKEN is not set in this shell; export it"):
        passed(["HF_TOKEN"], {}, "backend.ray.env_pass")


ORDINARY = (
    "HOME PATH USER LANG LC_ALL TMPDIR LD_LIBRARY_PATH VIRTUAL_ENV CONDA_PREFIX PYTHONPATH MODULEPATH LOADEDMODULES "
    "BASH_FUNC_module%% CUDA_HOME NCCL_SOCKET_IFNAME OMP_NUM_THREADS SLURM_CONF SBATCH_ACCOUNT SEQLM_CACHE SCRATCH"
)


def test_jobs_get_what_ordinary_sites_need_and_nothing_that_is_unknown() -> None:
    ordinary = ORDINARY.split()
    environ = {**dict.fromkeys(ordinary, "x"), **SHELL, "HTTPS_PROXY": "http://me:pass@proxy", "CONDA_TOKEN": "x"}
    assert sorted(inherited(environ, Slurm())) == sorted(ordinary)
    assert sorted(inherited(environ, Slurm(), ["HF_TOKEN"])) == sorted([*ordinary, "HF_TOKEN"])


def test_sbatch_keeps_the_token_without_which_it_cannot_submit() -> None:
    assert inherited({"SLURM_JWT": "x"}, Slurm()) == {"SLURM_JWT": "x"}


@pytest.mark.parametrize("backend", ["local", "slurm"])
def test_a_named_variable_that_is_not_set_is_told_before_anything_is_written(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    FakeSlurm(tmp_path / "slurm").on_path(monkeypatch)
    study_on(tmp_path, backend)
    monkeypatch.chdir(tmp_path)
    assert launch.main(["run", "small.toml", "--backend", backend]) == 2
    line = f"error: backend.{backend}.env_pass: HF_TOKEN is not set in this shell; export it, or leave the name out\n"
    assert capsys.readouterr().err == line
    assert not (tmp_path / "runs").exists()


# -- local -------------------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.usefixtures("shell")
def test_a_worker_on_this_machine_inherits_the_shell_and_nothing_of_it_is_written(tmp_path: Path) -> None:
    study = study_on(tmp_path, "local")
    said = [study(word, "small.toml", "--json", *flags) for word, *flags in (["plan"], ["run", "--no-wait"])]
    assert [answer.returncode for answer in said] == [0, 0], said
    found = environment_of(training(study))
    assert {name: found[name] for name in SHELL} == SHELL
    looks = (["status"], ["logs"], ["cancel", "--all"], ["report"])
    blank = {**os.environ, **blank_figures()}
    said += [study(word, "small", "--json", *flags, env=blank) for word, *flags in looks]
    assert [answer.returncode for answer in said] == [0] * 6, said
    assert told_in(answer.stdout + answer.stderr for answer in said) == []
    assert (tmp_path / "runs/small/launch-0001.log").exists()
    assert files_with(tmp_path) == []


def test_a_failure_tells_its_place_and_no_values_of_variables() -> None:
    def fail() -> None:
        token = PASSED["HF_TOKEN"]
        raise RuntimeError(f"refused after {len(token)} letters")

    with pytest.raises(RuntimeError) as caught:
        fail()
    told = [failure_text(caught.value), describe_failure(caught.value, rank=0).to_text()]
    assert "in fail" in told[0]
    assert told_in(told) == []


# -- SLURM -------------------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.usefixtures("shell")
def test_sbatch_is_called_without_the_secrets_of_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = FakeSlurm(tmp_path / "slurm").on_path(monkeypatch)
    study_on(tmp_path / "own", "slurm")
    monkeypatch.chdir(tmp_path / "own")
    assert launch.main(["run", "small.toml", "--backend", "slurm", "--no-wait", "--then-report"]) == 0
    for number in (1, 2):  # the run, and the report
        found = slurm.environment(number)
        assert found["HF_TOKEN"] == PASSED["HF_TOKEN"]
        assert OWN.keys().isdisjoint(found)
        assert (found["PATH"], found["HOME"]) == (os.environ["PATH"], os.environ["HOME"])
    assert told_in(word for call in slurm.calls() for word in call) == []
    assert told_in(job.script for job in slurm.jobs().values()) == []
    assert files_with(tmp_path / "own") == []
    assert os.environ["WANDB_API_KEY"] == OWN["WANDB_API_KEY"]  # it was taken from sbatch alone


@pytest.mark.process
@pytest.mark.parametrize(("more", "arrives"), [("", False), ('env_pass = ["SLURM_JWT"]', True)])
def test_the_token_with_which_sbatch_submits_reaches_no_command_of_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str, arrives: bool
) -> None:
    slurm = FakeSlurm(tmp_path / "slurm").on_path(monkeypatch)
    monkeypatch.setenv("SLURM_JWT", "token")
    study_on(tmp_path, "slurm", f'python = "printenv SLURM_JWT #"\n{more}')  # in place of Python
    monkeypatch.chdir(tmp_path)
    assert launch.main(["run", "small.toml", "--backend", "slurm", "--no-wait", "--then-report"]) == 0
    (slurm.bin / "srun").write_text("#!/bin/sh\nprintenv SLURM_JWT\n")
    (slurm.bin / "squeue").write_text("#!/bin/sh\necho 'COMPLETING|None'\n")
    settings = read_settings({"python": "printenv SLURM_JWT #"}, where="", environ={})
    scripts = {name: job.script for name, job in slurm.jobs().items()}
    scripts |= {} if more else {"doctor": doctor.script(settings, tmp_path, has_gpus=False, wait_s=60)}
    for number, script in scripts.items():
        environ = slurm.environment(int(number)) if number.isdigit() else {**os.environ}
        assert environ["SLURM_JWT"] == "token", "sbatch needs it"
        said = commands.run(["bash", "-c", script.replace("#!/bin/bash", "")], env=environ)
        assert ("token" in said.stdout) == arrives, number


SECRET_ENV = f'env = {{HF_TOKEN = "{PASSED["HF_TOKEN"]}", NCCL_DEBUG = "INFO"}}'


@pytest.mark.process
def test_a_secret_in_env_gets_a_line_of_advice_stands_in_no_file_of_the_study_and_reaches_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm = FakeSlurm(tmp_path / "slurm").on_path(monkeypatch)
    study_on(tmp_path, "slurm", SECRET_ENV)
    monkeypatch.chdir(tmp_path)
    assert launch.main(["run", "small.toml", "--backend", "slurm", "--no-wait"]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "backend.slurm.env.HF_TOKEN looks like a secret" in line
    assert 'env_pass = ["HF_TOKEN"]' in line
    assert told_in([line]) == []
    assert files_with(tmp_path / "runs") == []
    assert slurm.environment(1)["HF_TOKEN"] == PASSED["HF_TOKEN"]
    told = JobPlan.read(tmp_path / "runs/small/launches/000001/batch.json")
    assert told.env["NCCL_DEBUG"] == "INFO"


@pytest.mark.process
def test_a_job_of_slurm_has_the_named_secret_and_no_other_and_the_spool_has_no_more(
    slurm_cluster: LoopbackCluster, tmp_path: Path
) -> None:
    study = study_on(tmp_path, "slurm")
    env = {**slurm_cluster.env, **SHELL, **blank_figures(), "SEQLM_BACKEND": "slurm"}

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return study(*words, env=env)

    said = [command("run", "small.toml", "--no-wait", "--then-report", "--json")]
    assert said[0].returncode == 0, said[0].stderr
    found = environment_of(training(study))
    assert found["HF_TOKEN"] == PASSED["HF_TOKEN"]
    assert OWN.keys().isdisjoint(found)
    assert files_with(slurm_cluster.folder, OWN.values()) == []
    assert files_with(
        slurm_cluster.folder, PASSED.values()
    )  # where SLURM keeps a job's environment: the look itself works
    looks = (["status"], ["logs"], ["cancel", "--all"])
    said += [command(word, "small", "--json", *flags) for word, *flags in looks]
    assert told_in(answer.stdout + answer.stderr for answer in said) == []
    wait_for((tmp_path / "runs/small/report/index.html").exists, "the report")
    assert files_with(tmp_path) == []


# -- Ray ---------------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_a_rank_on_a_ray_cluster_has_the_named_secret_and_no_other_and_no_log_of_ray_has_any(
    ray_cluster: RayLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = slow_study_on_ray(tmp_path)
    for name, value in SHELL.items():  # of the launcher, not of the nodes
        monkeypatch.setitem(ray_cluster.env, name, value)
    argv = study.command()
    launcher = ray_cluster.start([*argv, "run", "small.toml", "--json"], cwd=tmp_path)
    found = environment_of(training(study, launcher))
    assert found["HF_TOKEN"] == PASSED["HF_TOKEN"]
    assert OWN.keys().isdisjoint(found)
    looks = (["status"], ["logs"], ["cancel", "--all"])
    said = [ray_cluster.run([*argv, word, "small", "--json", *flags], cwd=tmp_path) for word, *flags in looks]
    told = [*commands.finish(launcher), *(answer.stdout + answer.stderr for answer in said)]
    assert told_in(told) == []

    before = training(study)
    launcher = ray_cluster.start([*argv, "retry", "small", "--json"], cwd=tmp_path)  # reads no manifest
    after = wait_for(lambda: training(study), "another worker", until=lambda worker: worker != before, by=launcher)
    found = environment_of(after)
    assert found["HF_TOKEN"] == PASSED["HF_TOKEN"]
    assert OWN.keys().isdisjoint(found)
    ray_cluster.run([*argv, "cancel", "small", "--all"], cwd=tmp_path)
    assert told_in(commands.finish(launcher)) == []
    assert files_with(ray_cluster.folder) == []
    assert files_with(tmp_path) == []


@pytest.mark.parametrize(
    ("command", "is_told"),
    [
        ("curl -d @- https://hooks.example.org/services/T024BE7LD/B0182/x8Zk2mQ4tYw9LpVr7NcB3hJd", True),
        ("curl -H 'Authorization: Bearer abcdef0123456789abcdef' https://example.org", True),
        ("mail -s seqlm-study-2026 me@example.org", False),
        ("/home/me/scripts-of-2026/tell_me_that_it_is_over.sh --loud", False),
        (None, False),
    ],
)
def test_a_secret_in_the_command_of_notify_gets_a_warning(command: str | None, is_told: bool) -> None:
    lines = advice_on_command(command)
    assert bool(lines) == is_told
    assert all("url_env" in line and "x8Zk2" not in line for line in lines)

"""On SLURM a small job after all others says that a study is over, with nobody logged in."""

import json
from pathlib import Path

import pytest

import launch
from jobs.study.folder import read_jobs
from slurm.testcluster import LoopbackCluster
from tests.crawl import Crawl
from tests.fake_slurm import FakeSlurm
from tests.jobs.launch.test_notify import numbers
from tests.small_study import SlurmStudy, Study
from tests.waiting import wait_for

pytestmark = pytest.mark.process
NOTIFY = ("[notify]", 'command = "tee -a messages"')


def test_the_job_waits_for_all_arrays_and_gets_the_variable_that_the_study_names_and_no_other_job_does_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeSlurm(tmp_path / "fake")
    fake.on_path(monkeypatch)
    monkeypatch.setenv("SEQLM_NOTIFY", "json://me:pass@host")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    for study_name, has_url in (("plain", False), ("told", True)):
        study = Study(tmp_path, epochs=1, rates=[0.1, 0.2])
        study.add(rates=[0.3], ranks=2, cpus=1, gpus=0)
        study.write("[notify]", 'url_env = "SEQLM_NOTIFY"' if has_url else 'command = "cat"')
        words = ["--backend", "slurm", "--no-wait", "--set", f"study.name={study_name}", "--json"]
        assert launch.main(["run", "small.toml", *words]) == 0
        jobs = json.loads(capsys.readouterr().out)["data"]["jobs"]
        assert len(jobs) == 2
        last = fake.jobs()[str(int(jobs[-1]) + 1)]
        assert last.options["dependency"] == f"afterany:{':'.join(jobs)}"
        assert all(("SEQLM_NOTIFY" in fake.environment(int(job))) == has_url for job in [*jobs, last.id])
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file() and b"pass@" in path.read_bytes()]


def test_a_cluster_that_takes_no_further_job_costs_the_message_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeSlurm(tmp_path / "fake")
    fake.on_path(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Study(tmp_path, epochs=1).write(*NOTIFY)
    with fake.opened() as room:
        room.most_jobs = 1
    assert launch.main(["run", "small.toml", "--backend", "slurm", "--no-wait"]) == 0
    assert "no job sends the message" in capsys.readouterr().err
    assert len(fake.jobs()) == 1


def test_it_comes_once_after_scancel_of_every_array_and_once_after_the_runs_have_gone_on(
    slurm_cluster: LoopbackCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crawl = Crawl(tmp_path, epochs=1)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    study = SlurmStudy(slurm_cluster, tmp_path, rates=[0.01, 0.02, 0.03], epochs=3, env=crawl.env)
    study.write(*NOTIFY)
    study_dir = tmp_path / "runs" / "small"
    assert study("run", "small.toml", "--no-wait").returncode == 0
    study.until_they_train()
    assert numbers(home) == []
    slurm_cluster.run("scancel", *{job.id.partition("_")[0] for job in read_jobs(study_dir).values()})
    wait_for(lambda: numbers(home) == ["1/over"], "the message")
    assert "over: 3 cancelled" in (home / "messages").read_text()
    crawl.end()
    again = study("retry", "small", "--no-wait")
    assert again.returncode == 0, again.stderr
    wait_for(lambda: len(numbers(home)) == 2, "the second message")
    assert numbers(home) == ["1/over", "2/over"]
    assert "over: 3 done" in (home / "messages").read_text()
    assert study.each() == ["done"] * 3

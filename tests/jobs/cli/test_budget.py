"""A budget on the command line, and what else `plan` says below its table."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

import launch
from seqlm import machine
from seqlm.config import RunConfig
from seqlm.files import write_json_lines
from seqlm.records.runs import Provenance
from seqlm.rundir import RunDirectory
from tests import commands
from tests.analysis.attempt_files import write_attempt
from tests.crawl import Crawl
from tests.small_study import Study

SIZES = 'model.hidden_size = [16, 32, 64]\nmodel.arch = ["rnn"]'


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    made = Study(tmp_path)
    manifest = (tmp_path / "small.toml").read_text().replace('model.arch = ["rnn"]', SIZES)
    (tmp_path / "small.toml").write_text(f"{manifest}\n[resources]\ncpus = 1\ngpus = 0\n")
    return made


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert launch.main([*words, "--json"]) == 0
    data: dict[str, Any] = json.loads(capsys.readouterr().out)["data"]
    return data


def says(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert launch.main([*words]) == 0
    return capsys.readouterr().out


def test_plan_says_what_is_spent_and_what_the_rest_needs(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    data = ask(capsys, "plan", "small.toml")
    assert data["budget"] is None
    unknown = says(capsys, "plan", "small.toml", "--set", "policy.core_hours=2")
    assert "budget: 0 of 2 core hours spent; it is not known what the rest needs" in unknown

    # One run has trained an epoch, for half an hour on two threads.
    first = RunDirectory(Path(data["runs"][0]["directory"]))
    first.create(RunConfig.from_dict(data["runs"][0]["config"]), Provenance(name="first"))
    write_json_lines(first.metrics_file, [{"epoch": 0, "val_ppl": 9.0, "train_tokens_per_second": 1.0}])
    first.last_checkpoint.touch()
    write_attempt(first, 1, start=0, end=1800)
    needs = sum(run["seconds"] for run in ask(capsys, "plan", "small.toml")["runs"]) / 3600
    limit = ("--set", "policy.core_hours=5")
    assert f"budget: 1 of 5 core hours spent; the rest needs at most about {needs:.3g} core hours" in says(
        capsys, "plan", "small.toml", *limit
    )
    budget = ask(capsys, "plan", "small.toml", *limit)["budget"]
    assert budget == {"core_hours": {"limit": 5, "spent": 1, "needs": pytest.approx(needs)}}


@pytest.mark.parametrize(
    ("gpus", "precision", "advised"), [("1", "fp32", True), ("1", "tf32", False), ("0", "fp32", False)]
)
def test_plan_recommends_tf32_to_runs_in_fp32_on_gpus(
    study: Study,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    gpus: str,
    precision: str,
    advised: bool,
) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: [machine.Gpu("GPU-aa", "Card")])
    words = ("--set", f"resources.gpus={gpus}", "--set", f"train.precision={precision}")
    assert ("tensor cores" in says(capsys, "plan", "small.toml", *words)) == advised


@pytest.mark.process
def test_a_launch_stops_when_the_budget_is_spent_and_goes_on_when_it_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in Crawl(tmp_path, epochs=0).env.items():  # no epoch ends, so that no time is expected
        monkeypatch.setenv(name, value)
    study = Study(tmp_path, archs=("rnn", "gru"), stub=True)
    words = ("run", "small.toml", "--max-parallel", "1", "--set", "resources.cpus=1", "--set")
    done = study(*words, "policy.core_hours=0.0003")  # about a second
    assert done.returncode == 1, done.stderr
    assert "budget of 0.0003 core hours is spent; 1 run stops at a checkpoint" in done.stderr
    assert done.stdout.count("waits: budget of 0.0003 core hours is spent") == 2, "in the table at the end"
    started = next(run for run in study.runs() if run.attempts())
    assert not any(run.failures() for run in study.runs())
    assert [run.attempts() for run in study.runs()].count([]) == 1, "the other run has not started"
    saved = started.progress()
    assert saved > (0, 0)
    data = commands.ask(["status", "small"], folder=tmp_path, env=os.environ)
    assert {run["state"] for run in data["runs"]} == {"pending"}
    spent = data["budget"]["core_hours"]["spent"]
    assert spent >= 0.0003

    done = study(*words, f"policy.core_hours={spent + 0.0003}", "--only", f"id={started.id}")
    assert done.returncode == 1
    assert started.attempts() == [1, 2]
    assert started.progress() > saved, "a higher budget lets it go on"

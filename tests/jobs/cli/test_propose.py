"""``propose``: from a study with results to ``[[run]]`` tables that its manifest accepts."""

from __future__ import annotations

import json
import math
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

import launch
from jobs.manifests.load import load_manifest
from jobs.plan.proposals import NEAR, setting_of
from jobs.plan.record import record_of, write_record
from jobs.spec import RunSpec
from seqlm.files import write_json, write_json_lines
from seqlm.rundir import RunDirectory
from tests.analysis.synthetic import make_result
from tests.facts import fail, stop

MANIFEST = """
[study]
name = "s"

[defaults]
data.corpus = "ptb"
model.num_heads = 4
model.num_layers = 1
train.epochs = 8

[[sample]]
count = 20
model.arch = ["gru", "transformer"]
model.hidden_size = { int = [64, 256], step = 64 }
optim.optimizer = "adam"
optim.lr = { log_uniform = [1e-5, 1e-1] }
"""
SECOND = """
[[sample]]
name = "schedule"
count = 6
seeds = [1, 2]
model.arch = "rnn"
model.hidden_size = 64
optim.optimizer = "sgd_schedule"
optim.lr = { log_uniform = [0.1, 100] }
resources.ranks = 2
"""
GRID = """
[study]
name = "s"

[defaults]
data.corpus = "ptb"
train.epochs = 8

[[grid]]
model.arch = ["rnn", "gru"]
model.hidden_size = [64, 256]
optim.optimizer = "adam"
optim.lr = [1e-4, 1e-3, 1e-2]
"""


def ppl_of(keys: Mapping[str, Any]) -> float:
    """Lowest, 100, for a GRU with a learning rate of 1e-3."""
    return 100 + 40 * abs(math.log10(keys["optim.lr"]) + 3) + 30 * (keys["model.arch"] != "gru")


class Study:
    """A manifest and its study, some of whose runs have results."""

    def __init__(self, folder: Path, text: str = MANIFEST) -> None:
        self.manifest = folder / "s.toml"
        self.manifest.write_text(text, "utf-8")
        self.folder = folder / "runs" / "s"
        self.folder.mkdir(parents=True)
        loaded = load_manifest(self.manifest)
        self.specs = loaded.runs
        write_record(self.folder, record_of(loaded, loaded.runs, None), [], print)

    def train(self, spec: RunSpec, ended: str = "done") -> RunDirectory:
        """Make the folder of a run that has ended in this way."""
        run = RunDirectory.locate(self.folder, spec.name, spec.fingerprint)
        run.create(spec.config, {"name": spec.name, "order": spec.order})
        epochs = 8 if ended == "done" else 3
        best = ppl_of(spec.config.by_key())
        records = [
            {"epoch": e, "val_ppl": best + 8 - e, "train_ppl": best / 2, "val_loss": math.log(best + 8 - e)}
            for e in range(epochs)
        ]
        write_json_lines(run.metrics_file, records)
        if ended == "done":
            write_json(run.result_file, make_result([{**one, "elapsed_seconds": 1.0} for one in records]))
        elif ended == "stopped":
            stop(run, {"metric": "val_ppl", "rung": 3, "value": best + 6, "rank": 9, "of": 9})
        elif ended == "diverged":
            fail(run, {"kind": "diverged", "message": "bad"})
        return run

    def train_all(self) -> Study:
        for spec in self.specs:
            self.train(spec)
        return self

    def propose(self, *words: str) -> int:
        return launch.main(["propose", str(self.folder), *words])


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path).train_all()


def document(capsys: pytest.CaptureFixture[str], study: Study, *words: str) -> Any:
    capsys.readouterr()
    assert study.propose("--json", *words) == 0
    return json.loads(capsys.readouterr().out)["data"]


def refusal(capsys: pytest.CaptureFixture[str], study: Study, *words: str) -> str:
    capsys.readouterr()
    assert study.propose(*words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err


# -- what is printed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [MANIFEST, MANIFEST + SECOND, GRID], ids=["sample", "two samples", "grid"])
def test_what_is_printed_can_be_added_to_the_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    study = Study(tmp_path, text).train_all()
    assert study.propose("--count", "6") == 0
    printed = capsys.readouterr().out
    tables = tomllib.loads(printed)["run"]
    assert len(tables) == 6
    study.manifest.write_text(text + printed, "utf-8")
    after = load_manifest(study.manifest)
    before = {setting_of(spec.config.by_key()) for spec in study.specs}
    added = [spec for spec in after.runs if setting_of(spec.config.by_key()) not in before]
    assert {spec.name.removesuffix("-seed1").removesuffix("-seed2") for spec in added} == {
        one["name"] for one in tables
    }
    assert len(after.runs) == len(study.specs) + len(added)
    for spec in added:
        if spec.config.model.arch == "rnn" and "schedule" in text:
            assert (spec.resources.ranks, spec.config.seed in (1, 2)) == (2, True)
        assert spec.config.train.epochs == 8
    capsys.readouterr()


def test_keys_that_have_their_default_in_all_runs_are_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = '[[run]]\nmodel.arch = "rnn"\nmodel.hidden_size = 64\noptim = { optimizer = "adam", lr = 1e-3 }\n'
    text = f"{GRID}train.clip_norm = 0.25\n{other}train.clip_norm = 1\n"
    for one in document(capsys, Study(tmp_path, text).train_all(), "--count", "3")["proposals"]:
        needed = {"data.corpus", "model.arch", "model.hidden_size", "optim.optimizer", "optim.lr", "train.clip_norm"}
        assert set(one["values"]) == needed


def test_what_was_proposed_before_is_not_proposed_again(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither before its launch, if the manifest is given, nor after, from the record of the study."""
    study.propose("--count", "4")
    study.manifest.write_text(study.manifest.read_text("utf-8") + capsys.readouterr().out, "utf-8")
    loaded = load_manifest(study.manifest)
    before = {spec.name for spec in loaded.runs}
    assert len(before) == 24
    words = ["propose", str(study.manifest), "--runs-dir", str(study.folder.parent), "--count", "4"]
    assert launch.main(words) == 0
    assert not before & {one["name"] for one in tomllib.loads(capsys.readouterr().out)["run"]}
    write_record(study.folder, record_of(loaded, loaded.runs, None), [], print)
    assert not before & {one["name"] for one in document(capsys, study, "--count", "4")["proposals"]}


@pytest.mark.slow
def test_proposals_follow_the_best_runs_and_the_seed_decides(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, study, "--count", "16")
    assert found == document(capsys, study, "--count", "16")
    assert found["proposals"] != document(capsys, study, "--count", "16", "--seed", "1")["proposals"]
    values = [one["values"] for one in found["proposals"]]
    assert mean(map(ppl_of, values)) < mean(ppl_of(spec.config.by_key()) for spec in study.specs) - 10
    assert {one["model.hidden_size"] for one in values} <= {64, 128, 192, 256}
    assert all(float(f"{one['optim.lr']:.4g}") == one["optim.lr"] for one in values)
    assert all(one["nearest"]["distance"] >= NEAR for one in found["proposals"])
    assert (found["finished"], found["stopped"], found["diverged"]) == (20, 0, 0)


def test_the_reason_is_the_nearest_run_and_the_mean_of_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Study(tmp_path)
    only = study.specs[0]
    study.train(only)
    (found,) = document(capsys, study, "--count", "1")["proposals"]
    assert found["nearest"]["name"] == only.name
    assert found["nearest"]["value"] == pytest.approx(ppl_of(only.config.by_key()) + 1)
    assert found["predicted"] == pytest.approx(ppl_of(only.config.by_key()) + 1)
    assert 0 < found["nearest"]["distance"] <= 1
    assert "nearest" in found["predicted_by"]
    study.propose("--count", "1")
    printed = capsys.readouterr().out
    assert (
        f"# 1: predicted val_ppl {ppl_of(only.config.by_key()) + 1:.5g}; nearest run {only.name} (finished with val_ppl"
        in printed
    )


def test_diverged_runs_count_as_the_worst(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study(tmp_path)
    for spec in study.specs:
        study.train(spec, "diverged" if spec.config.optim.lr > 1e-3 else "done")
    found = document(capsys, study, "--count", "16")
    assert found["diverged"] == sum(spec.config.optim.lr > 1e-3 for spec in study.specs) > 5
    assert sum(one["values"]["optim.lr"] <= 1e-3 for one in found["proposals"]) > 8


def test_runs_that_are_not_over_do_not_count(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    for run in list(RunDirectory.unordered_in(study.folder))[:5]:
        run.result_file.unlink()
    assert document(capsys, study)["finished"] == 15


@pytest.mark.slow
def test_stopped_runs_count_with_their_last_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study(tmp_path)
    first, second = study.specs[:2]
    study.train(first)
    study.train(second, "stopped")
    found = document(capsys, study, "--count", "30")
    assert (found["finished"], found["stopped"], found["diverged"]) == (1, 1, 0)
    nearest = {one["nearest"]["name"]: one["nearest"]["value"] for one in found["proposals"]}
    values = [ppl_of(first.config.by_key()) + 1, ppl_of(second.config.by_key()) + 6]
    assert nearest == pytest.approx(dict(zip([first.name, second.name], values, strict=True)))
    assert all(min(values) < one["predicted"] < max(values) for one in found["proposals"])
    assert study.propose("--count", "30") == 0
    assert f"nearest run {second.name} (stopped with val_ppl {values[1]:.5g}, distance" in capsys.readouterr().out


def test_the_metric_is_that_of_the_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study(tmp_path, MANIFEST + '[search]\nrungs = [3]\nmetric = "train_ppl"\n').train_all()
    for given in (study.folder, study.manifest):
        capsys.readouterr()
        words = ["propose", str(given), "--runs-dir", str(study.folder.parent), "--count", "1", "--json"]
        assert launch.main(words) == 0
        found = json.loads(capsys.readouterr().out)["data"]
        assert found["metric"] == "train_ppl"
        assert found["proposals"][0]["nearest"]["value"] < 100


# -- what cannot be proposed ---------------------------------------------------------------------------------------


def test_a_study_without_a_finished_run_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study(tmp_path)
    study.train(study.specs[0], "diverged")
    assert refusal(capsys, study) == "error: s: expected at least one finished run to learn from, found none\n"


def test_a_study_in_which_nothing_varies_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = GRID.replace("[1e-4, 1e-3, 1e-2]", "1e-3").replace("[64, 256]", "64")
    assert "add a [[sample]] with ranges" in refusal(capsys, Study(tmp_path, text).train_all())


def test_finished_runs_outside_the_ranges_get_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = MANIFEST + '[[run]]\nmodel.arch = "rnn"\nmodel.hidden_size = 8\noptim.optimizer = "adam"\noptim.lr = 1.0\n'
    study = Study(tmp_path, text)
    study.train(next(spec for spec in study.specs if spec.config.model.arch == "rnn"))
    assert "within the ranges of [[sample]]" in refusal(capsys, study)


def test_a_study_that_has_every_setting_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = MANIFEST.replace("count = 20", "count = 8").replace("{ log_uniform = [1e-5, 1e-1] }", "1e-3")
    study = Study(tmp_path, text).train_all()
    assert "every setting in its ranges is in the study already, or nearly" in refusal(capsys, study, "--count", "2")


def test_fewer_settings_than_asked_for_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = MANIFEST.replace("count = 20", "count = 6").replace("{ log_uniform = [1e-5, 1e-1] }", "1e-3")
    study = Study(tmp_path, text).train_all()
    assert study.propose("--count", "3") == 0
    printed = capsys.readouterr()
    assert printed.err == "found only 2 of 3 settings that are not in the study already, or nearly\n"
    assert len(tomllib.loads(printed.out)["run"]) == 2


def test_a_seed_that_is_too_large_is_one_line(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert "a whole number from 0 to 2^32 - 1, got 4294967296" in refusal(capsys, study, "--seed", "4294967296")


def test_without_optuna_one_line_says_what_to_install(
    study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    line = 'error: propose: the package optuna is not installed; use: pip install "optuna>=4.1,<6"\n'
    assert refusal(capsys, study) == line

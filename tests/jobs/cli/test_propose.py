"""``propose``: from a study with results to ``[[run]]`` tables that its manifest accepts."""

from __future__ import annotations

import dataclasses
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
from jobs.plan.proposals import setting_of
from jobs.plan.record import record_of, write_record
from jobs.spec import RunSpec
from seqlm.files import write_json, write_json_lines
from seqlm.rundir import RunDirectory
from tests.analysis.hand_made import result_of
from tests.facts import fail, make_folder, stop

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
LINKED = """
model.hidden_size = { log_int = [16, 512], step = 16 }
model.embedding_size = "=model.hidden_size"
only = ["hidden_size * optim.lr < 1"]
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

    def train(self, spec: RunSpec, ended: str = "done", best: float | None = None) -> RunDirectory:
        """Make the folder of a run that has ended in this way, by default with the perplexity of ``ppl_of``."""
        run = make_folder(self.folder, spec)
        epochs = 8 if ended == "done" else 3
        best = ppl_of(spec.config.by_key()) if best is None else best
        records = [
            {"epoch": e, "val_ppl": best + 8 - e, "train_ppl": best / 2, "val_loss": math.log(best + 8 - e)}
            for e in range(epochs)
        ]
        write_json_lines(run.metrics_file, records)
        if ended == "done":
            write_json(run.result_file, result_of([{**one, "elapsed_seconds": 1.0} for one in records]))
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


@pytest.mark.parametrize("text", [MANIFEST, MANIFEST + SECOND], ids=["sample", "two samples"])
def test_what_is_printed_can_be_added_to_the_manifest_and_is_not_proposed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    """Neither before its launch, if the manifest is given, nor after, from the record of the study."""
    study = Study(tmp_path, text).train_all()
    assert study.propose("--count", "6") == 0
    printed = capsys.readouterr().out
    tables = tomllib.loads(printed)["run"]
    assert len(tables) == 6
    study.manifest.write_text(text + printed, "utf-8")
    loaded = load_manifest(study.manifest)
    settings = {setting_of(spec.config.by_key()) for spec in study.specs}
    added = [spec for spec in loaded.runs if setting_of(spec.config.by_key()) not in settings]
    assert {spec.name.removesuffix("-seed1").removesuffix("-seed2") for spec in added} == {
        one["name"] for one in tables
    }
    assert len(loaded.runs) == len(study.specs) + len(added)
    for spec in added:
        if spec.config.model.arch == "rnn":
            assert (spec.resources.ranks, spec.config.seed in (1, 2)) == (2, True)
        assert spec.config.train.epochs == 8
    before = {spec.name for spec in loaded.runs}
    words = ["propose", str(study.manifest), "--runs-dir", str(study.folder.parent), "--count", "4"]
    assert launch.main(words) == 0
    assert not before & {one["name"] for one in tomllib.loads(capsys.readouterr().out)["run"]}
    write_record(study.folder, record_of(loaded, loaded.runs, None), [], print)
    assert not before & {one["name"] for one in document(capsys, study, "--count", "4")["proposals"]}


@pytest.mark.slow
def test_proposals_follow_the_best_runs_and_the_seed_decides(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, study, "--count", "8")
    assert found == document(capsys, study, "--count", "8")
    assert found["proposals"] != document(capsys, study, "--count", "8", "--seed", "1")["proposals"]
    values = [one["values"] for one in found["proposals"]]
    assert mean(map(ppl_of, values)) < mean(ppl_of(spec.config.by_key()) for spec in study.specs) - 10
    assert {one["model.hidden_size"] for one in values} <= {64, 128, 192, 256}
    assert all(float(f"{one['optim.lr']:.4g}") == one["optim.lr"] for one in values)


def test_runs_count_by_how_they_ended_and_diverged_ones_are_avoided(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Study(tmp_path)
    by_rate = sorted(study.specs, key=lambda spec: spec.config.optim.lr)
    for place, spec in enumerate(by_rate):
        run = study.train(spec, "done" if place < 10 else "stopped" if place < 12 else "diverged")
        if place == 0:
            run.result_file.unlink()  # it is not over
    found = document(capsys, study, "--count", "16")
    assert (found["finished"], found["stopped"], found["diverged"]) == (9, 2, 8)
    first_bad = by_rate[12].config.optim.lr
    assert sum(one["values"]["optim.lr"] < first_bad for one in found["proposals"]) > 8


def test_the_metric_is_that_of_the_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study(tmp_path, MANIFEST + '[search]\nrungs = [3]\nmetric = "train_ppl"\n').train_all()
    for given in (study.folder, study.manifest):
        capsys.readouterr()
        words = ["propose", str(given), "--runs-dir", str(study.folder.parent), "--count", "1", "--json"]
        assert launch.main(words) == 0
        assert json.loads(capsys.readouterr().out)["data"]["metric"] == "train_ppl"


def test_a_run_that_exploded_counts_at_most_as_one_that_has_learned_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its perplexity may have hundreds of digits; means of perplexities had them too."""
    text = MANIFEST.replace('data.corpus = "ptb"', 'data.corpus = "pydoc"\ndata.vocab_size = 1000')
    study = Study(tmp_path, text)
    for place, spec in enumerate(study.specs):
        study.train(spec, "stopped" if place % 5 == 1 else "done", best=1e300 if place % 2 else None)
    for one in document(capsys, study, "--count", "12")["proposals"]:
        assert 1 < one["predicted"] <= 1000 * (1 + 1e-9)
        assert one["nearest"]["value"] <= 1000 * (1 + 1e-9)


def test_a_stopped_run_is_expected_to_fall_as_the_finished_ones_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All runs fall alike here, so with the right correction it does not matter which of them were stopped."""
    study = Study(tmp_path, MANIFEST.replace("count = 20", "count = 12"))
    for place, spec in enumerate(study.specs):
        study.train(spec, "stopped" if place % 3 else "done", best=ppl_of(spec.config.by_key()))
    near = [one["nearest"] for one in document(capsys, study, "--count", "12")["proposals"]]
    values = {spec.name: ppl_of(spec.config.by_key()) + 1 for spec in study.specs}
    assert {one["ended"] for one in near} == {"finished", "stopped"}
    for one in near:
        assert one["value"] == pytest.approx(values[one["name"]], rel=0.02)


def test_runs_whose_results_are_to_come_are_told_and_not_proposed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Study(tmp_path).train_all()
    first = document(capsys, study, "--count", "4")["proposals"]
    lines = [
        f"{key} = {json.dumps(value)}" for one in first for key, value in {"name": one["name"], **one["values"]}.items()
    ]
    tables = "\n".join(line if not line.startswith("name") else f"[[run]]\n{line}" for line in lines)
    study.manifest.write_text(f"{MANIFEST}{tables}\n", "utf-8")
    loaded = load_manifest(study.manifest)
    make_folder(study.folder, loaded.runs[20])
    capsys.readouterr()
    words = ["propose", str(study.manifest), "--runs-dir", str(study.folder.parent), "--count", "4", "--json"]
    assert launch.main(words) == 0
    found = json.loads(capsys.readouterr().out)["data"]
    assert found["running"] == 1
    assert not {setting_of(one["values"]) for one in first} & {setting_of(one["values"]) for one in found["proposals"]}


def test_a_further_seed_that_has_trained_nothing_says_nothing_of_its_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither one that waits, nor one that was stopped before its first epoch."""
    study = Study(tmp_path).train_all()
    expected = document(capsys, study, "--count", "3")
    for number, ended in enumerate(("waits", "stopped")):
        spec = study.specs[number]
        further = dataclasses.replace(spec, config=dataclasses.replace(spec.config, seed=7), name=f"{spec.name}-seed7")
        run = make_folder(study.folder, further)
        if ended == "stopped":
            stop(run, {"metric": "val_ppl", "rung": 3, "value": 9.0, "rank": 9, "of": 9})
    assert document(capsys, study, "--count", "3") == expected


def test_proposals_follow_links_and_meet_the_constraints_of_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = MANIFEST.replace('model.arch = ["gru", "transformer"]', 'model.arch = "gru"')
    text = text.replace("model.hidden_size = { int = [64, 256], step = 64 }", LINKED)
    study = Study(tmp_path, text).train_all()
    assert study.propose("--count", "6") == 0
    study.manifest.write_text(text + capsys.readouterr().out, "utf-8")
    loaded = load_manifest(study.manifest).runs
    assert len(loaded) == 26
    for spec in loaded:
        values = spec.config.by_key()
        assert values["model.embedding_size"] == values["model.hidden_size"] in range(16, 513, 16)
        assert values["model.hidden_size"] * values["optim.lr"] < 1


def test_texts_are_never_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A small vocabulary has low perplexities, whatever the learning rate. Each has proposals of its own."""
    text = MANIFEST.replace('data.corpus = "ptb"', 'data.corpus = "pydoc"')
    text = text.replace("[[sample]]", "[[sample]]\ndata.vocab_size = [100, 10_000]")
    study = Study(tmp_path, text)
    for spec in study.specs:
        keys = spec.config.by_key()
        study.train(spec, best=ppl_of(keys) / (20 if keys["data.vocab_size"] == 100 else 1))
    found = document(capsys, study, "--count", "6")["proposals"]
    assert [one["values"]["data.vocab_size"] for one in found].count(100) == 3
    for one in found:
        own = [ppl_of(spec.config.by_key()) for spec in study.specs]
        low, high = (1, 20) if one["values"]["data.vocab_size"] == 100 else (min(own), max(own) + 8)
        assert low < one["predicted"] < high


# -- from an earlier study -----------------------------------------------------------------------------------------


def test_an_earlier_study_warms_up_a_manifest_that_was_never_launched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one of fewer epochs, whose losses are others."""
    Study(tmp_path).train_all()
    later = tmp_path / "later.toml"
    later.write_text(MANIFEST.replace('name = "s"', 'name = "later"').replace("epochs = 8", "epochs = 40"), "utf-8")
    words = ["propose", str(later), "--runs-dir", str(tmp_path / "runs"), "--count", "8", "--json"]
    assert launch.main([*words, "--from", str(tmp_path / "runs" / "s")]) == 0
    found = json.loads(capsys.readouterr().out)["data"]
    assert (found["study"], found["finished"], found["earlier"]) == ("later", 0, 20)
    values = [one["values"] for one in found["proposals"]]
    assert mean(map(ppl_of, values)) < mean(ppl_of(spec.config.by_key()) for spec in load_manifest(later).runs) - 10
    assert launch.main(words[:-1]) == 2


def test_an_earlier_study_of_another_level_of_losses_is_no_better_for_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its lowest loss counts as the lowest here."""
    (tmp_path / "other").mkdir()
    earlier = Study(tmp_path / "other", MANIFEST.replace("num_layers = 1", "num_layers = 2"))
    for spec in earlier.specs:
        earlier.train(spec, best=ppl_of(spec.config.by_key()) / 50)
    study = Study(tmp_path).train_all()
    lowest = min(ppl_of(spec.config.by_key()) for spec in study.specs)
    found = document(capsys, study, "--count", "6", "--from", str(earlier.folder))
    assert (found["finished"], found["earlier"]) == (20, 20)
    assert all(one["predicted"] > lowest for one in found["proposals"])


def test_an_earlier_study_of_another_optimizer_does_not_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    earlier = Study(tmp_path / "other", MANIFEST.replace('"adam"', '"sgd"')).train_all()
    study = Study(tmp_path).train_all()
    assert document(capsys, study, "--count", "1", "--from", str(earlier.folder))["earlier"] == 0


# -- what cannot be proposed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ended", "is_in_range"), [("diverged", True), ("done", False)])
def test_a_study_without_a_finished_run_of_a_sample_gets_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ended: str, is_in_range: bool
) -> None:
    text = MANIFEST + '[[run]]\nmodel.arch = "rnn"\nmodel.hidden_size = 8\noptim.optimizer = "adam"\noptim.lr = 1.0\n'
    study = Study(tmp_path, text)
    study.train(next(spec for spec in study.specs if (spec.config.model.arch != "rnn") == is_in_range), ended)
    assert refusal(capsys, study) == "error: s: expected at least one finished run of a [[sample]], found none\n"


def test_a_study_without_a_sample_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = MANIFEST.replace("[[sample]]\ncount = 20", "[[grid]]").replace("{ log_uniform = [1e-5, 1e-1] }", "[1, 2]")
    text = text.replace("{ int = [64, 256], step = 64 }", "64")
    assert "add one with ranges" in refusal(capsys, Study(tmp_path, text).train_all())


@pytest.mark.parametrize(("drawn", "found"), [(6, 2), (8, 0)])
def test_fewer_settings_than_asked_for_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], drawn: int, found: int
) -> None:
    text = MANIFEST.replace("count = 20", f"count = {drawn}").replace("{ log_uniform = [1e-5, 1e-1] }", "1e-3")
    study = Study(tmp_path, text).train_all()
    if not found:
        assert "every setting in its ranges is in the study already" in refusal(capsys, study, "--count", "3")
        return
    assert study.propose("--count", "3") == 0
    printed = capsys.readouterr()
    assert printed.err == "found only 2 of 3 settings that are not in the study already\n"
    assert len(tomllib.loads(printed.out)["run"]) == 2


def test_a_wrong_seed_and_a_missing_optuna_are_one_line(
    study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "a whole number from 0 to 2^32 - 1, got 4294967296" in refusal(capsys, study, "--seed", "4294967296")
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert 'pip install "optuna>=5,<6"' in refusal(capsys, study)
    monkeypatch.undo()
    monkeypatch.setattr("optuna.__version__", "4.6.0")
    assert 'pip install "optuna>=5,<6"' in refusal(capsys, study)


def test_a_proposal_names_the_nearest_run_and_predicts_from_the_three_nearest(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    def apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
        arch = one["model.arch"] != other["model.arch"]
        size = (one["model.hidden_size"] - other["model.hidden_size"]) / 192
        rate = math.log10(one["optim.lr"] / other["optim.lr"]) / 4
        return math.sqrt((arch + size**2 + rate**2) / 3)

    found = document(capsys, study, "--count", "3")
    assert study.propose("--count", "3") == 0
    printed = capsys.readouterr().out
    for one in found["proposals"]:
        keys = [(spec, spec.config.by_key()) for spec in study.specs]
        ranked = sorted((apart(one["values"], values), spec.name, ppl_of(values) + 1) for spec, values in keys)[:3]
        near = one["nearest"]
        assert near["name"] == ranked[0][1]
        assert (near["distance"], near["value"]) == pytest.approx((ranked[0][0], ranked[0][2]))
        weights = [1 / distance for distance, _, _ in ranked]
        losses = [math.log(value) for _, _, value in ranked]
        mean_loss = sum(map(math.prod, zip(weights, losses, strict=True))) / sum(weights)
        assert one["predicted"] == pytest.approx(math.exp(mean_loss))
        assert f"nearest run {near['name']} (val_ppl {near['value']:.5g}), distance {near['distance']:.2f}" in printed

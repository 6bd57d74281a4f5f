"""Numbers, variants and entries of the plan, in studies that several launches have left."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.report import write_report
from analysis.sections.published import published_section
from analysis.sections.unfinished import open_runs_table
from analysis.study.numbering import VariantNumber
from analysis.study.study import StudyFiles, load_study
from jobs.manifests.load import load_manifest
from jobs.plan.record import record_of, write_record
from seqlm.files import write_json, write_json_lines
from seqlm.rundir import RunDirectory
from tests.analysis.contents import table
from tests.analysis.hand_made import make_provenance, result_of

PAPER = Path(__file__).parents[3] / "jobs" / "manifests" / "paper.toml"


def launch(
    study_dir: Path,
    number: int,
    val: Sequence[float],
    *overrides: str,
    manifest: Path = PAPER,
    train: Sequence[float] | None = None,
    at: str = "2026-03-01T09:00:00+00:00",
) -> RunDirectory:
    """Launch one run of a manifest with ``--set``, as ``run --only`` does, and make up its perplexities."""
    study_dir.mkdir(exist_ok=True)
    found = load_manifest(manifest, overrides)
    spec = found.runs[number - 1]
    told: list[str] = []
    write_record(study_dir, record_of(found, [spec], None), [], told.append)
    assert not told
    run = RunDirectory.locate(study_dir, spec.name, spec.fingerprint)
    run.create(spec.config, replace(make_provenance(spec.name, spec.order), entry=spec.entry, launched_at=at))
    epochs = spec.config.train.epochs
    records = [
        {
            "epoch": epoch,
            "train_ppl": (train or [50.0])[min(epoch, len(train or [50.0]) - 1)],
            "val_ppl": val[min(epoch, len(val) - 1)],
            "val_loss": 1.0,
            "epoch_seconds": 1.0,
            "elapsed_seconds": epoch + 1.0,
        }
        for epoch in range(epochs)
    ]
    write_json_lines(run.metrics_file, records)
    write_json(run.result_file, result_of(records))
    return run


def names(study: StudyFiles) -> list[str]:
    return [f"{number} {name}" for number, name in zip(study.runs["number"], study.runs["name"], strict=True)]


@pytest.fixture
def seen(tmp_path: Path) -> StudyFiles:
    """Run 3 whole with bf16, then tried with two epochs; run 6 whole."""
    folder = tmp_path / "paper"
    launch(folder, 6, [350.0, 103.2], train=[66.0])
    launch(folder, 3, [500.0, 196.2], "train.precision=bf16", train=[500.0, 229.8])
    launch(folder, 3, [520.0, 400.0], "train.epochs=2")
    return load_study(folder)


def test_two_launches_of_one_run_keep_its_number_and_the_absent_runs(seen: StudyFiles) -> None:
    assert names(seen) == ["3 rnn-sgd_schedule", "3b rnn-sgd_schedule, bf16", "6 gru-sgd_schedule"]
    assert [run.number for run in seen.absent] == [1, 2, 4, 5, *range(7, 20)]
    assert seen.size == 19
    rows = table([open_runs_table(seen)], "open")
    assert [row["number"] for row in rows] == [str(run.number) for run in seen.absent]
    assert {row["state"] for row in rows} == {"absent"}


def test_a_whole_run_in_other_precision_is_compared_with_the_published_one_and_a_trial_is_not(seen: StudyFiles) -> None:
    rows = table(published_section(seen).blocks, "published")
    assert [(row["number"], row["published_val_ppl"], row["val_ppl"], row["verdict"]) for row in rows] == [
        ("3", "196", "–", "2 of 40 epochs"),
        ("3b", "196", "196.20", "within"),
        ("6", "103", "103.20", "within"),
    ]


def test_the_planned_run_comes_before_its_variants(tmp_path: Path) -> None:
    launch(tmp_path / "paper", 3, [196.2], "train.precision=bf16")
    launch(tmp_path / "paper", 3, [196.0], at="2026-03-02T09:00:00+00:00")
    study = load_study(tmp_path / "paper")
    assert names(study) == ["3 rnn-sgd_schedule", "3b rnn-sgd_schedule, bf16"]
    rows = table(published_section(study).blocks, "published")
    assert [(row["number"], row["published_train_ppl"]) for row in rows] == [("3", "230"), ("3b", "230")]


def test_expectations_and_groups_are_those_of_the_manifest_as_written(tmp_path: Path) -> None:
    folder = tmp_path / "paper"
    for number in (5, 6):
        launch(folder, number, [100.0], "train.precision=bf16")
    study = load_study(folder)
    third = study.expectations[2]
    ids = dict(zip(study.runs["number"], study.runs["id"], strict=True))
    assert (third.lower, third.higher) == ((ids[6],), (ids[5],))
    assert names(study) == ["5 gru-sgd, bf16", "6 gru-sgd_schedule, bf16"], (
        "alone at its place, a variant has no letter"
    )
    assert list(study.groups) == ["Model comparison", "Optimizers", "Hyperparameters"]
    assert [number for number in ids if ids[number] in study.groups["Model comparison"]] == [6]


SMALL = """
[study]
name = "s"
[defaults]
model.hidden_size = 8
data.corpus = "ptb"
optim.lr = 1.0
train.epochs = 2
"""
GRU = '[[run]]\nmodel.arch = "gru"\noptim.optimizer = "{}"\n'


def manifest(folder: Path, name: str, *optimizers: str, more: str = "") -> Path:
    path = folder / name
    path.write_text(SMALL + "".join(map(GRU.format, optimizers)) + more)
    return path


def test_what_another_manifest_planned_is_kept_and_follows(tmp_path: Path) -> None:
    one = manifest(tmp_path, "one.toml", "sgd", "adam")
    two = manifest(tmp_path, "two.toml", "sgd_schedule", "adam")
    folder = tmp_path / "runs"
    launch(folder, 1, [90.0], manifest=one)
    launch(folder, 1, [80.0], manifest=two)
    for _ in range(2):
        study = load_study(folder)
        assert names(study) == ["1 gru-sgd", "3 gru-sgd_schedule"]
        assert [(run.number, run.name) for run in study.absent] == [(2, "gru-adam")], "planned twice, it is one run"
        launch(folder, 1, [90.0], manifest=one)


def test_what_an_edited_manifest_plans_no_more_is_no_longer_absent(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    launch(folder, 1, [90.0], manifest=manifest(tmp_path, "one.toml", "sgd", "adam"))
    launch(folder, 1, [90.0], manifest=manifest(tmp_path, "one.toml", "sgd"))
    assert load_study(folder).absent == []


def test_each_difference_is_named_and_seeds_are_one_setting(tmp_path: Path) -> None:
    one = manifest(tmp_path, "one.toml", "sgd", "adam")
    folder = tmp_path / "runs"
    launch(folder, 1, [90.0], manifest=one)
    changes = [["seed=2"], ["model.hidden_size=16", "optim.lr=0.5", "train.precision=bf16", "seed=3", "train.epochs=3"]]
    for day, overrides in enumerate(changes, start=2):
        launch(folder, 1, [91.0], *overrides, manifest=one, at=f"2026-03-0{day}T09:00:00+00:00")
    study = load_study(folder)
    assert names(study) == [
        "1 gru-sgd",
        "1b gru-sgd, seed 2",
        "1c gru-sgd, hidden size 16, lr 0.5, bf16, seed 3",
    ]
    assert study.runs["setting"].tolist() == [1, 1, VariantNumber(1, 2)]


def test_a_name_that_set_changes_is_that_of_its_entry(tmp_path: Path) -> None:
    one = manifest(tmp_path, "one.toml", "sgd")
    folder = tmp_path / "runs"
    launch(folder, 1, [90.0], manifest=one)
    launch(folder, 1, [91.0], "optim.optimizer=adam", manifest=one)
    assert names(load_study(folder)) == ["1 gru-sgd", "1b gru-adam, optimizer adam"]


@pytest.mark.parametrize(
    ("overrides", "compared"),
    [
        (["train.precision=tf32"], True),
        (["seed=2"], True),
        (["train.epochs=3"], True),
        (["optim.lr=0.5"], False),
    ],
)
def test_only_what_changes_no_result_is_compared_with_published_numbers(
    tmp_path: Path, overrides: list[str], compared: bool
) -> None:
    one = manifest(tmp_path, "one.toml", "sgd", more="published.val_ppl = 90\n")
    launch(tmp_path / "runs", 1, [90.0], *overrides, manifest=one)
    assert bool(published_section(load_study(tmp_path / "runs")).blocks) == compared


def test_numbers_of_variants_are_sorted_between_those_of_the_plan() -> None:
    numbers: list[Any] = [4, VariantNumber(3, 27), 3, VariantNumber(3, 1), VariantNumber(3, 25), VariantNumber(3, 26)]
    assert [str(number) for number in sorted(numbers)] == ["3", "3b", "3z", "3aa", "3ab", "4"]


@pytest.mark.slow
@pytest.mark.usefixtures("svg_only")
def test_the_whole_report_shows_variants_by_their_numbers(seen: StudyFiles) -> None:
    report = write_report(*seen.directories.values()).parent
    page = (report / "index.html").read_text("utf-8")
    assert "<b>2 of 19 done</b> · 17 absent · 1 variant (1 done)" in page
    for mark in ('data-run="3b"', 'data-key="3b"', '<input type="checkbox" checked value="3b">'):
        assert mark in page, mark
    assert '"run":"3b"' in page, "the values under the pointer"
    assert 'data-sort="3.00001"' in page
    assert "rnn-sgd\\_schedule, bf16" in (report / "report.md").read_text("utf-8")
    numbers = [run["number"] for run in json.loads((report / "data" / "runs.json").read_text("utf-8"))]
    assert numbers == [3, "3b", 6]
    epochs = json.loads((report / "data" / "epochs.json").read_text("utf-8"))
    assert [epoch["number"] for epoch in epochs].count("3b") == 40
    for title in ("Optimizers", "Model comparison"):
        assert f">{title}<" in page, title

import json
import math
import struct
from pathlib import Path

import pandas as pd
import pytest

from analysis.study.study import StudyFiles, load_study
from seqlm.errors import UsageError
from seqlm.files import write_json_lines, write_text
from tests.analysis.synthetic import CUT, DIVERGED, EXPLODING, INTERRUPTED, fail, make_run
from tests.facts import owned


def row(study: StudyFiles, name: str) -> pd.Series:
    return study.runs.set_index("name").loc[name]


def test_a_folder_without_runs_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no runs"):
        load_study(tmp_path)
    with pytest.raises(UsageError, match="holds no runs"):
        load_study(tmp_path / "nowhere")


def test_epochs_equal_the_lines_of_metrics(study: StudyFiles, study_dir: Path) -> None:
    for run_id in study.runs["id"]:
        lines = (study_dir / run_id / "metrics.jsonl").read_text().splitlines()
        complete = [json.loads(line) for line in lines if line.endswith("}")]
        table = study.epochs_of(run_id)
        assert len(table) == len(complete)
        for column in complete[0]:
            expected = [math.nan if record[column] is None else record[column] for record in complete]
            assert table[column].astype(float).tolist() == pytest.approx(expected, rel=0, abs=0, nan_ok=True)


def test_null_stays_nan_and_never_becomes_a_best_or_a_zero(study: StudyFiles) -> None:
    diverged = row(study, DIVERGED)
    values = study.epochs_of(diverged["id"])["val_ppl"]
    assert math.isnan(values.iloc[-1])
    assert math.isnan(diverged["final_val_ppl"])
    assert diverged["val_ppl"] == values.min() > 0
    assert diverged["best_epoch"] == 5


def test_a_run_whose_every_epoch_is_nan_has_no_best(tmp_path: Path) -> None:
    run = make_run(tmp_path, 0, epochs=2, done=False)
    records, _ = run.read_metrics()
    write_json_lines(run.metrics_file, [{**record, "val_ppl": None, "train_ppl": None} for record in records])
    fail(run, "diverged", "the loss is not a finite number")
    only = load_study(tmp_path).runs.iloc[0]
    assert math.isnan(only["val_ppl"])
    assert pd.isna(only["best_epoch"])
    assert only["epochs_done"] == 2


def test_a_cut_metrics_line_gives_a_warning_and_the_remaining_epochs(study: StudyFiles) -> None:
    cut = row(study, CUT)
    assert study.warnings == [f"{cut['id']}/metrics.jsonl: line 40 is cut or damaged and was left out"]
    assert study.epochs_of(cut["id"])["epoch"].tolist() == list(range(39))


def test_a_finished_run_is_told_by_its_result_even_where_metrics_are_cut(study: StudyFiles, study_dir: Path) -> None:
    for name in (CUT, EXPLODING):
        run = row(study, name)
        result = json.loads((study_dir / run["id"] / "result.json").read_text())
        assert run["val_ppl"] == result["best_val_ppl"]
        assert run["train_ppl"] == result["best_train_ppl"]
        assert run["test_ppl"] == result["test_ppl"]
        assert run["epochs_done"] == 40


def test_states_and_reasons_are_those_of_the_files(study: StudyFiles) -> None:
    assert row(study, INTERRUPTED)["state"] == "pending"
    diverged = row(study, DIVERGED)
    assert (diverged["state"], diverged["failure_kind"]) == ("failed", "diverged")
    assert "not a finite number" in diverged["failure_message"]
    tail = study.log_tails[diverged["id"]]
    assert len(tail) == 12
    assert tail[-1].startswith("error: the loss of step 4,711")


def test_a_diverged_run_ends_with_its_last_steps(tmp_path: Path) -> None:
    run = make_run(tmp_path, 0, epochs=1, done=False)
    write_json_lines(run.metrics_file, [{"epoch": 0, "steps": 2, "val_ppl": 90.0, "val_loss": 4.5}])
    fail(run, "diverged", "the loss of a step is nan")
    run.stderr_log(1).unlink(missing_ok=True)
    rows = [(4.0, 1.0, 0.5), (3.5, 2.0, 0.5), (math.nan, math.inf, 0.5)]
    for until, tail in ((2, []), (3, [(1, 1, "4", "1"), (1, 2, "3.5", "2"), (2, 1, "nan", "inf")])):
        run.trace_file.write_bytes(b"".join(struct.pack("<3f", *row) for row in rows[:until]))
        lines = [f"epoch {e}, step {s}: loss {loss}, gradient norm {norm}" for e, s, loss, norm in tail]
        assert load_study(tmp_path).log_tails.get(run.id, []) == lines


def test_a_run_at_work_is_running(tmp_path: Path) -> None:
    run = make_run(tmp_path, 0, epochs=3, done=False)
    with owned(run):
        assert load_study(tmp_path).runs["state"].tolist() == ["running"]


def test_numbers_are_places_in_the_manifest_whatever_is_there(study: StudyFiles, tmp_path: Path) -> None:
    assert study.runs["number"].tolist() == list(range(1, 10))
    for order in (8, 1, 4):
        make_run(tmp_path, order)
    partial = load_study(tmp_path)
    assert partial.runs["number"].tolist() == [2, 5, 9]
    assert [run.number for run in partial.absent] == [1, 3, 4, 6, 7, 8]
    numbers = dict(zip(study.runs["name"], study.runs["number"], strict=True))
    assert all(numbers[run["name"]] == run["number"] for run in partial.runs.to_dict("records"))


def test_studies_reported_together_are_numbered_through(tmp_path: Path) -> None:
    for study, order in (("one", 0), ("one", 4), ("two", 0), ("two", 2)):
        make_run(tmp_path / study, order, provenance={"study": study})
    both = load_study(tmp_path / "one", tmp_path / "two")
    assert both.name == "one + two"
    assert both.runs["number"].tolist() == [1, 5, 6, 8]
    assert both.runs["id"].is_unique
    assert [run.number for run in both.absent] == [2, 3, 4, 7]
    for run_id in both.runs["id"]:
        assert both.directory_of(run_id).config_file.is_file()
        assert len(both.epochs_of(run_id)) == 40
    with pytest.raises(UsageError, match="is given twice"):
        load_study(tmp_path / "one", tmp_path / "two" / ".." / "one")


def test_times_and_gap_follow_from_the_epochs(study: StudyFiles) -> None:
    run = study.runs.set_index("name").loc["gru-adam"]
    epochs = study.epochs_of(run["id"])
    assert run["gap"] == pytest.approx(math.log(run["val_ppl"]) - math.log(run["train_ppl"]))
    assert run["epoch_seconds"] == epochs["epoch_seconds"].median()


@pytest.mark.parametrize("file", ["config.json", "provenance.json", "result.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", ["{", "[]", "\x00\xff", '{"model": 3}'])
def test_one_damaged_file_leaves_the_other_runs_alone(tmp_path: Path, file: str, content: str) -> None:
    damaged = make_run(tmp_path, 0, epochs=3)
    make_run(tmp_path, 5, epochs=3)
    write_text(damaged.path / file, content)
    study = load_study(tmp_path)
    runs = study.runs.set_index("id")
    assert len(runs) == 2
    assert runs.drop(index=damaged.id)["state"].tolist() == ["done"]
    if content != '{"model": 3}' or file in ("config.json", "metrics.jsonl"):
        assert any(file in warning for warning in study.warnings)
        assert not any(str(tmp_path) in warning for warning in study.warnings)
    if file == "config.json":
        assert runs.loc[damaged.id, "state"] == "failed"
        assert "config.json" in str(runs.loc[damaged.id, "reason"])


SIDE_FILES = [
    *("metrics.jsonl", "provenance.json", "canary.json", "behaviour.json", "samples.jsonl"),
    *(f"attempts/0001/{name}.json" for name in ("end", "start", "worker", "progress", "exit")),
]


@pytest.mark.parametrize("file", SIDE_FILES)
@pytest.mark.parametrize("damage", ["a folder", "{"])
def test_a_side_file_that_cannot_be_read_leaves_a_finished_run_done(tmp_path: Path, file: str, damage: str) -> None:
    run = make_run(tmp_path, 0, epochs=3)
    expected = load_study(tmp_path).runs.iloc[0]
    (run.path / file).unlink(missing_ok=True)
    if damage == "a folder":
        (run.path / file).mkdir()
    else:
        write_text(run.path / file, damage)
    study = load_study(tmp_path)
    only = study.runs.iloc[0]
    assert (only["state"], only["val_ppl"], only["test_ppl"]) == ("done", expected["val_ppl"], expected["test_ppl"])
    assert pd.isna(only["reason"])
    assert pd.isna(only["failure_kind"])
    if file not in ("canary.json", "samples.jsonl"):  # of no use to the report of this run
        (warning,) = study.warnings
        words = "expected a regular file, found a folder" if damage == "a folder" else "damaged"
        assert f"{run.id}/{file}" in warning
        assert words in warning


def test_missing_keys_are_tolerated(tmp_path: Path) -> None:
    run = make_run(tmp_path, 0, epochs=2)
    write_text(run.provenance_file, "{}")
    write_text(run.result_file, "{}")
    write_text(run.metrics_file, '{"epoch": 0, "val_ppl": 9.5}\n')
    study = load_study(tmp_path)
    only = study.runs.iloc[0]
    assert (only["name"], only["number"], only["state"]) == (run.id, 1, "done")
    assert only["val_ppl"] == 9.5
    assert math.isnan(only["train_ppl"])
    assert study.name == tmp_path.name

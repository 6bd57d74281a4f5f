"""Runs that went different numbers of epochs are compared by their first ones, in every part of the report."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from analysis.sections.results import results_blocks
from analysis.sections.unfinished import open_runs_table
from analysis.study.settings import settings_of
from analysis.study.study import StudyFiles, load_study
from seqlm.files import write_json, write_json_lines
from seqlm.rundir import RunDirectory
from tests.analysis.attempt_files import at, write_attempt
from tests.analysis.contents import table
from tests.analysis.hand_made import add_run, result_of
from tests.analysis.searches import stop

LONG = [130.0, 115.0, 90.0, 80.0]


def extend(run: RunDirectory, epochs: int) -> None:
    """Give a run the result that it had after its first epochs, before it was asked for more."""
    records, _ = run.read_metrics()
    write_json(run.result_file, result_of(records[:epochs]))


def compared(study: StudyFiles) -> dict[str, float]:
    """Name -> perplexity of each setting that comparisons rest on."""
    return {setting.name: setting.val_ppl for setting in settings_of(study.compared.runs)}


@pytest.fixture
def mixed(tmp_path: Path) -> StudyFiles:
    """One run of two epochs, one of four; one that was stopped and one that waits do not count."""
    add_run(tmp_path, 0, "short", "gru", "sgd", [120.0, 110.0], train=[100.0, 90.0])
    add_run(tmp_path, 1, "long", "rnn", "sgd", LONG, train=[110.0, 100.0, 80.0, 70.0])
    behind = add_run(tmp_path, 2, "behind", "rnn", "adam", [500.0], done=False, epochs=4)
    stop(behind, 1, 500.0, rank=3, of=3, cut=130.0)
    add_run(tmp_path, 3, "waits", "gru", "adam", [90.0], done=False, epochs=4)
    return load_study(tmp_path)


def test_of_two_done_runs_the_fewer_epochs_are_those_by_which_both_are_compared(mixed: StudyFiles) -> None:
    assert mixed.runs["compared_epochs"].tolist() == [2, 2, 2, 2]
    assert mixed.runs["state"].tolist() == ["done", "done", "stopped", "pending"]
    assert compared(mixed) == {"short": 110.0, "long": 115.0}
    first = mixed.compared.runs.iloc[1]
    assert (first["best_epoch"], first["final_val_ppl"], first["wall_seconds"]) == (1, 115.0, 20.0)
    assert (first["train_ppl"], first["gap"], first["epochs_done"]) == (100.0, pytest.approx(math.log(1.15)), 4)
    assert pd.isna(first["test_ppl"]), "the checkpoint that was tested is that of a later epoch"
    assert mixed.compared.runs.iloc[0]["test_ppl"] == 110.0
    assert mixed.runs.iloc[1]["val_ppl"] == 80.0, "the data are of all epochs"
    assert mixed.runs["compared_val_ppl"].tolist()[:2] == [110.0, 115.0]
    assert mixed.runs["compared_best_epoch"].tolist()[:2] == [1, 1]


def test_runs_of_one_schedule_are_compared_wherever_they_end(tmp_path: Path) -> None:
    """A trial of two epochs of a study whose schedules all take four."""
    for n in range(2):
        add_run(tmp_path, n, f"r{n}", "gru", "adam", LONG[:2], lr=1.0 + n, schedule="cosine", decay_epochs=4)
    assert compared(load_study(tmp_path)) == {"r0": 115.0, "r1": 115.0}


def test_a_test_perplexity_stays_if_its_checkpoint_is_of_the_first_epochs(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "short", "gru", "sgd", [120.0, 110.0])
    add_run(tmp_path, 1, "worse", "rnn", "sgd", [100.0, 95.0, 99.0])
    assert load_study(tmp_path).compared.runs["test_ppl"].tolist() == [110.0, 95.0]


def test_runs_of_the_same_epochs_are_compared_by_all_of_them(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "a", "gru", "sgd", LONG)
    add_run(tmp_path, 1, "b", "rnn", "sgd", LONG)
    study = load_study(tmp_path)
    assert study.compared is study
    blocks = results_blocks(study)
    assert "of_all" not in table(blocks, "results")[0]
    assert "First" not in "".join(getattr(block, "caption", "") for block in blocks)


def test_a_run_that_is_asked_for_more_takes_part_by_what_it_had_finished(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "done", "gru", "sgd", [120.0, 110.0])
    run = add_run(tmp_path, 1, "extended", "rnn", "sgd", LONG[:3], epochs=4, done=False)
    extend(run, 2)
    study = load_study(tmp_path)
    row = study.runs.iloc[1]
    assert (row["state"], row["epochs_done"], row["epochs_asked"], row["finished_epochs"]) == ("pending", 3, 4, 2)
    assert (row["val_ppl"], row["best_epoch"]) == (90.0, 2), "of what it has"
    assert pd.isna(row["test_ppl"]), "the best checkpoint is newer than the one that was tested"
    assert compared(study) == {"done": 110.0, "extended": 115.0}
    (open_run,) = open_runs_table(study).rows
    assert "3 of 4" in [cell.text for cell in open_run.cells]


def test_each_text_has_its_own_fewest_epochs(tmp_path: Path) -> None:
    def on_characters(run: RunDirectory) -> None:
        config = json.loads(run.config_file.read_text())
        write_json(run.config_file, {**config, "data": {**config["data"], "level": "char"}})

    add_run(tmp_path, 0, "words", "gru", "sgd", LONG)
    on_characters(add_run(tmp_path, 1, "characters", "gru", "sgd", [5.0, 4.0], lr=0.2))
    study = load_study(tmp_path)
    assert study.runs["compared_epochs"].tolist() == [4, 2]
    assert study.compared is study


def test_each_end_of_an_extended_run_is_an_attempt_that_is_done(tmp_path: Path) -> None:
    run = add_run(tmp_path, 0, "long", "rnn", "sgd", LONG)
    records, _ = run.read_metrics()
    write_json_lines(run.metrics_file, [{**record, "attempt": 1 + record["epoch"] // 2} for record in records])
    write_json(run.result_file, {**result_of(records), "attempt": 2, "finished_at": at(100)})
    write_attempt(run, 1, start=0, end=30, outcome="done")
    write_attempt(run, 2, start=60, end=100, outcome="done")
    rows = load_study(tmp_path).attempts
    assert rows["outcome"].tolist() == ["done", "done"]
    assert rows["epochs"].tolist() == [2, 2]

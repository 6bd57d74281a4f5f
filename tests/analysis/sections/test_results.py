import csv
import io
import itertools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.blocks.latex import latex_table
from analysis.blocks.table import Column, Table, escape_markdown, markdown_code, number
from analysis.report import report_page
from analysis.sections.results import (
    hyperparameter_blocks,
    results_table,
)
from analysis.study.settings import best_runs
from analysis.study.study import StudyFiles, load_study
from seqlm.config import LATER_KEYS
from seqlm.files import read_json, write_json
from tests.analysis.contents import only_table, said
from tests.analysis.hand_made import add_run
from tests.analysis.synthetic import DIVERGED, make_run

FILES = {"corpus": "files", "sha256": "a" * 64}


def bpe(digit: str, name: str) -> dict[str, Any]:
    return {**FILES, "tokenizer": name, "tokenizer_sha256": digit * 64}


def bits(valid: float, *, lossless: bool = True) -> dict[str, Any]:
    return {"best_val_bits_per_byte": valid, "test_bits_per_byte": valid + 0.5, "lossless": lossless}


def make_bits(tmp_path: Path) -> Path:
    """Of five runs on one text that ended, the character model has the lowest perplexity by far."""
    char = {**FILES, "level": "char"}
    add_run(tmp_path, 0, "char", "gru", "adam", [9.0, 3.0], data=char, result=bits(1.75))
    add_run(tmp_path, 1, "small", "gru", "adam", [90.0, 60.0], data=bpe("1", "small.json"), result=bits(1.5))
    add_run(tmp_path, 2, "large", "gru", "adam", [90.0, 50.0], data=bpe("2", "large.json"), result=bits(1.625))
    words = {**FILES, "vocab_size": 100}
    add_run(tmp_path, 3, "words", "gru", "adam", [90.0, 20.0], data=words, result=bits(1.25, lossless=False))
    add_run(tmp_path, 4, "old", "gru", "sgd", [90.0, 4.0], data=char)
    add_run(tmp_path, 5, "elsewhere", "gru", "adam", [90.0, 80.0], result=bits(1.0))
    return tmp_path


def hyperparameters_table(study: StudyFiles) -> Table:
    return only_table(hyperparameter_blocks(study))


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def bold_names(study: StudyFiles) -> list[str]:
    return [row.cells[1].text for row in results_table(study).rows if row.cells[1].bold]


def test_the_best_run_of_each_architecture_is_bold_and_no_other(study: StudyFiles) -> None:
    assert bold_names(study) == ["gru-sgd-schedule", "transformer-adam", "rnn-adam"], "the best first"
    bold = re.findall(r"\*\*([\d.,]+)\*\*", results_table(study).to_markdown())
    assert bold == ["102.85", "66.40", "131.30", "151.98", "155.87", "120.78"]
    in_latex = re.findall(r"\\textbf\{([\d.,]+)\}", latex_table(results_table(study)))
    assert sorted(in_latex) == sorted(bold), "in parts that fit the page"


@pytest.mark.usefixtures("blank_figures")
def test_more_seeds_are_no_more_chances_to_be_the_best(tmp_path: Path) -> None:
    """The lowest run is one of five seeds of a setting whose mean is above that of another setting."""
    for seed, ppl in enumerate([95.0, 120.0, 118.0, 122.0, 119.0]):
        add_run(tmp_path, seed, f"lucky-seed{seed}", "gru", "sgd", [ppl], seed=seed)
    add_run(tmp_path, 5, "steady", "gru", "sgd", [100.0], lr=2.0)
    study = load_study(tmp_path)
    means = study.runs.assign(loss=np.log(study.runs["val_ppl"])).groupby("optim.lr")["loss"].mean()
    assert means.idxmin() == 2.0
    assert report_page(study).best == [("GRU", "100.00", "6 steady", "epoch 1")]
    assert bold_names(study) == ["steady"]
    add_run(tmp_path, 6, "steady", "gru", "sgd", [102.0], lr=2.0, seed=2)
    study = load_study(tmp_path)
    assert report_page(study).best == [("GRU", f"{np.sqrt(100 * 102):.2f}", "6/7 steady", "mean of 2 seeds")]


def test_a_run_without_a_result_is_never_the_best(tmp_path: Path) -> None:
    make_run(tmp_path, 3)
    make_run(tmp_path, 5, epochs=39, done=False)  # ahead of the other, but interrupted
    study = load_study(tmp_path)
    assert study.runs["val_ppl"].idxmin() == 1
    assert bold_names(study) == ["gru-adam"]


def test_a_nan_is_never_the_best_nor_a_number_in_a_table(tmp_path: Path) -> None:
    run = make_run(tmp_path, 3, epochs=2)
    result = read_json(run.result_file) or {}
    write_json(run.result_file, {**result, "best_val_ppl": None, "best_train_ppl": None, "best_epoch": None})
    study = load_study(tmp_path)
    assert best_runs(study.runs, study.settings).empty
    table = results_table(study)
    shown = {column.key: cell.text for column, cell in zip(table.columns, table.rows[0].cells, strict=True)}
    assert (shown["train_ppl"], shown["val_ppl"], shown["epochs_to_best"]) == ("–", "–", "–")
    assert read(table.to_csv())[0]["val_ppl"] == ""


def test_numbers_in_results_csv_are_those_of_the_runs_exactly(study: StudyFiles) -> None:
    rows = {row["name"]: row for row in read(results_table(study).to_csv())}
    for run in study.runs.to_dict("records"):
        row = rows[run["name"]]
        assert float(row["val_ppl"]) == run["val_ppl"]
        assert float(row["train_ppl"]) == run["train_ppl"]
        assert int(row["epochs_to_best"]) == run["best_epoch"] + 1
        assert row["test_ppl"] == ("" if math.isnan(run["test_ppl"]) else repr(run["test_ppl"]))
    assert rows[DIVERGED]["state"] == "failed"


def test_the_results_have_columns_for_what_varies_before_those_for_what_does_not(tmp_path: Path) -> None:
    for order, (lr, layers) in enumerate(itertools.product((0.1, 0.2), (1, 2))):
        add_run(tmp_path, order, f"run{order}", "gru", "sgd", [100.0 + order], lr=lr, num_layers=layers)
        add_run(tmp_path, 4 + order, f"seed{order}", "gru", "sgd", [100.0], seed=2, lr=lr, num_layers=layers)
    study = load_study(tmp_path)
    shown = [column.key for column in results_table(study).columns]
    assert shown[:7] == ["number", "name", "val_ppl", "test_ppl", "train_ppl", "optim.lr", "model.num_layers"]
    assert shown[-3:] == ["architecture", "optimizer", "state"]
    assert "seed" not in shown, "a run's name has it"
    rows = {tuple(row.cells[place].text for place in (5, 6)) for row in results_table(study).rows}
    assert rows == {("0.1", "1"), ("0.1", "2"), ("0.2", "1"), ("0.2", "2")}


def test_the_results_have_no_column_for_what_follows_from_architecture_and_optimizer(study: StudyFiles) -> None:
    assert study.runs["optim.lr"].nunique() > 1
    shown = [column.key for column in results_table(study).columns]
    assert shown[2:8] == ["val_ppl", "test_ppl", "train_ppl", "architecture", "optimizer", "epochs_to_best"]


@pytest.mark.parametrize("worse", [False, True])
def test_the_results_have_columns_for_the_last_epoch_only_if_a_run_ended_above_its_best(
    tmp_path: Path, worse: bool
) -> None:
    add_run(tmp_path, 0, "whole", "gru", "sgd", [100.0, 90.0, 95.0] if worse else [100.0, 90.0])
    add_run(tmp_path, 1, "not-begun", "gru", "adam", [], done=False)
    shown = {column.key for column in results_table(load_study(tmp_path)).columns}
    assert ({"final_val_ppl", "final_train_ppl"} <= shown) == worse


def test_every_hyperparameter_is_in_a_column_or_in_the_sentence_on_what_is_shared(study: StudyFiles) -> None:
    blocks = hyperparameter_blocks(study)
    table, shared = hyperparameters_table(study), said(blocks)
    shown = {column.key for column in table.columns} | {"model.arch", "optim.optimizer"}
    off = {(f"{section}.{key}", neutral) for section, key, neutral in LATER_KEYS if not isinstance(neutral, str)}
    assert not {f"{key} = " for key, _ in off if f"{key} = " in shared}
    for run in study.runs.to_dict("records"):
        for key, value in run.items():
            there = "." in key and not (isinstance(value, float) and math.isnan(value)) and (key, value) not in off
            assert not there or key in shown or f"{key} = " in shared, key
    assert "seed = 1111" in shared
    assert "data.vocab_size = none" in shared
    assert "model.num_heads = 16" in shared


def test_a_hyperparameter_that_does_not_apply_is_no_value(tmp_path: Path) -> None:
    for order in (0, 6, 7):
        run = make_run(tmp_path, order, epochs=1)
    config = run.read_config().to_dict()
    write_json(run.config_file, {**config, "model": {**config["model"], "num_heads": 8}})
    table = hyperparameters_table(load_study(tmp_path))
    place = [column.key for column in table.columns].index("model.num_heads")
    assert [row.cells[place].text for row in table.rows] == ["–", "16", "8"]


def test_a_command_is_quoted_so_that_it_can_be_pasted(tmp_path: Path) -> None:
    make_run(tmp_path, 0, epochs=1, provenance={"command": ["python", "launch.py", "--only", "name=a b;rm"]})
    assert load_study(tmp_path).runs["command"].tolist() == ["python launch.py --only 'name=a b;rm'"]


def test_markdown_special_characters_are_escaped() -> None:
    assert escape_markdown("a|b <script> *x* `y` [z](u)") == r"a\|b &lt;script&gt; \*x\* \`y\` \[z\](u)"
    assert markdown_code("a``b`") == "``` a``b` ```"


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", r"\input{/etc/passwd} & 5% _x_ #", "a|b`c"])
def test_a_hostile_cell_keeps_the_shape_of_its_table(name: str) -> None:
    table = Table(
        name="t",
        title="T",
        caption="c",
        columns=[Column("a", "A", emphasised=True), number("b", "B", "{:.2f}".format)],
        records=[{"a": name, "b": 1.0}],
        bold=lambda record: True,
        code=lambda record: name,
        code_title="Command",
    )
    body = table.to_markdown().splitlines()[-1]
    assert len(re.findall(r"(?<!\\)\|", body)) == 4
    line = next(line for line in latex_table(table).splitlines() if "1.00" in line)
    assert len(re.findall(r"(?<!\\)&", line)) == 1
    assert not re.search(r"(?<!\\)[%#_]", line)
    assert r"\input{" not in latex_table(table).partition(r"\begin")[2]
    assert read(table.to_csv())[0]["a"] == name


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_text_in_the_csv_of_a_table_starts_no_formula(text: str) -> None:
    columns = [Column("name", ""), Column("loss", "")]
    table = Table(name="t", title="", caption="", columns=columns, records=[{"name": text, "loss": -0.5}])
    assert list(csv.reader(io.StringIO(table.to_csv(), newline="")))[1:] == [[f"'{text}".replace("\r", " "), "-0.5"]]

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.api import open_study
from analysis.blocks.table import Table
from analysis.blocks.texts import text_sentences
from analysis.sections.results import bits_blocks, results_table
from analysis.study.settings import best_runs
from analysis.study.study import load_study
from tests.analysis.hand_made import add_run

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


@pytest.fixture
def study_dir(tmp_path: Path) -> Path:
    return make_bits(tmp_path)


def test_runs_on_one_text_with_several_vocabularies_are_ranked_by_bits_per_byte(study_dir: Path) -> None:
    _, table = bits_blocks(load_study(study_dir))
    assert isinstance(table, Table)
    assert [row.cells[1].text for row in table.rows] == ["words", "small", "large", "char", "old"]
    assert [row.cells[1].text for row in table.rows if row.cells[1].bold or row.cells[5].bold] == ["small"]


def test_no_perplexity_is_best_among_several_vocabularies(study_dir: Path) -> None:
    study = load_study(study_dir)
    assert set(best_runs(study.runs, study.settings)["name"]) == {"char", "small", "large", "words", "elsewhere"}
    rows = results_table(study).rows
    assert [row.cells[1].bold for row in rows if row.cells[1].text == "old"] == [False], "the one with a rival"


def test_tables_have_the_bits_and_old_runs_have_none(study_dir: Path) -> None:
    study = open_study(study_dir)
    runs = study.runs.set_index("name")
    assert runs.loc["small", ["val_bits_per_byte", "test_bits_per_byte", "lossless"]].to_list() == [1.5, 2.0, True]
    assert runs.loc["old", ["val_bits_per_byte", "lossless"]].isna().all()
    results = study.results.set_index("name")
    assert results.loc["large", ["val_bits_per_byte", "test_bits_per_byte"]].to_list() == [1.625, 2.125]
    csv = results_table(load_study(study_dir)).to_csv()
    assert "val_bits_per_byte" in csv.splitlines()[0]


def test_a_study_with_one_vocabulary_has_no_ranking_and_without_bits_no_column(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "one", "gru", "adam", [9.0, 3.0])
    study = load_study(tmp_path)
    assert bits_blocks(study) == []
    assert "bits" not in results_table(study).to_csv().splitlines()[0]


def test_one_text_with_several_vocabularies_is_not_called_several_texts(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "char", "gru", "adam", [9.0, 3.0], data={"level": "char"}, result=bits(1.75))
    add_run(tmp_path, 1, "small", "gru", "adam", [90.0, 60.0], data={"tokenizer": "small.json"}, result=bits(1.5))
    (sentence,) = text_sentences(load_study(tmp_path), "The end.")
    assert sentence == (
        "The finished runs predict one text with 2 vocabularies: ptb level char (1 run) and ptb "
        "tokenizer small.json (1 run). Perplexities of different vocabularies do not compare, and runs on different "
        "vocabularies are not seeds of one setting. The end."
    )

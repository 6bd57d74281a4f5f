from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.blocks.table import Table
from analysis.sections.results import bits_blocks
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

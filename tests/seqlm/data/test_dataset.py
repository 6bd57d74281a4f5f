import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seqlm.config import DataConfig
from seqlm.data.corpus import load_corpus
from seqlm.errors import DataError
from tests.seqlm.data.conftest import TEST, TRAIN, VALID

FILES = DataConfig(corpus="files")
ROWS = {"train": TRAIN, "validation": VALID, "test": TEST}


def rows_of(text: str) -> list[str]:
    return text.splitlines()


def save_parquet(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def save_arrow(folder: Path, splits: dict[str, list[pa.Table]]) -> Path:
    """The Arrow streams that ``DatasetDict.save_to_disk`` writes, and a file of its cache."""
    for split, shards in splits.items():
        (folder / split).mkdir(parents=True)
        names = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
        for name, table in zip(names, shards, strict=True):
            with pa.OSFile(str(folder / split / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
        (folder / split / "cache-0.arrow").touch()
    return folder


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """The corpus of ``write_texts``, the train split in two files, as the Hub has it."""
    train = rows_of(TRAIN)
    save_parquet(tmp_path / "set/data/train-00001-of-00002.parquet", text=train[2:], label=[0])
    save_parquet(tmp_path / "set/data/train-00000-of-00002.parquet", text=train[:2], label=[0, 1])
    for split in ("validation", "test"):
        rows = rows_of(ROWS[split])
        save_parquet(tmp_path / f"set/data/{split}-00000-of-00001.parquet", text=rows, label=[1] * len(rows))
    return tmp_path / "set"


def refusal(folder: Path, config: DataConfig = FILES) -> str:
    with pytest.raises(DataError) as caught:
        load_corpus(config, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_parquet_files_are_the_same_corpus_as_text_files_of_their_rows(parquet, write_texts):
    assert load_corpus(FILES, parquet) == load_corpus(FILES, write_texts())


def test_so_is_what_save_to_disk_wrote(tmp_path, write_texts):
    train = rows_of(TRAIN)
    splits = {split: [pa.table({"text": rows_of(text)})] for split, text in ROWS.items()}
    splits["train"] = [pa.table({"text": train[:1]}), pa.table({"text": train[1:]})]
    splits["unsupervised"] = [pa.table({"text": ["x"]})]
    assert load_corpus(FILES, save_arrow(tmp_path / "saved", splits)) == load_corpus(FILES, write_texts())


@pytest.mark.parametrize("place", ["{split}.parquet", "plain_text/{split}/0000.parquet", "{split}/0000.parquet"])
@pytest.mark.parametrize("valid", ["valid", "val", "dev"])
def test_layouts_and_names_of_the_validation_split(tmp_path, write_texts, place, valid):
    for split, text in ROWS.items():
        name = valid if split == "validation" else split
        save_parquet(tmp_path / "set" / place.format(split=name), text=pa.array(rows_of(text), pa.large_string()))
    assert load_corpus(FILES, tmp_path / "set") == load_corpus(FILES, write_texts())


def test_a_row_is_one_line_or_more_and_a_missing_one_is_none(tmp_path, write_texts):
    save_parquet(tmp_path / "set/train.parquet", text=["the cat\n", "", None, "saw\nit"])
    for split in ("validation", "test"):
        save_parquet(tmp_path / f"set/{split}.parquet", text=["saw"])
    expected = write_texts(train="the cat\n\nsaw\nit\n", valid="saw\n", test="saw\n")
    assert load_corpus(FILES, tmp_path / "set") == load_corpus(FILES, expected)


def test_a_named_column_is_read_and_the_only_column_of_texts_needs_no_name(tmp_path, write_texts):
    for split, text in ROWS.items():
        rows = rows_of(text)
        save_parquet(tmp_path / f"one/{split}.parquet", sentence=rows, label=[1] * len(rows))
        save_parquet(tmp_path / f"two/{split}.parquet", sentence=rows, text=["no"] * len(rows))
    corpus = load_corpus(FILES, write_texts())
    assert load_corpus(FILES, tmp_path / "one") == corpus
    assert load_corpus(DataConfig(corpus="files", column="sentence"), tmp_path / "two") == corpus
    assert load_corpus(FILES, tmp_path / "two") != corpus


@pytest.mark.parametrize(
    ("columns", "column", "problem"),
    [
        ({"text": ["a"]}, "txt", 'has no text in "txt"; did you mean "text"?; expected one of its columns of texts: t'),
        ({"text": ["a"], "n": [1]}, "n", 'has no text in "n"; expected one of its columns of texts: text'),
        ({"question": ["a"], "answer": ["b"]}, None, "expected one of its columns of texts: question, answer"),
        ({"n": [1]}, None, "expected one of its columns of texts: none"),
    ],
)
def test_a_wrong_column_is_one_line(tmp_path, columns, column, problem):
    for split in ROWS:
        save_parquet(tmp_path / f"{split}.parquet", **columns)
    assert problem in refusal(tmp_path, DataConfig(corpus="files", column=column))


def test_a_column_beside_text_files_is_refused(write_texts):
    assert "data.column: expected no column beside text files" in refusal(
        write_texts(), DataConfig(corpus="files", column="text")
    )


def test_a_split_that_is_missing_or_there_twice_or_of_two_data_sets(parquet, tmp_path):
    save_parquet(parquet / "data/dev.parquet", text=["a"])
    assert "has the splits dev and validation; leave only one of them" in refusal(parquet)
    (parquet / "data/dev.parquet").unlink()
    (parquet / "data/validation-00000-of-00001.parquet").rename(parquet / "data/evaluation-00000-of-00001.parquet")
    assert refusal(parquet).endswith(
        "no validation split; expected train, validation (or valid, val, dev) and test, found evaluation, test, train"
    )
    save_parquet(parquet / "other/train.parquet", text=["a"])
    assert "holds several data sets (data, other); pass the folder of one of them" in refusal(parquet)


def test_a_split_saved_alone_and_a_damaged_save(tmp_path):
    folder = save_arrow(tmp_path / "saved", {split: [pa.table({"text": ["a"]})] * 2 for split in ROWS})
    assert "has no train split; expected train, " in refusal(folder / "train")
    (folder / "test/data-00000-of-00002.arrow").unlink()
    assert "is damaged (expected 2 files of the split test, found 1); fetch or save" in refusal(folder)


def test_a_damaged_file_is_one_line(parquet):
    path = parquet / "data/test-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert "test-00000-of-00001.parquet is damaged (" in refusal(parquet)


def test_a_missing_library_is_one_line(parquet, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "is a data set, which needs the package pyarrow; install it (pip install pyarrow), or" in refusal(parquet)

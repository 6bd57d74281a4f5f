from __future__ import annotations

import os
from pathlib import Path

import pytest

from seqlm.data.source import read_texts
from seqlm.errors import DataError

FILES = ("train.txt", "valid.txt", "test.txt")
PTB = tuple(f"ptb.{name}" for name in FILES)
FOLDERS = {  # what a folder holds; a name may end with / for a folder and | for a pipe
    (): "holds no text of a corpus; expected ptb.train.txt",
    ("train.txt",): "has no valid.txt and no test.txt beside train.txt",
    (*PTB, *FILES): "files of two namings (ptb.train.txt, ptb.valid.txt, ptb.test.txt, train.txt, valid.txt, test.txt)",
    ("ptb.train.txt/", *PTB[1:]): "ptb.train.txt is a folder; expected a text file",
    ("train.txt|", "valid.txt", "test.txt"): "train.txt is no regular file; expected a text file",
}


@pytest.mark.parametrize(("names", "line"), FOLDERS.items())
def test_a_folder_that_is_no_corpus(tmp_path: Path, names: tuple[str, ...], line: str) -> None:
    for name in names:
        path = tmp_path / name.rstrip("/|")
        path.mkdir() if name.endswith("/") else os.mkfifo(path) if name.endswith("|") else path.write_text("a b\n")
    assert line in refusal(tmp_path)


def test_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("a b\n")
    assert "nowhere does not exist; expected a folder with ptb.train.txt" in refusal(tmp_path / "nowhere")
    assert "text.zip is no folder; expected a folder with ptb.train.txt" in refusal(tmp_path / "text.zip")
    assert "does not exist" in refusal(tmp_path / "text.zip" / "below")


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_texts(path)
    message = str(caught.value)
    assert "\n" not in message
    assert ";" in message, "the part that says what would be right"
    return message

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path

import pytest

from seqlm.data.source import read_texts
from seqlm.errors import DataError

FILES = {"train.txt": "a b\n", "valid.txt": "a\n", "test.txt": "b\n"}


def zip_of(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_texts(path)
    message = str(caught.value)
    assert "\n" not in message
    assert ";" in message  # the part that says what would be right
    return message


def folder_of(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in names:
        if name.endswith("/"):
            (path / name).mkdir()
        elif name.endswith("|"):
            os.mkfifo(path / name[:-1])
        else:
            (path / name).write_text("a b\n")
    return path


PTB = tuple(f"ptb.{name}" for name in FILES)
FOLDERS = {  # what a folder holds; a name may end with / for a folder and | for a pipe
    (): "holds no text of a corpus; expected ptb.train.txt",
    ("train.txt",): "has no valid.txt and no test.txt beside train.txt",
    (*PTB, *FILES): "files of two namings (ptb.train.txt, ptb.valid.txt, ptb.test.txt, train.txt, valid.txt, test.txt)",
    ("ptb.train.txt/", *PTB[1:]): "ptb.train.txt is no regular file; expected a text file",
    ("train.txt|", "valid.txt", "test.txt"): "train.txt is no regular file; expected a text file",
}
ZIPS: list[tuple[dict[str, str], str]] = [
    (
        FILES | {f"copy/{name}": "a" for name in FILES},
        "holds train.txt more than once (copy/train.txt, train.txt)",
    ),
    (FILES | {f"copy/ptb.{name}": "a" for name in FILES}, "files of two namings"),
    ({"train.txt/": "", "valid.txt": "a\n", "test.txt": "b\n"}, "has no train.txt beside valid.txt, test.txt"),
]


@pytest.mark.parametrize(("names", "line"), FOLDERS.items())
def test_a_folder_that_is_no_corpus(tmp_path, names, line):
    assert line in refusal(folder_of(tmp_path / "corpus", *names))


@pytest.mark.parametrize(("files", "line"), ZIPS)
def test_a_zip_that_is_no_corpus(tmp_path, files, line):
    assert line in refusal(zip_of(tmp_path / "c.zip", files))


def test_what_is_neither_a_folder_nor_a_zip(tmp_path):
    folder = folder_of(tmp_path / "corpus", "train.txt", "pipe|")
    assert "nowhere does not exist; expected a folder or a zip file with ptb.train.txt" in refusal(tmp_path / "nowhere")
    assert "does not exist" in refusal(folder / "train.txt" / "below")
    assert "train.txt is no zip file, or a damaged one (File is not a zip file); expected a folder or a zip" in refusal(
        folder / "train.txt"
    )
    assert "is neither a folder nor a zip file" in refusal(folder / "pipe")


def put(content: bytes, new: bytes, **offsets: int) -> bytes:
    """Write ``new`` at ``offsets``, in bytes from the beginning of the first file, of its header, or of its entry."""
    found = bytearray(content)
    for what, offset in offsets.items():
        start = content.index({"name": b"train.txt", "header": b"PK\x03\x04", "entry": b"PK\x01\x02"}[what])
        found[start + offset : start + offset + len(new)] = new
    return bytes(found)


DAMAGES = {
    "cut at 30 %": (lambda content: content[: len(content) * 3 // 10], "is no zip file, or a damaged one"),
    "cut at 90 %": (lambda content: content[: len(content) * 9 // 10], "is no zip file, or a damaged one"),
    "flipped bytes": (lambda content: put(content, b"\xff" * 10, name=11), "is no zip file, or a damaged one"),
    "encrypted": (
        lambda content: put(content, b"\1", header=6, entry=8),
        "(train.txt is encrypted, or not packed by deflate); pack it again as an ordinary zip file",
    ),
    "a packing of another program": (
        lambda content: put(content, struct.pack("<H", 97), header=8, entry=10),
        "pack it again as an ordinary zip file",
    ),
}


@pytest.mark.parametrize(("damage", "line"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_zip(tmp_path, damage, line):
    path = zip_of(tmp_path / "c.zip", {**FILES, "train.txt": "many words of text\n" * 50})
    path.write_bytes(damage(path.read_bytes()))
    assert line in refusal(path)

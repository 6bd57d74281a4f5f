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
    ("train.txt",): "corpus holds train.txt; expected ptb.train.txt, ptb.valid.txt",
    (*PTB, *FILES): "holds ptb.test.txt, ptb.train.txt, ptb.valid.txt, test.txt, train.txt, valid.txt; expected ptb.t",
    ("ptb.train.txt/", *PTB[1:]): "ptb.train.txt is no regular file; expected a text file",
    ("train.txt|", "valid.txt", "test.txt"): "train.txt is no regular file; expected a text file",
}
ZIPS: list[tuple[dict[str, str], str]] = [
    (
        FILES | {f"copy/{name}": "a" for name in FILES},
        "holds copy/test.txt, copy/train.txt, copy/valid.txt, test.txt, train.txt, valid.txt; expected",
    ),
    ({"train.txt/": "", "valid.txt": "a\n", "test.txt": "b\n"}, "holds test.txt, valid.txt; expected"),
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
    assert "train.txt cannot be read (File is not a zip file); expected a folder or a plain zip file" in refusal(
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
    "cut at 30 %": lambda content: content[: len(content) * 3 // 10],
    "cut at 90 %": lambda content: content[: len(content) * 9 // 10],
    "flipped bytes": lambda content: put(content, b"\xff" * 10, name=11),
    "encrypted": lambda content: put(content, b"\1", header=6, entry=8),
    "a packing of another program": lambda content: put(content, struct.pack("<H", 97), header=8, entry=10),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_or_unusual_zip(tmp_path, damage):
    path = zip_of(tmp_path / "c.zip", {**FILES, "train.txt": "many words of text\n" * 50})
    path.write_bytes(damage(path.read_bytes()))
    assert "c.zip cannot be read (" in refusal(path)

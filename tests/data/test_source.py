from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path

import pytest

from seqlm.data.source import LARGEST_TOTAL, read_texts
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


def test_a_path_that_is_not_there(tmp_path):
    assert "nowhere does not exist; expected a folder or a zip file with ptb.train.txt" in refusal(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    assert "does not exist" in refusal(tmp_path / "file" / "below")


def test_a_text_file_in_place_of_its_folder(tmp_path):
    (tmp_path / "train.txt").write_text("a b\n")
    assert "train.txt is no zip file, or a damaged one; expected a folder or a zip" in refusal(tmp_path / "train.txt")


def test_something_that_is_neither_file_nor_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "is neither a folder nor a zip file" in refusal(tmp_path / "pipe")


def test_a_folder_without_any_of_the_files(tmp_path):
    assert "holds no text of a corpus; expected ptb.train.txt" in refusal(tmp_path)


def test_a_folder_that_holds_only_the_zip_file_names_it(tmp_path):
    path = zip_of(tmp_path / "ptb.zip", FILES)
    assert refusal(tmp_path).endswith(f"pass {path} itself")


def test_a_missing_split_is_named_beside_what_was_found(write_texts):
    assert "has no valid.txt and no test.txt beside train.txt" in refusal(write_texts(valid=None, test=None))


def test_both_namings_at_once(write_texts):
    write_texts()
    assert "files of two namings (ptb.train.txt, ptb.valid.txt, ptb.test.txt, train.txt, valid.txt, test.txt)" in (
        refusal(write_texts(prefix="ptb."))
    )


def test_a_folder_in_place_of_a_file(write_texts):
    folder = write_texts(prefix="ptb.", train=None)
    (folder / "ptb.train.txt").mkdir()
    assert "ptb.train.txt is a folder; expected a text file" in refusal(folder)


def test_a_pipe_in_place_of_a_file_is_not_waited_for(write_texts):
    folder = write_texts(train=None)
    os.mkfifo(folder / "train.txt")
    assert "train.txt is no regular file; expected a text file" in refusal(folder)


def test_two_sets_in_one_zip(tmp_path):
    path = zip_of(tmp_path / "c.zip", FILES | {f"copy/{name}": text for name, text in FILES.items()})
    assert "holds train.txt more than once (copy/train.txt, train.txt); leave only one" in refusal(path)
    path = zip_of(tmp_path / "d.zip", FILES | {f"copy/ptb.{name}": text for name, text in FILES.items()})
    assert "files of two namings" in refusal(path)


def test_a_folder_in_place_of_a_file_in_a_zip(tmp_path):
    path = zip_of(tmp_path / "c.zip", {"train.txt/": "", "valid.txt": "a\n", "test.txt": "b\n"})
    assert "train.txt/ in" in refusal(path)
    assert "is a folder" in refusal(path)


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_truncated_zip(tmp_path, keep):
    whole = zip_of(tmp_path / "c.zip", FILES).read_bytes()
    (tmp_path / "c.zip").write_bytes(whole[: int(len(whole) * keep)])
    assert "is no zip file, or a damaged one" in refusal(tmp_path / "c.zip")


def test_a_zip_with_flipped_bytes(tmp_path):
    path = zip_of(tmp_path / "c.zip", {**FILES, "train.txt": "many words of text\n" * 50})
    content = bytearray(path.read_bytes())
    start = content.index(b"train.txt") + len("train.txt")
    content[start + 2 : start + 12] = b"\xff" * 10
    path.write_bytes(content)
    assert "is a damaged zip file" in refusal(path)


def test_an_encrypted_zip(tmp_path):
    path = zip_of(tmp_path / "c.zip", FILES)
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.index(signature)
        content[start + offset] |= 1
    path.write_bytes(content)
    assert "train.txt in" in refusal(path)
    assert "is encrypted; unpack it and pass the folder" in refusal(path)


def test_a_zip_packed_in_a_way_python_cannot_read(tmp_path):
    path = zip_of(tmp_path / "c.zip", FILES)
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        start = content.index(signature)
        content[start + offset : start + offset + 2] = struct.pack("<H", 97)
    path.write_bytes(content)
    assert "pack it again as an ordinary zip file" in refusal(path)


def test_a_zip_that_declares_an_absurd_size_is_not_unpacked(tmp_path):
    path = zip_of(tmp_path / "c.zip", FILES)
    content = bytearray(path.read_bytes())
    start = 0
    for _ in FILES:  # two gigabytes each, in the central directory
        start = content.index(b"PK\x01\x02", start + 1)
        content[start + 24 : start + 28] = struct.pack("<I", LARGEST_TOTAL // 2)
    path.write_bytes(content)
    assert "unpacks to 6.0 GiB of text; expected at most 4 GiB" in refusal(path)

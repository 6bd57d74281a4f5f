"""Texts and manifests that mean harm: no text, or far larger or deeper than any real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.manifests.load import load_manifest
from seqlm.config import DataConfig
from seqlm.data.corpus import load_corpus
from seqlm.errors import DataError, ManifestError, SeqlmError

MIB = 2**20


def refusal(action: Callable[[], Any], kind: type[SeqlmError] = DataError) -> str:
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


# -- texts -------------------------------------------------------------------------------------------------------------


def corpus(folder: Path, train: bytes, valid: bytes = b"a b\n") -> Callable[[], Any]:
    for name, content in (("train", train), ("valid", valid), ("test", b"a b\n")):
        (folder / f"{name}.txt").write_bytes(content)
    return lambda: load_corpus(DataConfig(corpus="files"), folder)


@pytest.mark.parametrize(
    ("train", "told"),
    [
        (b"a b\n\x7fELF\x02\x01\x01\x00\x00", "train.txt line 2: byte 0x00 is no text"),
        (b"a b\n\n\xff\xfe\n", "train.txt line 3: byte 0xff is not UTF-8"),
        (b"a b \xed\xa0\x80\n", "train.txt line 1: byte 0xed is not UTF-8"),
    ],
    ids=["a program", "no UTF-8", "half a character"],
)
def test_what_is_no_text_is_refused_with_its_line(tmp_path: Path, train: bytes, told: str) -> None:
    assert told in refusal(corpus(tmp_path, train))


def test_a_line_or_a_word_of_megabytes_is_text_like_any_other(tmp_path: Path) -> None:
    loaded = corpus(tmp_path, b"a b " + b"x" * 5_000_000 + b" " + b"y " * 500_000)()
    assert loaded.tokens["train"] == 500_004


def test_an_unknown_word_of_megabytes_makes_no_message_of_megabytes(tmp_path: Path) -> None:
    message = refusal(corpus(tmp_path, b"a b\n", valid=b"a " + b"z" * 3_000_000 + b"\n"))
    assert 'valid.txt line 1: "zzzz' in message


# -- manifests ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a = " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        (f"a = [{'1, ' * 1_000_001}]", "too large, expected at most 1,000,000 values"),
        (f'a = "{"x" * 17 * MIB}"', "too large, expected at most 16 MiB"),
    ],
    ids=["deep", "many values", "many bytes"],
)
def test_a_manifest_that_means_harm_gets_one_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "m.toml").write_text(text)
    assert told in refusal(lambda: load_manifest(tmp_path / "m.toml"), ManifestError)

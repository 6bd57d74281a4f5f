import os
import re
import sys
import sysconfig
from pathlib import Path

import pytest

from seqlm.config import DataConfig
from seqlm.data import pydoc_corpus
from seqlm.data.corpus import load_corpus
from seqlm.data.pydoc_corpus import build_lines, pydoc_texts, sentences, split_lines
from seqlm.data.source import Texts
from seqlm.errors import DataError
from tests import commands


@pytest.fixture(scope="module")
def texts() -> Texts:
    """The corpus, built once and not from a cache."""
    lines = build_lines(Path(sysconfig.get_path("stdlib")))
    contents = {split: text.encode() for split, text in split_lines(lines).items()}
    return Texts(contents, {split: split for split in contents})


@pytest.fixture
def in_cache(texts, monkeypatch, cache_folder):
    """The texts as :func:`pydoc_texts` gives them, without building them again."""
    monkeypatch.setattr(pydoc_corpus, "build_lines", lambda _: [])
    monkeypatch.setattr(pydoc_corpus, "split_lines", lambda _: {k: v.decode() for k, v in texts.contents.items()})
    return cache_folder


def tokens(texts: Texts) -> dict[str, int]:
    return {split: len(text.replace(b"\n", b" <eos> ").split()) for split, text in texts.contents.items()}


def test_the_corpus_has_the_promised_size_and_shares(texts):
    counts = tokens(texts)
    total = sum(counts.values())
    assert 150_000 <= total <= 200_000
    assert 0.82 < counts["train"] / total < 0.88
    assert 0.06 < counts["valid"] / total < 0.10
    assert 0.06 < counts["test"] / total < 0.10


def test_the_text_is_lower_case_words_without_punctuation_and_numbers_are_n(texts):
    words = {word for text in texts.contents.values() for word in text.decode().split()}
    assert "N" in words
    assert [w for w in words if not re.fullmatch(r"N|[a-z0-9]+", w)] == []
    assert [w for w in words if re.fullmatch(r"[0-9]+", w)] == []


def test_no_line_of_train_is_in_valid_or_test(texts):
    lines = {split: set(text.splitlines()) for split, text in texts.contents.items()}
    assert not lines["train"] & (lines["valid"] | lines["test"])


PRINTS = """
import hashlib, pathlib, sysconfig
from seqlm.data import pydoc_corpus
pydoc_corpus.FEWEST_TOKENS, pydoc_corpus.MODULES = 0, pydoc_corpus.MODULES[:5]  # the topics, and a few modules
lines = pydoc_corpus.build_lines(pathlib.Path(sysconfig.get_path("stdlib")))
print(len(lines), hashlib.sha256(str(pydoc_corpus.split_lines(lines)).encode()).hexdigest())
"""


@pytest.mark.process
def test_every_process_builds_the_same_text(texts):
    printed = {
        commands.run(
            [sys.executable, "-c", PRINTS], cold=True, env={**os.environ, "PYTHONHASHSEED": seed}, check=True
        ).stdout
        for seed in "12"
    }
    assert len(printed) == 1
    assert int(printed.pop().split()[0]) > 1000


@pytest.mark.parametrize(
    ("document", "lines"),
    [
        ("Needs 1,024 bytes or 1.5 kB, at 0xFF or 1e-3.", ["needs N bytes or N kb at N or N"]),
        ("Decode utf-8 with base64 in Python 3.11.4.", ["decode utf N with base64 in python N"]),
        ("It doesn't *really* matter. So (they say) be it!", ["it doesnt really matter", "so they say be it"]),
        ("A line\nthat is wrapped.\n\n    Another paragraph, indented.", ["a line that is wrapped"]),
        ("Example of its use:\n\n>>> print(1, 2, 3, 4, 5)\n1 2 3 4 5", ["example of its use"]),
        ("stmt ::= one of the many statements", []),
    ],
)
def test_sentences_are_prepared_as_the_penn_treebank_was(document, lines):
    assert list(sentences(document)) == lines


def test_the_vocabulary_is_cut_and_the_rest_is_unk(in_cache):
    corpus = load_corpus(DataConfig(corpus="pydoc", vocab_size=2_000), None)
    assert len(corpus.vocabulary) == 2_000
    assert 0.01 < list(corpus.splits["train"]).count(corpus.vocabulary.index("<unk>")) / corpus.tokens["train"] < 0.2


def test_a_path_is_ignored(in_cache, tmp_path):
    config = DataConfig(corpus="pydoc")
    assert load_corpus(config, tmp_path / "nowhere") == load_corpus(config, None)


def test_the_text_is_built_once(in_cache, monkeypatch):
    first = pydoc_texts()

    def fail(_):
        raise AssertionError("built again")

    monkeypatch.setattr(pydoc_corpus, "build_lines", fail)
    assert pydoc_texts() == first


def test_a_python_without_sources_is_told_what_to_do(tmp_path):
    with pytest.raises(
        DataError, match=r"ships too little documentation .* at least 150,000 .* data\.corpus = \"ptb\""
    ):
        build_lines(tmp_path)

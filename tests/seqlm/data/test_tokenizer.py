import hashlib
import json
import math
import sys
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from seqlm.config import DataConfig
from seqlm.data import corpus as corpora
from seqlm.data.corpus import corpus_facts, load_corpus, resolve_data
from seqlm.data.tokenizer import Tokenizer
from seqlm.errors import ConfigError, DataError
from tests.seqlm.data.bpe import train_tokenizer

BPE = DataConfig(corpus="files", tokenizer="bpe.json")


@pytest.fixture
def bpe(tmp_path: Path) -> Path:
    return train_tokenizer(tmp_path / "bpe.json")


def test_level_follows_from_the_tokenizer_and_nothing_else_may_set_tokens():
    assert BPE.level == "token"
    assert DataConfig(**vars(BPE)) == BPE
    with pytest.raises(ConfigError) as caught:
        DataConfig(corpus="files", tokenizer="bpe.json", level="word", vocab_size=50)
    assert caught.value.problems == [
        'data.level: follows from data.tokenizer, got "word"; remove it',
        "data.vocab_size: follows from data.tokenizer, got 50; remove it",
    ]
    with pytest.raises(ConfigError, match='missing, expected a tokenizer file beside level = "token"'):
        DataConfig(corpus="files", level="token")


def test_ids_are_the_tokenizers_and_give_the_text_back(write_texts, bpe):
    text = "the dogs saw\n\nthe naïve cat\r\nran"
    folder = write_texts(valid=text)
    corpus = load_corpus(BPE, folder, bpe)
    library = tokenizers.Tokenizer.from_file(str(bpe))
    ids = list(corpus.splits["valid"])
    assert ids == [number for line in text.splitlines(keepends=True) for number in library.encode(line).ids]
    assert library.decode(ids) == text
    assert len(corpus.vocabulary) == library.get_vocab_size() == corpus_facts(BPE, folder, bpe).vocab_size
    assert [corpus.vocabulary[number] for number in ids] == [library.id_to_token(number) for number in ids]
    assert corpus.lossless


def test_the_file_asks_in_vain_for_special_tokens_and_cut_lines(write_texts, bpe):
    library = tokenizers.Tokenizer.from_file(str(bpe))
    plain = list(load_corpus(BPE, write_texts(), bpe).splits["test"])
    library.enable_truncation(2)
    library.enable_padding(length=50)
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="a $A b", special_tokens=[("a", 64), ("b", 65)]
    )
    library.save(str(bpe))
    assert list(load_corpus(BPE, write_texts(), bpe).splits["test"]) == plain


def test_bytes_are_those_of_the_file_and_bits_go_by_them(write_texts, bpe):
    texts = {"valid": "naïve cats\n".encode("utf-8-sig"), "test": "dog\r\n"}
    folder = write_texts(train="naïve cats dog é\n", **texts)
    for config, tokenizer in (
        (BPE, bpe),
        (DataConfig(corpus="files"), None),
        (DataConfig(corpus="files", level="char"), None),
    ):
        corpus = load_corpus(config, folder, tokenizer)
        assert (corpus.bytes["valid"], corpus.bytes["test"]) == (12, 5)
        tokens = len(corpus.splits["valid"])
        assert corpus.bits_per_byte("valid", 0.5) == pytest.approx(0.5 * tokens / math.log(2) / 12)
        assert load_corpus(config, folder, tokenizer) == corpus, "from the cache"


@pytest.mark.parametrize(
    ("level", "vocab_size", "valid", "lossless"),
    [
        ("word", None, "the cat\n", True),
        ("word", 100, "the cat\n", True),
        ("word", 100, "the zebra\n", False),
        ("word", 100, "the <unk> cat\n", True),
        ("char", 100, "the\n", True),
        ("char", 100, "thé\n", False),
    ],
)
def test_text_is_lost_where_a_token_becomes_unk(write_texts, level, vocab_size, valid, lossless):
    config = DataConfig(corpus="files", level=level, vocab_size=vocab_size)
    assert load_corpus(config, write_texts(valid=valid, test="the\n")).lossless is lossless


def test_a_tokenizer_that_loses_text_is_found_out(write_texts, tmp_path):
    words = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "cat": 2, "dog": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "bpe.json"))
    known = load_corpus(BPE, write_texts(valid="the cat\n", test="dog\n"), tmp_path / "bpe.json")
    assert (list(known.splits["valid"]), known.lossless) == ([1, 2], True)
    assert not load_corpus(BPE, write_texts(valid="the zebra\n", test="dog\n"), tmp_path / "bpe.json").lossless
    assert Tokenizer(tmp_path / "bpe.json", None).unknown_id == 0


def test_the_digest_of_the_file_decides_the_identity_and_its_name_does_not(write_texts, bpe, tmp_path):
    folder = write_texts()
    resolved = resolve_data(BPE, folder, bpe)
    assert resolved.tokenizer_sha256 == hashlib.sha256(bpe.read_bytes()).hexdigest()
    other = train_tokenizer(tmp_path / "other.json", 270)
    assert resolve_data(BPE, folder, other).tokenizer_sha256 != resolved.tokenizer_sha256
    assert len(load_corpus(BPE, folder, other).vocabulary) != len(load_corpus(BPE, folder, bpe).vocabulary)


def test_a_cached_corpus_needs_neither_the_file_nor_the_library(write_texts, bpe, monkeypatch):
    folder = write_texts()
    config = resolve_data(BPE, folder, bpe)
    first = load_corpus(config, folder, bpe)
    bpe.unlink()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert load_corpus(config, folder, bpe) == first


def test_pieces_join_to_the_text_and_a_character_of_several_tokens_is_the_last_ones(bpe):
    tokenizer = Tokenizer(bpe, None)
    text = "the dogs, “naïve” 猫\n"
    ids = tokenizer.ids_of(text)
    pieces = tokenizer.pieces(ids)
    assert ("".join(pieces), len(pieces)) == (text, len(ids))
    assert pieces[0] == "the"
    place = ids.index(tokenizer.ids_of("猫")[0])
    assert pieces[place : place + 3] == ["", "", "猫"]
    assert tokenizer.pieces([]) == []


def refusal(path: Path, folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_corpus(BPE, folder, path)
    message = str(caught.value)
    assert message.startswith("data.tokenizer: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "bpe.json does not exist; expected a tokenizer.json of the tokenizers library"),
        (b"\x0a\x0e\x0a\x05<unk>", "is another kind of file (no JSON with model.vocab); expected a tokenizer.json"),
        ('{"the": 1}', "is another kind of file (no JSON with model.vocab); expected a tokenizer.json"),
        (
            '{"model": {"type": "BPE", "vocab": {}, "merges": [], "dropout": 0.1}}',
            "has model.dropout = 0.1, which draws",
        ),
        ('{"model": {"type": "Novel", "vocab": {}}}', f"tokenizers {tokenizers.__version__} cannot read"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused_in_one_line(write_texts, tmp_path, content, problem):
    path = tmp_path / "bpe.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert problem in refusal(path, write_texts())


def test_a_folder_in_place_of_the_file_is_refused(write_texts, tmp_path):
    assert "is a folder; expected" in refusal(tmp_path, write_texts())


def test_the_missing_library_is_named(write_texts, bpe, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert "needs the package tokenizers; install it (pip install tokenizers)" in refusal(bpe, write_texts())


def test_a_kept_file_that_has_changed_is_refused(write_texts, bpe):
    folder = write_texts()
    config = resolve_data(BPE, folder, bpe)
    bpe.write_text(json.dumps(json.loads(bpe.read_text()), indent=1))
    with pytest.raises(DataError, match=r"bpe\.json has changed since its runs were launched: found sha256"):
        corpora.load_corpus(config, folder, bpe)

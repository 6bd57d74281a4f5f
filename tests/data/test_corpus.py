from __future__ import annotations

import dataclasses
import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from seqlm.config import DataConfig, RunConfig
from seqlm.data import cache
from seqlm.data.corpus import PTB_SHA256, Corpus, corpus_facts, downloaded_ptb, load_corpus, resolve_data
from seqlm.data.source import Texts
from seqlm.data.tokens import tokens_of
from seqlm.errors import DataError

WORDS = DataConfig(corpus="files")
CHARS = DataConfig(corpus="files", level="char")
REAL_PTB = os.environ.get("SEQLM_TEST_DATA") or os.environ.get("SEQLM_DATA") or ""


def decode(corpus: Corpus, split: str) -> list[str]:
    return [corpus.vocabulary[i] for i in corpus.splits[split]]


def test_word_ids_go_by_falling_frequency_and_ties_by_the_word_itself(write_texts):
    corpus = load_corpus(WORDS, write_texts(train="b a b\na c\nd d d d\n", valid="a\n", test="b\n"))
    assert corpus.vocabulary == ("d", "<eos>", "a", "b", "c")  # 4, 3, then 2 and 2, then 1
    assert list(corpus.splits["train"]) == [3, 2, 3, 1, 2, 4, 1, 0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("a b\nc\n", ["a", "b", "<eos>", "c", "<eos>"]),
        ("a b\nc", ["a", "b", "<eos>", "c", "<eos>"]),
        ("a  b \r\n\tc\r\n", ["a", "b", "<eos>", "c", "<eos>"]),
        ("a\n\nb\n", ["a", "<eos>", "<eos>", "b", "<eos>"]),
        ("a\u2028b\n", ["a", "b", "<eos>"]),
    ],
)
def test_each_line_end_is_one_eos_and_nothing_else_is(text, tokens):
    assert list(tokens_of(text, "word")) == tokens


def test_at_char_level_a_space_is_a_token_and_unk_stays_whole():
    assert list(tokens_of("a <unk>b\r\n", "char")) == ["a", " ", "<unk>", "b", "<eos>"]


def test_splits_decode_to_the_text_that_went_in(write_texts):
    corpus = load_corpus(CHARS, write_texts(valid="the cat\nsat\n"))
    assert "".join(decode(corpus, "valid")) == "the cat<eos>sat<eos>"


@pytest.mark.parametrize("vocab_size", [3, 4, 5, 6])
def test_vocab_size_is_met_exactly_and_the_rest_becomes_unk(write_texts, vocab_size):
    path = write_texts(train="a a a b b c\nd e\n", valid="a zebra\n", test="e\n")
    corpus = load_corpus(DataConfig(corpus="files", vocab_size=vocab_size), path)
    kept = ["a", "b", "c", "d", "e"][: vocab_size - 2]
    assert set(corpus.vocabulary) == {"<unk>", "<eos>", *kept}
    assert len(corpus.vocabulary) == vocab_size
    words = ["a", "a", "a", "b", "b", "c", "<eos>", "d", "e", "<eos>"]
    assert decode(corpus, "train") == [w if w in {*kept, "<eos>"} else "<unk>" for w in words]
    assert decode(corpus, "valid") == ["a", "<unk>", "<eos>"]


def test_unk_is_ranked_with_the_words_it_swallowed(write_texts):
    path = write_texts(train="a a a b b c d <unk>\n", valid="a\n", test="a\n")
    corpus = load_corpus(DataConfig(corpus="files", vocab_size=3), path)
    assert corpus.vocabulary == ("<unk>", "a", "<eos>")  # 5 of b b c d <unk>, 3, 1


def test_vocab_size_above_what_is_there_keeps_all_and_adds_unk(write_texts):
    path = write_texts(train="a a b\n", valid="zebra\n", test="a\n")
    corpus = load_corpus(DataConfig(corpus="files", vocab_size=100), path)
    assert corpus.vocabulary == ("a", "<eos>", "b", "<unk>")
    assert decode(corpus, "valid") == ["<unk>", "<eos>"]


def test_a_word_that_train_lacks_is_named_with_file_line_and_remedy(write_texts):
    path = write_texts(valid="the cat\nthe zebra saw a zebra\n", test="emu\n")
    with pytest.raises(DataError) as caught:
        load_corpus(WORDS, path)
    assert str(caught.value) == (
        'valid.txt line 2: "zebra" is not in the vocabulary of train (8 words); 3 unknown words in valid and test '
        "in all; replace it by <unk>, or set data.vocab_size to cut the vocabulary"
    )


def test_unk_is_not_advised_where_train_has_none(write_texts):
    path = write_texts(train="a\n", valid="a\n", test="é\n")
    with pytest.raises(DataError) as caught:
        load_corpus(CHARS, path)
    assert str(caught.value) == (
        'test.txt line 1: "é" is not in the vocabulary of train (2 characters); '
        "set data.vocab_size to cut the vocabulary"
    )


def test_text_that_is_not_utf8_is_refused_with_file_and_line(write_texts):
    with pytest.raises(DataError, match=r"^valid\.txt line 2: byte 0xe9 is not UTF-8; save the file as UTF-8 text$"):
        load_corpus(WORDS, write_texts(valid=b"the cat\ncaf\xe9\n"))


def test_a_byte_order_mark_is_no_part_of_the_first_word(write_texts):
    corpus = load_corpus(WORDS, write_texts(valid=b"\xef\xbb\xbfthe cat\n"))
    assert decode(corpus, "valid") == ["the", "cat", "<eos>"]


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_split_is_refused(write_texts, content):
    with pytest.raises(DataError, match=r"^test\.txt is empty; expected"):
        load_corpus(WORDS, write_texts(test=content))


def test_folder_and_zip_and_both_namings_give_the_same_corpus(write_texts, tmp_path):
    folder = write_texts()
    archive = tmp_path / "corpus.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for split in ("test", "train", "valid"):
            file.write(folder / f"{split}.txt", f"deep/down/ptb.{split}.txt")
            file.writestr(f"__MACOSX/deep/down/._ptb.{split}.txt", b"\x00")
    assert load_corpus(WORDS, folder) == load_corpus(WORDS, archive)


def test_the_data_folder_stays_untouched(write_texts):
    folder = write_texts()

    def state() -> list[tuple[str, int, int]]:
        entries = [folder, *sorted(folder.rglob("*"))]
        return [(str(e), e.stat().st_mtime_ns, e.stat().st_size) for e in entries]

    before = state()
    load_corpus(WORDS, folder)
    corpus_facts(CHARS, folder)
    resolve_data(WORDS, folder)
    assert state() == before


def test_files_that_are_not_given_are_an_error_that_says_where_to_name_them():
    with pytest.raises(DataError, match=r"study\.data .* --data .* SEQLM_DATA"):
        load_corpus(WORDS, None)


@pytest.mark.parametrize("config", [WORDS, CHARS, DataConfig(corpus="files", vocab_size=4)])
def test_facts_are_those_of_the_loaded_corpus_with_and_without_cache(write_texts, config):
    folder = write_texts()
    fresh = corpus_facts(config, folder)
    corpus = load_corpus(config, folder)
    assert fresh == corpus.facts == corpus_facts(config, folder)
    assert corpus.facts.vocab_size == len(corpus.vocabulary)
    assert corpus.tokens == {split: len(corpus.splits[split]) for split in ("train", "valid", "test")}


def test_ids_are_read_only_int32_with_and_without_cache(write_texts, monkeypatch):
    folder = write_texts()
    cached = load_corpus(WORDS, folder)
    monkeypatch.setattr(cache, "cache_folder", lambda: folder / "train.txt")  # a file: nothing can be kept there
    for ids in (cached.splits["train"], load_corpus(WORDS, folder).splits["train"]):
        assert (ids.format, ids.itemsize, ids.readonly, ids.ndim) == ("i", 4, True, 1)


def test_resolving_fills_in_the_digest_of_the_text(write_texts):
    folder = write_texts()
    resolved = resolve_data(WORDS, folder)
    assert resolved.sha256 == load_corpus(WORDS, folder).sha256
    assert resolve_data(resolved, folder) == resolved
    (folder / "test.txt").write_text("the dog\n")
    assert resolve_data(WORDS, folder).sha256 != resolved.sha256


@pytest.mark.parametrize("use", [resolve_data, load_corpus, corpus_facts])
def test_another_text_than_configured_is_refused_naming_both_digests(write_texts, use):
    folder = write_texts()
    found = resolve_data(WORDS, folder).sha256
    with pytest.raises(DataError, match=f"found sha256 {found}, expected {'0' * 64}"):
        use(DataConfig(corpus="files", sha256="0" * 64), folder)


def test_resolving_leaves_ptb_whose_text_is_known_as_it_is():
    config = DataConfig(corpus="ptb")
    assert resolve_data(config, None) is config


def test_another_python_is_another_pydoc_text_and_so_another_run(monkeypatch):
    def run(data):
        sections = {"model": {"arch": "rnn", "hidden_size": 8}, "optim": {"optimizer": "sgd", "lr": 1.0}, "train": {}}
        return RunConfig.from_dict({**sections, "data": dataclasses.asdict(data)})

    def python_says(word):
        contents = {split: f"{word} in {split}\n".encode() for split in ("train", "valid", "test")}
        texts = Texts(contents, {split: f"pydoc {split} text" for split in contents})
        monkeypatch.setattr("seqlm.data.pydoc_corpus.pydoc_texts", lambda: texts)
        return texts.sha256()

    pydoc = DataConfig(corpus="pydoc")
    first = python_says("three eleven")
    begun = resolve_data(pydoc, None)
    assert begun == dataclasses.replace(pydoc, sha256=first)
    assert resolve_data(begun, None) == begun
    second = python_says("three thirteen")
    assert run(resolve_data(pydoc, None)).fingerprint() != run(begun).fingerprint()
    for use in (resolve_data, load_corpus, corpus_facts):
        with pytest.raises(DataError, match=f"another pydoc text.*found sha256 {second}, expected {first}"):
            use(begun, None)


def test_ptb_with_a_wrong_file_names_it_and_both_digests(write_texts):
    folder = write_texts(prefix="ptb.")
    found = hashlib.sha256((folder / "ptb.train.txt").read_bytes()).hexdigest()
    with pytest.raises(DataError, match=f"^ptb.train.txt in .* found sha256 {found}, expected {PTB_SHA256['train']}"):
        load_corpus(DataConfig(corpus="ptb"), folder)


def test_ptb_facts_need_no_files():
    facts = corpus_facts(DataConfig(corpus="ptb"), None)
    assert facts.vocab_size == 10_000
    assert facts.tokens == {"train": 929_589, "valid": 73_760, "test": 82_430}
    listing = "".join(f"{PTB_SHA256[split]} {split}\n" for split in ("train", "valid", "test"))
    assert facts.sha256 == hashlib.sha256(listing.encode()).hexdigest()
    assert corpus_facts(DataConfig(corpus="ptb", vocab_size=2_000), None).vocab_size == 2_000
    assert corpus_facts(DataConfig(corpus="ptb", vocab_size=20_000), None).vocab_size == 10_000


def test_ptb_facts_of_files_are_those_of_the_loaded_corpus(write_texts, monkeypatch):
    folder = write_texts(prefix="ptb.")
    for split in ("train", "valid", "test"):
        found = hashlib.sha256((folder / f"ptb.{split}.txt").read_bytes()).hexdigest()
        monkeypatch.setitem(PTB_SHA256, split, found)
    config = DataConfig(corpus="ptb")
    for _ in range(2):  # the second time from the cache
        assert corpus_facts(config, folder) == load_corpus(config, folder).facts


def test_a_downloaded_ptb_is_found_without_a_path_and_verified_like_any_other(write_texts, cache_folder):
    assert downloaded_ptb() == cache_folder / "ptb"
    cache_folder.mkdir()
    write_texts(prefix="ptb.").rename(downloaded_ptb())
    with pytest.raises(DataError, match=f"^ptb.train.txt in {downloaded_ptb()} is not the Penn Treebank's train split"):
        load_corpus(DataConfig(corpus="ptb"), None)


@pytest.mark.parametrize("corpus", ["ptb", "files"])
def test_a_corpus_without_its_files_says_how_to_name_them(corpus):
    with pytest.raises(DataError, match=r"--data or set SEQLM_DATA to a folder or zip file\s+with ptb\.train\.txt"):
        load_corpus(DataConfig(corpus=corpus), None)


@pytest.mark.skipif(not REAL_PTB, reason="neither SEQLM_DATA nor SEQLM_TEST_DATA names a copy of the Penn Treebank")
@pytest.mark.parametrize("level", ["word", "char"])
def test_the_real_ptb_is_what_is_known_by_heart(level):
    config = DataConfig(corpus="ptb", level=level)
    corpus = load_corpus(config, Path(REAL_PTB))
    assert corpus.facts == corpus_facts(config, None)
    if level == "word":
        assert corpus.vocabulary[:6] == ("the", "<unk>", "<eos>", "N", "of", "to")
        assert list(corpus.splits["train"][:4]) == [9970, 9971, 9972, 9974]  # aer banknote berlitz calloway

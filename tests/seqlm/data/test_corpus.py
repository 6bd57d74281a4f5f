import dataclasses
import hashlib
import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqlm.config import DataConfig, RunConfig
from seqlm.data.corpus import PTB_SHA256, Corpus, corpus_facts, downloaded_ptb, load_corpus, resolve_data
from seqlm.data.source import SPLITS, Texts
from seqlm.data.tokens import encode, tokens_of
from seqlm.errors import DataError

WORDS = DataConfig(corpus="files")
CHARS = DataConfig(corpus="files", level="char")
REAL_PTB = os.environ.get("SEQLM_TEST_DATA") or os.environ.get("SEQLM_DATA") or ""


def decode(corpus: Corpus, split: str) -> list[str]:
    return [corpus.vocabulary[i] for i in corpus.splits[split]]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    text=st.lists(st.lists(st.sampled_from(["a", "b", "c", "d", "<unk>"]), max_size=5), min_size=1, max_size=9),
    vocab_size=st.one_of(st.none(), st.integers(2, 8)),
)
def test_the_vocabulary_is_the_most_frequent_words_in_order_and_the_rest_is_unk(text, vocab_size):
    """Ties go by the word itself; ``<unk>`` is ranked with the words that it stands for."""
    content = "".join(" ".join(line) + "\n" for line in text)
    found = encode(dict.fromkeys(SPLITS, content), {split: split for split in SPLITS}, "word", vocab_size)
    words = [word for line in text for word in (*line, "<eos>")]
    kept = set(words)
    if vocab_size is not None:
        others = sorted(kept - {"<eos>", "<unk>"}, key=lambda word: (-words.count(word), word))
        kept = {*others[: vocab_size - 2], "<eos>", "<unk>"}
    known = [word if word in kept else "<unk>" for word in words]
    assert [found.vocabulary[number] for number in found.splits["train"]] == known
    assert list(found.vocabulary) == sorted(kept, key=lambda word: (-known.count(word), word))


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


@pytest.mark.parametrize(
    ("config", "texts", "line"),
    [
        (
            WORDS,
            {"valid": "the cat\nthe zebra saw a zebra\n", "test": "emu\n"},
            'valid.txt line 2: "zebra" is not in the vocabulary of train (8 words); 3 unknown words in valid and test '
            "in all; replace it by <unk>, or set data.vocab_size to cut the vocabulary",
        ),
        (
            CHARS,
            {"train": "a\n", "valid": "a\n", "test": "é\n"},
            'test.txt line 1: "é" is not in the vocabulary of train (2 characters); '
            "set data.vocab_size to cut the vocabulary",
        ),
        (
            WORDS,
            {"valid": b"the cat\ncaf\xe9\n"},
            "valid.txt line 2: byte 0xe9 is not UTF-8 text; save the file as UTF-8",
        ),
        *((WORDS, {"test": content}, "test.txt is empty; expected") for content in (b"", b"\n \n", b"\xef\xbb\xbf")),
    ],
)
def test_a_text_that_cannot_be_used_is_one_line_with_file_line_and_remedy(write_texts, config, texts, line):
    with pytest.raises(DataError) as caught:
        load_corpus(config, write_texts(**texts))
    assert str(caught.value).startswith(line)


def test_a_byte_order_mark_is_no_part_of_the_first_word(write_texts):
    corpus = load_corpus(WORDS, write_texts(valid=b"\xef\xbb\xbfthe cat\n"))
    assert decode(corpus, "valid") == ["the", "cat", "<eos>"]


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


@pytest.mark.parametrize("config", [WORDS, CHARS, DataConfig(corpus="files", vocab_size=4)])
def test_facts_are_those_of_the_loaded_corpus_with_and_without_cache(write_texts, config):
    folder = write_texts()
    fresh = corpus_facts(config, folder)
    corpus = load_corpus(config, folder)
    assert fresh == corpus.facts == corpus_facts(config, folder)
    assert corpus.facts.vocab_size == len(corpus.vocabulary)
    assert corpus.tokens == {split: len(corpus.splits[split]) for split in ("train", "valid", "test")}


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


def test_another_python_is_another_pydoc_text_and_so_another_run(monkeypatch, tmp_path):
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
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text(f"three eleven in {split}\n")
    for use in (resolve_data, load_corpus, corpus_facts):
        use(begun, tmp_path)
        use(resolve_data(pydoc, tmp_path), tmp_path)
    assert resolve_data(pydoc, tmp_path).sha256 == second, "files are read only for a text that is asked for"
    (tmp_path / "test.txt").write_text("another\n")
    with pytest.raises(DataError, match="holds another text"):
        resolve_data(begun, tmp_path)


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

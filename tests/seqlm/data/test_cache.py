import fcntl
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from seqlm.config import DataConfig
from seqlm.data import cache, corpus
from seqlm.data.corpus import corpus_facts, load_corpus, resolve_data
from seqlm.errors import DataError
from tests.waiting import wait_for

WORDS = DataConfig(corpus="files")


def forbid_tokenising(monkeypatch):
    def fail(*_):
        raise AssertionError("the text was tokenised again")

    monkeypatch.setattr(corpus, "encode", fail)


def entries(cache_folder: Path) -> list[Path]:
    return [entry for entry in (cache_folder / "corpora").iterdir() if entry.suffix != ".lock"]


def test_a_cache_hit_gives_an_equal_corpus_without_tokenising(write_texts, monkeypatch, cache_folder):
    folder = write_texts()
    monkeypatch.setenv("SEQLM_CACHE", str(folder / "train.txt" / "no-cache-here"))
    uncached = load_corpus(WORDS, folder)
    monkeypatch.setenv("SEQLM_CACHE", str(cache_folder))
    first = load_corpus(WORDS, folder)
    forbid_tokenising(monkeypatch)
    second = load_corpus(WORDS, folder)
    assert uncached == first == second
    assert corpus_facts(WORDS, folder) == first.facts


def test_facts_are_read_from_the_cache_without_its_ids_unless_they_are_cut_short(
    write_texts, monkeypatch, cache_folder
):
    folder = write_texts()
    facts = load_corpus(WORDS, folder).facts
    loads = []
    monkeypatch.setattr(corpus, "load_corpus", lambda *given: loads.append(given) or load_corpus(*given))
    assert corpus_facts(WORDS, folder) == facts
    assert loads == []
    file = entries(cache_folder)[0] / "train.bin"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[:-4])
    assert corpus_facts(WORDS, folder) == facts
    assert loads == [(WORDS, folder, None)]


def test_a_text_whose_digest_is_known_is_read_only_if_it_is_not_in_the_cache(write_texts, cache_folder):
    folder = write_texts()
    known = resolve_data(WORDS, folder)
    first = load_corpus(known, folder)
    (folder / "train.txt").write_text("another text\n")
    assert load_corpus(known, folder) == load_corpus(known, folder / "nowhere") == first
    with pytest.raises(DataError, match="holds another text"):
        load_corpus(replace(known, level="char"), folder)


def test_a_staged_corpus_is_read_from_the_node_and_copied_again_if_that_is_damaged(
    write_texts, cache_folder, tmp_path, monkeypatch
):
    folder = write_texts()
    known = resolve_data(WORDS, folder)
    first = load_corpus(known, folder)
    monkeypatch.setenv("SEQLM_STAGE", "1")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "node"))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: load_corpus(known, folder), range(4))) == [first] * 4
    (staged,) = entries(tmp_path / "node" / f"seqlm-{os.geteuid()}")
    (kept,) = entries(cache_folder)
    (staged / "train.bin").unlink()  # not written to, since it is mapped into memory
    assert load_corpus(known, folder) == first
    assert (staged / "train.bin").read_bytes() == (kept / "train.bin").read_bytes()
    (kept / "train.bin").unlink()
    (folder / "train.txt").unlink()
    assert load_corpus(known, folder) == first, "what is on the node is enough"


@pytest.mark.parametrize("name", ["train.bin", "vocabulary.json", "index.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "removed", "emptied"])
def test_a_damaged_entry_is_noticed_and_made_again(write_texts, cache_folder, monkeypatch, name, damage):
    folder = write_texts()
    sound = load_corpus(WORDS, folder)
    sound = corpus.Corpus(
        vocabulary=sound.vocabulary,
        splits={split: memoryview(bytes(ids)).cast("i") for split, ids in sound.splits.items()},
        sha256=sound.sha256,
        bytes=sound.bytes,
        lossless=sound.lossless,
    )
    file = entries(cache_folder)[0] / name
    content = file.read_bytes()
    # Another file in its place, as a copy gone wrong makes it: writing into a mapped file would pull it from under us.
    file.unlink()
    if damage != "removed":
        changed = {"truncated": content[:-8], "emptied": b"", "flipped": bytes([content[0] ^ 1]) + content[1:]}
        file.write_bytes(changed[damage])
    assert load_corpus(WORDS, folder) == sound
    assert [entry.name for entry in entries(cache_folder)] == [file.parent.name]
    forbid_tokenising(monkeypatch)
    assert load_corpus(WORDS, folder) == sound


def test_a_file_in_place_of_an_entry_is_replaced(write_texts, cache_folder, monkeypatch):
    folder = write_texts()
    load_corpus(WORDS, folder)
    (entry,) = entries(cache_folder)
    entry.rename(cache_folder / "elsewhere")
    entry.write_text("not a folder")
    load_corpus(WORDS, folder)
    assert entries(cache_folder) == [entry]
    forbid_tokenising(monkeypatch)
    load_corpus(WORDS, folder)


def test_text_level_and_vocab_size_have_entries_of_their_own(write_texts, cache_folder):
    load_corpus(WORDS, write_texts())
    load_corpus(DataConfig(corpus="files", level="char"), write_texts())
    load_corpus(DataConfig(corpus="files", vocab_size=4), write_texts())
    load_corpus(WORDS, write_texts(valid="the dog\n"))
    assert len(entries(cache_folder)) == 4


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """The messages of the package's logger; pytest's own plugin takes time in each test (pyproject.toml)."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("seqlm").addHandler(handler)
    yield messages
    logging.getLogger("seqlm").removeHandler(handler)


def test_a_cache_that_cannot_be_written_costs_one_warning(write_texts, tmp_path, monkeypatch, logged):
    folder = write_texts()
    (tmp_path / "occupied").touch()
    monkeypatch.setenv("SEQLM_CACHE", str(tmp_path / "occupied"))
    assert load_corpus(WORDS, folder) == load_corpus(WORDS, folder)
    (message,) = logged
    assert "occupied" in message
    assert message.endswith("going on without a cache")


def test_a_full_disk_leaves_no_part_of_an_entry(write_texts, cache_folder, monkeypatch, logged):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert load_corpus(WORDS, write_texts()).tokens["valid"] == 4
    assert "No space left on device" in "".join(logged)
    assert entries(cache_folder) == []


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("SEQLM_CACHE", str(tmp_path / "own"))
    assert cache.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("SEQLM_CACHE")
    assert cache.cache_folder() == tmp_path / "xdg" / "seqlm"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.cache_folder() == tmp_path / "home" / ".cache" / "seqlm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == tmp_path / "home" / ".cache" / "seqlm"


def test_of_two_workers_that_start_together_one_tokenises(write_texts, monkeypatch, cache_folder):
    texts = write_texts()
    calls, asked = [], []
    plain, flock = corpus.encode, fcntl.flock

    def ask(*arguments):
        asked.append("lock")
        flock(*arguments)

    def slow(*arguments):
        calls.append("encode")
        wait_for(lambda: len(asked) >= 2, "the other worker to ask for the lock")
        return plain(*arguments)

    monkeypatch.setattr(fcntl, "flock", ask)

    monkeypatch.setattr(corpus, "encode", slow)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: load_corpus(WORDS, texts), range(2)))
    assert calls == ["encode"]
    assert both[0].facts == both[1].facts


def test_no_stranger_may_hold_the_lock_of_an_entry(cache_folder):
    with cache.one_at_a_time("corpora", "0" * 64):
        (lock,) = (cache_folder / "corpora").glob(".*.lock")
    assert lock.stat().st_mode & 0o007 == 0


def test_a_lock_that_is_never_released_delays_no_longer_than_it_says(cache_folder, monkeypatch, logged):
    monkeypatch.setattr(cache, "LOCK_SECONDS", 0.5)
    monkeypatch.setattr(cache, "LOCK_SILENT_SECONDS", 0.1)
    with cache.one_at_a_time("corpora", "0" * 64), cache.one_at_a_time("corpora", "0" * 64):
        pass
    assert len(logged) == 2, "it waits, and it goes on"

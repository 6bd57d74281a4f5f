"""A corpus: its vocabulary and, for each split, its tokens as one vector of ids.

Tokenising is done once and kept in the cache; the text itself is read and hashed each time, so that what is cached can
never be that of another text. No torch here: the launcher plans with it.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import platform
import sys
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

from seqlm.config import DataConfig
from seqlm.data import cache
from seqlm.data.source import SPLITS, WANTED, Texts, combined_sha256, read_texts
from seqlm.data.tokens import EOS, UNK, encode
from seqlm.errors import DataError

__all__ = [
    "EOS",
    "PTB_SHA256",
    "SPLITS",
    "UNK",
    "Corpus",
    "CorpusFacts",
    "corpus_facts",
    "downloaded_ptb",
    "load_corpus",
    "resolve_data",
]

FORMAT = 1
"""Version of the cached files and of the tokenisation; raise it when either changes."""

PTB_SHA256 = {
    "train": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    "valid": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    "test": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
}
"""SHA-256 of each ``ptb.<split>.txt`` in Mikolov's preprocessing of the Penn Treebank."""
_PTB_VOCABULARY = {"word": 10_000, "char": 49}
_PTB_TOKENS = {
    "word": {"train": 929_589, "valid": 73_760, "test": 82_430},
    "char": {"train": 4_921_538, "valid": 385_842, "test": 430_769},
}


@dataclass(frozen=True, kw_only=True)
class CorpusFacts:
    """What a planner needs to know of a corpus."""

    vocab_size: int
    """Entries of the vocabulary, V."""
    tokens: Mapping[str, int]
    """Tokens of "train", "valid" and "test", ``<eos>`` included."""
    sha256: str
    """Digest of the three texts (not of their file names)."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A tokenised corpus."""

    name: str
    """``ptb``, ``pydoc`` or ``files``."""
    vocabulary: tuple[str, ...]
    """Id -> token, by falling frequency in train."""
    splits: Mapping[str, memoryview]
    """"train", "valid", "test" -> ids: read-only, int32 (format ``i``), one axis; a mapped file where cached."""
    sha256: str
    """Digest of the three texts, as in :class:`CorpusFacts`."""

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens of each split."""
        return {split: len(ids) for split, ids in self.splits.items()}

    @property
    def facts(self) -> CorpusFacts:
        """What :func:`corpus_facts` says of this corpus."""
        return CorpusFacts(vocab_size=len(self.vocabulary), tokens=self.tokens, sha256=self.sha256)


def load_corpus(config: DataConfig, path: Path | None) -> Corpus:
    """Read, check and tokenise a corpus.

    ``path`` is the folder or zip file of its texts; ``pydoc`` needs none and ignores it.

    Raises:
        DataError: no ``path`` where one is needed; a text is missing, empty, damaged, not UTF-8, or not the one that
            the configuration asks for; an unknown word. One line that says what would be right.
        FileError: the file system refuses to let a text be read.
    """
    texts = _read(config, path)
    sha256 = texts.sha256()
    key = _key(config, sha256)
    corpus = _from_cache(config, key, sha256)
    if corpus is not None:
        return corpus
    with cache.one_at_a_time("corpora", key):  # of the workers that start on a machine together, one tokenises
        return _from_cache(config, key, sha256) or _tokenise(config, texts, key, sha256)


def _tokenise(config: DataConfig, texts: Texts, key: str, sha256: str) -> Corpus:
    decoded = {split: texts.text(split) for split in SPLITS}
    vocabulary, vectors = encode(decoded, texts.file_names, config.level, config.vocab_size)
    splits = {split: memoryview(vector).toreadonly() for split, vector in vectors.items()}
    corpus = Corpus(name=config.corpus, vocabulary=vocabulary, splits=splits, sha256=sha256)
    files: dict[str, bytes | memoryview] = {f"{split}.bin": _little_endian(vectors[split]) for split in SPLITS}
    files["vocabulary.json"] = json.dumps(vocabulary, ensure_ascii=False, indent=0).encode()
    facts = {"vocab_size": len(vocabulary), "tokens": corpus.tokens, "sha256": sha256}
    cache.store("corpora", key, files, facts)
    return _from_cache(config, key, sha256) or corpus


def corpus_facts(config: DataConfig, path: Path | None) -> CorpusFacts:
    """The size of a corpus: known by heart for ``ptb`` without ``path``, else from the cache, else by loading it.

    With a ``path``, the texts are read and verified like in :func:`load_corpus`.

    Raises:
        DataError, FileError: as :func:`load_corpus`.
    """
    if config.corpus == "ptb" and path is None:
        size = _PTB_VOCABULARY[config.level]
        return CorpusFacts(
            vocab_size=min(size, config.vocab_size or size),
            tokens=_PTB_TOKENS[config.level],
            sha256=combined_sha256(PTB_SHA256[split] for split in SPLITS),
        )
    sha256 = _read(config, path).sha256()
    entry = cache.find("corpora", _key(config, sha256), verify=False)
    if entry is not None:
        facts = entry[1]
        return CorpusFacts(vocab_size=facts["vocab_size"], tokens=facts["tokens"], sha256=facts["sha256"])
    return load_corpus(config, path).facts


def resolve_data(config: DataConfig, path: Path | None) -> DataConfig:
    """The configuration with the digest of its text filled in; ``ptb``, whose text is known, is returned as is.

    Raises:
        DataError: the text found is not the one whose digest the configuration has; or as :func:`load_corpus`.
        FileError: as :func:`load_corpus`.
    """
    if config.corpus == "ptb":
        return config
    return dataclasses.replace(config, sha256=_read(config, path).sha256())


def downloaded_ptb() -> Path:
    """Where ``seqlm data ptb`` puts the Penn Treebank, and where it is looked for when no path is given."""
    return cache.cache_folder() / "ptb"


def _read(config: DataConfig, path: Path | None) -> Texts:
    """The texts of a corpus, verified to be the ones that ``config`` means."""
    match config.corpus:
        case "pydoc":
            from seqlm.data.pydoc_corpus import pydoc_texts

            found = f"Python {platform.python_version()} makes another pydoc text"
            return _as_configured(config, pydoc_texts(), found, "use the Python of that text")
        case "ptb":
            if path is None and downloaded_ptb().is_dir():
                path = downloaded_ptb()
            if path is None:
                raise DataError(
                    "the Penn Treebank's files are not given; pass --data or set SEQLM_DATA to a folder or zip file "
                    f'with {WANTED}; "seqlm data ptb" fetches them; corpus = "pydoc" needs no files'
                )
            texts = read_texts(path)
            for split, expected in PTB_SHA256.items():
                found = texts.file_sha256(split)
                if found != expected:
                    raise DataError(
                        f"{texts.file_names[split]} in {path} is not the Penn Treebank's {split} split: found sha256 "
                        f'{found}, expected {expected}; get the right file, or set data.corpus = "files" for other text'
                    )
            return texts
        case "files":
            if path is None:
                raise DataError(
                    f"the files of the corpus are not given; pass --data or set SEQLM_DATA to a folder or zip file "
                    f"with {WANTED}"
                )
            return _as_configured(config, read_texts(path), f"{path} holds another text", "pass the right files")
        case _:
            assert_never(config.corpus)


def _as_configured(config: DataConfig, texts: Texts, problem: str, advice: str) -> Texts:
    """The texts, if they are those whose digest the configuration has, or it has none."""
    if config.sha256 is not None and config.sha256 != (found := texts.sha256()):
        raise DataError(
            f"{problem} than the configuration says: found sha256 {found}, expected {config.sha256}; {advice}, or "
            "remove data.sha256"
        )
    return texts


def _key(config: DataConfig, sha256: str) -> str:
    return cache.digest_key(
        {"format": FORMAT, "sha256": sha256, "level": config.level, "vocab_size": config.vocab_size}
    )


def _from_cache(config: DataConfig, key: str, sha256: str) -> Corpus | None:
    entry = cache.find("corpora", key)
    if entry is None:
        return None
    folder, facts = entry
    try:
        vocabulary: Any = json.loads((folder / "vocabulary.json").read_text("utf-8"))
        splits = {split: _map_ids(folder / f"{split}.bin") for split in SPLITS}
    except (OSError, ValueError, TypeError):
        return None
    corpus = Corpus(name=config.corpus, vocabulary=tuple(vocabulary), splits=splits, sha256=sha256)
    return corpus if facts == dataclasses.asdict(corpus.facts) else None


def _map_ids(path: Path) -> memoryview:
    """The ids of a file, mapped into memory: ranks on one machine share the pages."""
    with path.open("rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)).cast("i")
    if sys.byteorder == "little":
        return view
    swapped = array("i", view)
    swapped.byteswap()
    return memoryview(swapped).toreadonly()


def _little_endian(ids: array[int]) -> memoryview:
    if sys.byteorder != "little":
        ids = array("i", ids)
        ids.byteswap()
    return memoryview(ids).cast("B")

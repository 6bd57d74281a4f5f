"""A corpus: its vocabulary and, for each split, its tokens as one vector of ids.

Tokenising is done once and kept in the cache, by the digest of the text, so that what is cached can never be that of
another text. If the configuration has that digest, the text itself is read only if it is not in the cache. No torch
here: the launcher plans with it.
"""

import dataclasses
import hashlib
import json
import math
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from seqlm.config import DataConfig
from seqlm.data import cache
from seqlm.data.dataset import is_dataset, read_dataset
from seqlm.data.source import SPLITS, WANTED, Texts, combined_sha256, read_texts
from seqlm.data.tokenizer import Tokenizer, read_tokenizer_file
from seqlm.data.tokens import encode
from seqlm.errors import DataError
from seqlm.reading import is_folder

FORMAT = 2
"""Version of the cached files and of the tokenisation; raise it when either changes."""
KIND = "corpora"
"""Folder of the cache."""

PTB_SHA256 = {
    "train": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    "valid": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    "test": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
}
"""SHA-256 of each ``ptb.<split>.txt`` in Mikolov's preprocessing of the Penn Treebank."""
_PTB_SIZES: Mapping[str | None, tuple[int, Mapping[str, int]]] = {
    "word": (10_000, {"train": 929_589, "valid": 73_760, "test": 82_430}),
    "char": (49, {"train": 4_921_538, "valid": 385_842, "test": 430_769}),
}
"""Entries of its vocabulary, and tokens of its splits."""


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

    vocabulary: tuple[str, ...]
    """Id -> token, by falling frequency in train."""
    splits: Mapping[str, memoryview]
    """"train", "valid", "test" -> ids: read-only, int32 (format ``i``), one axis; a mapped file where cached."""
    sha256: str
    """Digest of the three texts, as in :class:`CorpusFacts`."""
    bytes: Mapping[str, int]
    """Bytes of each split's text in UTF-8: the file's, without a byte order mark."""
    lossless: bool
    """Whether the ids of valid and test determine the text, white space aside."""

    def bits_per_byte(self, split: str, mean_loss_nats: float) -> float:
        """The bits that a model needs for a byte of the text, from its mean loss per token.

        The nats of all tokens of the split at that mean, divided by ln 2 and by the bytes of the split. The few tokens
        that fill no window count with the mean of the others.
        """
        return mean_loss_nats / math.log(2) * len(self.splits[split]) / self.bytes[split]

    @property
    def tokens(self) -> dict[str, int]:
        return {split: len(ids) for split, ids in self.splits.items()}

    @property
    def facts(self) -> CorpusFacts:
        """What :func:`corpus_facts` says of this corpus."""
        return CorpusFacts(vocab_size=len(self.vocabulary), tokens=self.tokens, sha256=self.sha256)


def load_corpus(config: DataConfig, path: Path | None, tokenizer: Path | None = None) -> Corpus:
    """Read, check and tokenise a corpus. If it is in the cache by ``config.sha256``, its text is not read.

    ``path`` is the folder or zip file of its texts; ``pydoc`` needs none, and reads it only if the configuration says
    that its text is not that of this Python. ``tokenizer`` is the file that
    ``config.tokenizer`` means; it is not read if the corpus is in the cache.

    Raises:
        DataError: no ``path`` where one is needed; a text is missing, empty, damaged, not UTF-8, or not the one that
            the configuration asks for; an unknown word; the tokenizer cannot be used. One line that says what would be
            right.
        FileError: the file system refuses to let a text be read.
    """
    config = _with_tokenizer(config, tokenizer)
    if config.sha256 is not None and (found := _from_cache(_key(config, config.sha256), config.sha256)):
        return found
    texts = _read(config, path)
    sha256 = texts.sha256()
    key = _key(config, sha256)
    if found := _from_cache(key, sha256):
        return found
    with cache.one_at_a_time(KIND, key):  # of the workers that start on a machine together, one tokenises
        return _from_cache(key, sha256) or _tokenise(config, texts, key, tokenizer)


def _tokenise(config: DataConfig, texts: Texts, key: str, tokenizer: Path | None) -> Corpus:
    decoded = {split: texts.text(split) for split in SPLITS}
    if tokenizer is not None and config.tokenizer is not None:
        found = Tokenizer(tokenizer, config.tokenizer_sha256).encode_texts(decoded)
    else:
        assert config.level in ("word", "char"), "only a tokenizer makes other tokens"
        found = encode(decoded, texts.file_names, config.level, config.vocab_size)
    corpus = Corpus(
        vocabulary=found.vocabulary,
        splits={split: memoryview(found.splits[split]).toreadonly() for split in SPLITS},
        sha256=texts.sha256(),
        bytes={split: texts.size(split) for split in SPLITS},
        lossless=found.lossless,
    )
    files: dict[str, bytes | memoryview] = {f"{split}.bin": ids.cast("B") for split, ids in corpus.splits.items()}
    files["vocabulary.json"] = json.dumps(corpus.vocabulary, ensure_ascii=False, indent=0).encode()
    cache.store(KIND, key, files, {**vars(corpus.facts), "bytes": corpus.bytes, "lossless": corpus.lossless})
    return _from_cache(key, corpus.sha256) or corpus


def corpus_facts(config: DataConfig, path: Path | None, tokenizer: Path | None = None) -> CorpusFacts:
    """The size of a corpus: known by heart for ``ptb`` without ``path``, else from the cache, else by loading it.

    With a ``path``, the texts are read and verified like in :func:`load_corpus`.

    Raises:
        DataError, FileError: as :func:`load_corpus`.
    """
    if config.corpus == "ptb" and path is None and config.level in _PTB_SIZES:
        size, tokens = _PTB_SIZES[config.level]
        sha256 = combined_sha256(PTB_SHA256.values())
        return CorpusFacts(vocab_size=min(size, config.vocab_size or size), tokens=tokens, sha256=sha256)
    known = cached_facts(_with_tokenizer(config, tokenizer), _read(config, path).sha256())
    return known or load_corpus(config, path, tokenizer).facts


def cached_facts(config: DataConfig, sha256: str | None) -> CorpusFacts | None:
    """The size of a corpus that is in the cache, by its digest."""
    entry = cache.find(KIND, _key(config, sha256), verify=False)
    if entry is None:
        return None
    return CorpusFacts(**{field.name: entry[1][field.name] for field in dataclasses.fields(CorpusFacts)})


def resolve_data(config: DataConfig, path: Path | None, tokenizer: Path | None = None) -> DataConfig:
    """The configuration with the digests of its text and of its tokenizer filled in.

    The text of ``ptb`` is known, so it gets no digest.

    Raises:
        DataError: the text or the tokenizer is not the one whose digest the configuration has; or as
            :func:`load_corpus`.
        FileError: as :func:`load_corpus`.
    """
    config = _with_tokenizer(config, tokenizer)
    if config.corpus == "ptb":
        return config
    return dataclasses.replace(config, sha256=_read(config, path).sha256())


def _with_tokenizer(config: DataConfig, tokenizer: Path | None) -> DataConfig:
    """The configuration with the digest of its tokenizer. A digest that it has is not verified again."""
    if config.tokenizer is None or config.tokenizer_sha256 is not None:
        return config
    if tokenizer is None:
        raise DataError(
            f"data.tokenizer: the place of {config.tokenizer} is not known; launch the run from its manifest"
        )
    return dataclasses.replace(config, tokenizer_sha256=hashlib.sha256(read_tokenizer_file(tokenizer)).hexdigest())


def downloaded_ptb() -> Path:
    """Where ``seqlm data ptb`` puts the Penn Treebank, and where it is looked for when no path is given."""
    return cache.cache_folder() / "ptb"


def _read(config: DataConfig, path: Path | None) -> Texts:
    """The texts of a corpus, verified to be the ones that ``config`` means."""
    if config.corpus == "pydoc":
        from seqlm.data.pydoc_corpus import pydoc_texts

        texts = pydoc_texts()
        problem = (
            f"Python {platform.python_version()} makes another pydoc text",
            "use the Python of that text, or pass its files with --data",
        )
        if path is not None and config.sha256 not in (None, texts.sha256()):
            texts, problem = read_texts(path), (f"{path} holds another text", problem[1])
    else:
        if path is None and config.corpus == "ptb" and is_folder(downloaded_ptb()):
            path = downloaded_ptb()
        if path is None:
            fetch = '; "seqlm data ptb" fetches them' if config.corpus == "ptb" else ""
            raise DataError(
                f'the files of corpus = "{config.corpus}" are not given; set study.data in the manifest, pass --data '
                f'or set SEQLM_DATA to a folder or zip file with {WANTED}{fetch}; corpus = "pydoc" needs no files'
            )
        if config.corpus == "files" and is_dataset(path):
            texts = read_dataset(path, config.column)
        elif config.column is not None:
            raise DataError(
                f'data.column: expected no column beside text files ({path}), got "{config.column}"; remove it'
            )
        else:
            texts = read_texts(path)
        problem = f"{path} holds another text", "pass the right files"
    for split, expected in PTB_SHA256.items() if config.corpus == "ptb" else ():
        if (found := texts.file_sha256(split)) != expected:
            raise DataError(
                f"{texts.file_names[split]} in {path} is not the Penn Treebank's {split} split: found sha256 {found}, "
                f'expected {expected}; get the right file, or set data.corpus = "files" for other text'
            )
    if config.sha256 is not None and config.sha256 != (found := texts.sha256()):
        raise DataError(
            f"{problem[0]} than the configuration says: found sha256 {found}, expected {config.sha256}; {problem[1]}"
        )
    return texts


def _key(config: DataConfig, sha256: str | None) -> str:
    kind = {"level": config.level, "vocab_size": config.vocab_size, "tokenizer": config.tokenizer_sha256}
    return cache.digest_key({"format": [FORMAT, sys.byteorder], "sha256": sha256, **kind})


def _from_cache(key: str, sha256: str) -> Corpus | None:
    if (entry := cache.find_here(KIND, key)) is None:
        return None
    files, facts = entry
    return Corpus(
        vocabulary=tuple(json.loads(bytes(files["vocabulary.json"]))),
        splits={split: files[f"{split}.bin"].cast("i") for split in SPLITS},
        sha256=sha256,
        bytes=facts["bytes"],
        lossless=facts["lossless"],
    )

"""Text to tokens, tokens to a vocabulary, and both to ids."""

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple, TypeAlias

from seqlm.data.source import SPLITS
from seqlm.errors import DataError

Level: TypeAlias = Literal["word", "char"]

EOS = "<eos>"
"""Stands for each line end."""
UNK = "<unk>"
"""Stands for each word outside the vocabulary."""

_CHARACTERS = re.compile(f"{re.escape(UNK)}|.", re.DOTALL)


def whole_lines(text: str) -> Iterator[str]:
    r"""The lines of a text with their ends (``\n``). A last line needs no end."""
    return (found[0] for found in re.finditer(r".*\n|.+", text))


def tokens_of(text: str, level: Level) -> Iterator[str]:
    r"""All tokens of a text, in order.

    A line's words, or its characters (a space is one, ``<unk>`` is kept whole), are followed by ``<eos>`` for its end,
    which is ``\n`` or ``\r\n``.
    """
    for line in whole_lines(text):
        line = line.removesuffix("\n").removesuffix("\r")
        yield from line.split() if level == "word" else _CHARACTERS.findall(line)
        yield EOS


def build_vocabulary(tokens: Iterable[str], vocab_size: int | None) -> tuple[str, ...]:
    """Id -> token, by falling frequency in ``tokens``, ties by the token itself.

    With ``vocab_size``, that many entries are kept (fewer if there are fewer): ``<unk>``, ``<eos>`` and the most
    frequent others; ``<unk>`` then stands where its own occurrences and those of everything cut put it.
    """
    counts = Counter(tokens)
    if vocab_size is not None:
        special = {EOS: counts.pop(EOS, 0), UNK: counts.pop(UNK, 0)}
        total = counts.total()
        kept = dict(_by_frequency(counts)[: vocab_size - len(special)])
        special[UNK] += total - sum(kept.values())
        counts = Counter(kept | special)
    return tuple(token for token, _ in _by_frequency(counts))


def _by_frequency(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))


class Encoded(NamedTuple):
    """A text as ids: id -> token; "train", "valid", "test" -> ids (int32).

    ``lossless``: the ids of valid and test determine the text, white space aside; no part of it became ``<unk>``.
    """

    vocabulary: tuple[str, ...]
    splits: Mapping[str, "array[int]"]
    lossless: bool


def encode(texts: Mapping[str, str], file_names: Mapping[str, str], level: Level, vocab_size: int | None) -> Encoded:
    """Return each split's ids, with the vocabulary of the train split.

    Raises:
        DataError: without ``vocab_size``, valid or test has a token that train lacks.
    """
    vocabulary = build_vocabulary(tokens_of(texts["train"], level), vocab_size)
    ids = {token: number for number, token in enumerate(vocabulary)}
    if vocab_size is None:
        _check_known(texts, file_names, level, ids)
    unk = ids.get(UNK, -1)
    vectors = {split: array("i", (ids.get(t, unk) for t in tokens_of(texts[split], level))) for split in SPLITS}
    assert all(vector.itemsize == 4 for vector in vectors.values())
    lossless = vocab_size is None or all(
        vectors[split].count(unk) == sum(token == UNK for token in tokens_of(texts[split], level))
        for split in ("valid", "test")
    )
    return Encoded(vocabulary, vectors, lossless)


def _check_known(texts: Mapping[str, str], file_names: Mapping[str, str], level: Level, ids: Mapping[str, int]) -> None:
    places: dict[str, str] = {}  # unknown token -> its first place
    for split in ("valid", "test"):
        line = 1
        for token in tokens_of(texts[split], level):
            if token not in ids:
                places.setdefault(token, f"{file_names[split]} line {line}")
            line += token == EOS
    if not places:
        return
    noun = {"word": "word", "char": "character"}[level]
    token, place = next(iter(places.items()))
    shown = token if len(token) <= 60 else f"{token[:57]}..."
    replace = f"replace it by {UNK}, or " if UNK in ids else ""
    in_all = f"; {len(places):,} unknown {noun}s in valid and test in all" if len(places) > 1 else ""
    raise DataError(
        f'{place}: "{shown}" is not in the vocabulary of train ({len(ids):,} {noun}s){in_all}; '
        f"{replace}set data.vocab_size to cut the vocabulary"
    )

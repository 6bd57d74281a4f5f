"""What can be counted in a text. Pure functions on lists of tokens."""

import math
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

LOOK_BACK = 16
"""Tokens back in which a repetition is looked for: the shortest of the four distances of Welleck et al. (2020)."""
CHUNK = 2**20
"""Places of the training text at which sequences are looked up at a time."""


def repetition(tokens: Sequence[Hashable], look_back: int = LOOK_BACK) -> float:
    """Share of the tokens, from the second on, that occur among the ``look_back`` tokens before them.

    rep/l of Welleck et al. (2020, Neural Text Generation with Unlikelihood Training, section 6.1), of the text itself
    instead of the most probable next tokens. NaN for a text of one token.
    """
    repeated = sum(tokens[i] in tokens[max(0, i - look_back) : i] for i in range(1, len(tokens)))
    return repeated / (len(tokens) - 1) if len(tokens) > 1 else math.nan


def distinct(tokens: Sequence[Hashable], n: int) -> float:
    """Distinct n-grams divided by n-grams; NaN for a text shorter than n.

    distinct-n of Li et al. (2016, A Diversity-Promoting Objective Function for Neural Conversation Models), of a text.
    """
    grams = list(zip(*(tokens[i:] for i in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else math.nan


def longest_copies(
    texts: Sequence[Sequence[Hashable]], source: Iterable[Hashable], unknown: Hashable = None
) -> list[tuple[int, int]]:
    """The longest run of tokens of each text that occurs in ``source`` as it is: (first token, number of tokens).

    ``unknown`` stands for many words, so it is in no run. Of equally long ones the first. Tokens become characters, one
    for each that occurs in a text and one for all others, so that a run is looked for by Python's own string search.
    The search goes on from each token with the length that would be a new record, so that a text of n tokens with an
    answer of m needs at most n + m searches. (1,500 and less than a second for 20 texts of 70 words against the Penn
    Treebank.)
    """
    tokens = dict.fromkeys(token for text in texts for token in text if token != unknown)
    symbols = {token: chr(number) for number, token in enumerate(tokens, start=2)}
    haystack = "".join([symbols.get(token, "\0") for token in source])
    return [_longest_copy("".join([symbols.get(token, "\1") for token in text]), haystack) for text in texts]


def known_sequences(
    texts: Sequence[Sequence[int]], source: npt.NDArray[np.integer], n: int
) -> list[npt.NDArray[np.bool_]]:
    """For each token of each text from the n-th on, whether ``source`` has the n tokens that end with it.

    Ids are from 0 on. Each token that occurs in a text gets a small number, all others share one, and n numbers become
    one key, so that all keys are looked up at once among those of the texts.
    """
    used = np.unique(np.concatenate([np.asarray(text, np.int64) for text in texts] or [np.zeros(0, np.int64)]))
    size = 1 + max(int(used.max(initial=0)), int(source.max(initial=0)))
    number_of = np.full(size, len(used), np.int64)
    number_of[used] = np.arange(len(used))

    def keys(tokens: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        numbers = number_of[tokens]
        found = np.zeros(max(0, len(numbers) - n + 1), np.int64)
        for place in range(n):
            found = found * (len(used) + 1) + numbers[place : place + len(found)]
        return found

    asked = [keys(np.asarray(text, np.int64)) for text in texts]
    wanted = np.unique(np.concatenate(asked or [np.zeros(0, np.int64)]))
    is_known = np.zeros(len(wanted), bool)
    if len(wanted):
        for start in range(0, len(source), CHUNK):
            there = keys(source[start : start + CHUNK + n - 1])
            place = np.searchsorted(wanted, there).clip(max=len(wanted) - 1)
            is_known[place[wanted[place] == there]] = True
    return [is_known[np.searchsorted(wanted, one)] for one in asked]


def _longest_copy(text: str, source: str) -> tuple[int, int]:
    first = length = 0
    for start in range(len(text)):
        while start + length < len(text) and text[start : start + length + 1] in source:
            first, length = start, length + 1
    return first, length

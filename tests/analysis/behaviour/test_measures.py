import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.behaviour import measures
from analysis.behaviour.measures import distinct, known_sequences, longest_copies, repetition

TEXT = ["the", "cat", "saw", "the", "cat", "and", "the", "dog"]


def test_a_repetition_is_a_token_seen_among_those_just_before_it() -> None:
    assert repetition(TEXT) == 3 / 7  # the, cat, the
    assert repetition(TEXT, look_back=2) == 0
    assert repetition(TEXT, look_back=3) == 3 / 7
    assert repetition([1, 1, 1, 1]) == 1
    far = [0, *range(1, 17), 0]
    assert repetition(far) == 0, "17 tokens back is too far"
    assert repetition([0, *range(1, 16), 0]) == 1 / 16
    assert math.isnan(repetition([1]))


def test_distinct_n_grams_are_counted_once() -> None:
    assert distinct(TEXT, 1) == 5 / 8
    assert distinct(TEXT, 2) == 6 / 7  # "the cat" twice
    assert distinct(TEXT, 3) == 1
    assert distinct([1, 1, 1, 1], 3) == 1 / 2
    assert math.isnan(distinct([1, 2], 3))


def test_an_unknown_word_is_no_copy_of_another() -> None:
    assert longest_copies([list("??a??bc")], list("??a??bc?"), "?") == [(5, 2)]


def brute_force(text: list[int], source: list[int]) -> tuple[int, int]:
    best = (0, 0)
    for first in range(len(text)):
        for end in range(first + 1, len(text) + 1):
            run = text[first:end]
            if any(source[i : i + len(run)] == run for i in range(len(source))) and len(run) > best[1]:
                best = (first, len(run))
    return best


@given(
    texts=st.lists(st.lists(st.integers(0, 4), max_size=10), min_size=1, max_size=3),
    source=st.lists(st.integers(0, 5), max_size=40),
)
@settings(max_examples=200, deadline=None)
def test_the_longest_copy_is_that_of_a_search_over_all_runs(texts: list[list[int]], source: list[int]) -> None:
    assert longest_copies(texts, source) == [brute_force(text, source) for text in texts]


@pytest.mark.parametrize("count", [200, 300, 3000])
def test_any_number_of_different_tokens_can_be_told_apart(count: int) -> None:
    texts = [list(range(first, first + 100)) for first in range(0, count, 100)]
    source = [*range(count - 60, count), *range(60), *range(count - 1, 60, -1)]
    found = longest_copies(texts, source)
    assert found[0] == (0, 60)
    assert found[-1] == (40, 60)
    assert set(found[1:-1]) <= {(0, 1)}


@given(
    texts=st.lists(st.lists(st.integers(0, 6), max_size=10), max_size=3),
    source=st.lists(st.integers(0, 4), max_size=40),
    n=st.integers(1, 4),
    chunk=st.integers(1, 50),
)
@settings(max_examples=200, deadline=None)
def test_a_sequence_is_known_if_the_source_has_it(
    texts: list[list[int]], source: list[int], n: int, chunk: int
) -> None:
    before, measures.CHUNK = measures.CHUNK, chunk
    try:
        found = known_sequences(texts, np.array(source, np.int32), n)
    finally:
        measures.CHUNK = before
    there = {tuple(source[start : start + n]) for start in range(len(source) - n + 1)}
    wanted = [[tuple(text[start : start + n]) in there for start in range(len(text) - n + 1)] for text in texts]
    assert [one.tolist() for one in found] == wanted

"""Tables: how they fit a terminal, and what stands in several rows."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.terminal import LEAST_WRAPPED, LONGEST_REPEATED, Column, lines_of

WORDS = st.lists(st.text("abc", min_size=1, max_size=LEAST_WRAPPED), min_size=1, max_size=20).map(" ".join)


@given(texts=st.lists(WORDS, min_size=1, max_size=5), width=st.integers(40, 100))
def test_a_last_column_is_wrapped_between_words_and_loses_none(texts: list[str], width: int) -> None:
    records = [{"run": f"r{number}", "why": text} for number, text in enumerate(texts)]
    title, *lines = lines_of((Column("run"), Column("why")), records, width=width)
    start = title.index("why")
    assert all(len(line) <= width for line in lines)
    found = re.split(r"\br\d+\b", " ".join(lines))[1:]
    assert [" ".join(text.split()) for text in found] == texts
    assert all(line[:start].strip() in ("", *(record["run"] for record in records)) for line in lines)


@pytest.mark.parametrize("length", [LONGEST_REPEATED, LONGEST_REPEATED + 1])
def test_a_long_text_of_several_rows_stands_once(length: int) -> None:
    texts = ["x" * length, "other", "x" * length]
    records = [{"run": name, "why": text} for name, text in zip("abc", texts, strict=True)]
    _, *lines = lines_of((Column("run"), Column("why", folded=True)), records)
    third = "as a" if length > LONGEST_REPEATED else texts[2]
    assert [line.split(maxsplit=1)[1] for line in lines] == [*texts[:2], third]


def test_a_value_that_has_no_hash_may_stand_in_a_table_with_colors() -> None:
    assert lines_of((Column("run"), Column("tags", text=" ".join)), [{"run": "a", "tags": ["b"]}], colored=True)[1]

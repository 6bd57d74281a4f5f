from array import array

import pytest
import torch

from seqlm.data.batches import columns, whole_text, windows
from seqlm.data.layout import number_of_windows, require_windows
from seqlm.errors import DataError, UsageError


def ids(count: int) -> memoryview:
    return memoryview(array("i", range(count))).toreadonly()


def test_columns_read_the_stream_downwards_and_drop_the_tail():
    table = columns(ids(26), 4)
    assert table.dtype == torch.int64
    assert table.tolist() == [[row + 6 * column for column in range(4)] for row in range(6)]


def test_windows_follow_each_other_and_targets_are_the_next_token():
    pairs = list(windows(columns(ids(26), 4), 2))
    assert [inputs.tolist() for inputs, _ in pairs] == [
        [[0, 6, 12, 18], [1, 7, 13, 19]],
        [[2, 8, 14, 20], [3, 9, 15, 21]],
    ]
    for inputs, targets in pairs:
        assert torch.equal(targets, inputs + 1)


@pytest.mark.parametrize(
    ("tokens", "batch_size", "seq_len"), [(26, 4, 2), (24, 4, 5), (25, 4, 5), (1000, 7, 35), (72, 2, 35)]
)
def test_the_planned_number_of_windows_is_the_one_walked(tokens, batch_size, seq_len):
    walked = sum(1 for _ in windows(columns(ids(tokens), batch_size), seq_len))
    assert walked == number_of_windows(tokens, batch_size, seq_len) == require_windows("t", tokens, batch_size, seq_len)


@pytest.mark.parametrize("world", [1, 2, 3, 5, 8])
def test_ranks_side_by_side_are_the_global_batch(world):
    parts = [columns(ids(101), 8, rank, world) for rank in range(world)]
    assert torch.equal(torch.cat(parts, dim=1), columns(ids(101), 8))
    widths = [part.shape[1] for part in parts]
    assert max(widths) - min(widths) <= 1


@pytest.mark.parametrize("world", [1, 2, 5])
@pytest.mark.parametrize(("tokens", "batch_size", "seq_len"), [(101, 8, 5), (100, 9, 11), (3, 8, 5), (41, 4, 100)])
def test_every_token_of_a_scored_text_but_the_first_is_a_target_once(tokens, batch_size, seq_len, world):
    parts = [whole_text(ids(tokens), batch_size, rank, world) for rank in range(world)]
    walked = [[list(windows(part, seq_len, last_shorter=True)) for part in of_rank] for of_rank in parts]
    assert len({tuple(map(len, of_rank)) for of_rank in walked}) == 1, "ranks meet before each window"
    pairs = [pair for of_rank in walked for of_part in of_rank for pair in of_part]
    assert sorted(number for _, targets in pairs for number in targets.flatten().tolist()) == list(range(1, tokens))
    assert all(torch.equal(targets, inputs + 1) for inputs, targets in pairs)


def test_more_ranks_than_columns_is_refused():
    with pytest.raises(
        UsageError, match=r"^3 ranks share train.batch_size 2, .* at most 2 devices, or raise .* least 3$"
    ):
        columns(ids(100), 2, 0, 3)


@pytest.mark.parametrize(
    ("tokens", "batch_size", "remedy"),
    [
        (1_000, 500, "lower train.batch_size to at most 27 or train.seq_len to at most 1"),
        (20, 4, "lower train.seq_len to at most 4"),
        (36, 20, "lower train.batch_size to at most 1"),
        (3, 4, "lower both, or use a longer text"),
    ],
)
def test_a_split_too_small_for_a_window_says_what_would_fit(tokens, batch_size, remedy):
    assert number_of_windows(tokens, batch_size, 35) == 0
    with pytest.raises(DataError) as caught:
        require_windows("train", tokens, batch_size, 35)
    assert str(caught.value) == (
        f"train split has {tokens:,} tokens: batch_size {batch_size} gives columns of {tokens // batch_size} tokens, "
        f"seq_len 35 needs at least 36; {remedy}"
    )

from __future__ import annotations

import pytest

from jobs.rank import ended


@pytest.mark.parametrize(
    ("codes", "explains"),
    [
        ((0, 1), 1),
        ((1, -9), -9),
        ((-9, 1), -9),
        ((74, 1), 74),
        ((1, 74), 74),
        ((143, 1), 143),
        ((74, -9), -9),
        ((1, 1), 1),
    ],
)
def test_a_rank_that_only_lost_another_does_not_hide_why(codes: tuple[int, int], explains: int) -> None:
    assert ended(codes).exit_code == explains
    assert f"rank {codes.index(explains)} " in ended(codes).message


def test_ranks_that_are_all_well_are_no_failure() -> None:
    assert ended((0, 0)).exit_code == 0

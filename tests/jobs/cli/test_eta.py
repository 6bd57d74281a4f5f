from __future__ import annotations

from typing import Any

import pytest

from jobs.cli.view import StudyView


@pytest.mark.parametrize(
    ("running", "waiting", "expected"),
    [
        ([10, 30], [], 30),
        ([10, 30], [15], 30),
        ([10, 30], [15, 10, 5], 35),
        ([5], [1, 2, 3], 11),
        ([10, None], [], None),
        ([10], [5, None], None),
        ([], [5], None),
        ([], [], None),
    ],
)
def test_as_many_runs_go_at_once_as_now_and_an_unknown_time_leaves_no_estimate(
    running: list[float | None], waiting: list[float | None], expected: float | None
) -> None:
    runs = [{"state": "running", "seconds_left": seconds} for seconds in running]
    runs += [{"state": "queued", "seconds_left": seconds} for seconds in waiting]
    assert StudyView(name="s", runs=runs).seconds_left == expected


def test_the_slowest_run_is_named_if_it_is_several_times_slower_than_estimated() -> None:
    def going(name: str, speed: float, expected: float | None) -> dict[str, Any]:
        return {"name": name, "tokens_per_second": speed, "expected_tokens_per_second": expected}

    well = [going("well", 30_000, 40_000), going("unknown", 1, None)]
    assert StudyView(name="s", runs=well).slow_line is None
    line = StudyView(name="s", runs=[*well, going("slow", 9_000, 40_000), going("slower", 600, 40_000)]).slow_line
    assert line is not None
    assert "slower and 1 more" in line
    assert "600 of 40.0k tok/s" in line

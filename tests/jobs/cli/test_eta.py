from __future__ import annotations

from dataclasses import replace

from jobs.cli.view import RunView, StudyView, compared


def pace(arch: str, shape: str, seconds: float | None = None) -> RunView:
    return RunView(name="", id="", state="running", arch=arch, epochs=1, shape=shape, seconds_per_epoch=seconds)


def study_seconds_left(running: list[float | None], waiting: list[float | None]) -> float | None:
    runs = [replace(pace("rnn", ""), seconds_left=seconds) for seconds in running]
    runs += [
        replace(pace("rnn", ""), state="queued", seconds_left=seconds, queue_place=place)
        for place, seconds in enumerate(waiting)
    ]
    return StudyView(name="s", runs=tuple(runs)).seconds_left


def test_a_run_goes_by_its_own_pace_else_its_shapes_else_its_architectures() -> None:
    paces = [
        pace("rnn", "small", 10),
        pace("rnn", "small", 14),
        pace("rnn", "large", 100),
        pace("rnn", "large"),
        pace("rnn", "other"),
        pace("gru", "gru"),
    ]
    assert [run.seconds_left for run in compared(paces)] == [10, 14, 100, 100, 14, None], "of one epoch"


def test_waiting_runs_start_where_one_ends_and_as_many_go_at_once_as_now() -> None:
    assert study_seconds_left([10, 30], []) == 30
    assert study_seconds_left([10, 30], [15]) == 30
    assert study_seconds_left([10, 30], [15, 10, 1]) == 35
    assert study_seconds_left([5], [1, 2, 3]) == 11


def test_the_slowest_run_is_named_if_it_is_several_times_slower_than_estimated() -> None:
    def going(name: str, speed: float, expected: float | None) -> RunView:
        return replace(pace("rnn", ""), name=name, tokens_per_second=speed, expected_tokens_per_second=expected)

    well = (going("well", 30_000, 40_000), going("unknown", 1, None))
    assert StudyView(name="s", runs=well).slow_line is None
    line = StudyView(name="s", runs=(*well, going("slow", 9_000, 40_000), going("slower", 600, 40_000))).slow_line
    assert line is not None
    assert "slower and 1 more" in line
    assert "600 of 40.0k tok/s" in line


def test_a_study_with_any_unknown_time_or_nothing_running_has_no_estimate() -> None:
    assert study_seconds_left([10, None], []) is None
    assert study_seconds_left([10], [5, None]) is None
    assert study_seconds_left([], [5]) is None
    assert study_seconds_left([], []) is None

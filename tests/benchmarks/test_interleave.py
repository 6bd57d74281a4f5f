from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.interleave import Rounds, Spread, Turn, interleave


class FakeClock:
    """Goes on when a turn is taken."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def turn(self, name: str, *seconds: float) -> Turn:
        """Takes these seconds, one after the other and the last for ever, and says so."""
        left: Iterator[float] = iter(seconds)

        def take() -> float:
            spent = next(left, seconds[-1])
            self.now += spent
            self.log.append(name)
            return spent

        return take


def test_turns_go_round_and_warm_up_rounds_do_not_count() -> None:
    clock = FakeClock()
    turns = {"a": clock.turn("a", 9, 1, 2, 3), "b": clock.turn("b", 9, 4, 5, 6)}
    rounds = interleave(turns, seconds=0, least_rounds=3, warmup_rounds=1, clock=clock)
    assert clock.log == ["a", "b"] * 4
    assert rounds.values == {"a": [1, 2, 3], "b": [4, 5, 6]}
    assert rounds.count == 3


def test_rounds_go_on_until_the_seconds_are_used_and_the_last_is_finished() -> None:
    clock = FakeClock()
    turns = {"a": clock.turn("a", 1), "b": clock.turn("b", 2)}
    told: list[tuple[int, float]] = []
    rounds = interleave(
        turns, seconds=10, least_rounds=1, warmup_rounds=2, clock=clock, on_round=lambda *said: told.append(said)
    )
    assert rounds.count == 4  # 3, 6, 9, 12 seconds
    assert told == [(-1, 0), (0, 0), (1, 3), (2, 6), (3, 9), (4, 12)]


def test_a_ratio_is_taken_within_each_round_before_the_median() -> None:
    # The machine is three times as slow in the second round; the ratio of the medians would be 6 / 2.
    rounds = Rounds({"slow": [4, 18, 6], "fast": [2, 6, 1]})
    assert rounds.ratio("slow", "fast") == Spread(median=3, least=2, most=6)
    rounds = Rounds({"slow": [10, 60, 20], "fast": [5, 20, 8]})
    assert rounds.ratio("slow", "fast").median == pytest.approx(2.5)  # of 2, 3, 2.5; the medians have 20 / 8 too
    rounds = Rounds({"slow": [1, 10, 3], "fast": [1, 2, 6]})
    assert rounds.ratio("slow", "fast").median == 1  # of 1, 5, 0.5; the ratio of the medians is 3 / 2

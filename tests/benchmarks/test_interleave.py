import pytest

from benchmarks.interleave import Rounds, Spread, Turn, interleave


def test_rounds_go_on_until_the_seconds_are_used_and_warm_up_rounds_do_not_count() -> None:
    now, log = [1000.0], list[str]()

    def turn(name: str, seconds: float) -> Turn:
        def take() -> float:
            now[0] += seconds
            log.append(name)
            return len(log)

        return take

    turns = {"a": turn("a", 1), "b": turn("b", 2)}
    rounds = interleave(turns, seconds=10, least_rounds=1, warmup_rounds=2, clock=lambda: now[0])
    assert log == ["a", "b"] * 6
    assert rounds.values == {"a": [5, 7, 9, 11], "b": [6, 8, 10, 12]}, "3, 6, 9, 12 seconds"
    assert interleave(turns, seconds=0, least_rounds=3, warmup_rounds=1, clock=lambda: now[0]).count == 3


@pytest.mark.parametrize(
    ("slow", "fast", "ratio"),
    [
        ([4, 18, 6], [2, 6, 1], Spread(median=3, least=2, most=6)),  # the ratio of the medians would be 6 / 2
        ([1, 10, 3], [1, 2, 6], Spread(median=1, least=0.5, most=5)),  # that of the medians is 3 / 2
    ],
)
def test_a_ratio_is_taken_within_each_round_before_the_median(
    slow: list[float], fast: list[float], ratio: Spread
) -> None:
    assert Rounds({"slow": slow, "fast": fast}).ratio("slow", "fast") == ratio

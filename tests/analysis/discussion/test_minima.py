from __future__ import annotations

import itertools
import math
import statistics

import pytest

from analysis.study.settings import expected_lowest_perplexity, expected_minimum


@pytest.mark.parametrize("draws", [1, 2, 3, 4])
def test_it_is_the_mean_minimum_of_all_choices(draws: int) -> None:
    values = [5.0, 2.0, 2.0, 11.0]
    choices = [min(choice) for choice in itertools.combinations(values, draws)]
    assert expected_minimum(values, draws) == pytest.approx(statistics.fmean(choices))


def test_of_all_values_it_is_the_lowest_and_of_one_the_mean() -> None:
    assert expected_minimum([3.0, 1.0, 2.0], 3) == 1.0
    assert expected_lowest_perplexity([100.0, 400.0], 1) == pytest.approx(200.0)  # the geometric mean
    assert expected_lowest_perplexity([100.0, 400.0], 2) == pytest.approx(100.0)


def test_it_takes_a_thousand_values() -> None:
    assert math.isfinite(expected_minimum([float(value) for value in range(1000)], 500))


@pytest.mark.parametrize("draws", [0, 3])
def test_more_draws_than_values_are_refused(draws: int) -> None:
    with pytest.raises(ValueError, match=f"draws: expected a whole number from 1 to 2, got {draws}"):
        expected_minimum([1.0, 2.0], draws)

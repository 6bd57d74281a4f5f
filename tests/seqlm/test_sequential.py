"""The sequential t test, against numerical integration and against its own definition."""

import itertools
import math
import random
import statistics

import numpy as np
import numpy.typing as npt
import pytest

from seqlm.sequential import evidence, finding, interval

DIFFERENCES = (-0.021, -0.012, -0.03, -0.004, -0.018, -0.027, -0.015)


def _integrated(differences: tuple[float, ...], mean: float) -> float:
    """The Bayes factor by its definition: likelihoods summed over a grid of effects and deviations."""
    shifted = (np.array(differences) - mean) / statistics.stdev(differences)
    logarithm, effect = np.meshgrid(np.linspace(-4, 5, 600), np.linspace(-8, 8, 600), indexing="ij")
    deviation = np.exp(logarithm)

    def likelihood(effects: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        squares = sum(((one / deviation - effects) ** 2 for one in shifted), np.zeros_like(effects))
        return np.exp(-squares / 2) * deviation ** -len(shifted)

    prior = np.exp(-(effect**2) / 2)
    above = (likelihood(effect) * prior).sum() / prior[0].sum()
    return float(above / likelihood(np.zeros_like(effect))[:, 0].sum())


@pytest.mark.parametrize("mean", [0.0, -0.018, 0.004])
def test_evidence_is_the_bayes_factor(mean: float) -> None:
    differences = DIFFERENCES[:4]
    assert evidence(differences, mean) == pytest.approx(_integrated(differences, mean), rel=1e-4)


@pytest.mark.parametrize("number", [5, 6, 7])
def test_the_ends_of_an_interval_are_the_means_with_the_evidence_of_its_error(number: int) -> None:
    for end in interval(DIFFERENCES[:number], 0.05):
        assert evidence(DIFFERENCES[:number], end) == pytest.approx(20)


def test_few_differences_bound_nothing() -> None:
    for number in range(5):
        assert interval(DIFFERENCES[:number], 0.05) == (-math.inf, math.inf)
        assert not finding(DIFFERENCES[:number], error=0.05, margin=1.0).is_decided


def test_a_and_b_are_symmetric_and_units_do_not_matter() -> None:
    found = finding(DIFFERENCES, error=0.05)
    turned = finding([-2 * one for one in DIFFERENCES], error=0.05)
    assert (found.outcome, turned.outcome) == ("lower", "higher")
    assert (turned.low, turned.high) == pytest.approx((-2 * found.high, -2 * found.low))
    assert turned.decided_after == found.decided_after


def test_intervals_shrink_with_each_difference_and_grow_with_comparisons() -> None:
    draws = random.Random(1)
    differences = [draws.gauss(0.01, 0.01) for _ in range(20)]
    found = [finding(differences[:number], error=0.05, margin=0.05) for number in range(21)]
    for before, after in itertools.pairwise(found):
        assert before.low <= after.low <= after.high <= before.high
    decided = [one.decided_after for one in found if one.is_decided]
    assert decided == [decided[0]] * len(decided)
    several = finding(differences, error=0.05, comparisons=12)
    assert several.low < found[-1].low
    assert several.high > found[-1].high


def test_equal_settings_are_no_difference_and_a_constant_shift_is_one() -> None:
    assert finding([0.0] * 6, error=0.05).outcome == "no difference"
    assert finding([0.01] * 6, error=0.05, margin=0.02).outcome == "higher"
    assert evidence([0.0] * 6) <= 1
    assert evidence([0.01] * 6) == math.inf


def test_intervals_that_exclude_each_other_decide_nothing() -> None:
    assert not finding([-0.1, -0.11, -0.1, -0.11, -0.1, -0.11, *[0.1, 0.11] * 30], error=0.05).is_decided


def test_false_claims_in_studies_of_equal_settings() -> None:
    draws = random.Random(3)
    studies = ([draws.gauss(0, 0.01) for _ in range(20)] for _ in range(400))
    assert sum(finding(study, error=0.05).is_decided for study in studies) <= 20

"""The policy of when two numbers are told apart."""

import math
import random
import statistics
from collections.abc import Sequence

import numpy as np
import pytest

from analysis.claims.models import context_used, falls, shrinks_by
from analysis.claims.verdict import Difference, EpochTimes, Noise, Verdict, difference, times_apart, verdicts

PAPER = [
    *((156.4, 157.5), (2137.0, 2255.0), (195.2, 196.2), (107.8, 113.5), (111.0, 114.4)),
    *((101.7, 103.6), (131.3, 136.2), (156.9, 162.3), (140.1, 145.4)),
]
"""Published ranges of three replications."""


def ranges() -> list[tuple[float, float]]:
    return [(math.log(low), math.log(high)) for low, high in PAPER]


def test_the_noise_of_the_published_study_tells_two_runs_apart_from_0_054_nats_on() -> None:
    noise = Noise.of([], ranges())
    assert math.sqrt(noise.variance) == pytest.approx(0.018, abs=0.0005)
    assert noise.freedom == 18
    reach = Difference(nats=0.1).reach(noise)
    assert reach == pytest.approx(0.054, abs=0.001)
    schedule = difference((math.log(113), math.log(103)))
    third_layer = difference((math.log(117), math.log(111)))
    assert verdicts([schedule], noise) == [Verdict.APART]
    assert verdicts([third_layer], noise) == [Verdict.NOT_APART]


def test_seeds_give_their_pooled_variance() -> None:
    seeds = [[4.0, 4.02], [4.1, 4.08, 4.12], [5.0]]
    noise = Noise.of(seeds)
    assert noise.freedom == 3
    assert noise.variance == pytest.approx((statistics.variance(seeds[0]) + 2 * statistics.variance(seeds[1])) / 3)
    assert not Noise.of([[5.0]]).is_known


def simulated(chance: random.Random, settings: int, seeds: int, sigma: float) -> tuple[list[list[float]], Noise]:
    losses = [[chance.gauss(4.1, sigma) for _ in range(seeds)] for _ in range(settings)]
    return losses, Noise.of(losses)


@pytest.mark.parametrize(("settings", "seeds"), [(4, 2), (6, 3)])
def test_equal_settings_are_told_apart_in_no_more_than_one_study_of_twenty(settings: int, seeds: int) -> None:
    chance, studies, false = random.Random(f"{settings} {seeds}"), 1000, 0
    for _ in range(studies):
        losses, noise = simulated(chance, settings, seeds, 0.02)
        means = [statistics.fmean(one) for one in losses]
        pairs = [(a, b) for a in range(settings) for b in range(a)]
        found = [difference((means[a], means[b]), seeds=(seeds, seeds)) for a, b in pairs]
        false += Verdict.APART in verdicts(found, noise)
    assert false / studies < 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies)


def test_the_error_of_tokens_is_that_of_repeated_texts() -> None:
    """Successive tokens depend on each other, so the error is larger than that of as many independent ones."""
    rng = np.random.default_rng(0)
    texts = 300

    def text() -> tuple[np.ndarray, np.ndarray]:
        shared = np.repeat(rng.normal(0.0, 0.5, 100), 20)
        return np.full(2000, 5.0), 5.0 + shared + rng.normal(0.0, 0.5, 2000)

    found = [difference((5.0, 5.0), text()) for _ in range(texts)]
    spread = statistics.stdev(one.nats for one in found)
    assert statistics.fmean(one.text_error for one in found) == pytest.approx(spread, rel=0.2)


def test_what_chance_does_is_not_known_without_seeds_and_tokens() -> None:
    assert verdicts([Difference(nats=0.5)], Noise()) == [Verdict.UNKNOWN]
    known = Difference(nats=0.5, text_error=0.01, blocks=50)
    assert verdicts([known], Noise()) == [Verdict.THIS_TEXT], "one seed each"
    assert verdicts([known], Noise(variance=1e-4, freedom=10)) == [Verdict.APART]


def test_losses_are_equal_if_that_is_certain() -> None:
    precise = Noise(variance=1e-7, freedom=20)
    assert verdicts([Difference(nats=0.0001), Difference(nats=0.02)], precise) == [Verdict.EQUAL, Verdict.APART]
    assert verdicts([Difference(nats=0.0001)], Noise(variance=1e-3, freedom=20)) == [Verdict.NOT_APART]


def test_as_many_seeds_as_are_asked_for_tell_such_a_difference_apart() -> None:
    noise = Noise(variance=0.02**2, freedom=10)
    one = Difference(nats=0.03)
    needed = one.seeds_needed(noise)
    assert needed is not None
    assert verdicts([Difference(nats=0.03, seeds=(needed, needed))], noise) == [Verdict.APART]
    assert verdicts([Difference(nats=0.03, seeds=(needed - 1, needed - 1))], noise) == [Verdict.NOT_APART]


# -- times -------------------------------------------------------------------------------------------------------------


def times(chance: random.Random, seconds: float, epochs: int = 10) -> EpochTimes:
    return EpochTimes(seconds=tuple(seconds * (1 + 0.1 * chance.random()) for _ in range(epochs)))


def test_epochs_that_differ_by_half_are_told_apart_whatever_one_slow_epoch_does() -> None:
    chance = random.Random(0)
    slow, fast = times(chance, 1.2), times(chance, 0.8)
    hit = EpochTimes(seconds=(12.0, *fast.seconds[1:]))
    assert times_apart([(fast, slow)])
    assert times_apart([(hit, slow)])
    assert not times_apart([(fast, slow), (slow, fast)]), "two cases that disagree"


def test_equal_times_are_hardly_ever_told_apart() -> None:
    chance = random.Random(1)
    assert sum(times_apart([(times(chance, 1.0), times(chance, 1.0))]) for _ in range(500)) <= 15


def test_epochs_that_scatter_far_are_hardly_ever_told_apart() -> None:
    """Their medians often differ by more than 5 %, so that the errors of the medians must decide."""
    chance = random.Random(5)

    def scattered() -> EpochTimes:
        return EpochTimes(seconds=tuple(chance.gauss(1.0, 0.25) for _ in range(15)))

    assert sum(times_apart([(scattered(), scattered())]) for _ in range(1000)) <= 40


# -- curves ------------------------------------------------------------------------------------------------------------


def shuffled(values: Sequence[float], chance: random.Random) -> np.ndarray:
    return np.array(chance.sample(list(values), len(values)))


def test_a_trend_is_seen_in_at_most_one_shuffled_curve_of_twenty() -> None:
    chance = random.Random(2)
    curve = [5.0 - math.log(1 + step) / 4 for step in range(35)]
    norms = [0.8**back for back in range(25)][::-1]
    assert falls(np.array(curve))
    assert context_used(np.array(curve)) is not None
    assert shrinks_by(np.array(norms)) == pytest.approx(0.8)
    tries = 1000
    assert sum(context_used(shuffled(curve, chance)) is not None for _ in range(tries)) / tries < 0.07
    assert sum(shrinks_by(shuffled(norms, chance)) is not None for _ in range(tries)) / tries < 0.07


def test_context_is_used_up_where_the_loss_is_near_its_lowest() -> None:
    assert context_used(np.array([5.0, 4.5, 4.2, 4.105, 4.1, 4.101])) == 4
    assert context_used(np.array([4.0, 4.1, 4.2, 4.3])) is None, "it rises"
    assert context_used(np.array([4.0, math.nan, 3.0])) is None

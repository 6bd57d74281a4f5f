"""``[[sample]]``: what is drawn, what it is called, and the line that each wrong entry gets."""

import math
from pathlib import Path

import pytest

from jobs.manifests.draws import Choice, Distribution, Real, Whole, draw, number_of_settings
from tests.jobs.manifests.test_manifest import BASE, RUN, load, names

SAMPLE = """
[[sample]]
count = 7
model.arch = ["rnn", "gru"]
optim.optimizer = "adam"
optim.lr = { log_uniform = [1e-5, 1e-2] }
model.keep = { uniform = [0.2, 0.9] }
model.hidden_size = { int = [256, 2048], step = 256 }
"""
GOOD = BASE + SAMPLE
SPACE: dict[str, Distribution] = {
    "arch": Choice(("rnn", "gru", "transformer")),
    "lr": Real(low=1e-5, high=1e-2, log=True),
    "keep": Real(low=0.2, high=0.9, log=False),
    "hidden": Whole(low=256, high=2048, step=256),
}


def with_count(count: int) -> str:
    return GOOD.replace("count = 7", f"count = {count}")


# -- what is drawn -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 4, 7, 27, 100])
def test_the_first_n_of_2n_draws_are_the_same_n(count: int) -> None:
    drawn = draw(SPACE, count, seed=3)
    assert len(drawn) == count
    assert draw(SPACE, 2 * count, seed=3)[:count] == drawn
    assert draw(SPACE, 2 * count, seed=4)[:count] != drawn


def test_draws_are_those_of_every_version_of_scipy() -> None:
    """Other draws would be other runs: a study would begin again after an update."""
    assert draw(SPACE, 3, seed=0) == [
        {"arch": "gru", "lr": 0.0009801, "keep": 0.8004, "hidden": 2048},
        {"arch": "gru", "lr": 0.0001105, "keep": 0.5402, "hidden": 768},
        {"arch": "transformer", "lr": 0.004133, "keep": 0.6673, "hidden": 1536},
    ]


def test_values_cover_the_space_and_stay_within_its_bounds() -> None:
    drawn = draw(SPACE, 64, seed=0)
    for number in range(4):  # a Sobol sequence has as many points in each quarter of each range
        quarter = [d for d in drawn if number <= 4 * (d["keep"] - 0.2) / 0.7 < number + 1]
        assert len(quarter) == 16
        assert len([d for d in drawn if number <= 4 * math.log10(d["lr"] / 1e-5) / 3 < number + 1]) == 16
    assert {d["hidden"] for d in drawn} == set(range(256, 2049, 256))
    assert {d["arch"] for d in drawn} == {"rnn", "gru", "transformer"}
    assert all(0.2 <= d["keep"] <= 0.9 and 1e-5 <= d["lr"] <= 1e-2 for d in drawn)


def test_numbers_have_four_significant_digits_of_the_number_or_of_the_range() -> None:
    assert all(
        float(f"{d['keep']:.4g}") == d["keep"] and float(f"{d['lr']:.4g}") == d["lr"] for d in draw(SPACE, 50, 0)
    )
    narrow = [d["x"] for d in draw({"x": Real(low=0.99999, high=1.0, log=False)}, 20, seed=0)]
    assert len(set(narrow)) == 20
    assert all(0.99999 <= value <= 1 for value in narrow)
    assert Real(low=0.0, high=1.0, log=False).at(0.0) == 0
    assert Real(low=-1e308, high=1e308, log=False).at(0.5) == 0


def test_the_highest_whole_number_is_the_last_that_the_step_reaches() -> None:
    assert {Whole(low=1, high=10, step=4).at(x / 64) for x in range(64)} == {1, 5, 9}


def test_a_draw_that_repeats_an_earlier_one_is_left_out_and_the_sequence_goes_on() -> None:
    space: dict[str, Distribution] = {"a": Choice((1, 2, 3)), "b": Whole(low=1, high=3, step=1), "c": Choice("xyz")}
    assert number_of_settings(space) == 27
    every = draw(space, 27, seed=5)
    assert len({tuple(one.values()) for one in every}) == 27
    assert draw(space, 10, seed=5) == every[:10]
    assert len(draw(space, 28, seed=5)) == 27


def test_the_order_of_the_keys_does_not_matter() -> None:
    assert draw(dict(reversed(SPACE.items())), 5, seed=0) == draw(SPACE, 5, seed=0)


# -- the runs of an entry ------------------------------------------------------------------------------------------


def test_a_larger_count_and_other_entries_leave_the_runs_as_they_are(tmp_path: Path) -> None:
    few, many = load(tmp_path, with_count(3)), load(tmp_path, with_count(6) + RUN + "model.keep = 1.0")
    assert [(run.name, run.fingerprint) for run in many.runs][:3] == [(run.name, run.fingerprint) for run in few.runs]
    assert names(load(tmp_path, with_count(1))) == names(few)[:1]

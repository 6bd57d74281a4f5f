from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis.blocks.section import Block
from analysis.discussion.reliability import reliability_blocks
from analysis.study.study import load_study
from tests.analysis.contents import said, table
from tests.analysis.hand_made import add_run


def judged(study_dir: Path) -> list[Block]:
    study = load_study(study_dir)
    return reliability_blocks(study, study.settings)


def add_settings(study_dir: Path, first: int, arch: str, values: Sequence[float], diverged: int = 0) -> None:
    for place, ppl in enumerate([*values, *[1000.0] * diverged]):
        failure = "diverged" if place >= len(values) else None
        add_run(study_dir, first + place, f"{arch}{place}", arch, "sgd", [ppl], lr=1.0 + place, failure=failure)


def test_settings_that_are_all_equally_bad_are_not_the_most_reliable(tmp_path: Path) -> None:
    add_settings(tmp_path, 0, "rnn", [2200.0, 2201.0, 2202.0, 2203.0])
    add_settings(tmp_path, 10, "gru", [100.0, 112.0, 119.0, 145.0])
    sentences = said(judged(tmp_path))
    assert (
        "GRU is the most reliable (75 % of settings within 1.2 times the study's lowest perplexity, 100.00) and RNN "
        "the least (0 %)."
    ) in sentences


def test_a_diverged_setting_is_a_failure_of_its_architecture(tmp_path: Path) -> None:
    add_settings(tmp_path, 0, "rnn", [100.0, 100.5, 101.0], diverged=3)
    add_settings(tmp_path, 10, "gru", [100.0, 110.0, 119.0, 150.0])
    blocks = judged(tmp_path)
    assert "GRU is the most reliable (75 % of settings" in said(blocks)
    assert "and RNN the least (50 %)." in said(blocks)
    rnn, gru = table(blocks, "discussion-4-reliability")
    # the GRU's quartiles: 3/4 of the way from ln 100 to ln 110, 1/4 of the way from ln 119 to ln 150
    assert list(rnn.values()) == ["RNN", "6", "50 %", "100.00", "100.50", "101.00", "0.005", "3"]
    assert list(gru.values()) == ["GRU", "4", "75 %", "100.00", "114.50", "150.00", "0.160", "0"]


def test_a_setting_of_which_one_seed_diverged_is_one_setting_that_failed(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "a", "rnn", "sgd", [100.0], seed=1)
    add_run(tmp_path, 1, "a2", "rnn", "sgd", [100.0], seed=2, failure="diverged")
    (row,) = table(judged(tmp_path), "discussion-4-reliability")
    assert (row["settings"], row["share_within_1_2"], row["diverged"]) == ("1", "0 %", "1")


def test_an_order_that_hangs_on_one_setting_says_so(tmp_path: Path) -> None:
    add_settings(tmp_path, 0, "rnn", [100.0, 300.0, 400.0])
    add_settings(tmp_path, 10, "gru", [100.0, 110.0, 400.0])
    assert "A single setting more or fewer would change this order." in said(judged(tmp_path))
    add_settings(tmp_path, 20, "gru", [100.0 + place for place in range(10)])
    assert "A single setting" not in said(judged(tmp_path)), "2 of 3 would still be below 10 of 10"


def test_equal_shares_name_nobody(tmp_path: Path) -> None:
    add_settings(tmp_path, 0, "rnn", [100.0, 110.0, 400.0])
    add_settings(tmp_path, 10, "gru", [105.0, 118.0, 900.0])
    assert (
        "The architectures are equally reliable: 67 % of the settings of each are within 1.2 times the study's lowest "
        "perplexity, 100."
    ) in said(judged(tmp_path))


def test_too_few_settings_are_not_ranked(tmp_path: Path) -> None:
    add_settings(tmp_path, 0, "rnn", [], diverged=2)
    add_settings(tmp_path, 10, "gru", [100.0])
    rnn, gru = table(judged(tmp_path), "discussion-4-reliability")
    assert list(rnn.values()) == ["RNN", "2", "0 %", "–", "–", "–", "–", "2"]
    assert (gru["median_val_ppl"], gru["share_within_1_2"]) == ("100.00", "100 %")
    sentences = said(judged(tmp_path))
    assert "No architecture can be called the most or the least reliable" in sentences
    assert "Not ranked, with fewer than 3 settings: RNN (2) and GRU (1)." in sentences


def test_where_everything_diverged_nothing_is_reliable(tmp_path: Path) -> None:
    add_settings(tmp_path, 0, "rnn", [], diverged=3)
    add_settings(tmp_path, 10, "gru", [], diverged=3)
    assert "No setting has finished, so no architecture is reliable." in said(judged(tmp_path))

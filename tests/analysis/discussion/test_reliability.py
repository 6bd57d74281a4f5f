from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from analysis.blocks.figure import Chart
from analysis.blocks.section import Block
from analysis.discussion.reliability import reliability_blocks
from analysis.plots.scatter import swarm
from analysis.study.settings import timed_settings
from analysis.study.study import load_study
from tests.analysis.contents import said, table
from tests.analysis.hand_made import add_run


def judged(study_dir: Path) -> list[Block]:
    study = load_study(study_dir)
    return reliability_blocks(study, timed_settings(study))


def add_settings(study_dir: Path, first: int, arch: str, values: Sequence[float], diverged: int = 0) -> None:
    for place, ppl in enumerate([*values, *[1000.0] * diverged]):
        failure = "diverged" if place >= len(values) else None
        add_run(study_dir, first + place, f"{arch}{place}", arch, "sgd", [ppl], lr=1.0 + place, failure=failure)


def test_the_smallest_and_the_largest_spread_are_named_with_their_numbers(tmp_path: Path) -> None:
    add_settings(tmp_path, 0, "rnn", [100.0, 200.0, 400.0], diverged=1)
    add_settings(tmp_path, 10, "gru", [100.0, 101.0, 102.0])
    add_settings(tmp_path, 20, "transformer", [100.0, 110.0])
    blocks = judged(tmp_path)
    rnn, gru, transformer = table(blocks, "discussion-4-reliability")
    # quartiles of (ln 100, ln 200, ln 400) lie half-way between neighbours, so the range is ln 2
    assert list(rnn.values()) == ["RNN", "3", "100.00", "200.00", "400.00", "4.00", "0.693", "1", "25 %"]
    assert list(gru.values()) == ["GRU", "3", "100.00", "101.00", "102.00", "1.02", "0.010", "0", "0 %"]
    assert transformer["quartile_range_nats"] == "0.048"
    sentences = said(blocks)
    assert "GRU is the most reliable (interquartile range 0.010 nats) and RNN the least (0.693 nats)." in sentences
    assert "RNN also has the largest share of diverged runs (25 %)." in sentences
    assert "Too few finished settings to tell, fewer than 3: Transformer (2)." in sentences
    assert "RNN: median 200 over 3 settings, from 100 to 400 (4.00 times); 1 of 4 runs diverged." in sentences


def test_a_diverged_run_is_counted_apart_and_never_averaged(tmp_path: Path) -> None:
    add_settings(tmp_path, 0, "rnn", [], diverged=2)
    add_settings(tmp_path, 10, "gru", [100.0])
    rnn, gru = table(judged(tmp_path), "discussion-4-reliability")
    assert list(rnn.values()) == ["RNN", "0", "–", "–", "–", "–", "–", "2", "100 %"]
    assert (gru["median_val_ppl"], gru["diverged_share"]) == ("100.00", "0 %")
    assert "RNN: no finished setting; 2 of 2 runs diverged." in said(judged(tmp_path))
    assert "GRU: 100 in its one finished setting; no run diverged." in said(judged(tmp_path))
    assert "No architecture can be called the most or the least reliable" in said(judged(tmp_path))


def test_other_failures_say_nothing_of_an_architecture(tmp_path: Path) -> None:
    add_settings(tmp_path, 0, "gru", [100.0])
    add_run(tmp_path, 5, "oom", "gru", "sgd", [100.0], lr=7.0, failure="oom")
    assert table(judged(tmp_path), "discussion-4-reliability")[0]["diverged"] == "0"
    assert "no run diverged" in said(judged(tmp_path))


def test_spread_and_divergence_may_disagree_and_then_both_are_told(tmp_path: Path) -> None:
    add_settings(tmp_path, 0, "rnn", [100.0, 100.5, 101.0], diverged=3)
    add_settings(tmp_path, 10, "gru", [100.0, 150.0, 200.0])
    sentences = said(judged(tmp_path))
    assert "RNN is the most reliable" in sentences
    assert "But by the share of diverged runs RNN has the most (50 %), so the two measures disagree." in sentences


def test_spreads_that_are_alike_name_nobody(tmp_path: Path) -> None:
    add_settings(tmp_path, 0, "rnn", [100.0, 110.0, 121.0])
    add_settings(tmp_path, 10, "gru", [200.0, 220.0, 242.0])
    assert "they are about alike (interquartile ranges 0.095 to 0.095 nats)" in said(judged(tmp_path))


def test_seeds_are_one_setting(tmp_path: Path) -> None:
    for seed, ppl in enumerate([80.0, 125.0]):
        add_run(tmp_path, seed, "a", "rnn", "sgd", [ppl], seed=seed)
    (row,) = table(judged(tmp_path), "discussion-4-reliability")
    assert (row["settings"], row["median_val_ppl"]) == ("1", "100.00")


def test_the_figure_says_under_each_architecture_how_many_diverged(tmp_path: Path) -> None:
    add_settings(tmp_path, 0, "rnn", [100.0, 120.0], diverged=1)
    add_settings(tmp_path, 10, "gru", [110.0])
    (chart,) = [block for block in judged(tmp_path) if isinstance(block, Chart)]
    labels = [label.get_text() for label in chart.figure.axes[0].get_xticklabels()]
    assert labels == ["RNN\n2 settings, 1 diverged", "GRU\n1 setting"]
    points = [line for line in chart.figure.axes[0].lines if line.get_marker() == "s"]
    assert [line.get_gid() for line in points] == ["run-1", "run-2", "run-11"]


def test_few_points_stand_in_line_and_many_beside_one_another() -> None:
    assert swarm([1.0, 2.0, 3.0]) == [0.0, 0.0, 0.0]
    offsets = swarm([float(value) for value in range(50)])
    assert len({round(offset, 3) for offset in offsets}) == 50
    assert max(map(abs, offsets)) == pytest.approx(0.24, abs=0.01)


def test_of_nothing_nothing_is_said(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "a", "gru", "sgd", [], done=False)
    assert said(judged(tmp_path)) == "No run has finished or diverged, so nothing can be said of reliability."


def test_the_largest_share_of_diverged_runs_may_be_of_an_architecture_in_the_middle(tmp_path: Path) -> None:
    add_settings(tmp_path, 0, "rnn", [100.0, 100.5, 101.0])
    add_settings(tmp_path, 10, "gru", [100.0, 150.0, 200.0], diverged=1)
    add_settings(tmp_path, 20, "transformer", [100.0, 200.0, 400.0])
    assert "The largest share of diverged runs: GRU (25 %)." in said(judged(tmp_path))


def test_of_more_than_forty_points_none_carries_its_number(tmp_path: Path) -> None:
    def numbers() -> list[str]:
        (chart,) = [block for block in judged(tmp_path) if isinstance(block, Chart)]
        return [text.get_text() for text in chart.figure.axes[0].texts if text.get_text().isdigit()]

    add_settings(tmp_path, 0, "rnn", [100.0 + place for place in range(3)])
    assert sorted(numbers()) == ["1", "2", "3"]
    add_settings(tmp_path, 3, "gru", [100.0 + place for place in range(38)])
    assert numbers() == []

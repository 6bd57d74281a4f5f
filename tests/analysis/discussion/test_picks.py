from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis.blocks.figure import Chart
from analysis.blocks.section import Block
from analysis.discussion.picks import pareto_front, picks_blocks
from analysis.study.settings import timed_settings
from analysis.study.study import load_study
from seqlm.files import write_json_lines
from tests.analysis.contents import said, table
from tests.analysis.hand_made import add_run


def picked(study_dir: Path) -> list[Block]:
    study = load_study(study_dir)
    return picks_blocks(study, timed_settings(study))


def front_of(study_dir: Path) -> list[int]:
    return [setting.number for setting in pareto_front(timed_settings(load_study(study_dir)))]


def test_the_pick_for_time_is_the_first_within_5_percent_and_costs_are_ratios(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "best", "gru", "sgd", [150.0, 120.0, 100.0], seconds=100.0, train=60.0)
    add_run(tmp_path, 1, "near", "gru", "adam", [104.0, 103.0], seconds=30.0, train=90.0)
    add_run(tmp_path, 2, "quick", "rnn", "adam", [200.0], seconds=5.0)
    blocks = picked(tmp_path)
    generalisation, gaps, time, costs, front = said(blocks).splitlines()
    assert generalisation == (
        "For generalisation: 100 (1 best), the lowest validation perplexity, reached after 5 min."
    )
    assert gaps == (
        "Gap between validation and training perplexity of this pick: 40.0 at its best epoch, 40.0 after its last. The "
        "smallest gap is 13.0 at the best epoch (2 near, validation perplexity 103) and 13.0 after the last (2 near, "
        "validation perplexity 103)."
    )
    assert time == (
        "For wall-clock time: 2 near, the first of 2 settings to come within 5 % of that perplexity, after 30 s (best "
        "103.00 after 1 min)."
    )
    assert costs == (
        "The pick for time has 1.03 times the perplexity (103 against 100); the pick for generalisation takes 5.00 "
        "times as long to its best epoch (5 min against 1 min)."
    )
    assert front.startswith("3 of 3 settings are on the Pareto front")
    rows = table(blocks, "discussion-3-picks")
    assert [
        (row["setting"], row["seconds_to_best"], row["seconds_to_study_best"], row["picked_for"]) for row in rows
    ] == [
        ("3 quick", "5.0 s", "–", "–"),
        ("2 near", "1 min", "30 s", "time"),
        ("1 best", "5 min", "5 min", "generalisation"),
    ]


def test_a_run_that_overfits_by_its_end_has_a_small_gap_only_at_its_best_epoch(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "steady", "gru", "sgd", [150.0, 120.0, 121.0], train=[140.0, 80.0, 79.0])
    add_run(tmp_path, 1, "seven", "transformer", "adam", [190.0, 131.0, 5012.0], train=[200.0, 120.0, 3.0])
    assert said(picked(tmp_path)).splitlines()[:2] == [
        "For generalisation: 120 (1 steady), the lowest validation perplexity, reached after 20 s.",
        "Gap between validation and training perplexity of this pick: 40.0 at its best epoch, 42.0 after its last. The "
        "smallest gap is 11.0 at the best epoch (2 seven, validation perplexity 131).",
    ]
    rows = table(picked(tmp_path), "discussion-3-picks")
    assert [(row["gap"], row["final_gap"]) for row in rows] == [("40.00", "42.00")]


def test_a_pick_that_overfits_by_its_end_says_so(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "seven", "transformer", "adam", [190.0, 131.0, 5012.0], train=[200.0, 120.0, 3.0])
    assert (
        "the lowest validation perplexity, reached after 20 s. By its last epoch its validation perplexity is 5,012, "
        "so take the parameters of its best epoch."
    ) in said(picked(tmp_path))


def test_one_run_can_be_both_picks_and_haste_has_its_price(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "best", "gru", "sgd", [101.0, 100.0], seconds=100.0)
    add_run(tmp_path, 1, "quick", "rnn", "adam", [200.0], seconds=50.0)
    sentences = said(picked(tmp_path))
    assert (
        "the same setting. It comes within 5 % of its best after 2 min; no other setting comes within 5 %" in sentences
    )
    assert "is 2 quick: its best epoch ends after 50 s, with 2.00 times the perplexity (200 against 100)" in sentences
    assert "The pick takes 4.00 times as long (3 min)" in sentences
    add_run(tmp_path, 2, "late", "transformer", "adam", [102.0], seconds=500.0)
    assert "before the 1 other setting that does." in said(picked(tmp_path))


def test_the_front_leaves_out_what_another_beats_in_both(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "slow-worse", "gru", "sgd", [110.0], seconds=60.0)
    add_run(tmp_path, 1, "best", "gru", "adam", [100.0], seconds=50.0)
    add_run(tmp_path, 2, "as-fast-worse", "rnn", "adam", [101.0], seconds=50.0)
    add_run(tmp_path, 3, "fast", "rnn", "sgd", [150.0], seconds=10.0)
    add_run(tmp_path, 4, "slow-equal", "transformer", "sgd", [100.0], seconds=70.0)
    add_run(tmp_path, 5, "fastest-but-unfinished", "transformer", "adam", [90.0], seconds=1.0, done=False)
    assert front_of(tmp_path) == [4, 2]


def test_the_figure_has_a_point_for_each_finished_setting_and_its_front(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "a", "gru", "sgd", [110.0, 105.0, 107.0], seconds=60.0)
    add_run(tmp_path, 1, "b", "gru", "adam", [100.0], seconds=7000.0)
    add_run(tmp_path, 2, "c", "gru", "adam", [100.0], seconds=7000.0, lr=9.0, failure="diverged")
    (chart,) = [block for block in picked(tmp_path) if isinstance(block, Chart)]
    lines = chart.panels[0].lines
    assert [(line.label, line.run) for line in lines] == [("1 a", "1"), ("2 b", "2")]
    seconds = 60 * np.array([line.x[0] for line in lines])  # minutes on the axis
    assert seconds.tolist() == [120.0, 7000.0]
    assert [line.y[0] for line in lines] == [105.0, 100.0]
    assert chart.figure.axes[0].get_xlabel() == "Wall-clock time to the best epoch (minutes)"
    step = chart.figure.axes[0].lines[0]
    assert np.asarray(step.get_ydata()).tolist() == [105.0, 100.0]


def test_a_run_that_exploded_does_not_flatten_the_figure(tmp_path: Path) -> None:
    for order, ppl in enumerate([100.0, 110.0, 120.0, 9000.0]):
        add_run(tmp_path, order, f"run{order}", "gru", "sgd", [ppl], lr=order + 1.0)
    (chart,) = [block for block in picked(tmp_path) if isinstance(block, Chart)]
    assert chart.figure.axes[0].get_ylim()[1] < 200
    assert "above it (↑): 4 run3 (9,000)." in chart.caption


def test_different_devices_are_told_since_times_do_not_compare(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "a", "gru", "sgd", [100.0], provenance={"devices": ["A"]})
    assert "different devices" not in said(picked(tmp_path))
    add_run(tmp_path, 1, "b", "gru", "adam", [101.0], provenance={"devices": ["B"]})
    assert "trained on different devices (A and B)" in said(picked(tmp_path))


def test_seeds_are_one_point_with_the_mean_of_their_times(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "a", "gru", "sgd", [80.0], seconds=10.0, seed=1)
    add_run(tmp_path, 1, "a", "gru", "sgd", [125.0], seconds=30.0, seed=2)
    add_run(tmp_path, 2, "b", "rnn", "sgd", [101.0], seconds=5.0)
    settings = timed_settings(load_study(tmp_path))
    assert [(round(c.val_ppl, 6), c.seconds_to_best, c.only_run) for c in settings] == [(100, 20, None), (101, 5, 3)]
    assert "seeds do not separate it from 1 other setting" in said(picked(tmp_path))


def test_nothing_is_picked_from_nothing(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "a", "gru", "sgd", [80.0], failure="oom")
    assert said(picked(tmp_path)) == "No run has finished, so there is nothing to pick."


def test_without_recorded_times_only_generalisation_has_a_pick(tmp_path: Path) -> None:
    for order, ppl in enumerate([100.0, 110.0]):
        add_run(tmp_path, order, f"run{order}", "gru", "sgd", [ppl], lr=order + 1.0).metrics_file.unlink()
    generalisation, gaps, time = said(picked(tmp_path)).splitlines()
    assert generalisation == "For generalisation: 100 (1 run0), the lowest validation perplexity."
    assert gaps.endswith("50.0 at its best epoch, 50.0 after its last. No other setting has a smaller one.")
    assert time == "For wall-clock time there is no pick: no times are recorded for the runs near that perplexity."
    assert [(row["setting"], row["seconds_to_best"]) for row in table(picked(tmp_path), "discussion-3-picks")] == [
        ("1 run0", "–")
    ]


def test_a_pick_for_time_that_is_later_at_its_own_best_is_in_the_table_though_not_on_the_front(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "best", "gru", "sgd", [150.0, 120.0, 100.0], seconds=10.0)
    add_run(tmp_path, 1, "near", "gru", "adam", [104.0] * 9 + [103.0], seconds=5.0)
    assert front_of(tmp_path) == [1]
    blocks = picked(tmp_path)
    assert (
        "The pick for time has 1.03 times the perplexity (103 against 100); the pick for generalisation is even "
        "earlier at its own best epoch (30 s against 50 s)."
    ) in said(blocks)
    assert [(row["setting"], row["picked_for"]) for row in table(blocks, "discussion-3-picks")] == [
        ("1 best", "generalisation"),
        ("2 near", "time"),
    ]


def test_no_time_is_divided_by_zero_seconds(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "best", "gru", "sgd", [100.0], seconds=60.0)
    add_run(tmp_path, 1, "instant", "gru", "adam", [104.0], seconds=0.0)
    assert "The pick for time has 1.04 times the perplexity (104 against 100)." in said(picked(tmp_path))


def test_haste_has_no_ratio_where_the_soonest_took_zero_seconds(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "best", "gru", "sgd", [100.0], seconds=60.0)
    add_run(tmp_path, 1, "instant", "rnn", "adam", [200.0], seconds=0.0)
    assert "with 2.00 times the perplexity (200 against 100)." in said(picked(tmp_path))


def test_haste_has_no_ratio_where_the_time_of_the_picks_best_epoch_is_lost(tmp_path: Path) -> None:
    best = add_run(tmp_path, 0, "best", "gru", "sgd", [101.0, 101.0, 100.0], seconds=10.0)
    write_json_lines(best.metrics_file, best.read_metrics()[0][:2])
    add_run(tmp_path, 1, "slow", "rnn", "adam", [150.0], seconds=30.0)
    add_run(tmp_path, 2, "quick", "rnn", "sgd", [200.0], seconds=20.0)
    assert front_of(tmp_path) == [3, 2]
    sentences = said(picked(tmp_path))
    assert "The fastest setting on the Pareto front is 3 quick: its best epoch ends after 20 s, with 2.00" in sentences
    assert "nan" not in sentences


def test_an_axis_is_logarithmic_where_its_values_are_far_apart(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "quick", "gru", "sgd", [101.0], seconds=10.0)
    add_run(tmp_path, 1, "slow", "gru", "adam", [100.0], seconds=100_000.0)
    (chart,) = [block for block in picked(tmp_path) if isinstance(block, Chart)]
    assert (chart.figure.axes[0].get_xscale(), chart.figure.axes[0].get_yscale()) == ("log", "linear")
    add_run(tmp_path, 2, "middle", "rnn", "sgd", [500.0], seconds=100.0)
    add_run(tmp_path, 3, "high", "rnn", "adam", [900.0], seconds=100.0)
    (chart,) = [block for block in picked(tmp_path) if isinstance(block, Chart)]
    assert (chart.figure.axes[0].get_xscale(), chart.figure.axes[0].get_yscale()) == ("log", "log")


@pytest.mark.usefixtures("blank_figures")
def test_seeds_that_are_all_best_at_their_end_have_not_become_worse(tmp_path: Path) -> None:
    for seed, ppl in enumerate([70.0, 143.0]):
        add_run(tmp_path, seed, "a", "gru", "sgd", [150.0, ppl], seed=seed)
    assert "By its last epoch" not in said(picked(tmp_path))


@pytest.mark.usefixtures("blank_figures")
def test_there_is_no_pick_for_time_if_one_seed_of_the_best_stays_away(tmp_path: Path) -> None:
    for seed, ppl in enumerate([100.0, 115.0]):
        add_run(tmp_path, seed, "a", "gru", "sgd", [ppl], seed=seed)
    add_run(tmp_path, 2, "b", "rnn", "sgd", [200.0])
    assert (
        "For wall-clock time there is no pick: no setting comes within 5 % of that perplexity with all its seeds."
    ) in said(picked(tmp_path))


@pytest.mark.usefixtures("blank_figures")
def test_there_is_no_pick_for_time_without_times(tmp_path: Path) -> None:
    run = add_run(tmp_path, 0, "a", "gru", "sgd", [100.0])
    records, _ = run.read_metrics()
    write_json_lines(run.metrics_file, [{**record, "elapsed_seconds": None} for record in records])
    add_run(tmp_path, 1, "b", "rnn", "sgd", [200.0])
    assert "there is no pick: no times are recorded for the runs near that perplexity." in said(picked(tmp_path))

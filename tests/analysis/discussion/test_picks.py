from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from analysis.blocks.figure import Chart
from analysis.blocks.section import Block
from analysis.discussion.picks import pareto_front, picks_blocks
from analysis.study.study import load_study
from seqlm.files import write_json_lines
from tests.analysis.contents import said, table
from tests.analysis.hand_made import add_run

pytestmark = pytest.mark.usefixtures("blank_figures")


def picked(study_dir: Path) -> list[Block]:
    study = load_study(study_dir)
    return picks_blocks(study, study.settings)


def front_of(study_dir: Path) -> list[int]:
    return [setting.number for setting in pareto_front(load_study(study_dir).settings)]


def test_the_picks_have_their_test_perplexity_gaps_in_nats_and_costs(tmp_path: Path) -> None:
    add_run(
        tmp_path, 0, "best", "gru", "sgd", [150.0, 120.0, 100.0], seconds=100.0, train=60.0, result={"test_ppl": 97.0}
    )
    add_run(tmp_path, 1, "near", "gru", "adam", [104.0, 103.0], seconds=30.0, train=90.0, result={"test_ppl": 106.0})
    add_run(tmp_path, 2, "quick", "rnn", "adam", [200.0, 190.0], seconds=5.0)
    gap = f"{math.log(100 / 60):+.3f}"
    blocks = picked(tmp_path)
    rows = table(blocks, "discussion-3-picks")
    assert [(row["setting"], row["test_ppl"], row["gap"], row["picked_for"]) for row in rows] == [
        ("3 quick", "190.00", "+1.335", "–"),
        ("2 near", "106.00", "+0.135", "time"),
        ("1 best", "97.00", gap, "generalisation"),
    ]


def test_a_difference_of_times_within_the_scatter_of_epochs_is_none(tmp_path: Path) -> None:
    """Of the quickstart: two RNNs that compute the same, in 9.1 and in 10 s."""
    times = {"sgd": [0.7, 1.1, 0.9, 0.8, 1.1], "adam": [0.9, 1.2, 0.9, 1.1, 0.9], "gru": [2.0, 2.2, 1.9, 2.1, 2.0]}
    for order, (name, ppl) in enumerate([("sgd", 74.0), ("adam", 68.0), ("gru", 61.0)]):
        val = [99.0, 98.0, 97.0, 96.0, ppl]
        add_run(tmp_path, order, name, "rnn", "adam", val, lr=1.0 + order, seconds=times[name])

    def apart(one: str, other: str) -> bool:
        deviations = [len(times[name]) * np.std(times[name], ddof=1) for name in (one, other)]
        return abs(sum(times[one]) - sum(times[other])) > 2 * math.hypot(*deviations)

    assert (apart("sgd", "adam"), apart("adam", "gru")) == (False, True)
    assert front_of(tmp_path) == [2, 3], "the first is no faster than the second, and worse"


def test_of_settings_that_are_equally_early_the_lowest_is_picked(tmp_path: Path) -> None:
    for order, (ppl, seconds) in enumerate([(100.0, [40.0, 41.0]), (104.0, [9.0, 11.0]), (103.0, [10.0, 12.0])]):
        add_run(tmp_path, order, f"r{order}", "gru", "sgd", [ppl, ppl], lr=1.0 + order, seconds=seconds)
    assert (
        "For wall-clock time: 3 r2, within 5 % of that perplexity after 10 s (best 103.00, test 103.00, after 10 "
        "s). Of 3 settings that come that near, 2 r1 and 3 r2 are the first, as their times differ by less than the "
        "epochs of a run do; it has the lowest perplexity of them."
    ) in said(picked(tmp_path))


def test_times_on_other_machines_are_in_no_front_and_no_pick(tmp_path: Path) -> None:
    for order, (device, ppl) in enumerate([("A", 100.0), ("A", 102.0), ("B", 101.0)]):
        add_run(
            tmp_path, order, f"r{order}", "gru", "sgd", [ppl] * 2, lr=1.0 + order, device=device, seconds=9.0 - order
        )
    blocks = picked(tmp_path)
    assert "these are of the 2 of 3 settings on A, 2 cores." in said(blocks)
    assert [row["setting"] for row in table(blocks, "discussion-3-picks")] == ["2 r1", "1 r0"]
    (chart,) = [block for block in blocks if isinstance(block, Chart)]
    assert [line.run for panel in chart.panels for line in panel.lines] == ["1", "2"]


def test_the_front_leaves_out_what_another_beats_in_both(tmp_path: Path) -> None:
    rows = [("gru", "sgd", 110.0, 60.0), ("gru", "adam", 100.0, 50.0), ("rnn", "adam", 101.0, 50.0)]
    rows += [("rnn", "sgd", 150.0, 10.0), ("transformer", "sgd", 100.0, 70.0)]
    for order, (arch, optimizer, ppl, seconds) in enumerate(rows):
        add_run(tmp_path, order, f"r{order}", arch, optimizer, [999.0, ppl], seconds=seconds)
    add_run(tmp_path, 5, "unfinished", "transformer", "adam", [999.0, 90.0], seconds=1.0, done=False)
    assert front_of(tmp_path) == [4, 2]


def test_without_times_or_runs_there_is_no_pick(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "a", "gru", "sgd", [80.0], failure="oom")
    assert said(picked(tmp_path)) == "No run has finished, so there is nothing to pick."
    run = add_run(tmp_path, 1, "b", "gru", "sgd", [100.0, 90.0])
    write_json_lines(run.metrics_file, [{**record, "elapsed_seconds": None} for record in run.read_metrics()[0]])
    assert "For wall-clock time there is no pick: no setting with recorded times comes within 5 %" in said(
        picked(tmp_path)
    )


def test_there_is_no_pick_for_time_if_one_seed_of_the_best_stays_away(tmp_path: Path) -> None:
    for seed, ppl in enumerate([100.0, 115.0]):
        add_run(tmp_path, seed, "a", "gru", "sgd", [ppl], seed=seed)
    assert "no setting with recorded times comes within 5 % of that perplexity with all its seeds." in said(
        picked(tmp_path)
    )


def test_a_run_that_exploded_does_not_flatten_the_figure(tmp_path: Path) -> None:
    for order, ppl in enumerate([100.0, 110.0, 120.0, 9000.0]):
        add_run(tmp_path, order, f"run{order}", "gru", "sgd", [ppl], lr=order + 1.0)
    (chart,) = [block for block in picked(tmp_path) if isinstance(block, Chart)]
    assert chart.figure.axes[0].get_ylim()[1] < 200
    assert "↑: above the axis" in chart.caption

import math
from pathlib import Path

import numpy as np
import pytest

from analysis.blocks.section import Block
from analysis.discussion.picks import pareto_front, picks_blocks
from analysis.study.study import load_study
from tests.analysis.contents import table
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


def test_the_front_leaves_out_what_another_beats_in_both(tmp_path: Path) -> None:
    rows = [("gru", "sgd", 110.0, 60.0), ("gru", "adam", 100.0, 50.0), ("rnn", "adam", 101.0, 50.0)]
    rows += [("rnn", "sgd", 150.0, 10.0), ("transformer", "sgd", 100.0, 70.0)]
    for order, (arch, optimizer, ppl, seconds) in enumerate(rows):
        add_run(tmp_path, order, f"r{order}", arch, optimizer, [999.0, ppl], seconds=seconds)
    add_run(tmp_path, 5, "unfinished", "transformer", "adam", [999.0, 90.0], seconds=1.0, done=False)
    assert front_of(tmp_path) == [4, 2]

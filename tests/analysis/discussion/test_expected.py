from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from analysis.blocks.section import Block
from analysis.blocks.table import Table
from analysis.discussion.expected import expected_blocks
from analysis.study.study import load_study
from seqlm.rundir import RunDirectory
from tests.analysis.contents import said, table
from tests.analysis.hand_made import add_run, digits


def held_against(study_dir: Path, *expectations: dict[str, Any]) -> list[Block]:
    written = [
        {"text": "It is so", "metric": "val_ppl", **e, **{side: list(map(_digits, e[side])) for side in SIDES}}
        for e in expectations
    ]
    (study_dir / "study.json").write_text(json.dumps({"expectations": written}), encoding="utf-8")
    return expected_blocks(load_study(study_dir))


SIDES = ("lower", "higher")


def _digits(run: RunDirectory | str) -> str:
    return run if isinstance(run, str) else digits(run)


def verdicts(blocks: list[Block]) -> list[str]:
    """With their reasons, as the CSV file has them."""
    (found,) = [block for block in blocks if isinstance(block, Table)]
    return [row["verdict"] for row in csv.DictReader(io.StringIO(found.to_csv()))]


def test_the_best_of_each_side_decides(tmp_path: Path) -> None:
    good = add_run(tmp_path, 0, "gru-good", "gru", "sgd", [100.0])
    bad = add_run(tmp_path, 1, "gru-bad", "gru", "adam", [300.0])
    middle = add_run(tmp_path, 2, "rnn", "rnn", "sgd", [200.0])
    blocks = held_against(
        tmp_path,
        {"text": "GRU beats RNN", "lower": [bad, good], "higher": [middle]},
        {"text": "RNN beats GRU", "lower": [middle], "higher": [bad, good]},
    )
    assert verdicts(blocks) == ["as expected", "not as expected"]
    assert said(blocks).splitlines() == [
        "2 expectations were stated before the runs: 1 came out as expected, 1 did not and 0 are inconclusive.",
        "“GRU beats RNN”: as expected. Lowest validation perplexity: 100 (1 gru-good) on the side expected lower, "
        "200 (3 rnn) on the side expected higher. These are the lowest of 2 and of 1 setting; with 1 each, the "
        "expected lowest are 173 and 200.",
        "“RNN beats GRU”: not as expected. Lowest validation perplexity: 200 (3 rnn) on the side expected lower, "
        "100 (1 gru-good) on the side expected higher. These are the lowest of 1 and of 2 settings; with 1 each, the "
        "expected lowest are 200 and 173.",
    ]
    row = table(blocks, "discussion-1-expected")[0]
    assert (row["lower"], row["lower_run"], row["higher"], row["higher_run"]) == (
        "100.00",
        "1 gru-good",
        "200.00",
        "3 rnn",
    )


def test_the_lowest_of_more_settings_does_not_win_by_their_number(tmp_path: Path) -> None:
    one = add_run(tmp_path, 0, "gru", "gru", "sgd", [100.0])
    many = [
        add_run(tmp_path, 1 + place, f"rnn{place}", "rnn", "sgd", [ppl], lr=1.0 + place)
        for place, ppl in enumerate([99.0, 150.0, 160.0])
    ]
    blocks = held_against(tmp_path, {"text": "GRU beats RNN", "lower": [one], "higher": many})
    assert verdicts(blocks) == [
        "inconclusive: the sides have unequal numbers of runs, and at equal numbers the order would be reversed"
    ]
    # the geometric mean of 99, 150 and 160 is 133.4
    assert "of 1 and of 3 settings; with 1 each, the expected lowest are 100 and 133." in said(blocks)


def test_a_side_without_a_finished_run_leaves_it_open_and_its_runs_are_named(tmp_path: Path) -> None:
    lower = add_run(tmp_path, 0, "a", "gru", "sgd", [100.0], failure="diverged")
    higher = add_run(tmp_path, 1, "b", "rnn", "sgd", [200.0])
    blocks = held_against(
        tmp_path,
        {"lower": [lower], "higher": [higher]},
        {"lower": [higher], "higher": [lower]},
        {"lower": ["00000000"], "higher": [lower]},
        {"lower": ["00000000"], "higher": [higher]},
    )
    assert verdicts(blocks) == [
        "inconclusive: no finished run on the side expected lower has this number (1 a: failed: diverged)",
        "inconclusive: no finished run on the side expected higher has this number (1 a: failed: diverged)",
        "inconclusive: no finished run on either side has this number (1 a: failed: diverged)",
        "inconclusive: no finished run on the side expected lower has this number (no run directory)",
    ]
    assert "0 came out as expected, 0 did not and 4 are inconclusive" in said(blocks)
    assert table(blocks, "discussion-1-expected")[0]["lower"] == "–"


def test_equal_values_decide_nothing(tmp_path: Path) -> None:
    a = add_run(tmp_path, 0, "a", "gru", "sgd", [100.0])
    b = add_run(tmp_path, 1, "b", "rnn", "sgd", [100.0])
    assert verdicts(held_against(tmp_path, {"lower": [a], "higher": [b]})) == ["inconclusive: both are equal"]


def test_a_difference_that_rounding_would_hide_is_shown(tmp_path: Path) -> None:
    a = add_run(tmp_path, 0, "a", "gru", "sgd", [120.1])
    b = add_run(tmp_path, 1, "b", "rnn", "sgd", [120.4])
    assert "120.10 (1 a)" in said(held_against(tmp_path, {"lower": [a], "higher": [b]}))


@pytest.mark.parametrize(
    ("values", "others", "verdict"),
    [
        ([90.0, 110.0], [103.0, 102.9], "inconclusive: Welch's t test over seeds: p = 0.63"),
        ([99.9, 100.1], [103.0, 102.9], "as expected"),
        ([99.9, 100.1], [103.0], "inconclusive: one of them has a single seed"),
    ],
)
def test_seeds_that_show_no_difference_leave_it_open(
    tmp_path: Path, values: list[float], others: list[float], verdict: str
) -> None:
    lower = [
        add_run(tmp_path, seed, f"a{seed}", "gru", "sgd", [ppl], seed=seed) for seed, ppl in enumerate([*values, 100.0])
    ]
    higher = [
        add_run(tmp_path, 3 + seed, f"b{seed}", "rnn", "sgd", [ppl], seed=seed) for seed, ppl in enumerate(others)
    ]
    blocks = held_against(tmp_path, {"lower": lower, "higher": higher})
    assert verdicts(blocks) == [verdict]
    assert "(1/2/3 a0, mean of 3 seeds, 95 % interval " in said(blocks)


def test_times_are_compared_as_times_with_a_word_on_the_devices(tmp_path: Path) -> None:
    a = add_run(tmp_path, 0, "a", "gru", "sgd", [100.0, 90.0], seconds=20.0, provenance={"devices": ["A"]})
    b = add_run(tmp_path, 1, "b", "rnn", "sgd", [200.0, 180.0], seconds=40.0, provenance={"devices": ["B"]})
    blocks = held_against(tmp_path, {"metric": "wall_seconds", "lower": [a], "higher": [b]})
    assert verdicts(blocks) == ["as expected"]
    assert "Lowest wall-clock time: 40 s (1 a) on the side expected lower, 1 min (2 b)" in said(blocks)
    assert "different devices (A and B)" in said(blocks)
    blocks = held_against(tmp_path, {"metric": "gap", "lower": [a], "higher": [b]})
    assert "different devices" not in said(blocks)
    assert table(blocks, "discussion-1-expected")[0]["lower"] == "40.00"


def test_without_expectations_it_says_how_to_state_them(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "a", "gru", "sgd", [100.0])
    (block,) = expected_blocks(load_study(tmp_path))
    assert "[[expect]]" in said([block])
    assert "docs/reference/manifest.md" in said([block])


def test_a_time_is_compared_among_finished_runs_alone(tmp_path: Path) -> None:
    lower = add_run(tmp_path, 0, "a", "gru", "sgd", [100.0], failure="oom")
    higher = add_run(tmp_path, 1, "b", "rnn", "sgd", [200.0])
    blocks = held_against(tmp_path, {"metric": "epoch_seconds", "lower": [lower], "higher": [higher]})
    assert verdicts(blocks) == [
        "inconclusive: no finished run on the side expected lower has this number (1 a: failed: oom)"
    ]


def test_the_lowest_time_of_each_side_decides_and_runs_without_one_are_left_out(tmp_path: Path) -> None:
    lost = add_run(tmp_path, 0, "lost", "gru", "adam", [100.0])
    lost.metrics_file.unlink()
    slow = add_run(tmp_path, 1, "slow", "gru", "sgd", [100.0], seconds=30.0)
    quick = add_run(tmp_path, 2, "quick", "gru", "sgd", [100.0], seconds=10.0, lr=2.0)
    other = add_run(tmp_path, 3, "other", "rnn", "sgd", [100.0], seconds=20.0)
    blocks = held_against(tmp_path, {"metric": "epoch_seconds", "lower": [lost, slow, quick], "higher": [other]})
    assert verdicts(blocks) == ["as expected"]
    (row,) = table(blocks, "discussion-1-expected")
    assert (row["lower_run"], row["higher_run"]) == ("3 quick", "4 other")

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.blocks.effects import effect_sentence, effects_of
from analysis.blocks.section import Block
from analysis.discussion.next_runs import combinations_never_run, fall_per_epoch, falling_runs, next_blocks
from analysis.sections.effects import effects_section
from analysis.study.pairs import single_key_pairs
from analysis.study.study import load_study
from tests.analysis.contents import said, table
from tests.analysis.hand_made import add_run


def proposed(study_dir: Path) -> list[Block]:
    return next_blocks(load_study(study_dir))


def test_a_curve_still_falls_if_its_best_epoch_is_the_last_and_the_end_is_steep() -> None:
    assert fall_per_epoch([200.0, 100.0]) == pytest.approx(0.5)
    assert fall_per_epoch([100.0, 90.0, 91.0]) == 0.0  # the best is not the last
    assert fall_per_epoch([89.0, 100.0, 90.0]) == 0.0  # lower before
    assert fall_per_epoch([100.0]) == 0.0
    assert fall_per_epoch([]) == 0.0
    steady = [200.0 * 0.99**epoch for epoch in range(40)]
    assert fall_per_epoch(steady) == pytest.approx(0.01)
    # of 40 epochs the last four count: a fall that is over by then does not
    assert fall_per_epoch([500.0 - epoch for epoch in range(36)] + [100.0, 100.0, 100.0, 99.97]) < 0.001


def test_runs_that_still_fall_are_listed_the_lowest_first(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "high", "rnn", "sgd", [400.0, 300.0])
    add_run(tmp_path, 1, "low", "gru", "sgd", [200.0, 180.0])
    add_run(tmp_path, 2, "flat", "gru", "adam", [90.0, 89.95])
    add_run(tmp_path, 3, "open", "rnn", "adam", [90.0, 80.0], done=False)
    falling = falling_runs(load_study(tmp_path))
    assert list(zip(falling["name"], falling["epochs"], strict=True)) == [("low", 2), ("high", 2)]
    assert (
        "More epochs: 2 of 3 finished runs were still improving at the last epoch: 2 low (10.00 % per epoch) and 1 "
        "high (25.00 % per epoch). How far they would improve is not extrapolated."
    ) in said(proposed(tmp_path))
    rows = table(proposed(tmp_path), "discussion-5-next")
    assert rows[0] == {
        "proposal": "more epochs",
        "what": "2 low",
        "why": "fell 10.00 % per epoch to 180.00 at epoch 2",
    }


def test_the_hyperparameter_with_the_largest_effect_is_told_with_its_direction_and_pairs(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "a", "gru", "sgd", [100.0], lr=1.0, hidden_size=64)
    add_run(tmp_path, 1, "b", "gru", "sgd", [50.0], lr=2.0, hidden_size=64)
    add_run(tmp_path, 2, "c", "gru", "sgd", [101.0], lr=1.0, hidden_size=128)
    add_run(tmp_path, 3, "d", "gru", "sgd", [202.0], lr=2.0, hidden_size=128)
    add_run(tmp_path, 4, "e", "gru", "sgd", [51.0], lr=2.0, hidden_size=32)
    rows = table(proposed(tmp_path), "discussion-5-effects")
    # hidden at lr 1: ln 1.01; at lr 2 (32, 64, 128): ln 50/51, ln 202/51, ln 202/50; lr at 64: -ln 2, at 128: +ln 2
    assert rows == [
        {
            "key": "model.hidden_size",
            "pairs": "4",
            "mean_nats": "0.701",
            "direction": "the smaller value is better in 3 of 4",
        },
        {"key": "optim.lr", "pairs": "2", "mean_nats": "0.693", "direction": "the larger value is better in 1 of 2"},
    ]
    assert (
        "The hyperparameter with the largest effect is model.hidden_size: changed alone, it changes the validation "
        "loss by 0.701 nats on average over 4 pairs; the smaller value is better in 3 of 4."
    ) in said(proposed(tmp_path))


@pytest.mark.slow
def test_both_sections_give_the_same_answer_on_the_same_pairs(tmp_path: Path) -> None:
    """A width that helps in one pair and harms in the other has a mean change near 0, and yet the largest effect."""
    other: dict[str, Any] = {"num_layers": 1, "batch_size": 40}
    add_run(tmp_path, 0, "a", "gru", "sgd", [100.0], lr=1.0, hidden_size=64)
    add_run(tmp_path, 1, "b", "gru", "sgd", [165.0], lr=1.0, hidden_size=128)
    add_run(tmp_path, 2, "c", "gru", "sgd", [150.0], lr=1.0, hidden_size=64, **other)
    add_run(tmp_path, 3, "d", "gru", "sgd", [91.0], lr=1.0, hidden_size=128, **other)
    add_run(tmp_path, 4, "e", "gru", "sgd", [135.0], lr=2.0, hidden_size=64)
    study = load_study(tmp_path)
    effects = effects_of(single_key_pairs(study.runs))
    assert [effect.key for effect in effects] == ["model.hidden_size", "optim.lr"]
    for blocks in (next_blocks(study), effects_section(study).blocks):
        assert effect_sentence(effects) in said(blocks)
    (changes,) = [table for table in effects_section(study).tables if table.name == "effects"]
    assert [row.cells[0].text for row in changes.rows] == ["model.hidden_size", "optim.lr"]


def test_of_choices_each_is_told_with_its_wins(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "rnn", "rnn", "sgd", [200.0])
    add_run(tmp_path, 1, "gru", "gru", "sgd", [100.0])
    add_run(tmp_path, 2, "wide", "gru", "sgd", [99.0], hidden_size=128)
    sentences = said(proposed(tmp_path))
    assert "model.arch: changed alone, it changes the validation loss by 0.693 nats in its one pair, " in sentences
    assert "better in its pairs: GRU in 1 of 1 and RNN in 0 of 1." in sentences
    assert "Apart from architecture and optimizer it is model.hidden_size: 0.010 nats in its one pair" in sentences


def test_without_a_pair_no_effect_is_told(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "a", "gru", "sgd", [100.0])
    assert "No two settings with finished runs differ in one hyperparameter alone" in said(proposed(tmp_path))


def test_combinations_without_a_finished_run_say_why(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "a", "rnn", "adam", [100.0])
    add_run(tmp_path, 1, "b", "rnn", "sgd", [100.0], failure="diverged")
    record = {
        "planned": [
            {"number": 3, "name": "c", "fingerprint": "0" * 64, "arch": "gru", "optimizer": "adam"},
        ],
        "excluded": [{"name": "d", "arch": "transformer", "optimizer": "sgd"}],
    }
    (tmp_path / "study.json").write_text(json.dumps(record), encoding="utf-8")
    assert combinations_never_run(load_study(tmp_path)) == [
        ("RNN with SGD", "2 b: failed: diverged"),
        ("GRU with Adam", "3 c: absent"),
        ("GRU with SGD", "in no run of the manifest"),
        ("Transformer with Adam", "in no run of the manifest"),
        ("Transformer with SGD", "excluded by the manifest"),
    ]
    assert "Combinations without a finished run: RNN with SGD (2 b: failed: diverged), " in said(proposed(tmp_path))
    assert "To be finished: 1 run has not ended (3 c)." in said(proposed(tmp_path))


def test_failures_of_the_machine_are_to_be_tried_again_and_a_diverged_run_is_not(tmp_path: Path) -> None:
    for order, kind in enumerate(["timeout", "diverged", "oom", "node", "code", "oom"]):
        add_run(tmp_path, order, kind, "rnn", "adam", [100.0], lr=1.0 + order, failure=kind)
    sentences = said(proposed(tmp_path))
    assert "4 runs (oom: 3 oom and 6 oom; node: 4 node; timeout: 1 timeout)." in sentences
    rows = [row for row in table(proposed(tmp_path), "discussion-5-next") if row["proposal"] == "again"]
    assert [row["what"] for row in rows] == ["1 timeout", "3 oom", "4 node", "6 oom"]
    assert rows[1]["why"] == "oom: it ended by oom"


def test_a_complete_study_says_so(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "a", "rnn", "adam", [100.0, 110.0])
    assert said(proposed(tmp_path)).splitlines()[0] == (
        "More epochs: no finished run was still improving at its last epoch."
    )
    assert "Every architecture of the study has a finished run with every optimizer of the study." in said(
        proposed(tmp_path)
    )


def test_of_other_texts_each_value_is_told_with_its_wins(tmp_path: Path) -> None:
    for order, (schedule, ppl) in enumerate([("compounding", 200.0), ("per_epoch", 100.0)]):
        add_run(tmp_path, order, schedule, "gru", "sgd_schedule", [ppl], schedule=schedule, flat_epochs=1)
    (row,) = table(proposed(tmp_path), "discussion-5-effects")
    assert (row["key"], row["direction"]) == (
        "optim.schedule",
        "better in its pairs: per_epoch in 1 of 1 and compounding in 0 of 1",
    )


def test_in_a_pair_with_equal_losses_neither_choice_wins(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "rnn", "rnn", "sgd", [100.0])
    add_run(tmp_path, 1, "gru", "gru", "sgd", [100.0])
    assert "better in its pairs: GRU in 0 of 1 and RNN in 0 of 1." in said(proposed(tmp_path))

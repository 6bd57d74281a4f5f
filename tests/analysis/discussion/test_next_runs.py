from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.discussion.next_runs import LONGER, SCHEDULE, fall_per_epoch, falling_runs, next_blocks
from analysis.study.settings import settings_of
from analysis.study.study import load_study
from seqlm.files import write_json
from seqlm.optimizers import SgdConfig
from tests.analysis.contents import said
from tests.analysis.hand_made import add_run


def proposed(study_dir: Path) -> str:
    study = load_study(study_dir)
    return said(next_blocks(study, settings_of(study.compared.runs)))


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


def test_runs_that_still_fall_are_named_the_lowest_first(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "high", "rnn", "sgd", [400.0, 300.0])
    add_run(tmp_path, 1, "low", "gru", "sgd", [200.0, 180.0])
    add_run(tmp_path, 2, "flat", "gru", "adam", [90.0, 89.95])
    add_run(tmp_path, 3, "open", "rnn", "adam", [90.0, 80.0], done=False)
    assert falling_runs(load_study(tmp_path))["name"].tolist() == ["low", "high"]
    assert "2 low (10.00 % per epoch), 1 high (25.00 % per epoch)" in proposed(tmp_path)


FALLS: dict[str, Any] = {"schedule": "compounding", "flat_epochs": 2, "decay": 3.0}


def make_unfinished(folder: Path) -> None:
    """Runs whose learning rate has ended or not, failures of each kind, and a plan with more."""
    val = [200.0, 150.0, 120.0, 100.0]
    add_run(folder, 0, "annealed", "gru", "adam", val, schedule="cosine", decay_epochs=4)
    add_run(folder, 1, "level", "rnn", "adam", [200.0, 150.0, 100.0, 99.99], schedule="linear", decay_epochs=4)
    add_run(folder, 2, "ended", "gru", "sgd_schedule", val, lr=1.0, **FALLS)
    add_run(folder, 3, "half-way", "rnn", "adam", val, schedule="cosine", decay_epochs=8)
    for order, kind in enumerate(["timeout", "diverged", "oom", "node", "code", "oom"], start=4):
        add_run(folder, order, kind, "rnn", "adam", [100.0], lr=1.0 + order, failure=kind)
    planned = {"number": 11, "name": "absent", "fingerprint": "0" * 64, "arch": "gru", "optimizer": "adam"}
    excluded = {"name": "out", "arch": "transformer", "optimizer": "sgd"}
    write_json(folder / "study.json", {"planned": [planned], "excluded": [excluded]})


def test_a_run_whose_learning_rate_has_ended_needs_a_longer_schedule_if_its_curve_falls(
    tmp_path: Path,
) -> None:
    make_unfinished(tmp_path)
    rate = SgdConfig(optimizer="sgd_schedule", lr=1.0, **FALLS).learning_rate(4)  # of the fifth epoch
    assert rate < 0.01
    falling = falling_runs(load_study(tmp_path)).set_index("name")["proposal"]
    assert falling.to_dict() == {"annealed": SCHEDULE, "ended": SCHEDULE, "half-way": LONGER}


def test_the_question_is_about_the_learning_rate_if_none_was_tried_next_to_that_of_the_best(
    tmp_path: Path,
) -> None:
    add_run(tmp_path, 0, "only", "gru", "adam", [100.0], lr=0.003)
    assert (
        "A question worth asking: is the only learning rate tried the best one for 1 only, the setting with the lowest "
        "perplexity (100.00)? Runs like it with optim.lr = 0.001 and 0.01 would answer it."
    ) in proposed(tmp_path)
    add_run(tmp_path, 1, "higher", "gru", "adam", [110.0], lr=0.01)
    assert "is the lowest learning rate tried the best one for 1 only" in proposed(tmp_path)
    assert "Runs like it with optim.lr = 0.001 would answer it." in proposed(tmp_path)
    add_run(tmp_path, 2, "large", "gru", "sgd", [90.0], lr=10.0)
    add_run(tmp_path, 3, "smaller", "gru", "sgd", [95.0], lr=1.0)
    assert "Runs like it with optim.lr = 30 would answer it." in proposed(tmp_path)


def test_the_question_is_about_seeds_if_the_learning_rate_is_known(tmp_path: Path) -> None:
    for order, (lr, ppl) in enumerate([(0.1, 110.0), (0.3, 100.0), (1.0, 120.0)]):
        add_run(tmp_path, order, f"lr{lr:g}", "gru", "adam", [ppl], lr=lr)
    assert (
        "A question worth asking: is 2 lr0.3 (100.00) better than 1 lr0.1 (110.00)? Both with further seeds, such as "
        "seeds = [1, 2, 3], would answer it."
    ) in proposed(tmp_path)


def test_a_complete_study_says_so(tmp_path: Path) -> None:
    add_run(tmp_path, 0, "a", "rnn", "adam", [100.0, 110.0])
    assert "More epochs: no finished run was still improving at its last epoch." in proposed(tmp_path)
    assert "Combinations" not in proposed(tmp_path)

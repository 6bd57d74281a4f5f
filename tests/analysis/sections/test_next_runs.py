from pathlib import Path
from typing import Any

import pytest

from analysis.claims.next_runs import fall_per_epoch, falling_runs
from analysis.study.study import load_study
from seqlm.files import write_json
from tests.analysis.hand_made import add_run


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


FALLS: dict[str, Any] = {"schedule": "compounding", "flat_epochs": 2, "decay": 3.0}


def make_unfinished(folder: Path) -> None:
    """Runs whose learning rate has ended or not, failures of each kind, and a plan with more."""
    val = [200.0, 150.0, 120.0, 100.0]
    add_run(folder, 0, "annealed", "gru", "adam", val, schedule="cosine", decay_epochs=4)
    add_run(folder, 1, "level", "rnn", "adam", [200.0, 150.0, 100.0, 99.99], schedule="linear", decay_epochs=4)
    add_run(folder, 2, "ended", "gru", "sgd_schedule", val, lr=1.0, **FALLS)
    add_run(folder, 3, "half-way", "rnn", "adam", val, schedule="cosine", decay_epochs=8)
    for order, kind in enumerate(["timeout", "diverged", "oom", "node", "code", "oom", "cancelled"], start=4):
        add_run(folder, order, kind, "rnn", "adam", [100.0], lr=1.0 + order, failure=kind)
    planned = {"number": 12, "name": "absent", "fingerprint": "0" * 64, "arch": "gru", "optimizer": "adam"}
    excluded = {"name": "out", "arch": "transformer", "optimizer": "sgd"}
    write_json(folder / "study.json", {"planned": [planned], "excluded": [excluded]})

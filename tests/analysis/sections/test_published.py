import json
from pathlib import Path
from typing import Any

import numpy as np

from analysis.blocks.section import Block
from analysis.claims.published import published
from analysis.sections.published import published_section
from analysis.study.study import load_study
from seqlm.rundir import RunDirectory
from tests.analysis.hand_made import add_run, digits


def compared(study_dir: Path, published: dict[RunDirectory, dict[str, Any]]) -> list[Block]:
    orders = {run: run.read_provenance().order or 0 for run in published}
    record = {
        "planned": [
            {"number": orders[run] + 1, "fingerprint": digits(run), "published": numbers}
            for run, numbers in published.items()
        ]
    }
    (study_dir / "study.json").write_text(json.dumps(record), encoding="utf-8")
    return published_section(load_study(study_dir)).blocks


def make_published(tmp_path: Path) -> list[Block]:
    runs = [
        add_run(tmp_path, 0, "in", "rnn", "sgd", [300.0, 102.0, 5000.0], train=[250.0, 120.0, 51.0]),
        add_run(tmp_path, 1, "low", "rnn", "sgd", [90.0], lr=2.0),
        add_run(tmp_path, 2, "high", "gru", "sgd", [130.0]),
        add_run(tmp_path, 3, "alone", "gru", "sgd", [100.0], lr=2.0),
        add_run(tmp_path, 4, "open", "gru", "adam", [100.0], done=False),
        add_run(tmp_path, 5, "gone", "gru", "adam", [100.0], lr=3.0, failure="diverged"),
    ]
    add_run(tmp_path, 6, "unpublished", "gru", "adam", [100.0], lr=4.0)
    numbers = {"train_ppl": 50, "val_ppl": 100, "replications": [95.5, 105.0]}
    return compared(tmp_path, {run: {**numbers, **({"replications": None} if run is runs[3] else {})} for run in runs})


def test_the_median_difference_is_that_of_the_finished_runs(tmp_path: Path) -> None:
    make_published(tmp_path)
    found = published(load_study(tmp_path))
    assert found is not None
    assert f"median of 4 runs {np.median([2, 10, 30, 0]):.1f} %, largest +30.0 % (3 high)" in "".join(found.points)

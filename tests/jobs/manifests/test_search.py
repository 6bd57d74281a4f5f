from __future__ import annotations

from pathlib import Path

import pytest

from jobs.manifests.load import Manifest
from jobs.plan.record import record_of, write_record
from jobs.plan.totals import search_line
from jobs.study.record import StudyRecord
from seqlm.errors import ManifestError
from seqlm.search import Search
from tests.jobs.manifests import test_manifest
from tests.jobs.manifests.test_manifest import BASE

GOOD = BASE + 'train.epochs = 30\n[[grid]]\nmodel.arch = ["rnn", "gru"]\noptim.optimizer = "sgd"\n'
SEARCH = '[search]\nrungs = [3, 9]\nkeep = 0.5\nwithin = ["model.arch", "seed"]\n'


def load(folder: Path, search: str, *overrides: str) -> Manifest:
    return test_manifest.load(folder, GOOD + search, *overrides)


def test_a_study_is_a_search_if_its_manifest_says_so(tmp_path: Path) -> None:
    assert load(tmp_path, "").search is None
    assert load(tmp_path, "[search]\nrungs = [3]\n").search == Search(
        rungs=(3,), metric="val_ppl", keep=0.34, min_runs=3, within=()
    )
    whole = Search(rungs=(3, 9), keep=0.5, within=("model.arch", "seed"))
    assert load(tmp_path, SEARCH).search == whole
    changed = load(tmp_path, SEARCH, "search.keep=0.25", "search.rungs=[1, 2]").search
    assert changed == Search(rungs=(1, 2), keep=0.25, within=("model.arch", "seed"))
    assert load(tmp_path, "", "search.rungs=[1]").search == Search(rungs=(1,))


def test_a_trial_with_fewer_epochs_than_the_rungs_is_no_mistake(tmp_path: Path) -> None:
    assert load(tmp_path, SEARCH, "train.epochs=2").search is not None
    assert load(tmp_path, SEARCH.replace("9", "29")).search is not None
    with pytest.raises(ManifestError, match="got 30"):
        load(tmp_path, SEARCH.replace("9", "30"), "train.epochs=2")
    assert load(tmp_path, SEARCH.replace("9", "30"), "train.epochs=60").search is not None


def test_a_study_keeps_its_search_for_launches_without_the_manifest(tmp_path: Path) -> None:
    lines: list[str] = []
    for text, expected in (
        ("", None),
        (SEARCH, Search(rungs=(3, 9), keep=0.5, within=("model.arch", "seed"))),
    ):
        manifest = load(tmp_path, text)
        write_record(tmp_path, record_of(manifest, manifest.runs, None), [], lines.append)
        assert StudyRecord(tmp_path, lines.append).search == expected
    record = tmp_path / "study.json"
    record.write_text(record.read_text().replace('"val_ppl"', '"val_pll"'))
    assert StudyRecord(tmp_path, lines.append).search is None
    (warning,) = lines
    assert 'search.metric: expected one of "val_ppl"' in warning
    assert warning.endswith("; [search] is as if it were not given")


def test_the_plan_says_what_a_search_takes(tmp_path: Path) -> None:
    search = load(tmp_path, SEARCH).search
    assert search is not None
    assert search_line(search) == (
        "search: 0.5 of the runs go on after epochs 3, 9 by val_ppl among runs of equal model.arch, seed"
    )

from pathlib import Path

import pytest

from benchmarks import report_study
from seqlm.records.studies import MAX_RUNS
from seqlm.rundir import RunDirectory


@pytest.mark.parametrize("runs", [1, 324, 1300, 4000, MAX_RUNS])
def test_the_study_has_as_many_runs_as_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: int
) -> None:
    made: list[str] = []
    monkeypatch.setattr(
        report_study, "_make_run", lambda study, order, config, epochs: made.append(config.fingerprint())
    )
    report_study.make_study(tmp_path, runs, 3)
    assert len(set(made)) == runs


def test_the_runs_are_folders(tmp_path: Path) -> None:
    report_study.make_study(tmp_path, 5, 3)
    assert len(list(RunDirectory.unordered_in(tmp_path))) == 5

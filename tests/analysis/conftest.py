from pathlib import Path

import pytest

from analysis.report import write_report
from analysis.study.study import StudyFiles, load_study
from tests.analysis.synthetic import make_study


@pytest.fixture(scope="session")
def study_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("runs") / "optimizers")


@pytest.fixture(scope="session")
def study(study_dir: Path) -> StudyFiles:
    return load_study(study_dir)


@pytest.fixture(scope="session")
def report(study_dir: Path) -> Path:
    """The folder of the report of ``study_dir``."""
    return write_report(study_dir).parent


@pytest.fixture
def svg_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw each figure in one format instead of three: for tests that are about other things."""
    monkeypatch.setattr("analysis.report.FORMATS", ("svg",))
    monkeypatch.setattr("analysis.report.column_files", lambda _: [])

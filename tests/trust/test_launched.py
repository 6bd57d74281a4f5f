"""A study is trusted by the user who launched it, wherever it is moved, and by nobody who only has its files."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.run import Run
from analysis.study.study import load_study
from seqlm.architectures import CustomConfig
from seqlm.errors import ModelError, UsageError
from seqlm.files import read_json, write_json
from seqlm.model_files import read_model_files
from seqlm.rundir import RunDirectory
from seqlm.trust import LAUNCHED, distrusted, record_launch
from tests.seqlm.training.test_own_models import own_run

NAME = "minGRU"


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Become a user with a configuration folder of this name."""

    def become(name: str) -> None:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / name))

    become("me")
    return become


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study with a run of an own model."""
    own_run(tmp_path / "runs" / "small" / "min-gru-00000000", NAME)
    return tmp_path / "runs" / "small"


def digests(study: Path) -> set[str | None]:
    found = {run.read_config().model for run in RunDirectory.unordered_in(study)}
    return {model.sha256 for model in found if isinstance(model, CustomConfig)}


def launch(study: Path) -> list[str]:
    """Launch the manifest of the study; return the warnings."""
    told: list[str] = []
    record_launch(study, digests(study), told.append)
    return told


@pytest.mark.usefixtures("user")
def test_a_study_is_trusted_from_its_launch_on_also_after_it_was_moved(study: Path) -> None:
    assert distrusted(study) is not None
    assert launch(study) == []
    assert distrusted(study) is None
    moved = study.rename(study.with_name("moved"))
    assert distrusted(moved) is None
    assert launch(moved) == []
    assert distrusted(moved) is None


@pytest.mark.usefixtures("user")
def test_a_copy_of_a_study_is_not_trusted(study: Path) -> None:
    launch(study)
    copy = shutil.copytree(study, study.with_name("copy"))
    assert "copy" in (distrusted(copy) or "")
    assert launch(copy) == []
    assert [distrusted(copy), distrusted(study)] == [None, None]


def test_two_users_who_launch_one_study_both_trust_it_and_a_third_does_not(
    study: Path, user: Callable[[str], None]
) -> None:
    for name in ("anna", "bert"):
        user(name)
        assert launch(study) == []
    for name, trusts in {"anna": True, "bert": True, "eve": False}.items():
        user(name)
        assert (distrusted(study) is None) == trusts


@pytest.mark.usefixtures("user")
def test_a_token_is_no_path(study: Path, tmp_path: Path) -> None:
    (tmp_path / "planted").write_text(str(study))
    for token in ("../../../planted", str(tmp_path / "planted"), "", 7):
        write_json(study / LAUNCHED, {"tokens": [token]})
        assert distrusted(study) is not None


@pytest.mark.usefixtures("user")
def test_a_configuration_that_cannot_be_written_is_one_line_and_no_trust(study: Path, tmp_path: Path) -> None:
    (tmp_path / "me").write_text("a file")
    (line,) = launch(study)
    assert "\n" not in line
    assert distrusted(study) is not None


@pytest.mark.usefixtures("user")
@pytest.mark.parametrize("planted", ["another model", "another file", "a damaged configuration"])
def test_a_launch_of_a_strangers_study_trusts_it_if_it_holds_no_other_code(study: Path, planted: str) -> None:
    (run,) = RunDirectory.unordered_in(study)
    known = digests(study)
    if planted == "another model":
        other, _ = own_run(study / "lstm-00000001", "lstm")
        assert other.model_dir.is_dir()
    elif planted == "another file":
        (run.model_dir / "numpy.py").touch()
    else:
        run.config_file.write_text("{")
    told: list[str] = []
    record_launch(study, known, told.append)
    assert len(told) == 1
    assert distrusted(study) is not None


def test_no_file_is_kept_with_a_model_that_is_not_of_it(study: Path) -> None:
    (run,) = RunDirectory.unordered_in(study)
    model = run.read_config().model
    assert isinstance(model, CustomConfig)
    files = read_model_files(model, run.model_dir)
    files.keep(run.model_dir)
    (run.model_dir / "numpy.py").touch()
    with pytest.raises(ModelError, match=r"numpy\.py is no file of the model"):
        files.keep(run.model_dir)


def test_an_own_model_of_a_stranger_is_loaded_only_if_asked(study: Path, user: Callable[[str], None]) -> None:
    launch(study)
    (run,) = RunDirectory.unordered_in(study)
    row = {"number": 1, "id": run.id, "name": "m", "state": "pending", "directory": run.path}
    found = Run(**row, metrics=load_study(study).epochs)
    user("eve")
    with pytest.raises(UsageError, match="not launched by this user"):
        found.load_model()
    assert read_json(study / LAUNCHED) is not None

"""What a user has launched is trusted by its content, wherever it lies; whatever else a study keeps is not."""

import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.run import Run
from jobs.launch.prepare import require_trusted
from jobs.spec import RunSpec
from jobs.study.launched import trust_study
from jobs.study.record import COMMANDING, KeptManifests
from seqlm.architectures import CustomConfig
from seqlm.config import RunConfig
from seqlm.environment import LAUNCHED
from seqlm.errors import CheckpointError, FileError, ModelError, UsageError
from seqlm.files import read_json, write_json
from seqlm.model_files import ModelFiles, read_model_files
from seqlm.models import build_model
from seqlm.rundir import RunDirectory, study_record_file
from seqlm.trust import distrusted, of_run, record_launch, require_launched, table_digest
from tests.seqlm.training.studies import make_config
from tests.seqlm.training.test_own_models import own_run

NAME = "minGRU"


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Become a user with a configuration folder of this name; return the folder."""

    def become(name: str) -> Path:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / name))
        return tmp_path / name

    become("me")
    return become


@pytest.fixture
def run(tmp_path: Path, user: Callable[[str], Path]) -> RunDirectory:
    """A run of a user's own model in the study ``small``, which this user has launched."""
    run, config = own_run(tmp_path / "runs" / "small" / "min-gru-00000000", NAME)
    record_launch(run.path.parent, {config.fingerprint()})
    return run


def model_of(config: RunConfig) -> CustomConfig:
    assert isinstance(config.model, CustomConfig)
    return config.model


def load(run: RunDirectory, *, trust: bool = False) -> None:
    """Load the model of a run as a notebook does. It has no checkpoint, which shows that the model is not refused."""
    row = {"number": 1, "id": run.id, "name": "m", "state": "pending", "directory": run.path}
    with pytest.raises(CheckpointError):
        Run(**row, metrics=pd.DataFrame()).load_model(trust=trust)


def use(run: RunDirectory) -> None:
    """Take the model of a run as a launch does that has no manifest, and as a worker does."""
    config = run.read_config()
    require_trusted([RunSpec(name="m", config=config)])
    build_model(config.model, 9, 5, folder=run.model_dir)


def evil(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w').close()\n"


# -- what is trusted ---------------------------------------------------------------------------------------------------


def test_what_a_user_has_launched_is_trusted_wherever_it_lies(run: RunDirectory) -> None:
    study = run.path.parent
    load(run)
    load(RunDirectory(shutil.copytree(study, study.with_name("copy")) / run.id))
    load(RunDirectory(study.rename(study.with_name("moved")) / run.id))


def test_two_users_of_one_study_trust_what_they_launched_and_a_third_trusts_nothing(
    run: RunDirectory, user: Callable[[str], Path]
) -> None:
    user("bert")
    with pytest.raises(UsageError, match="was not launched by you"):
        load(run)
    record_launch(run.path.parent, {run.read_config().fingerprint()})
    for name in ("bert", "me"):
        user(name)
        load(run)
    user("eve")
    with pytest.raises(UsageError, match="was not launched by you"):
        load(run)
    load(run, trust=True)
    with pytest.raises(UsageError, match="was not launched by you"):
        load(run)


def test_what_is_confirmed_once_stays_confirmed(run: RunDirectory, user: Callable[[str], Path]) -> None:
    study = run.path.parent
    tables: dict[str, Any] = {"notify": {"command": "true"}, "backend": {"slurm": {"setup": ["true"]}}}
    tables |= {"behaviour": ["f" * 64], "launched": {"tables": {"study": {"name": "s"}}, "changes": [], "flags": {}}}
    write_json(study_record_file(study), tables)
    user("eve")
    record = KeptManifests(study)
    assert all(record.distrusted(name) for name in COMMANDING)
    assert record.notify is None
    with pytest.raises(UsageError, match="add --trust"):
        _ = record.backends
    with pytest.raises(UsageError, match="add --trust"):
        require_trusted([RunSpec(name="m", config=run.read_config())])
    with pytest.raises(UsageError, match="add --trust"):
        require_trusted([RunSpec(name="m", config=make_config(), panel=(run.read_config(),))])
    require_trusted([RunSpec(name="m", config=make_config(), panel=(make_config("gru"),))])
    trust_study(study, pytest.fail)
    require_trusted([RunSpec(name="m", config=run.read_config())])
    record = KeptManifests(study)
    assert not any(record.distrusted(name) for name in COMMANDING)
    assert record.notify is not None
    assert "slurm" in record.backends
    write_json(study_record_file(study), {**tables, "notify": {"command": "false"}})
    assert KeptManifests(study).notify is None, "it is another command"


def test_the_digest_of_a_table_is_that_of_its_values_in_the_file(tmp_path: Path) -> None:
    table = {"b": (1, 2.5, None), "a": {"y": Path("x"), "x": "ä"}}
    write_json(tmp_path / "file.json", {"table": table})
    found = read_json(tmp_path / "file.json")
    assert found is not None
    assert table_digest("table", table) == table_digest("table", found["table"])
    assert table_digest("table", table) != table_digest("other", table)
    assert table_digest("table", table) != table_digest("table", {**table, "a": 1})


# -- what is not -------------------------------------------------------------------------------------------------------


def plant_kept(run: RunDirectory, marker: Path) -> None:
    """Other files beside the configuration, which points to them by their own digest."""
    config = run.read_config()
    files = ModelFiles(contents=dict.fromkeys(("min_gru.py", "causal.py"), evil(marker).encode()))
    files.keep(run.kept_dir(files.sha256))
    changed = replace(config, model=replace(model_of(config), sha256=files.sha256))
    write_json(run.config_file, changed.to_dict())


def edit_in_place(run: RunDirectory, marker: Path) -> None:
    (run.model_dir / "causal.py").write_text(evil(marker))


def change_the_arguments(run: RunDirectory, marker: Path) -> None:
    config = read_json(run.config_file) or {}
    config["model"]["arguments"]["hidden_size"] = 9
    write_json(run.config_file, config)


@pytest.mark.parametrize("plant", [plant_kept, edit_in_place, change_the_arguments])
def test_no_other_bytes_run(run: RunDirectory, tmp_path: Path, plant: Callable[[RunDirectory, Path], None]) -> None:
    marker = tmp_path / "ran"
    plant(run, marker)
    with pytest.raises((UsageError, ModelError)):
        use(run)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["numpy.py", "math.py", "causal/__init__.py", "min_gru/__init__.py"])
def test_no_other_file_in_the_folder_of_a_model_is_imported(run: RunDirectory, tmp_path: Path, name: str) -> None:
    planted, marker = run.model_dir / name, tmp_path / "ran"
    planted.parent.mkdir(exist_ok=True)
    planted.write_text(evil(marker))
    build_model(run.read_config().model, 9, 5, folder=run.model_dir)
    assert not marker.exists()


def test_the_files_that_were_checked_are_those_that_run(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "ran"

    def read_and_change(config: CustomConfig, folder: Path) -> ModelFiles:
        files = read_model_files(config, folder)
        for name in files.contents:
            (folder / name).write_text(evil(marker))
        return files

    monkeypatch.setattr("seqlm.models.custom.read_model_files", read_and_change)
    build_model(run.read_config().model, 9, 5, folder=run.model_dir)
    assert not marker.exists()


def test_a_worker_refuses_a_configuration_that_its_launch_was_not_about(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run.read_config()
    require_launched(config)
    for launched, is_known in ((config.fingerprint(), True), (f"a,{config.fingerprint()}", True), ("a,b", False)):
        monkeypatch.setenv(LAUNCHED.name, launched)
        if is_known:
            require_launched(config)
        else:
            with pytest.raises(UsageError, match="changed since its launch"):
                require_launched(config)


# -- the records -------------------------------------------------------------------------------------------------------


def of_others(path: Path) -> None:
    os.chown(path, 64711, -1)


def for_the_group(path: Path) -> None:
    path.chmod(path.stat().st_mode | stat.S_IWGRP)


@pytest.mark.parametrize("spoil", [of_others, for_the_group])
@pytest.mark.parametrize("place", ["seqlm/launched", "seqlm/launched/*.json"])
def test_records_that_others_have_made_or_may_change_are_not_believed(
    run: RunDirectory, user: Callable[[str], Path], spoil: Callable[[Path], None], place: str
) -> None:
    if spoil is of_others and os.geteuid() != 0:
        pytest.skip("root alone can give a file to somebody else")
    config = run.read_config()
    (spoiled,) = user("me").glob(place)
    spoil(spoiled)
    assert str(spoiled) in (distrusted(of_run(config, "m")) or "")
    with pytest.raises(FileError, match=spoiled.name):
        record_launch(run.path.parent, {"0" * 64})


def test_a_record_that_is_damaged_or_a_link_is_not_believed(run: RunDirectory, user: Callable[[str], Path]) -> None:
    (record,) = user("me").glob("seqlm/launched/*.json")
    content = record.read_bytes()
    for text in ("{", "[]", "7", '{"digests": [7]}', '{"digests": "all"}', '{"digests": {"a": 1}}'):
        record.write_text(text)
        assert distrusted(of_run(run.read_config(), "m")) is not None
    record.unlink()
    record.with_suffix(".txt").write_bytes(content)
    record.symlink_to(record.with_suffix(".txt"))
    assert distrusted(of_run(run.read_config(), "m")) is not None


def test_folders_that_are_made_for_the_records_are_nobody_elses(
    run: RunDirectory, user: Callable[[str], Path], tmp_path: Path
) -> None:
    before = os.umask(0o002)
    try:
        user("new/home")
        record_launch(run.path.parent, {"0" * 64})
    finally:
        os.umask(before)
    made = [tmp_path / "new", *(tmp_path / "new").rglob("*")]
    assert len(made) == 5
    assert [path for path in made if path.stat().st_mode & 0o077] == []


def test_a_configuration_that_cannot_be_written_is_one_line_and_no_trust(
    run: RunDirectory, user: Callable[[str], Path]
) -> None:
    user("file").write_text("a file")
    told: list[str] = []
    trust_study(run.path.parent, told.append)
    (line,) = told
    assert "\n" not in line
    assert distrusted(of_run(run.read_config(), "m")) is not None

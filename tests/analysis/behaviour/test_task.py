from pathlib import Path
from typing import Any

import pytest

from analysis.behaviour.task import Task, settings_from
from seqlm.errors import ConfigError, DamagedFileError, FileError
from seqlm.files import write_json
from seqlm.records.behaviour import BehaviourSettings
from seqlm.rundir import RunDirectory
from tests.seqlm.training.studies import make_config

CONFIG = make_config(seq_len=5, seed=7)


def test_what_is_absent_follows_from_the_run() -> None:
    assert settings_from({}, CONFIG) == BehaviourSettings(window=10, lengths=(5, 10), seed=7)
    assert settings_from({"window": 3, "lengths": [1, 9], "temperature": 2}, CONFIG).temperature == 2.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("window", value) for value in (0, 70.0)),
        ("samples", True),
        *(("lengths", value) for value in ([], [5, "6"], 5)),
        ("gradient_columns", 0),
        *(("temperature", value) for value in (0, -1.5, float("inf"), float("nan"), "1")),
        ("prompt", 3),
        *(("seed", value) for value in (-1, 2**32, None)),
        ("windows", 3),
    ],
)
def test_an_impossible_value_is_one_line_that_names_its_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_from({key: value}, CONFIG)
    (problem,) = caught.value.problems
    assert problem.startswith(f"settings.{key}")
    assert "\n" not in problem


def test_a_task_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    job = RunDirectory(tmp_path)
    with pytest.raises(FileError, match=r"task\.json is missing"):
        Task.read(job, CONFIG)
    for raw in (
        {"panel": ["gru", "../gru"]},
        {"panel": [""]},
        {"panel": [".."]},
        {"panel": "gru"},
        {"panel": [3]},
        {"settings": []},
    ):
        write_json(tmp_path / "task.json", raw)
        with pytest.raises((ConfigError, DamagedFileError)):
            Task.read(job, CONFIG)


def test_a_task_with_and_without_a_panel(tmp_path: Path) -> None:
    write_json(tmp_path / "task.json", {"settings": {"window": 3}})
    task = Task.read(RunDirectory(tmp_path), CONFIG)
    assert task.panel == ()
    assert task.settings.window == 3
    write_json(tmp_path / "task.json", {"panel": ["gru-1234", tmp_path.name]})
    task = Task.read(RunDirectory(tmp_path), CONFIG)
    assert task.panel == ("gru-1234", tmp_path.name), "a run may rate its own samples with those of all others"

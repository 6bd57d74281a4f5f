from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.behaviour.task import Settings, Task
from seqlm.errors import ConfigError, FileError
from seqlm.files import write_json
from seqlm.rundir import RunDirectory
from tests.training.studies import make_config

CONFIG = make_config(seq_len=5, seed=7)


def test_what_is_absent_follows_from_the_run() -> None:
    assert Settings.from_dict({}, CONFIG) == Settings(
        window=10, samples=10, lengths=(5, 10), temperature=1.0, prompt=None, gradient_columns=20, seed=7
    )


def test_what_is_given_is_kept() -> None:
    raw = {"window": 3, "samples": 2, "lengths": [1, 9], "temperature": 2, "prompt": "the cat", "seed": 0}
    assert Settings.from_dict(raw, CONFIG) == Settings(
        window=3, samples=2, lengths=(1, 9), temperature=2.0, prompt="the cat", seed=0
    )


@pytest.mark.parametrize(
    ("key", "value", "valid"),
    [
        ("window", 0, "a whole number of at least 1"),
        ("window", 70.0, "a whole number of at least 1"),
        ("samples", True, "a whole number of at least 1"),
        ("lengths", [], "a list of at least one, each a whole number of at least 1"),
        ("lengths", [5, "6"], "a list of at least one, each a whole number of at least 1"),
        ("lengths", 5, "a list of at least one, each a whole number of at least 1"),
        ("gradient_columns", 0, "a whole number of at least 1"),
        ("temperature", 0, "a positive finite number"),
        ("temperature", -1.5, "a positive finite number"),
        ("temperature", float("inf"), "a positive finite number"),
        ("temperature", float("nan"), "a positive finite number"),
        ("temperature", 10**400, "a positive finite number"),
        ("temperature", "1", "a positive finite number"),
        ("prompt", 3, "a text or null"),
        ("seed", -1, "a whole number from 0 to 2^32 - 1"),
        ("seed", 2**32, "a whole number from 0 to 2^32 - 1"),
        ("seed", None, "a whole number from 0 to 2^32 - 1"),
    ],
)
def test_an_impossible_value_is_one_line(key: str, value: Any, valid: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_dict({key: value}, CONFIG)
    (problem,) = caught.value.problems
    assert problem.startswith(f"settings.{key}: expected {valid}, got ")


def test_an_unknown_key_is_one_line_that_names_its_neighbour() -> None:
    with pytest.raises(ConfigError, match=r'^unknown key "settings.windows"; did you mean "window"\? \(valid in '):
        Settings.from_dict({"windows": 3}, CONFIG)


def test_a_task_tells_all_that_is_wrong_with_it(tmp_path: Path) -> None:
    job = RunDirectory(tmp_path)
    with pytest.raises(FileError, match=r"task\.json is missing"):
        Task.read(job, CONFIG)
    write_json(tmp_path / "task.json", {"judge": "../gru", "setting": {}, "settings": {"window": 0, "seed": "x"}})
    with pytest.raises(ConfigError) as caught:
        Task.read(job, CONFIG)
    assert [problem.split(": ", 1)[1] for problem in caught.value.problems] == [
        'unknown key "setting"; did you mean "settings"? (valid: judge, settings)',
        'judge: expected the id of another run of the study, or null, got "../gru"',
        "settings.window: expected a whole number of at least 1, got 0",
        'settings.seed: expected a whole number from 0 to 2^32 - 1, got "x"',
    ]
    for raw in ({"judge": tmp_path.name}, {"judge": ""}, {"judge": 3}, {"settings": []}):
        write_json(tmp_path / "task.json", raw)
        with pytest.raises(ConfigError):
            Task.read(job, CONFIG)


def test_a_task_without_a_judge(tmp_path: Path) -> None:
    write_json(tmp_path / "task.json", {"judge": None, "settings": {"window": 3}})
    task = Task.read(RunDirectory(tmp_path), CONFIG)
    assert task.judge is None
    assert task.settings.window == 3
    write_json(tmp_path / "task.json", {"judge": "gru-1234"})
    assert Task.read(RunDirectory(tmp_path), CONFIG).judge == "gru-1234"

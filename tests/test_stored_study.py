"""A study of version 0.1.0 is read by the code of today, and a launch leaves it alone.

``stored_study.zip`` holds two runs, of which one is done and the other was interrupted in its second epoch. Their ids
depend on the number of epochs, which no longer is part of a run's identity.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from seqlm.files import file_sha256
from tests import commands
from tests.training.studies import write_text

ROOT = Path(__file__).parent.parent
DONE, BEGUN = "rnn-adam-6c811f13", "gru-adam-29a165c5"

pytestmark = pytest.mark.process


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with zipfile.ZipFile(ROOT / "tests" / "stored_study.zip") as stored:
        stored.extractall(tmp_path)
    write_text(tmp_path / "text", train_lines=220)
    return tmp_path


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "SEQLM_DEVICE": "cpu"}
    return commands.run([sys.executable, str(ROOT / "launch.py"), *words], cwd=folder, env=env)


def test_a_study_of_an_earlier_version_is_read_and_a_launch_refuses_it_in_one_line(folder: Path) -> None:
    before = {path: file_sha256(path) for path in folder.rglob("*") if path.is_file()}
    for words in (["plan", "stored.toml"], ["run", "stored.toml"], ["behaviour", "stored"]):
        answer = command(folder, *words)
        assert answer.returncode == 2, answer.stderr
        (line,) = answer.stderr.splitlines()
        assert line.startswith("error: ")
        assert "its run ids are those of seqlm 0.2" in line
    assert {path: file_sha256(path) for path in folder.rglob("*") if path.is_file()} == before, "nothing is touched"
    states = json.loads(command(folder, "status", "stored", "--json").stdout)["data"]["runs"]
    assert {run["id"]: run["state"] for run in states} == {DONE: "done", BEGUN: "pending"}
    answer = command(folder, "report", "stored")
    assert answer.returncode == 0, answer.stderr
    assert "behaviour is left as it is: " in answer.stderr
    assert "gru-adam" in (folder / "runs" / "stored" / "report" / "report.md").read_text()

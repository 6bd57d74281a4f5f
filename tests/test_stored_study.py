"""A study that was begun by the code of November 2026 goes on with the code of today.

``stored_study.zip`` holds two runs of version 0.1.0, of which one is done and the other was interrupted in its second
epoch. Their text is that of :func:`tests.training.studies.write_text` with 220 lines.
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from seqlm.rundir import RunDirectory
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


def launch(folder: Path, *words: str) -> Any:
    env = {**os.environ, "SEQLM_DEVICE": "cpu"}
    answer = commands.run([sys.executable, str(ROOT / "launch.py"), *words, "--json"], cwd=folder, env=env)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return json.loads(answer.stdout)["data"]


def test_what_is_done_stays_done_and_what_is_begun_resumes_under_the_same_ids(folder: Path) -> None:
    planned = launch(folder, "plan", "stored.toml")["runs"]
    assert {run["id"]: run["action"] for run in planned} == {DONE: "skip", BEGUN: "resume"}
    done, begun = (RunDirectory(folder / "runs" / "stored" / name) for name in (DONE, BEGUN))
    result, first_epochs = done.result_file.read_bytes(), begun.metrics_file.read_bytes()
    assert first_epochs
    launch(folder, "run", "stored.toml")
    assert {run["id"]: run["state"] for run in launch(folder, "status", "stored")["runs"]} == {
        DONE: "done",
        BEGUN: "done",
    }
    assert done.result_file.read_bytes() == result
    assert begun.metrics_file.read_bytes().startswith(first_epochs)
    assert [record["epoch"] for record in begun.read_metrics()[0]] == list(range(6))
    assert begun.attempts() == [1, 2]
    launch(folder, "report", "stored", "--no-behaviour")
    assert "gru-adam" in (folder / "runs" / "stored" / "report" / "report.md").read_text()

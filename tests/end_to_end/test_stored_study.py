"""What the code of today does with a stored study, and with one of an earlier version.

The zip file holds two runs, of which one is done and the other was interrupted in its second epoch. Their text is that
of :func:`tests.seqlm.training.studies.write_text` with 220 lines.
"""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from analysis.study.study import load_study
from seqlm.errors import UsageError
from seqlm.files import file_sha256
from seqlm.rundir import RunDirectory
from tests import commands
from tests.crawl import blank_figures
from tests.seqlm.training.studies import write_text

ROOT = Path(__file__).parents[2]
DONE, BEGUN = "rnn-adam-62c3f298", "gru-adam-564fcc06"

pytestmark = pytest.mark.process


def unpack(folder: Path) -> Path:
    with zipfile.ZipFile(ROOT / "tests" / "end_to_end" / "stored_study.zip") as stored:
        stored.extractall(folder)
    write_text(folder / "text", train_lines=220)
    return folder


def digests(folder: Path) -> dict[Path, str]:
    """Of all files but the lock, which a launch takes before it looks."""
    return {path: file_sha256(path) for path in folder.rglob("*") if path.is_file() and path.parent.name != "launcher"}


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **blank_figures(), "SEQLM_DEVICE": "cpu"}
    return commands.run([sys.executable, str(ROOT / "launch.py"), *words], cwd=folder, env=env)


def launch(folder: Path, *words: str) -> Any:
    answer = command(folder, *words, "--json")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return json.loads(answer.stdout)["data"]


def test_what_is_done_stays_done_and_what_is_begun_resumes_under_the_same_ids(tmp_path: Path) -> None:
    folder = unpack(tmp_path)
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


def test_a_study_of_an_earlier_version_is_refused_in_one_line_by_every_command(tmp_path: Path) -> None:
    folder = unpack(tmp_path)
    record = folder / "runs" / "stored" / "study.json"
    record.write_text(record.read_text().replace('"version": 2', '"version": 1'))
    before = digests(folder)
    for words in (["plan", "stored.toml"], ["run", "stored.toml"], ["behaviour", "stored"], ["status", "stored.toml"]):
        answer = command(folder, *words)
        assert answer.returncode == 2, answer.stderr
        (line,) = answer.stderr.splitlines()
        assert line.startswith("error: runs/stored: written by seqlm 0.2 or before; version 0.2.0 reads it; ")
    with pytest.raises(UsageError, match=r"version 0\.2\.0 reads it"):
        load_study(folder / "runs" / "stored")
    assert digests(folder) == before, "nothing is touched"

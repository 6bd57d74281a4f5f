"""What the processes of a chaos study are made to believe; a shim that did nothing would make the loop say nothing."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from tests import commands
from tests.chaos.study import Lab

pytestmark = pytest.mark.process


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab.create(tmp_path / "lab", few=True, epochs=1, lines=20)


def in_lab(lab: Lab, program: str, *words: str) -> str:
    argv = [sys.executable, "-c", program, *words]
    answer = commands.run(argv, env=lab.env())
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def test_the_clock_of_a_study_is_set_back_while_a_process_runs(lab: Lab) -> None:
    program = """
import sys, time
from datetime import UTC, datetime
before = time.time(), datetime.now(UTC), time.monotonic()
open(sys.argv[1], "w").write('{"back_seconds": 7200}')
time.sleep(0.2)
after = time.time(), datetime.now(UTC), time.monotonic()
print(after[0] - before[0], (after[1] - before[1]).total_seconds(), after[2] > before[2])
"""
    seconds, more, monotonic = in_lab(lab, program, str(lab.shim / "control.json")).split()
    assert -7200 < float(seconds) < -6600
    assert -7200 < float(more) < -6600
    assert monotonic == "True"


def test_a_folder_that_another_process_has_made_is_listed_late(lab: Lab) -> None:
    runs = lab.folder / "runs"
    runs.mkdir()
    lab.control(lag_seconds=3600.0, below=str(runs))
    in_lab(lab, "import sys, pathlib; pathlib.Path(sys.argv[1]).mkdir()", str(runs / "0001"))
    look = """
import os, sys, pathlib
runs = pathlib.Path(sys.argv[1])
(runs / "0002").mkdir()
print(os.listdir(runs), [e.name for e in os.scandir(runs)], [p.name for p in runs.glob("0*")], (runs / "0001").is_dir())
"""
    own = "['0002']"
    assert in_lab(lab, look, str(runs)) == f"{own} {own} {own} True", "its own folder is seen, the other by name alone"
    made = [json.loads(line) for line in (lab.shim / "made.jsonl").read_text().splitlines()]
    assert all(entry["at"] <= time.monotonic() for entry in made)
    lab.control(lag_seconds=0.0, below=str(runs))
    assert in_lab(lab, "import os, sys; print(len(os.listdir(sys.argv[1])))", str(runs)) == "2"

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


TRY = """
import errno, os, sys, time, pathlib

def of(action):
    try:
        return action()
    except OSError as error:
        return errno.errorcode[error.errno]

folder = pathlib.Path(sys.argv[1])
"""


@pytest.fixture
def folder(lab: Lab) -> Path:
    folder = lab.folder / "study"
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").write_text("old")
    return folder


def test_files_of_a_study_are_stale_and_others_are_not(lab: Lab, folder: Path) -> None:
    lab.control(stale_share=1.0, below=str(folder))
    look = """
print(of((folder / "one/file").read_text), of(lambda: open(folder / "one/file").read()),
      of(lambda: os.open(folder / "one/file", os.O_RDONLY)), (folder.parent / "chaos.toml").stat().st_size > 0,
      len((folder.parent / "chaos.toml").read_text()) > 0, of(lambda: (folder / "one/new").write_text("new")))
"""
    assert in_lab(lab, TRY + look, str(folder)) == "ESTALE ESTALE ESTALE True True 3"


def test_the_files_of_one_run_fail(lab: Lab, folder: Path) -> None:
    lab.control(failing=str(folder / "one"), below=str(folder))
    look = """
print(of((folder / "one/file").read_text), of(lambda: (folder / "one/new").write_text("new")),
      of(lambda: (folder / "two/file").replace(folder / "one/other")), of((folder / "two/file").read_text))
"""
    assert in_lab(lab, TRY + look, str(folder)) == "EIO EIO EIO old"


def test_a_quota_is_told_when_a_file_is_closed_and_half_of_it_is_lost(lab: Lab, folder: Path) -> None:
    lab.control(quota=True, below=str(folder))
    look = """
print(of(lambda: (folder / "one/text").write_text("12345678")), of(lambda: (folder / "one/bytes").write_bytes(b"1234")))
print(of(lambda: (folder.parent / "outside").write_text("12345678")), (folder / "one/file").read_text())
"""
    assert in_lab(lab, TRY + look, str(folder)).split() == ["EDQUOT", "EDQUOT", "8", "old"]
    assert ((folder / "one" / "text").read_text(), (folder / "one" / "bytes").read_text()) == ("1234", "12")


def test_slow_files_take_their_time(lab: Lab, folder: Path) -> None:
    lab.control(slow_seconds=0.2, below=str(folder))
    look = 'began = time.monotonic(); (folder / "one/file").read_text(); print(time.monotonic() - began)'
    assert float(in_lab(lab, TRY + look, str(folder))) >= 0.2


def test_what_another_process_has_put_in_place_is_seen_late(lab: Lab, folder: Path) -> None:
    lab.control(rename_lag_seconds=3600.0, below=str(folder))
    put = """
for name in ("file", "fresh"):
    (folder / "two/beside").write_text("new")
    (folder / "two/beside").replace(folder / "one" / name)
"""
    look = """
print(of((folder / "one/file").read_text), of((folder / "one/fresh").read_text), (folder / "one/fresh").exists(),
      (folder / "one/file").stat().st_size, sorted(os.listdir(folder / "one")))
"""
    assert in_lab(lab, TRY + put + look, str(folder)) == "new new True 3 ['file', 'fresh']", "what it has done itself"
    assert in_lab(lab, TRY + look, str(folder)) == "old ENOENT False 3 ['file']"
    lab.control(below=str(folder))
    assert in_lab(lab, TRY + look, str(folder)) == "new new True 3 ['file', 'fresh']"

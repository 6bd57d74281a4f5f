"""What the processes of a chaos study are made to believe; a shim that did nothing would make the loop say nothing."""

import sys
from pathlib import Path
from typing import Any

import pytest

from tests import commands
from tests.chaos.study import Lab

pytestmark = pytest.mark.process

TRY = """
import errno, json, os, sys, time, pathlib
from datetime import UTC, datetime
import lies

def of(action):
    try:
        return action()
    except OSError as error:
        return errno.errorcode[error.errno]

def reads(path):
    return of((folder / path).read_text)

def writes(path):
    return of(lambda: (folder / path).write_text("12345678"))

def replaces(path):
    (folder / "two/beside").write_text("new")
    return of(lambda: (folder / "two/beside").replace(folder / path))

def control(record):
    (pathlib.Path(os.environ["SEQLM_TEST_CHAOS"]) / "control.json").write_text(json.dumps(record))
    while lies.control() != record:
        time.sleep(0.01)

folder = pathlib.Path(sys.argv[1])
"""
LISTED = "[e.name for e in os.scandir(folder)], sorted(os.listdir(folder))"


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab.create(tmp_path / "lab", few=True, epochs=1, lines=20)


@pytest.fixture
def folder(lab: Lab) -> Path:
    folder = lab.folder / "study"
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").write_text("old")
    return folder


def in_lab(lab: Lab, folder: Path, program: str) -> str:
    answer = commands.run([sys.executable, "-c", TRY + program, str(folder)], env=lab.env())
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


CONTROLS: list[tuple[dict[str, Any], str, str]] = [
    (
        {"stale_share": 1.0},
        "reads('one/file'), of(lambda: os.open(folder / 'one/file', os.O_RDONLY)), writes('one/new')",
        "ESTALE ESTALE 8",
    ),
    (
        {"failing": "one"},
        "reads('one/file'), writes('one/new'), replaces('one/other'), reads('two/file')",
        "EIO EIO EIO old",
    ),
    (
        {"quota": True},
        "writes('one/text'), writes('../outside'), (folder / 'one/text').stat().st_size, reads('one/file')",
        "EDQUOT 8 4 old",
    ),
    ({"slow_seconds": 0.2}, "(now := time.monotonic(), reads('one/file'), time.monotonic() - now >= 0.2)[2]", "True"),
    ({"back_seconds": 7200}, "time.time() - FIRST < -6600, datetime.now(UTC).timestamp() - FIRST < -6600", "True True"),
]
"""What is in ``control.json``, what a process tries then, and what comes of it."""


def test_what_a_control_makes_of_a_process(lab: Lab, folder: Path) -> None:
    program = "FIRST = time.time()\n"
    for control, shown, _ in CONTROLS:
        record = {**control, "below": str(folder), **({"failing": str(folder / "one")} if "failing" in control else {})}
        program += f"control({record!r})\nprint({shown})\n"
    assert in_lab(lab, folder, program).splitlines() == [expected for _, _, expected in CONTROLS]


def test_what_another_process_has_made_or_put_in_place_is_seen_late(lab: Lab, folder: Path) -> None:
    late = {"lag_seconds": 3600.0, "rename_lag_seconds": 3600.0, "below": str(folder)}
    lab.control(**late)
    make = "(folder / 'three').mkdir(), replaces('one/file'), replaces('one/fresh');"
    look = "print(reads('one/file'), reads('one/fresh'), sorted(os.listdir(folder / 'one')))"
    look += f"; print({LISTED}, (folder / 'three').is_dir())"
    own = in_lab(lab, folder, make + look)
    other = in_lab(lab, folder, look)
    lab.control(below=str(folder))
    later = in_lab(lab, folder, look)
    for said, content, names in ((own, "new new", True), (other, "old ENOENT", False), (later, "new new", True)):
        assert said.startswith(content)
        assert ("fresh" in said, said.count("'three'")) == (names, 2 if names else 0)
        assert said.endswith("True"), "by its name it is there"

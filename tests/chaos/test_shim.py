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
        {"failing": "one"},
        "reads('one/file'), writes('one/new'), replaces('one/other'), reads('two/file')",
        "EIO EIO EIO old",
    ),
    (
        {"quota": True},
        "writes('one/text'), writes('../outside'), (folder / 'one/text').stat().st_size, reads('one/file')",
        "EDQUOT 8 4 old",
    ),
    ({"back_seconds": 7200}, "time.time() - FIRST < -6600, datetime.now(UTC).timestamp() - FIRST < -6600", "True True"),
]
"""What is in ``control.json``, what a process tries then, and what comes of it."""


def test_what_a_control_makes_of_a_process(lab: Lab, folder: Path) -> None:
    program = "FIRST = time.time()\n"
    for control, shown, _ in CONTROLS:
        record = {**control, "below": str(folder), **({"failing": str(folder / "one")} if "failing" in control else {})}
        program += f"control({record!r})\nprint({shown})\n"
    assert in_lab(lab, folder, program).splitlines() == [expected for _, _, expected in CONTROLS]

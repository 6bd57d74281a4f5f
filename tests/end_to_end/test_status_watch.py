"""`status --watch` as a command."""

import codecs
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import launch
from seqlm.files import write_json
from seqlm.rundir import RunDirectory
from tests import commands
from tests.facts import owned
from tests.seqlm.training.studies import make_config, make_run
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path / "study" / "one-00000001", make_config())


@pytest.fixture
def running(run: RunDirectory) -> Iterator[RunDirectory]:
    run.attempt_dir(1).mkdir(parents=True)
    with owned(run):
        yield run


def watch(study: Path, *, term: str) -> tuple[subprocess.Popen[str], int]:
    """The command on a terminal of its own; returns it with the other end of that terminal."""
    here, there = pty.openpty()
    process = commands.start(
        [sys.executable, ROOT / "launch.py", "status", study, "--watch"],
        stdin=there,
        stdout=there,
        env={**os.environ, "TERM": term, "COLUMNS": "80", "LINES": "24"},
    )
    os.close(there)
    return process, here


def read_until(terminal: int, text: str) -> str:
    seen, decoder = "", codecs.getincrementaldecoder("utf-8")()

    def read() -> str:
        nonlocal seen
        if select.select([terminal], [], [], 0)[0]:
            seen += decoder.decode(os.read(terminal, 65536))
        return seen

    return wait_for(read, f"{text!r} on the terminal", until=lambda seen: text in seen)


@pytest.mark.process
@pytest.mark.parametrize(("term", "is_redrawn"), [("xterm", True), ("dumb", False)])
def test_watching_ends_with_the_last_run_and_a_dumb_terminal_gets_lines(
    running: RunDirectory, term: str, is_redrawn: bool
) -> None:
    process, terminal = watch(running.path.parent, term=term)
    seen = read_until(terminal, "1 running")
    write_json(running.result_file, {})
    seen += read_until(terminal, "1 done")
    commands.finish(process)
    assert process.returncode == 0
    assert ("\x1b" in seen) == is_redrawn
    os.close(terminal)


@pytest.mark.process
def test_ctrl_c_ends_watching_with_130_and_gives_the_cursor_back(running: RunDirectory) -> None:
    process, terminal = watch(running.path.parent, term="xterm")
    read_until(terminal, "1 running")
    process.send_signal(signal.SIGINT)
    read_until(terminal, "\x1b[?25h")
    _, stderr = commands.finish(process)
    assert process.returncode == 130
    assert stderr == "error: interrupted\n"
    os.close(terminal)


def test_watching_a_study_that_is_over_in_a_pipe_is_one_line(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(run.result_file, {})
    assert launch.main(["status", str(run.path.parent), "--watch"]) == 0
    assert capsys.readouterr().out == "study: 1 done\n"


def test_ways_of_showing_that_exclude_each_other_are_one_clear_line(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["status", str(run.path.parent), "--watch", "--json"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--watch" in line
